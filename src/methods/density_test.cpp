#include "methods/density.h"

#include <gtest/gtest.h>

#include <numeric>

#include "methods/pieces.h"
#include "site_fixture.h"

namespace winnow {
namespace {

using test::computed;
using test::ref_ops;
using test::SiteFixture;

/// Columns and blocks at random places, ascending and disjoint; a block on the diagonal.
Selection some_selection(int32_t n_head, int32_t n_rows, int32_t n_k, int32_t block_q) {
  Selection selection;
  selection.block_q = block_q;
  selection.n_head = n_head;
  selection.n_block_q = (n_rows + block_q - 1) / block_q;
  selection.block_ptr.push_back(0);
  selection.column_ptr.push_back(0);
  for (int32_t list = 0; list < n_head * selection.n_block_q; ++list) {
    const int32_t own = n_k - n_rows + list % selection.n_block_q * block_q;
    if (own > 90) {
      selection.column.push_back(list % 5);
      selection.column.push_back(own - 1);
      selection.block_begin.push_back(7 + list % 11);
    }
    selection.block_begin.push_back(own + list % 3);
    selection.block_ptr.push_back(static_cast<int32_t>(selection.block_begin.size()));
    selection.column_ptr.push_back(static_cast<int32_t>(selection.column.size()));
  }
  return selection;
}

TEST(Density, CountsWhatAMaskCounts) {
  for (const int32_t n_q : {1, 63, 150, 257}) {
    for (const int32_t n_head_list : {1, 4}) {
      SiteFixture fixture({.n_q = n_q, .n_k = 257, .n_head = 4, .n_head_kv = 2}, 3);
      if (n_q <= 150) {  // slots that were given up: positions are not slots any more
        std::vector<int32_t> kept(200);
        std::iota(kept.begin(), kept.end(), 57);
        fixture.keep(1, kept);
      }
      const Site site = fixture.site(ref_ops());
      const Selection selection = some_selection(n_head_list, n_q, n_q > 200 ? 257 : 200, n_q > 200 ? 128 : 64);
      const std::vector<AttnCounts> counts = count_selected(site, selection);
      ASSERT_EQ(counts.size(), 4U);
      int64_t sum = 0;
      for (int32_t head = 0; head < 4; ++head) {
        int64_t permitted = 0, selected = 0;
        for (int32_t row = 0; row < n_q; ++row) {
          const int32_t kv = fixture.kv_of(head);
          for (int32_t slot = 0; slot < fixture.n_slots(kv); ++slot) {
            permitted += fixture.position(kv, slot) <= fixture.limit(row) ? 1 : 0;
          }
          for (const bool there : computed(selection, fixture, row, head)) selected += there ? 1 : 0;
        }
        EXPECT_EQ(counts[static_cast<size_t>(head)].permitted, permitted);
        EXPECT_EQ(counts[static_cast<size_t>(head)].computed, selected);
        sum += selected;
      }
      AttnCounts attended;
      attend_site(site, &selection, nullptr, &attended);
      EXPECT_EQ(attended.computed, sum);
    }
  }
}

TEST(Density, EverythingIsWhatLimitsPermit) {
  SiteFixture fixture({.n_q = 100, .n_k = 150, .n_head = 2, .n_head_kv = 1}, 4);
  Site site = fixture.site(ref_ops());
  EXPECT_EQ(count_selected(site, {})[1].computed, 100 * 50 + 100 * 101 / 2);
  site.window = 10;
  EXPECT_EQ(count_selected(site, {})[0].permitted, 1000);
  EXPECT_EQ(count_selected(site, {})[0].density(), 1);
}

}  // namespace
}  // namespace winnow
