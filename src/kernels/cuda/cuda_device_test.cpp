// Every op of the CUDA device against ref, over odd sizes, float and bf16.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/cuda/gpu_fixture.h"
#include "kernels/ref/ref_device.h"
#include "kernels/rows.h"

namespace winnow {
namespace {

using test::GpuTest;
using test::random_values;

constexpr Type kBoth[] = {Type::f32, Type::bf16};

Scratch matrix(Device& device, Type type, int64_t rows, int64_t cols) {
  return type == Type::f32 ? device.scratch(rows, cols) : device.activations(rows, cols);
}

/// The same values as a matrix of each device; those of ref are rounded where the GPU's are bf16.
struct Pair {
  Pair(Device& gpu, Device& ref, Type type, int64_t rows, int64_t cols, uint32_t seed, float spread = 1)
      : Pair(gpu, ref, type, rows, cols, random_values(static_cast<size_t>(rows * cols), seed, spread)) {}
  Pair(Device& gpu, Device& ref, Type type, int64_t rows, int64_t cols, std::vector<float> values)
      : device(gpu), on_gpu(matrix(gpu, type, rows, cols)), on_ref(ref.scratch(rows, cols)) {
    if (type == Type::bf16) test::round_to_bf16(values);
    gpu.upload(on_gpu, values.data());
    ref.upload(on_ref, values.data());
  }

  /// Root mean square of the difference over that of ref's values.
  double error() const {
    std::vector<float> values(static_cast<size_t>(on_gpu->rows * on_gpu->cols));
    device.download(values.data(), on_gpu);
    double difference = 0, size = 0;
    for (int64_t r = 0; r < on_ref->rows; ++r) {
      for (int64_t c = 0; c < on_ref->cols; ++c) {
        const double expected = on_ref->row(r)[c];
        const double d = values[static_cast<size_t>(r * on_ref->cols + c)] - expected;
        difference += d * d;
        size += expected * expected;
      }
    }
    EXPECT_TRUE(std::isfinite(difference));
    return std::sqrt(difference / (size == 0 ? 1 : size));
  }

