// The low-bit estimator: every kernel that this machine can run, and the verb on devices, against exact logits.
#include "kernels/cpu/low_bit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "attention/device.h"
#include "kernels/rows.h"

namespace winnow {
namespace {

std::vector<float> random_values(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

TEST(LowBitKernels, AllEqualThePlainOne) {
  for (const int32_t dim : {32, 64, 96, 128, 256}) {
    const size_t row_bytes = type_bytes(Type::q8_0, dim);
    const std::vector<float> keys = random_values(static_cast<size_t>(kBlockSlots * dim), 1);
    std::vector<std::byte> rows(row_bytes * kBlockSlots);
    const std::byte* row[kBlockSlots];
    for (int32_t j = 0; j < kBlockSlots; ++j) {
      std::byte* to = rows.data() + static_cast<size_t>(j) * row_bytes;
      encode_row_plain(Type::q8_0, keys.data() + j * dim, to, dim);
      row[j] = to;
    }
    std::vector<float> bias = random_values(kBlockSlots, 2);
    bias.back() = -std::numeric_limits<float>::infinity();
    for (const int32_t n_q : {1, 6, 7, 64}) {
      const std::vector<float> queries = random_values(static_cast<size_t>(n_q * dim), 3);
      const auto run = [&](const LowBitKernel& kernel) {
        const size_t bytes = kernel.query_bytes(dim);
        std::vector<std::byte> q(bytes * static_cast<size_t>(n_q));
        for (int32_t i = 0; i < n_q; ++i) {
          kernel.pack_query(queries.data() + i * dim, dim, q.data() + static_cast<size_t>(i) * bytes);
        }
        std::vector<float> logits(static_cast<size_t>(n_q * kBlockSlots)), largest(static_cast<size_t>(n_q));
        kernel.dot({row, dim, q.data(), n_q, bias.data(), logits.data(), nullptr});
        kernel.dot({row, dim, q.data(), n_q, bias.data(), nullptr, largest.data()});
        for (int32_t i = 0; i < n_q; ++i) {
          const auto begin = logits.begin() + i * kBlockSlots;
          EXPECT_EQ(largest[static_cast<size_t>(i)], *std::max_element(begin, begin + kBlockSlots));
        }
        return logits;
      };
      const std::vector<float> want = run(kLowBitPortable);
      for (int32_t i = 0; i < n_q; ++i) {
        for (int32_t j = 0; j + 1 < kBlockSlots; ++j) {
          double exact = bias[static_cast<size_t>(j)];
          for (int32_t d = 0; d < dim; ++d)
            exact += double{queries[static_cast<size_t>(i * dim + d)]} * double{keys[static_cast<size_t>(j * dim + d)]};
          EXPECT_NEAR(want[static_cast<size_t>(i * kBlockSlots + j)], exact, 0.04 * std::sqrt(dim));
        }
      }
      for (const LowBitKernel* kernel : cpu::low_bit_kernels(machine_features())) {
        if (dim % kernel->dim_step != 0) continue;
        const std::vector<float> got = run(*kernel);
        for (size_t i = 0; i < got.size(); ++i) {
          if (!std::isinf(want[i])) {
            EXPECT_NEAR(got[i], want[i], 1e-4 * std::sqrt(dim)) << dim << ' ' << n_q;
          }
        }
      }
    }
  }
}

// Keys and queries with means that are much larger than what varies, as those of models with biases are.
struct Case {
  Case(Device& device, int32_t dim, Type type)
      : n(200), q(device.scratch(50, 2 * dim)), values(random_values(static_cast<size_t>(n * dim), 5)) {
    std::vector<float> queries = random_values(static_cast<size_t>(100 * dim), 6);
    for (size_t i = 0; i < queries.size(); i += static_cast<size_t>(dim)) queries[i + 3] += 40;
    for (size_t i = 0; i < values.size(); i += static_cast<size_t>(dim)) {
      values[i + 3] -= 20;
      values[i + 5] += 60;
    }
    device.upload(q, queries.data());
    const size_t row_bytes = type_bytes(type, dim);
    stored.resize(256 * row_bytes);
    for (int32_t slot = 0; slot < n; ++slot) {
      std::byte* to = stored.data() + static_cast<size_t>(slot) * row_bytes;
      encode_row_plain(type, values.data() + slot * dim, to, dim);
      decode_row(type, to, values.data() + slot * dim, dim);  // what the cache holds is what counts
    }
    for (size_t block = 0; block < 4; ++block) blocks.push_back(stored.data() + block * kBlockSlots * row_bytes);
    head = {.k = blocks, .v = blocks, .n_slots = n};
    args = {.q = Mat(q).heads(dim), .kv = {type, type, dim, {&head, 1}}, .scale = 0.1F};
  }
  float exact(int64_t row, int32_t query_head, int32_t slot) const {
    const float* query = args.q.at(row, query_head);
    double sum = 0;
    for (int32_t d = 0; d < args.q.head_dim; ++d)
      sum += double{query[d]} * double{values[static_cast<size_t>(slot * args.q.head_dim + d)]};
    return static_cast<float>(0.1 * sum);
  }

  int32_t n;
  Scratch q;
  std::vector<float> values;
  std::vector<std::byte> stored;
  std::vector<const std::byte*> blocks;
  KvHead head;
  LowBitArgs args;
};

TEST(LowBitScores, EstimateEveryLogitUpToAConstantOfTheRow) {
  for (const char* name : {"cpu", "ref"}) {
    const auto device = make_device(name, 2);
    for (const int32_t dim : {24, 64, 128}) {
      for (const Type type : {Type::f32, Type::f16, Type::q8_0, Type::fp8}) {
        if (type == Type::q8_0 && dim % 32 != 0) continue;
        const Case c(*device, dim, type);
        const auto scores = device->low_bit_scores(c.args);
        HeadsView rows = c.args.q.rows(1, 25);
        rows.stride *= 2;  // every other row
        for (const int32_t head : {0, 1}) {
          std::vector<float> logits, largest;
          scores->score(rows, head, {10, 150, 1}, logits);
          scores->score(rows, head, {10, 150, kBlockSlots}, largest);
          ASSERT_EQ(logits.size(), 25U * 140);
          ASSERT_EQ(largest.size(), 25U * 3);
          for (int64_t r = 0; r < 25; ++r) {
            const float* got = logits.data() + r * 140;
            const float shift = c.exact(1 + 2 * r, head, 10) - got[0];
            for (int32_t j = 0; j < 140; ++j) {
              EXPECT_NEAR(got[j] + shift, c.exact(1 + 2 * r, head, 10 + j), 0.1) << name << ' ' << dim << ' ' << j;
            }
            for (int32_t b = 0; b < 3; ++b) {
              EXPECT_EQ(largest[static_cast<size_t>(r * 3 + b)],
                        *std::max_element(got + 64 * b, got + std::min(140, 64 * b + 64)));
            }
          }
        }
      }
    }
  }
}

TEST(LowBitScores, ReadAnEightBitCacheItself) {
  const auto device = make_device("cpu", 1);
  for (const Type type : {Type::q8_0, Type::f16, Type::fp8}) {
    Case c(*device, 64, type);
    const auto scores = device->low_bit_scores(c.args);
    std::vector<float> before, after;
    scores->score(c.args.q, 0, {0, c.n, 1}, before);
    std::fill(c.stored.begin(), c.stored.end(), std::byte{0});
    scores->score(c.args.q, 0, {0, c.n, 1}, after);
    EXPECT_EQ(before == after, type != Type::q8_0);
  }
}

TEST(LowBitScores, GoThroughTheSoftcapAndAddTheSlotsBias) {
  const auto device = make_device("cpu", 1);
  Case c(*device, 64, Type::f32);
  std::vector<float> plain, capped, biased;
  device->low_bit_scores(c.args)->score(c.args.q, 0, {0, c.n, 1}, plain);
  c.args.softcap = 5;
  device->low_bit_scores(c.args)->score(c.args.q, 0, {0, c.n, 1}, capped);
  c.args.softcap = 0;
  const std::vector<float> bias(static_cast<size_t>(c.n), 0.75F);
  c.head.bias = bias.data();
  device->low_bit_scores(c.args)->score(c.args.q, 0, {0, c.n, 1}, biased);
  for (size_t i = 0; i < plain.size(); ++i) {
    ASSERT_NEAR(capped[i], 5 * std::tanh(plain[i] / 5), 1e-4);
    ASSERT_NEAR(biased[i], plain[i] + 0.75, 1e-4);
  }
}

}  // namespace
}  // namespace winnow
