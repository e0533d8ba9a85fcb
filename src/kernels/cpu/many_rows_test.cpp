// Products of many rows against ref: every instruction set, odd sizes, threads; what is unpacked is counted and freed.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/decode.h"
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

std::vector<float> random_values(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& v : values) v = normal(random);
  return values;
}

struct StoredWeight {
  StoredWeight(Type type, int64_t n_out, int64_t n_in, const std::vector<float>& values) {
    const size_t row_bytes = type_bytes(type, n_in);
    bytes.resize(static_cast<size_t>(n_out) * row_bytes);
    for (int64_t r = 0; r < n_out; ++r) {
      encode_row_plain(type, values.data() + r * n_in, bytes.data() + static_cast<size_t>(r) * row_bytes, n_in);
    }
    weight = {"stored", type, n_out, n_in, bytes.data()};
  }
  StoredWeight(Type type, int64_t n_out, int64_t n_in, uint32_t seed)
      : StoredWeight(type, n_out, n_in, random_values(static_cast<size_t>(n_out * n_in), seed)) {}
  std::vector<std::byte> bytes;
  Weight weight;
};

/// y = x W^T as a vector; `many`: with the weight unpacked.
std::vector<float> product(Device& device, const Weight& weight, const std::vector<float>& x, bool many,
                           const float* bias = nullptr) {
  const auto rows = static_cast<int64_t>(x.size()) / weight.n_in;
  const Weight* const weights[] = {&weight};
  const auto guard = many ? device.unpack(weights) : nullptr;
  const Scratch in = device.scratch(rows, weight.n_in);
  const Scratch out = device.scratch(rows, weight.n_out);
  device.upload(in, x.data());
  device.linear(weight, in, out, bias);
  std::vector<float> y(static_cast<size_t>(rows * weight.n_out));
  device.download(y.data(), out);
  return y;
}

/// Root mean square of the difference over that of `right`.
double relative_error(const std::vector<float>& left, const std::vector<float>& right) {
  double difference = 0;
  double size = 0;
  for (size_t i = 0; i < left.size(); ++i) {
    difference += std::pow(static_cast<double>(left[i]) - right[i], 2);
    size += static_cast<double>(right[i]) * right[i];
  }
  EXPECT_TRUE(std::isfinite(difference));
  return std::sqrt(difference / size);
}

constexpr Type kTypes[] = {Type::f32,  Type::f16,  Type::bf16, Type::q4_0, Type::q4_1, Type::q5_0,
                           Type::q5_1, Type::q8_0, Type::q4_K, Type::q5_K, Type::q6_K};

class ManyRowsTest : public testing::TestWithParam<std::string> {
 protected:
  RefDevice ref{2};
  CpuDevice cpu{2, lower_features(machine_features(), GetParam())};
};

TEST_P(ManyRowsTest, EqualsRefOverShapesAndTypes) {
  double worst = 0;
  for (const Type type : kTypes) {
    for (const int64_t n_out : {24, 272}) {
      for (const int64_t n_in : {256, 768}) {
        const StoredWeight w(type, n_out, n_in, 3);
        const auto bias = random_values(static_cast<size_t>(n_out), 4);
        for (const int64_t rows : {4, 24, 65}) {
          const auto x = random_values(static_cast<size_t>(rows * n_in), static_cast<uint32_t>(rows));
          const auto y = product(cpu, w.weight, x, true, bias.data());
          const double error = relative_error(y, product(ref, w.weight, x, false, bias.data()));
          EXPECT_LT(error, 0.025) << type_info(type).name << " " << n_out << " " << n_in << " " << rows;
          worst = std::max(worst, error);
        }
      }
    }
  }
  std::printf("%s: many rows, worst relative error %.1e\n", GetParam().c_str(), worst);
}

TEST_P(ManyRowsTest, EveryRowCountAndOddWidths) {
  for (const int64_t n_in : {16, 48, 96, 192, 576, 896, 1536}) {  // blocks of 16, 16, 32, 64, 64, 128, up to 256
    const StoredWeight w(Type::f32, 33, n_in, 9);
    const auto x = random_values(static_cast<size_t>(257 * n_in), 2);
    const auto expected = product(ref, w.weight, x, false);
    const auto all = product(cpu, w.weight, x, true);
    EXPECT_LT(relative_error(all, expected), 0.025) << n_in;
    for (const int64_t rows : {4, 5, 6, 7, 11, 12, 13, 23, 25, 256}) {
      const std::vector<float> part(x.begin(), x.begin() + rows * n_in);
      const auto y = product(cpu, w.weight, part, true);
      ASSERT_EQ(0, std::memcmp(y.data(), all.data(), y.size() * sizeof(float))) << n_in << " " << rows;
    }
  }
}

