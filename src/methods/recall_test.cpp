#include "methods/recall.h"

#include <gtest/gtest.h>

#include "site_fixture.h"

namespace winnow {
namespace {

using test::computed;
using test::ref_ops;
using test::SiteFixture;

// Blocks and columns at random, the diagonal among them; two lists of heads.
Selection some_selection(int32_t n_head, int32_t n_rows, int32_t n_k) {
  Selection selection;
  selection.n_head = n_head;
  selection.n_block_q = (n_rows + 63) / 64;
  selection.block_ptr.push_back(0);
  selection.column_ptr.push_back(0);
  for (int32_t list = 0; list < n_head * selection.n_block_q; ++list) {
    const int32_t own = (n_k - n_rows + list % selection.n_block_q * 64) / 64 * 64;
    selection.column.push_back(list % 3);
    if (own >= 64) selection.block_begin.push_back(own - 60);
    selection.block_begin.push_back(own + 4);
    selection.block_ptr.push_back(static_cast<int32_t>(selection.block_begin.size()));
    selection.column_ptr.push_back(static_cast<int32_t>(selection.column.size()));
  }
  return selection;
}

double mass(SiteFixture& fixture, const Selection& selection, int32_t row, int32_t head) {
  const std::vector<double> p = fixture.probabilities(row, head);
  const std::vector<bool> mask = computed(selection, fixture, row, head);
  double sum = 0;
  for (size_t slot = 0; slot < p.size(); ++slot) sum += mask[slot] ? p[slot] : 0;
  return sum;
}

TEST(Recall, IsTheMassOfTheSelectedSlots) {
  for (const int32_t n_q : {150, 64}) {
    for (const int32_t n_head_list : {1, 4}) {
      SiteFixture fixture({.n_q = n_q, .n_k = 150, .n_head = 4, .n_head_kv = 2}, 11);
      const Selection selection = some_selection(n_head_list, n_q, 150);
      double sum = 0;
      for (int32_t row = 0; row < n_q; ++row) {
        for (int32_t head = 0; head < 4; ++head) sum += mass(fixture, selection, row, head);
      }
      const Recall recall = sample_recall(fixture.site(ref_ops()), selection, 1000);
      EXPECT_EQ(recall.n, n_q * 4);
      EXPECT_NEAR(recall.sum, sum, 1e-3);
      EXPECT_LT(recall.sum, static_cast<double>(recall.n));
    }
  }
}

TEST(Recall, SamplesRowsEvenlyUpToTheLast) {
  SiteFixture fixture({.n_q = 150, .n_k = 200}, 12);
  const Selection selection = some_selection(1, 150, 200);
  double sum = 0;
  for (const int32_t row : {49, 99, 149}) {
    for (int32_t head = 0; head < 2; ++head) sum += mass(fixture, selection, row, head);
  }
  const Recall recall = sample_recall(fixture.site(ref_ops()), selection, 3);
  EXPECT_EQ(recall.n, 6);
  EXPECT_NEAR(recall.sum, sum, 1e-4);
}

TEST(Recall, EverythingKeepsEverything) {
  SiteFixture fixture({.n_q = 10, .n_k = 10}, 13);
  const Recall recall = sample_recall(fixture.site(ref_ops()), {}, 4);
  EXPECT_EQ(recall.n, 8);
  EXPECT_EQ(recall.sum, 8);
}

TEST(Recall, FollowsARaggedCache) {
  SiteFixture fixture({.n_q = 70, .n_k = 200, .n_head = 2, .n_head_kv = 2}, 14);
  std::vector<int32_t> kept = {0, 5, 9};
  for (int32_t slot = 130; slot < 200; ++slot) kept.push_back(slot);
  fixture.keep(1, kept);
  const Selection selection = some_selection(2, 70, 73);
  double sum = 0;
  for (int32_t row = 0; row < 70; ++row) {
    for (int32_t head = 0; head < 2; ++head) sum += mass(fixture, selection, row, head);
  }
  const Recall recall = sample_recall(fixture.site(ref_ops()), selection, 70);
  EXPECT_NEAR(recall.sum, sum, 1e-3);
}

}  // namespace
}  // namespace winnow
