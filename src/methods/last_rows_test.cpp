#include "methods/last_rows.h"

#include <algorithm>

#include "methods/recall.h"
#include "selected.h"

namespace winnow {
namespace {

using test::computed;
using test::SiteFixture;

const test::SiteShape kShape = {.n_q = 300, .n_k = 400, .n_head = 2, .n_head_kv = 1, .head_dim = 16};

TEST(LastRows, BlocksThatHoldThemAreFullAndOthersAsBefore) {
  for (const char* text :
       {"xattention(threshold=0.4, block=64)", "xattention(threshold=0.4, block=128)", "zipvl(tau=0.6, all_rows=0)",
        "streaming_llm(sinks=4, window=64)", "dhsa(budget=256, sinks=64)"}) {
    SiteFixture fixture(kShape, 47);
    const Site site = fixture.site(test::ref_ops());
    const Selection without = test::select(text, fixture);
    const bool some = !without.rows.empty();
    for (const int n : {0, 1, 44, 45, 172, 299, 300, 100000}) {
      SCOPED_TRACE(fmt::format("{} last_rows={}", text, n));
      const Selection selection = with_full_rows(without, site, n);
      EXPECT_EQ(selection.everything(), !some && n > 300 - without.block_q);
      for (int32_t row = 0; row < kShape.n_q; ++row) {
        const int32_t block_end = std::min(kShape.n_q, (row / without.block_q + 1) * without.block_q);
        const bool full = row >= kShape.n_q - n || (!some && block_end > kShape.n_q - n);
        for (int32_t head = 0; head < kShape.n_head; ++head) {
          const std::vector<bool> got = computed(selection, fixture, row, head);
          const auto n_got = std::count(got.begin(), got.end(), true);
          if (full) {
            ASSERT_EQ(n_got, fixture.limit(row) + 1) << row;
          } else if (!some) {
            ASSERT_EQ(got, computed(without, fixture, row, head)) << row;
          }
        }
      }
    }
  }
}

// Of a chunk, only the rows that are among the prompt's last ones.
TEST(LastRows, OfAChunkAreThoseOfThePrompt) {
  SiteFixture fixture(kShape, 48);
  Site site = fixture.site(test::ref_ops());
  const Selection without = test::select("streaming_llm(sinks=4, window=64)", fixture);
  site.n_later = 100;
  EXPECT_EQ(with_full_rows(without, site, 100).full_from, without.full_from);
  EXPECT_EQ(with_full_rows(without, site, 101).full_from, 299 / without.block_q * without.block_q);
}

TEST(LastRows, KeepAllOfTheirAttention) {
  SiteFixture fixture(kShape, 49);
  const Site site = fixture.site(test::ref_ops());
  const Selection without = test::select("streaming_llm(sinks=4, window=64)", fixture);
  const Recall before = sample_recall(site, without, 300),
               after = sample_recall(site, with_full_rows(without, site, 128), 300);
  double want = before.sum;
  for (int32_t row = 128; row < 300; ++row) {
    if (row / without.block_q * without.block_q < 172 / without.block_q * without.block_q) continue;
    for (int32_t head = 0; head < kShape.n_head; ++head) {
      const std::vector<double> p = fixture.probabilities(row, head);
      const std::vector<bool> mask = computed(without, fixture, row, head);
      for (size_t slot = 0; slot < p.size(); ++slot) want += mask[slot] ? 0 : p[slot];
    }
  }
  EXPECT_NEAR(after.sum, want, 1e-3);
  EXPECT_GT(after.sum, before.sum + 1);
}

}  // namespace
}  // namespace winnow
