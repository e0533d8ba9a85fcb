// The reference itself, against results worked out by hand.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "attention/lists.h"
#include "kernels/ref/attention.h"

namespace winnow {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Float cache of one kv head whose slots are added one by one.
struct Cache {
  explicit Cache(int32_t dim) : head_dim(dim) {}

  void add(const std::vector<float>& k, const std::vector<float>& v) {
    if (n_slots % kBlockSlots == 0) {
      const auto bytes = static_cast<size_t>(kBlockSlots * head_dim) * sizeof(float);
      k_blocks.emplace_back(bytes);
      v_blocks.emplace_back(bytes);
    }
    const size_t row = static_cast<size_t>(head_dim) * sizeof(float);
    std::memcpy(k_blocks.back().data() + row * static_cast<size_t>(n_slots % kBlockSlots), k.data(), row);
    std::memcpy(v_blocks.back().data() + row * static_cast<size_t>(n_slots % kBlockSlots), v.data(), row);
    ++n_slots;
  }

  KvView view() {
    k_at.clear();
    v_at.clear();
    for (const auto& block : k_blocks) k_at.push_back(block.data());
    for (const auto& block : v_blocks) v_at.push_back(block.data());
    head = {k_at, v_at, n_slots, nullptr, nullptr};
    return {Type::f32, Type::f32, head_dim, {&head, 1}};
  }

  int32_t head_dim;
  int32_t n_slots = 0;
  std::vector<std::vector<std::byte>> k_blocks, v_blocks;
  std::vector<const std::byte*> k_at, v_at;
  KvHead head;
};

// The worked example of skip-softmax: two rows, tiles of two keys, values 1..8. Our tiles hold 64 keys, so each pair is
// followed by keys that only a third dimension of the queries, worth -1000, would see.
class SkipSoftmax : public testing::Test {
 protected:
  static constexpr std::array<std::array<float, 8>, 2> kLogits{
      {{2, 0, 1, -4, -5, -6, 3, -7}, {1, .5, -6, -7, -4.5, -8, -5, -6}}};

  SkipSoftmax() : cache_(3) {
    for (size_t i = 0; i < 8; ++i) {
      cache_.add({kLogits[0][i], kLogits[1][i], 0}, {static_cast<float>(i + 1), 0, 0});
      if (i % 2 == 0) continue;
      for (int pad = 0; pad < kVoteSlots - 2; ++pad) cache_.add({0, 0, 1}, {0, 0, 0});
    }
  }

  std::array<float, 2> run(double lambda) {
    std::vector<float> q{1, 0, -1000, 0, 1, -1000};
    std::vector<float> o(6);
    const std::vector<int32_t> limit(2, cache_.n_slots - 1);
    const auto skip = static_cast<float>(std::log(lambda));
    counts_ = {};
    ref::attend({.q = {q.data(), 2, 1, 3, 3},
                 .kv = cache_.view(),
                 .limit = limit.data(),
                 .skip = &skip,
                 .o = {o.data(), 2, 1, 3, 3},
                 .lse = lse_.data(),
                 .counts = &counts_});
    return {o[0], o[3]};
  }

  /// Tiles that the last run dropped.
  int64_t dropped() const { return (counts_.permitted - counts_.computed) / (2 * kVoteSlots); }

  Cache cache_;
  std::array<float, 2> lse_{};
  AttnCounts counts_;
};

TEST_F(SkipSoftmax, OfTheWorkedExample) {
  struct Case {
    double lambda;
    int64_t dropped;
    float o0, o1, l0, l1;  // l relative to the final maximum, 3 and 1
  };
  const std::vector<Case> cases{{0, 0, 5.06935F, 1.40088F, 1.55442F, 1.61538F},
                                {0.002, 0, 5.06935F, 1.40088F, 1.55442F, 1.61538F},
                                {0.005, 1, 5.06929F, 1.39140F, 1.55396F, 1.61117F},
                                {0.05, 1, 5.06929F, 1.39140F, 1.55396F, 1.61117F},
                                {0.5, 2, 5.26751F, 1.38995F, 1.41771F, 1.60992F}};
  for (const Case& c : cases) {
    const auto o = run(c.lambda);
    EXPECT_EQ(dropped(), c.dropped) << "lambda " << c.lambda;
    EXPECT_NEAR(o[0], c.o0, 2e-5) << "lambda " << c.lambda;
    EXPECT_NEAR(o[1], c.o1, 2e-5) << "lambda " << c.lambda;
    EXPECT_NEAR(lse_[0], 3 + std::log(c.l0), 2e-5) << "lambda " << c.lambda;
    EXPECT_NEAR(lse_[1], 1 + std::log(c.l1), 2e-5) << "lambda " << c.lambda;
  }
}

class Small : public testing::Test {
 protected:
  // Keys of one dimension: logits equal keys for a query of 1. Slot j has the value 2^j.
  Small() : cache_(1) {
    for (int j = 0; j < 6; ++j) cache_.add({0}, {static_cast<float>(1 << j)});
  }

  float row(AttnArgs args, int32_t limit) {
    float q = 1;
    float o = -1;
    args.q = {&q, 1, 1, 1, 1};
    args.o = {&o, 1, 1, 1, 1};
    if (args.kv.heads.empty()) args.kv = cache_.view();
    args.limit = &limit;
    args.lse = &lse_;
    args.counts = &counts_;
    counts_ = {};
    ref::attend(args);
    return o;
  }