// Inputs and weights whose energy lies in one value turn into blocks of equal size whose products all have one sign:
// the sums that come nearest to what 16 bits hold.
TEST_P(ManyRowsTest, OutliersThatMeetAreExact) {
  constexpr int64_t kIn = 256;
  std::vector<float> w(16 * kIn, 0.0F);
  std::vector<float> x(5 * kIn, 0.0F);
  for (int64_t r = 0; r < 16; ++r) w[static_cast<size_t>(r * kIn + 7 * r)] = r % 2 == 0 ? 3.0F : -3.0F;
  for (int64_t r = 0; r < 5; ++r) x[static_cast<size_t>(r * kIn + 7 * r)] = 1000.0F;
  const StoredWeight stored(Type::f32, 16, kIn, w);
  const auto y = product(cpu, stored.weight, x, true);
  EXPECT_LT(relative_error(y, product(ref, stored.weight, x, false)), 1e-5);
}

TEST_P(ManyRowsTest, ZerosStayZero) {
  const StoredWeight w(Type::f32, 16, 128, std::vector<float>(16 * 128, 0.0F));
  for (const float v : product(cpu, w.weight, random_values(8 * 128, 1), true)) EXPECT_EQ(v, 0.0F);
  const StoredWeight v(Type::f32, 16, 128, 5);
  for (const float y : product(cpu, v.weight, std::vector<float>(8 * 128, 0.0F), true)) EXPECT_EQ(y, 0.0F);
}

TEST_P(ManyRowsTest, ThreadsChangeNothing) {
  const StoredWeight w(Type::q4_K, 300, 512, 1);
  for (const bool many : {true, false}) {
    const auto x = random_values((many ? 150 : 3) * 512, 2);
    std::vector<float> first;
    for (const int n_threads : {1, 2, 3}) {
      CpuDevice device(n_threads, lower_features(machine_features(), GetParam()));
      const auto y = product(device, w.weight, x, many);
      if (first.empty()) first = y;
      EXPECT_EQ(0, std::memcmp(first.data(), y.data(), y.size() * sizeof(float))) << n_threads;
    }
  }
}

TEST_P(ManyRowsTest, WidthsWithoutBlockTakeTheOtherWay) {
  const StoredWeight w(Type::f32, 20, 33, 1);
  const auto x = random_values(9 * 33, 2);
  EXPECT_LT(relative_error(product(cpu, w.weight, x, true), product(ref, w.weight, x, false)), 1e-5);
}

TEST_P(ManyRowsTest, CountsWhatIsUnpackedAndUsesItAgain) {
  const StoredWeight a(Type::q5_0, 256, 512, 1);
  const StoredWeight b(Type::q4_K, 256, 512, 2);
  const Weight* const weights[] = {&a.weight, &b.weight};
  const int64_t before = cpu.memory().held();
  int64_t held = 0;
  {
    const auto guard = cpu.unpack(weights);
    held = cpu.memory().held() - before;
    EXPECT_GE(held, 2 * 256 * 512);
    EXPECT_LE(held, 2 * 256 * 512 * 3 / 2);
    const auto again = cpu.unpack(weights);  // the same weights
    EXPECT_EQ(cpu.memory().held() - before, held);
  }
  const StoredWeight c(Type::q5_K, 256, 512, 3);
  const StoredWeight d(Type::q4_1, 256, 512, 4);
  const Weight* const others[] = {&c.weight, &d.weight};
  const auto guard = cpu.unpack(others);  // of the same size: the next layer's go where the last one's stood
  EXPECT_EQ(cpu.memory().held() - before, held);
}

TEST_P(ManyRowsTest, SeveralWeightsOfOneInputEqualSingleOnes) {
  const StoredWeight a(Type::q4_K, 100, 512, 1);
  const StoredWeight b(Type::q5_0, 33, 512, 2);
  const auto values = random_values(70 * 512, 4);
  const Weight* const weights[] = {&a.weight, &b.weight};
  const auto guard = cpu.unpack(weights);
  const Scratch x = cpu.scratch(70, 512);
  cpu.upload(x, values.data());
  const Scratch together[] = {cpu.scratch(70, 100), cpu.scratch(70, 33)};
  const Mat ys[] = {together[0], together[1]};
  const auto bias = random_values(100, 5);
  for (const std::vector<const float*>& biases : {std::vector<const float*>{}, {bias.data(), nullptr}}) {
    cpu.linear_many(weights, x, ys, biases);
    for (size_t i = 0; i < 2; ++i) {
      std::vector<float> y(static_cast<size_t>(70 * weights[i]->n_out));
      cpu.download(y.data(), ys[i]);
      EXPECT_EQ(y, product(cpu, *weights[i], values, true, biases.empty() ? nullptr : biases[i]));
    }
  }
}

