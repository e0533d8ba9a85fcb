// Every op of the CPU device against ref: per instruction set that this machine has, over odd sizes and row counts.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/ref/ref_device.h"
#include "kernels/rows.h"

namespace winnow {
namespace {

std::vector<std::string> available_isas() {
  std::vector<std::string> isas;
  for (const char* isa : {"portable", "avx2", "avx512", "amx", "neon"}) {
    try {
      lower_features(machine_features(), isa);
      isas.emplace_back(isa);
    } catch (const Error&) {  // this machine has no such thing
    }
  }
  return isas;
}

std::vector<float> random_values(size_t n, uint32_t seed, float spread = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> values(n);
  for (float& v : values) v = normal(random);
  return values;
}

/// The same values as a matrix of each device.
struct Pair {
  Pair(Device& cpu, Device& ref, int64_t rows, int64_t cols, uint32_t seed, float spread = 1)
      : on_cpu(cpu.scratch(rows, cols)), on_ref(ref.scratch(rows, cols)) {
    const auto values = random_values(static_cast<size_t>(rows * cols), seed, spread);
    cpu.upload(on_cpu, values.data());
    ref.upload(on_ref, values.data());
  }
  Scratch on_cpu, on_ref;
};

double mean_square(Mat x) {
  double sum = 0;
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) sum += static_cast<double>(x.row(r)[c]) * x.row(r)[c];
  }
  return sum / static_cast<double>(x.rows * x.cols);
}

/// Root mean square of the difference over that of `right`.
double relative_error(Mat left, Mat right) {
  double difference = 0;
  for (int64_t r = 0; r < left.rows; ++r) {
    for (int64_t c = 0; c < left.cols; ++c) {
      const double d = static_cast<double>(left.row(r)[c]) - right.row(r)[c];
      difference += d * d;
    }
  }
  EXPECT_TRUE(std::isfinite(difference));
  const double size = mean_square(right);
  return std::sqrt(difference / static_cast<double>(left.rows * left.cols) / (size == 0 ? 1 : size));
}

class CpuDeviceTest : public testing::TestWithParam<std::string> {
 protected:
  RefDevice ref{2};
  CpuDevice cpu{2, lower_features(machine_features(), GetParam())};
};

TEST_P(CpuDeviceTest, RowOps) {
  double worst = 0;
  for (const int64_t rows : {1, 2, 5, 64, 257}) {
    for (const int64_t cols : {1, 3, 16, 31, 64, 127, 576, 1536}) {
      const auto seed = static_cast<uint32_t>(rows * 10000 + cols);
      const auto weight = random_values(static_cast<size_t>(cols), seed + 1);
      Pair x(cpu, ref, rows, cols, seed + 2, 3);
      Pair y(cpu, ref, rows, cols, seed + 3);
      const auto check = [&](const Pair& pair, const char* op) {
        const double error = relative_error(pair.on_cpu, pair.on_ref);
        EXPECT_LT(error, 2e-6) << op << " rows " << rows << " cols " << cols;
        worst = std::max(worst, error);
      };
      cpu.rms_norm(x.on_cpu, weight.data(), 1e-6F, y.on_cpu);
      ref.rms_norm(x.on_ref, weight.data(), 1e-6F, y.on_ref);
      check(y, "rms_norm");
      for (const Gate kind : {Gate::silu, Gate::gelu_tanh}) {
        cpu.gated(x.on_cpu, y.on_cpu, kind, y.on_cpu);
        ref.gated(x.on_ref, y.on_ref, kind, y.on_ref);
        check(y, "gated");
      }
      cpu.add(x.on_cpu, y.on_cpu);
      ref.add(x.on_ref, y.on_ref);
      check(x, "add");
      cpu.add_bias(x.on_cpu, weight.data());
      ref.add_bias(x.on_ref, weight.data());
      check(x, "add_bias");
      cpu.scale_softcap(x.on_cpu, 5);
      ref.scale_softcap(x.on_ref, 5);
      check(x, "softcap");
    }
  }
  std::printf("%s: worst relative error of row ops %.1e\n", GetParam().c_str(), worst);
}