  Device& device;
  Scratch on_gpu, on_ref;
};

double bound(Type type) {
  return type == Type::f32 ? 2e-6 : 4e-3;  // bf16: results are rounded to 8 bits
}

class CudaOps : public GpuTest {
 protected:
  RefDevice ref{2};
};

TEST_F(CudaOps, UploadsAndDownloads) {
  for (const Type type : kBoth) {
    for (const int64_t rows : {1, 3, 1000}) {
      for (const int64_t cols : {1, 64, 65, 5000}) {
        EXPECT_EQ(Pair(device(), ref, type, rows, cols, 1).error(), 0) << rows << " " << cols;
      }
    }
  }
}

TEST_F(CudaOps, RowOps) {
  for (const Type type : kBoth) {
    for (const int64_t rows : {1, 2, 5, 64, 257}) {
      for (const int64_t cols : {1, 3, 16, 31, 64, 127, 576, 1536, 9000}) {
        SCOPED_TRACE(testing::Message() << type_info(type).name << " rows " << rows << " cols " << cols);
        const auto seed = static_cast<uint32_t>(rows * 10000 + cols);
        const auto weight = random_values(static_cast<size_t>(cols), seed + 1);
        const Pair x(device(), ref, Type::f32, rows, cols, seed + 2, 3);
        const Pair y(device(), ref, type, rows, cols, seed + 3);
        device().rms_norm(x.on_gpu, weight.data(), 1e-6F, y.on_gpu);
        ref.rms_norm(x.on_ref, weight.data(), 1e-6F, y.on_ref);
        EXPECT_LT(y.error(), bound(type)) << "rms_norm";
        for (const Gate kind : {Gate::silu, Gate::gelu_tanh}) {
          const Pair gate(device(), ref, type, rows, cols, seed + 4, 2), up(device(), ref, type, rows, cols, seed + 5);
          device().gated(gate.on_gpu, up.on_gpu, kind, gate.on_gpu);
          ref.gated(gate.on_ref, up.on_ref, kind, gate.on_ref);
          EXPECT_LT(gate.error(), bound(type)) << "gated";
        }
        const Pair z(device(), ref, type, rows, cols, seed + 6);
        device().add(x.on_gpu, z.on_gpu);
        ref.add(x.on_ref, z.on_ref);
        EXPECT_LT(x.error(), bound(Type::f32)) << "add";
        device().add_bias(z.on_gpu, weight.data());
        ref.add_bias(z.on_ref, weight.data());
        EXPECT_LT(z.error(), bound(type)) << "add_bias";
        device().scale_softcap(x.on_gpu, 5);
        ref.scale_softcap(x.on_ref, 5);
        EXPECT_LT(x.error(), bound(Type::f32)) << "softcap";
        device().rms_norm(z.on_gpu, weight.data(), 1e-6F, z.on_gpu);
        ref.rms_norm(z.on_ref, weight.data(), 1e-6F, z.on_ref);
        EXPECT_LT(z.error(), 2 * bound(type)) << "rms_norm in place";
      }
    }
  }
}

TEST_F(CudaOps, ExtremeActivationsStayFinite) {
  const std::vector<float> values = {-1e30F, -1000, -90, -1e-30F, 0, 1e-30F, 90, 1000, 1e15F};
  for (const Gate kind : {Gate::silu, Gate::gelu_tanh}) {
    const Pair x(device(), ref, Type::f32, 1, 9, values), up(device(), ref, Type::f32, 1, 9, 2);
    device().gated(x.on_gpu, up.on_gpu, kind, x.on_gpu);
    ref.gated(x.on_ref, up.on_ref, kind, x.on_ref);
    std::vector<float> got(9);
    device().download(got.data(), x.on_gpu);
    for (size_t i = 0; i < got.size(); ++i) {
      const float expected = x.on_ref->data[i];
      EXPECT_NEAR(got[i], expected, 1e-6F * std::abs(expected) + 1e-5F) << values[i];
    }
  }
}

/// Parameters are known by address on the GPU; another vector at the same address is noticed.
TEST_F(CudaOps, ParametersMayChange) {
  std::vector<float> bias(100, 1);
  for (int i = 0; i < 3; ++i) {
    bias[50] = static_cast<float>(i);
    const Pair x(device(), ref, Type::f32, 2, 100, 3);
    device().add_bias(x.on_gpu, bias.data());
    ref.add_bias(x.on_ref, bias.data());
    EXPECT_LT(x.error(), 1e-6);
  }
}

TEST_F(CudaOps, HeadsAndRope) {
  for (const Type type : kBoth) {
    for (const int32_t head_dim : {16, 64, 80, 128, 256}) {
      for (const int64_t rows : {1, 7, 300}) {
        for (const bool neox : {true, false}) {
          const int32_t n_rot = head_dim == 80 ? 48 : head_dim;
          const auto weight = random_values(static_cast<size_t>(head_dim), 7);
          std::vector<float> frequency(static_cast<size_t>(n_rot / 2));
          for (size_t i = 0; i < frequency.size(); ++i) {
            frequency[i] = std::pow(10000.0F, -static_cast<float>(2 * i) / static_cast<float>(n_rot));
          }
          std::vector<int32_t> position(static_cast<size_t>(rows));
          for (size_t i = 0; i < position.size(); ++i) position[i] = static_cast<int32_t>(i * 14009);  // beyond 2^22
          const Pair x(device(), ref, type, rows, 3 * head_dim, 11);
          device().rms_norm_heads(x.on_gpu->heads(head_dim), weight.data(), 1e-6F);
          ref.rms_norm_heads(x.on_ref->heads(head_dim), weight.data(), 1e-6F);
          const RopeArgs args{head_dim, n_rot, neox, 1.2F, frequency.data()};
          device().rope(x.on_gpu->heads(head_dim), args, position);
          ref.rope(x.on_ref->heads(head_dim), args, position);
          EXPECT_LT(x.error(), 2 * bound(type)) << head_dim << " " << rows << " " << neox;
        }
      }
    }
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

TEST_F(CudaOps, EmbedsAndGathers) {
  for (const Type type : kWeightTypes) {
    const RandomWeight table(type, 9, 512, 3);
    const std::vector<int32_t> tokens = {8, 0, 3, 3, 7};
    const Pair x(device(), ref, Type::f32, 5, 512, 1);
    device().embed(table.weight, tokens, 22.6F, x.on_gpu);
    ref.embed(table.weight, tokens, 22.6F, x.on_ref);
    EXPECT_LT(x.error(), 4e-3) << type_info(type).name;
    for (const Type to : kBoth) {
      const Pair from(device(), ref, to, 5, 512, 2), picked(device(), ref, to, 2, 512, 3);
      device().gather_rows(from.on_gpu, std::vector<int32_t>{4, 1}, picked.on_gpu);
      ref.gather_rows(from.on_ref, std::vector<int32_t>{4, 1}, picked.on_ref);
      EXPECT_EQ(picked.error(), 0);
    }
  }
}

/// Weights are rounded to bf16; against the size that such sums have.
void check_product(Device& gpu, Device& ref, const RandomWeight& w, int64_t rows, Type x_type, Type y_type) {
  const auto bias = random_values(static_cast<size_t>(w.weight.n_out), 5);
  const Pair x(gpu, ref, x_type, rows, w.weight.n_in, static_cast<uint32_t>(rows));
  const Pair y(gpu, ref, y_type, rows, w.weight.n_out, 1);
  gpu.linear(w.weight, x.on_gpu, y.on_gpu, bias.data());
  ref.linear(w.weight, x.on_ref, y.on_ref, bias.data());
  EXPECT_LT(y.error(), rows * w.weight.n_out < 16 ? 0.05 : 8e-3)
      << type_info(w.weight.type).name << " [" << rows << ", " << w.weight.n_in << "] to " << w.weight.n_out;
  if (y_type != Type::f32) return;
  gpu.linear_add(w.weight, x.on_gpu, y.on_gpu);
  ref.linear_add(w.weight, x.on_ref, y.on_ref);
  EXPECT_LT(y.error(), rows * w.weight.n_out < 16 ? 0.05 : 8e-3) << "added, [" << rows << ", " << w.weight.n_in << "]";
}

TEST_F(CudaOps, ProductsOfEveryType) {
  for (const Type type : kWeightTypes) {
    const RandomWeight w(type, 300, 768, 17);
    for (const int64_t rows : {1, 5, 40}) check_product(device(), ref, w, rows, Type::bf16, Type::bf16);
  }
}

TEST_F(CudaOps, ProductsOfEverySize) {
  for (const int64_t n_out : {1, 2, 65, 300, 1031}) {
    for (const int64_t n_in : {8, 100, 256, 1111, 5000}) {
      const RandomWeight w(Type::f32, n_out, n_in, 17);
      for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33}) {
        check_product(device(), ref, w, rows, Type::bf16, Type::f32);
      }
      check_product(device(), ref, w, 3, Type::f32, Type::bf16);
      check_product(device(), ref, w, 20, Type::f32, Type::f32);
    }
  }
}

TEST_F(CudaOps, SeveralProductsOfOneInputEqualSingleOnes) {
  const RandomWeight a(Type::q4_K, 100, 512, 1), b(Type::q5_0, 33, 512, 2), c(Type::q6_K, 257, 512, 3);
  const Weight* const weights[] = {&a.weight, &b.weight, &c.weight};
  const std::vector<float> first = random_values(100, 7), last = random_values(257, 8);
  const float* const biases[] = {first.data(), nullptr, last.data()};
  for (const int64_t rows : {1, 3, 30}) {
    const Pair x(device(), ref, Type::bf16, rows, 512, 4);
    const Scratch together[] = {device().scratch(rows, 100), device().scratch(rows, 33), device().scratch(rows, 257)};
    const Mat ys[] = {together[0], together[1], together[2]};
    device().linear_many(weights, x.on_gpu, ys, biases);
    for (size_t i = 0; i < 3; ++i) {
      const Scratch alone = device().scratch(rows, weights[i]->n_out);
      device().linear(*weights[i], x.on_gpu, alone, biases[i]);
      std::vector<float> one(static_cast<size_t>(rows * weights[i]->n_out)), other(one.size());
      device().download(one.data(), ys[i]);
      device().download(other.data(), alone);
      EXPECT_EQ(one, other);
    }
  }
}

TEST_F(CudaOps, FeedForwardsOfFewRows) {
  for (const int64_t n_ff : {1, 2, 7, 300, 1031}) {
    const RandomWeight gate(Type::bf16, n_ff, 512, 1), up(Type::bf16, n_ff, 512, 2), down(Type::bf16, 96, n_ff, 3);
    for (const Gate act : {Gate::silu, Gate::gelu_tanh}) {
      for (const int64_t rows : {1, 2, 3, 4}) {
        const Pair h(device(), ref, Type::bf16, rows, 512, 4), x(device(), ref, Type::f32, rows, 96, 5);
        const GatedWeights weights{&gate.weight, &up.weight, &down.weight, act};
        device().feed_forward_add(weights, h.on_gpu, x.on_gpu);
        ref.feed_forward_add(weights, h.on_ref, x.on_ref);
        EXPECT_LT(x.error(), n_ff < 16 ? 0.05 : 8e-3) << n_ff << " channels, " << rows << " rows";
      }
    }
  }
}

/// A row's product is the same in any small batch.
TEST_F(CudaOps, FewRowsDoNotTouchEachOther) {
  const RandomWeight w(Type::bf16, 77, 1000, 1);
  const Pair x(device(), ref, Type::bf16, 3, 1000, 4);
  const Scratch all = device().scratch(3, 77), one = device().scratch(1, 77);
  device().linear(w.weight, x.on_gpu, all, nullptr);
  for (int64_t row = 0; row < 3; ++row) {
    device().linear(w.weight, x.on_gpu->slice(row, 1), one, nullptr);
    std::vector<float> alone(77), together(77);
    device().download(alone.data(), one);
    device().download(together.data(), all->slice(row, 1));
    EXPECT_EQ(alone, together);
  }
}

/// Bit by bit what the format's reference makes of the same rows.
TEST_F(CudaOps, StoresSlots) {
  constexpr int32_t kHeadDim = 96, kHeads = 3, kRows = 100;
  for (const Type rows_type : kBoth) {
    for (const Type type : {Type::f32, Type::f16, Type::bf16, Type::q8_0, Type::fp8}) {
      const size_t bytes = kv_block_bytes(type, kHeadDim);
      Pair k(device(), ref, rows_type, kRows, kHeads * kHeadDim, 5),
          v(device(), ref, rows_type, kRows, kHeads * kHeadDim, 6);
      std::vector<std::shared_ptr<std::byte>> blocks;
      std::vector<std::byte*> at[2][kHeads];
      std::vector<KvTarget> target;
      for (int32_t h = 0; h < kHeads; ++h) {
        for (auto& side : at) {
          for (int b = 0; b < 3; ++b) side[h].push_back(blocks.emplace_back(device().allocate(bytes)).get());
        }
        target.push_back({at[0][h], at[1][h], 5 + 20 * h});
      }
      device().store_kv(k.on_gpu->heads(kHeadDim), v.on_gpu->heads(kHeadDim), type, type, target);
      std::vector<float> got(kHeadDim), expected(kHeadDim);
      std::vector<std::byte> row(type_bytes(type, kHeadDim));
      for (int32_t r = 0; r < kRows; ++r) {
        for (int32_t h = 0; h < kHeads; ++h) {
          const int32_t slot = 5 + 20 * h + r;
          for (int side = 0; side < 2; ++side) {
            const Mat source = side == 0 ? k.on_ref : v.on_ref;
            encode_row_plain(type, source.row(r) + h * kHeadDim, row.data(), kHeadDim);
            decode_row(type, row.data(), expected.data(), kHeadDim);
            device().load_slot(at[side][h][static_cast<size_t>(slot / kBlockSlots)], type, kHeadDim, slot % kBlockSlots,
                               got.data());
            ASSERT_EQ(got, expected) << type_info(type).name << " row " << r << " head " << h << " side " << side;
          }
        }
      }
      device().store_slot(blocks[0].get(), type, kHeadDim, 3, expected.data());
      device().load_slot(blocks[0].get(), type, kHeadDim, 3, got.data());
      EXPECT_EQ(got, expected);
    }
  }
}

/// What a call writes the next one may read, and freed blocks may be used again.
TEST_F(CudaOps, CopiesKeepTheirOrder) {
  constexpr size_t kBytes = 4096;
  std::vector<float> values(kBytes / sizeof(float));
  const auto slot = [&](const std::shared_ptr<std::byte>& block, float* to) {
    device().load_slot(block.get(), Type::f32, 64, 3, to);
  };
  std::iota(values.begin(), values.end(), 0.0F);
  auto a = device().allocate(kBytes), b = device().allocate(kBytes), c = device().allocate(kBytes);
  device().upload_bytes(a.get(), reinterpret_cast<const std::byte*>(values.data()), kBytes);
  const auto copy = [&](std::shared_ptr<std::byte>& to, const std::shared_ptr<std::byte>& from, size_t step) {
    std::vector<BytesCopy> copies;
    for (size_t i = 0; i < kBytes; i += step)
      copies.push_back({to.get() + i, from.get() + i, std::min(step, kBytes - i)});
    device().copy_bytes(copies);
  };
  copy(b, a, 68);
  a.reset();
  copy(c, b, 1);
  auto d = device().allocate(kBytes);  // perhaps where a was
  copy(d, c, kBytes);
  std::vector<float> got(64);
  for (const auto& block : {b, c, d}) {
    slot(block, got.data());
    EXPECT_EQ(got, std::vector<float>(values.begin() + 192, values.begin() + 256));
  }
}

TEST_F(CudaOps, CountsAndReusesMemory) {
  const int64_t before = device().memory().held();
  {
    std::vector<std::shared_ptr<std::byte>> blocks;
    blocks.reserve(10000);
    for (int i = 0; i < 10000; ++i) blocks.push_back(device().allocate(16384));
    EXPECT_EQ(device().memory().held(), before + 10000 * 16384);
  }
  EXPECT_EQ(device().memory().held(), before);
  float* first = nullptr;
  {
    const Scratch scratch = device().scratch(1000, 1000);
    first = scratch->data;
  }
  const Scratch again = device().scratch(1000, 1000);
  EXPECT_EQ(again->data, first);
  EXPECT_THROW(device().scratch(int64_t{1} << 20, int64_t{1} << 20), Error);
}

}  // namespace
}  // namespace winnow