  Cache cache_;
  float lse_ = 0;
  AttnCounts counts_;
};

TEST_F(Small, SeesUpToItsLimit) {
  EXPECT_FLOAT_EQ(row({}, 2), (1 + 2 + 4) / 3.0F);
  EXPECT_FLOAT_EQ(lse_, std::log(3.0F));
  EXPECT_EQ(counts_.permitted, 3);
  EXPECT_EQ(counts_.computed, 3);
  EXPECT_FLOAT_EQ(row({}, 100), 63 / 6.0F);
}

TEST_F(Small, SeesNothing) {
  EXPECT_EQ(row({}, -1), 0);
  EXPECT_EQ(lse_, -kInfinity);
  EXPECT_EQ(counts_.permitted, 0);
}

TEST_F(Small, SeesItsWindow) {
  EXPECT_FLOAT_EQ(row({.window = 2}, 3), (4 + 8) / 2.0F);
  EXPECT_EQ(counts_.permitted, 2);
  EXPECT_FLOAT_EQ(row({.window = 1}, 3), 8);
}

TEST_F(Small, MeasuresPositionsNotSlots) {
  const std::vector<int32_t> idx{0, 3, 4, 9, 10, 30};
  KvView kv = cache_.view();
  cache_.head.idx = idx.data();
  EXPECT_FLOAT_EQ(row({.kv = kv}, 9), (1 + 2 + 4 + 8) / 4.0F);
  EXPECT_FLOAT_EQ(row({.kv = kv, .window = 6}, 9), (4 + 8) / 2.0F);
}

TEST_F(Small, CapsBeforeTheBias) {
  cache_.add({1000}, {64});
  const std::vector<float> bias{0, 0, 0, 0, 0, std::log(3.0F), 0};
  KvView kv = cache_.view();
  cache_.head.bias = bias.data();
  // Weights 1, 1, 1, 1, 1, 3 and, of the last slot, exp(2 tanh(500)).
  const float capped = std::exp(2.0F);
  EXPECT_FLOAT_EQ(row({.kv = kv, .softcap = 2}, 6), (31 + 3 * 32 + capped * 64) / (8 + capped));
}

TEST_F(Small, ReadsWhatIsSelected) {
  for (int j = 6; j < 200; ++j) cache_.add({0}, {0});
  const Selection selection{.block_q = 64,
                            .block_k = 64,
                            .n_head = 1,
                            .n_block_q = 2,
                            .block_ptr = {0, 1, 3},
                            .block_begin = {0, 5, 100},
                            .column_ptr = {0, 0, 2},
                            .column = {1, 3}};
  EXPECT_FLOAT_EQ(row({.selection = &selection}, 199), 63 / 64.0F);
  EXPECT_FLOAT_EQ(row({.selection = &selection, .first_row = 64}, 199), (32 + 2 + 8) / 130.0F);
  EXPECT_EQ(counts_.permitted, 200);
  EXPECT_EQ(counts_.computed, 130);
  EXPECT_FLOAT_EQ(row({.selection = &selection, .first_row = 64}, 5), (32 + 2 + 8) / 3.0F);
}

TEST_F(Small, ListsMayShareColumns) {
  for (int j = 6; j < 200; ++j) cache_.add({0}, {0});
  HeadLists lists;
  lists.column = {1, 3, 5};
  lists.end_block(0, 1);
  lists.block_begin = {100};
  lists.end_block(0, 3);
  lists.column.push_back(2);
  lists.end_block(3, 4);
  const Selection selection = join_lists({&lists, 1}, 64, 64);
  EXPECT_EQ(selection.column, (std::vector<int32_t>{1, 3, 5, 2}));
  EXPECT_FLOAT_EQ(row({.selection = &selection}, 199), 2);
  EXPECT_FLOAT_EQ(row({.selection = &selection, .first_row = 64}, 199), (2 + 8 + 32) / 67.0F);
  EXPECT_FLOAT_EQ(row({.selection = &selection, .first_row = 128}, 199), 4);
}

TEST(Merge, OfDisjointPartsIsTheirUnion) {
  std::vector<float> a{2, 4};
  std::vector<float> a_lse{std::log(3.0F), -kInfinity};  // row 0: mass 3; row 1 saw nothing
  std::vector<float> b{10, 8};
  const std::vector<float> b_lse{std::log(1.0F), 0.5F};
  ref::merge({a.data(), 2, 1, 1, 1}, a_lse.data(), {{b.data(), 2, 1, 1, 1}, b_lse.data()}, 1);
  EXPECT_FLOAT_EQ(a[0], (3 * 2 + 10) / 4.0F);
  EXPECT_FLOAT_EQ(a_lse[0], std::log(4.0F));
  EXPECT_FLOAT_EQ(a[1], 8);
  EXPECT_FLOAT_EQ(a_lse[1], 0.5F);
}

TEST(Merge, ScalesTheOthersMass) {
  float a = 2;
  float lse = 0;
  float b = 10;
  const float b_lse = 0;
  ref::merge({&a, 1, 1, 1, 1}, &lse, {{&b, 1, 1, 1, 1}, &b_lse}, 3);
  EXPECT_FLOAT_EQ(a, 32 / 4.0F);
  EXPECT_FLOAT_EQ(lse, std::log(4.0F));
  ref::merge({&a, 1, 1, 1, 1}, &lse, {{&b, 1, 1, 1, 1}, &b_lse}, 0);
  EXPECT_FLOAT_EQ(a, 32 / 4.0F);
}

}  // namespace
}  // namespace winnow