TEST_P(CpuDeviceTest, ExtremeActivationsStayFinite) {
  const std::vector<float> values = {-1e30F, -1000, -90, -1e-30F, 0, 1e-30F, 90, 1000, 1e15F};
  const auto n = static_cast<int64_t>(values.size());
  for (const Gate kind : {Gate::silu, Gate::gelu_tanh}) {
    Pair x(cpu, ref, 1, n, 1);
    Pair up(cpu, ref, 1, n, 2);
    cpu.upload(x.on_cpu, values.data());
    ref.upload(x.on_ref, values.data());
    cpu.gated(x.on_cpu, up.on_cpu, kind, x.on_cpu);
    ref.gated(x.on_ref, up.on_ref, kind, x.on_ref);
    for (int64_t i = 0; i < n; ++i) {
      const float expected = x.on_ref->data[i];
      EXPECT_NEAR(x.on_cpu->data[i], expected, 1e-6F * std::abs(expected) + 1e-5F) << values[static_cast<size_t>(i)];
    }
  }
}

TEST_P(CpuDeviceTest, HeadsAndRope) {
  for (const int32_t head_dim : {16, 64, 80, 128, 256}) {
    for (const int64_t rows : {1, 7, 65}) {
      for (const bool neox : {true, false}) {
        const int32_t n_rot = head_dim == 80 ? 48 : head_dim;
        const auto weight = random_values(static_cast<size_t>(head_dim), 7);
        std::vector<float> frequency(static_cast<size_t>(n_rot / 2));
        for (size_t i = 0; i < frequency.size(); ++i) {
          frequency[i] = std::pow(10000.0F, -static_cast<float>(2 * i) / static_cast<float>(n_rot));
        }
        std::vector<int32_t> position(static_cast<size_t>(rows));
        for (size_t i = 0; i < position.size(); ++i) position[i] = static_cast<int32_t>(i * 509);
        Pair x(cpu, ref, rows, 3 * head_dim, 11);
        cpu.rms_norm_heads(x.on_cpu->heads(head_dim), weight.data(), 1e-6F);
        ref.rms_norm_heads(x.on_ref->heads(head_dim), weight.data(), 1e-6F);
        const RopeArgs args{head_dim, n_rot, neox, 1.2F, frequency.data()};
        cpu.rope(x.on_cpu->heads(head_dim), args, position);
        ref.rope(x.on_ref->heads(head_dim), args, position);
        EXPECT_LT(relative_error(x.on_cpu, x.on_ref), 1e-6) << head_dim << " " << rows << " " << neox;
      }
    }
  }
}

