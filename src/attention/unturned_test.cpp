#include <gtest/gtest.h>

#include "selected.h"

namespace winnow {
namespace {

using test::keys;
using test::queries;
using test::ref_ops;
using test::SiteFixture;
using test::SiteShape;

constexpr float kFrequency[] = {1, 0.3F, 0.01F};

struct Case {
  SiteShape shape;
  RopeArgs rope;
  int32_t block;
  bool ragged;
};

const Case kCases[] = {
    {{.n_q = 200, .n_k = 200, .head_dim = 8}, {8, 6, true, 1, kFrequency}, 64, false},
    {{.n_q = 130, .n_k = 300, .head_dim = 6}, {6, 6, false, 1.3F, kFrequency}, 32, true},
    {{.n_q = 4200, .n_k = 4200, .n_head = 1, .head_dim = 8}, {8, 4, true, 1.1F, kFrequency}, 64, false},  // two pieces
    {{.n_q = 70, .n_k = 77, .head_dim = 8}, {8, 6, false, 1, kFrequency}, 1, false},
    {{.n_q = 65, .n_k = 65, .head_dim = 8}, {}, 64, false},  // no positions at all
};

TEST(Unturned, PoolsWhatWasThereBeforeRope) {
  for (const Case& one : kCases) {
    SCOPED_TRACE(one.shape.text());
    SiteFixture fixture(one.shape, 3);
    if (one.ragged) {
      std::vector<int32_t> kept;
      for (int32_t slot = 0; slot < one.shape.n_k; ++slot) {
        if (slot % 3 != 0 || slot >= one.shape.n_k - one.shape.n_q) kept.push_back(slot);
      }
      fixture.keep(0, kept);
    }
    const auto q = queries(fixture, one.shape.n_head - 1);
    const auto k = keys(fixture, 0);
    fixture.turn(one.rope);
    const Site site = fixture.site(ref_ops());
    const auto dim = static_cast<size_t>(one.shape.head_dim), block = static_cast<size_t>(one.block);
    std::vector<float> pooled;
    ref_ops().pool_unturned_queries({site.q, site.limit, site.kv, site.rope, one.block}, one.shape.n_head - 1, pooled);
    ASSERT_EQ(pooled.size(), (q.size() + block - 1) / block * dim);
    for (size_t i = 0; i < pooled.size(); ++i) {
      const size_t begin = i / dim * block, end = std::min(begin + block, q.size());
      double sum = 0;
      for (size_t row = begin; row < end; ++row) sum += q[row][i % dim];
      ASSERT_NEAR(pooled[i], sum / static_cast<double>(end - begin), 2e-5) << i;
    }
    ref_ops().pool_unturned_keys({site.q, site.limit, site.kv, site.rope, one.block}, 0, pooled);
    ASSERT_EQ(pooled.size(), (k.size() + block - 1) / block * 3 * dim);
    for (size_t i = 0; i < pooled.size(); ++i) {
      const size_t begin = i / (3 * dim) * block, end = std::min(begin + block, k.size());
      double most = -1e9, least = 1e9, sum = 0;
      for (size_t slot = begin; slot < end; ++slot) {
        most = std::max(most, k[slot][i % dim]);
        least = std::min(least, k[slot][i % dim]);
        sum += k[slot][i % dim];
      }
      const double want[] = {most, least, sum / static_cast<double>(end - begin)};
      ASSERT_NEAR(pooled[i], want[i / dim % 3], 2e-5) << i;
    }
  }
}

}  // namespace
}  // namespace winnow