// Sums are added to what stands there without being written down; the order of additions may differ.
TEST_P(ManyRowsTest, WhatAddsEqualsProductAndAddition) {
  for (const auto& [n_ff, n_rows] : {std::pair(128, 4), {400, 7}, {1536, 65}, {4864, 70}}) {
    const StoredWeight gate(Type::q4_K, n_ff, 256, 1), up(Type::q5_0, n_ff, 256, 2), down(Type::f16, 97, n_ff, 3);
    const Weight* const weights[] = {&gate.weight, &up.weight, &down.weight};
    const auto guard = cpu.unpack(weights);
    const GatedWeights parts = {&gate.weight, &up.weight, &down.weight, Gate::silu};
    const auto values = random_values(static_cast<size_t>(n_rows) * 256, 4);
    const auto wide = random_values(static_cast<size_t>(n_rows * n_ff), 6);
    const auto start = random_values(static_cast<size_t>(n_rows) * 97, 7);
    const Scratch h = cpu.scratch(n_rows, 256), hidden = cpu.scratch(n_rows, n_ff), x = cpu.scratch(n_rows, 97);
    cpu.upload(h, values.data());
    cpu.upload(hidden, wide.data());
    const auto added_by = [&](const auto& work) {
      std::vector<float> sum(start.size());
      cpu.upload(x, start.data());
      work();
      cpu.download(sum.data(), x);
      return sum;
    };
    EXPECT_LT(relative_error(added_by([&] { cpu.linear_add(down.weight, hidden, x); }),
                             added_by([&] { cpu.Device::linear_add(down.weight, hidden, x); })),
              1e-6)
        << n_ff;
    const Scratch y = cpu.scratch(n_rows, 97);
    EXPECT_LT(relative_error(added_by([&] { cpu.feed_forward_add(parts, h, x); }), added_by([&] {
                               cpu.feed_forward(parts, h, y);
                               cpu.add(x, y);
                             })),
              1e-6)
        << n_ff;
  }
}

// The piecewise way writes nothing down, but computes the same as products and gate one after another.
TEST_P(ManyRowsTest, FeedForwardEqualsItsParts) {
  for (const auto& [n_ff, n_rows] : {std::pair(128, 4), {400, 7}, {1536, 65}, {4864, 300}}) {
    const StoredWeight gate(Type::q4_K, n_ff, 256, 1), up(Type::q5_0, n_ff, 256, 2), down(Type::f16, 96, n_ff, 3);
    const Weight* const weights[] = {&gate.weight, &up.weight, &down.weight};
    const auto guard = cpu.unpack(weights);
    const auto values = random_values(static_cast<size_t>(n_rows) * 256, 4);
    const Scratch x = cpu.scratch(n_rows, 256), got = cpu.scratch(n_rows, 96), want = cpu.scratch(n_rows, 96);
    cpu.upload(x, values.data());
    for (const Gate act : {Gate::silu, Gate::gelu_tanh}) {
      const GatedWeights parts = {&gate.weight, &up.weight, &down.weight, act};
      cpu.feed_forward(parts, x, got);
      cpu.Device::feed_forward(parts, x, want);
      std::vector<float> left(static_cast<size_t>(n_rows) * 96), right(left.size());
      cpu.download(left.data(), got);
      cpu.download(right.data(), want);
      EXPECT_EQ(left, right) << n_ff << " " << n_rows;
    }
  }
}

TEST_P(ManyRowsTest, DecodersEqualThePlainLoops) {
  const RowDecoder decoder = choose_decoder(lower_features(machine_features(), GetParam()));
  for (const Type type : kTypes) {
    const StoredWeight w(type, 1, 4096, 6);
    std::vector<float> expected(4096);
    std::vector<float> values(4096);
    decode_row(type, w.bytes.data(), expected.data(), 4096);
    decoder(type, w.bytes.data(), values.data(), 4096);
    EXPECT_LT(relative_error(values, expected), 1e-6) << type_info(type).name;
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, ManyRowsTest, testing::ValuesIn(available_isas()),
                         [](const auto& isa) { return isa.param; });

}  // namespace
}  // namespace winnow