TEST_P(CpuDeviceTest, StoresAndLoadsSlots) {
  constexpr int32_t kHeadDim = 96;
  constexpr int32_t kHeads = 3;
  for (const Type type : {Type::f32, Type::f16, Type::bf16, Type::q8_0, Type::fp8}) {
    const size_t bytes = kv_block_bytes(type, kHeadDim);
    const auto k_block = cpu.allocate(2 * bytes * kHeads);
    const auto v_block = cpu.allocate(2 * bytes * kHeads);
    Pair k(cpu, ref, kBlockSlots, kHeads * kHeadDim, 5);
    Pair v(cpu, ref, kBlockSlots, kHeads * kHeadDim, 6);
    // Rows go to the slots from 5 on, the last ones into a second block; each head has its own two.
    constexpr int32_t kFirst = 5;
    std::vector<std::byte*> k_at, v_at;
    for (size_t i = 0; i < 2 * kHeads; ++i) {
      k_at.push_back(k_block.get() + i * bytes);
      v_at.push_back(v_block.get() + i * bytes);
    }
    std::vector<KvTarget> target;
    for (size_t h = 0; h < kHeads; ++h) {
      target.push_back({std::span(k_at).subspan(2 * h, 2), std::span(v_at).subspan(2 * h, 2), kFirst});
    }
    cpu.store_kv(k.on_cpu->heads(kHeadDim), v.on_cpu->heads(kHeadDim), type, type, target);
    const double bound = type == Type::f32 ? 0 : type == Type::f16 ? 4e-4 : type == Type::fp8 ? 4e-2 : 1e-2;
    std::vector<float> values(kHeadDim);
    for (int32_t row = 0; row < kBlockSlots; ++row) {
      for (int32_t h = 0; h < kHeads; ++h) {
        const KvTarget& to = target[static_cast<size_t>(h)];
        const auto block = static_cast<size_t>((kFirst + row) / kBlockSlots);
        const int32_t slot = (kFirst + row) % kBlockSlots;
        for (const bool value : {false, true}) {
          const Mat source = value ? v.on_ref : k.on_ref;
          Mat expected{source.row(row) + static_cast<int64_t>(h) * kHeadDim, 1, kHeadDim, kHeadDim};
          cpu.load_slot(value ? to.v[block] : to.k[block], type, kHeadDim, slot, values.data());
          EXPECT_LE(relative_error({values.data(), 1, kHeadDim, kHeadDim}, expected), bound);
          ref.load_slot(value ? to.v[block] : to.k[block], type, kHeadDim, slot, values.data());
          EXPECT_LE(relative_error({values.data(), 1, kHeadDim, kHeadDim}, expected), bound);
        }
      }
    }
    cpu.store_slot(k_block.get(), type, kHeadDim, 3, values.data());
    std::vector<float> again(kHeadDim);
    cpu.load_slot(k_block.get(), type, kHeadDim, 3, again.data());
    EXPECT_LE(relative_error({again.data(), 1, kHeadDim, kHeadDim}, {values.data(), 1, kHeadDim, kHeadDim}), 1e-2);
  }
}

/// A weight of random values in one of the file's types, with its storage.
struct RandomWeight {
  RandomWeight(Type type, int64_t n_out, int64_t n_in, uint32_t seed) {
    const auto values = random_values(static_cast<size_t>(n_out * n_in), seed);
    const size_t row_bytes = type_bytes(type, n_in);
    bytes.resize(static_cast<size_t>(n_out) * row_bytes);
    for (int64_t r = 0; r < n_out; ++r) {
      encode_row_plain(type, values.data() + r * n_in, bytes.data() + static_cast<size_t>(r) * row_bytes, n_in);
    }
    weight = {"random", type, n_out, n_in, bytes.data()};
  }
  std::vector<std::byte> bytes;
  Weight weight;
};

constexpr Type kWeightTypes[] = {Type::f32,  Type::f16,  Type::bf16, Type::q4_0, Type::q4_1, Type::q5_0,
                                 Type::q5_1, Type::q8_0, Type::q4_K, Type::q5_K, Type::q6_K};

TEST_P(CpuDeviceTest, EmbedsAndGathers) {
  for (const Type type : kWeightTypes) {
    const RandomWeight table(type, 9, 512, 3);
    const std::vector<int32_t> tokens = {8, 0, 3, 3, 7};
    Pair x(cpu, ref, 5, 512, 1);
    cpu.embed(table.weight, tokens, 22.6F, x.on_cpu);
    ref.embed(table.weight, tokens, 22.6F, x.on_ref);
    EXPECT_EQ(relative_error(x.on_cpu, x.on_ref), 0) << type_info(type).name;
    Pair picked(cpu, ref, 2, 512, 2);
    cpu.gather_rows(x.on_cpu, std::vector<int32_t>{4, 1}, picked.on_cpu);
    EXPECT_EQ(relative_error(picked.on_cpu->slice(0, 1), x.on_ref->slice(4, 1)), 0);
    EXPECT_EQ(relative_error(picked.on_cpu->slice(1, 1), x.on_ref->slice(1, 1)), 0);
  }
}

TEST_P(CpuDeviceTest, ProductsOfFewRows) {
  for (const Type type : kWeightTypes) {
    double worst = 0;
    for (const int64_t n_out : {1, 65, 300}) {
      for (const int64_t n_in : {96, 256, 768}) {
        if (n_in % type_info(type).block_values != 0) continue;
        const RandomWeight w(type, n_out, n_in, 17);
        const auto bias = random_values(static_cast<size_t>(n_out), 5);
        for (const int64_t rows : {1, 2, 5, 16}) {
          Pair x(cpu, ref, rows, n_in, static_cast<uint32_t>(rows));
          Pair y(cpu, ref, rows, n_out, 1);
          cpu.linear(w.weight, x.on_cpu, y.on_cpu, bias.data());
          ref.linear(w.weight, x.on_ref, y.on_ref, bias.data());
          // Against the size that such sums have: a single one may come out near zero.
          const double size = std::sqrt(mean_square(y.on_ref) / static_cast<double>(n_in));
          worst = std::max(worst, relative_error(y.on_cpu, y.on_ref) * size);
        }
      }
    }
    // Activations in 8 bits, a scale for each 32 or 256 values.
    EXPECT_LT(worst, type == Type::f32 ? 1e-5 : 0.02) << type_info(type).name;
    std::printf("%s: %s few rows, worst relative error %.1e\n", GetParam().c_str(),
                std::string(type_info(type).name).c_str(), worst);
  }
}

TEST_P(CpuDeviceTest, SeveralProductsOfOneInputEqualSingleOnes) {
  const RandomWeight a(Type::q4_K, 100, 512, 1);
  const RandomWeight b(Type::q5_0, 33, 512, 2);
  const RandomWeight c(Type::q6_K, 257, 512, 3);
  Pair x(cpu, ref, 3, 512, 4);
  const Weight* const weights[] = {&a.weight, &b.weight, &c.weight};
  const Scratch together[] = {cpu.scratch(3, 100), cpu.scratch(3, 33), cpu.scratch(3, 257)};
  const Mat ys[] = {together[0], together[1], together[2]};
  cpu.linear_many(weights, x.on_cpu, ys, {});
  for (size_t i = 0; i < 3; ++i) {
    const Scratch alone = cpu.scratch(3, weights[i]->n_out);
    cpu.linear(*weights[i], x.on_cpu, alone, nullptr);
    EXPECT_EQ(relative_error(ys[i], alone), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, CpuDeviceTest, testing::ValuesIn(available_isas()),
                         [](const auto& isa) { return isa.param; });

TEST(CpuFeatures, UnknownAndMissingLevelsAreRefused) {
  EXPECT_THROW(lower_features({}, "sse9"), Error);
  EXPECT_THROW(lower_features({}, "avx2"), Error);
  EXPECT_THROW(lower_features({}, "amx"), Error);
  CpuFeatures all;
  all.avx2 = all.avx512 = all.avx512_vnni = all.amx_int8 = true;
  EXPECT_FALSE(lower_features(all, "avx512").amx_int8);
  EXPECT_TRUE(lower_features(all, "avx512").avx512_vnni);
  EXPECT_FALSE(lower_features(all, "avx2").avx512);
  EXPECT_FALSE(lower_features(all, "portable").avx2);
}

TEST(MakeDevice, NamesWhatThereIs) {
  EXPECT_EQ(make_device("cpu", 1)->name(), "cpu");
  EXPECT_EQ(make_device("ref", 1)->name(), "ref");
  EXPECT_EQ(make_device("cpu", 3)->n_threads(), 3);
  EXPECT_THROW(make_device("gpu", 1), Error);
  EXPECT_THROW(make_device("cpu", -1), Error);
}

TEST(HostDevice, CountsWhatItHolds) {
  const auto device = make_device("cpu", 1);
  const int64_t before = device->memory().held();
  {
    const auto block = device->allocate(1000);
    EXPECT_GE(device->memory().held(), before + 1000);
  }
  EXPECT_EQ(device->memory().held(), before);
  float* first = nullptr;
  {
    const Scratch scratch = device->scratch(100, 100);
    first = scratch->data;
  }
  const Scratch again = device->scratch(100, 100);
  EXPECT_EQ(again->data, first);
}

}  // namespace
}  // namespace winnow
