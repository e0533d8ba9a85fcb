// What tests of selectors ask of a fixture: the method's selection, checked; the lists as sets; queries and keys for
// plain formulas.
#pragma once

#include <gtest/gtest.h>

#include <set>

#include "site_fixture.h"

namespace winnow::test {

/// What the method of a spec selects for the fixture's rows; the lists are as attention/types.h promises.
inline Selection select(const std::string& text, SiteFixture& fixture) {
  const Site site = fixture.site(ref_ops());
  Selection selection = make_method(text, fixture.method_shape()).selector->select(site);
  EXPECT_EQ(malformed(selection, site), "") << text;
  return selection;
}

/// The key blocks of one list that holds nothing else, all of which begin at multiples of their size.
inline std::set<int> blocks_of(const Selection& selection, int32_t head, int32_t block) {
  std::set<int> blocks;
  const auto list = static_cast<size_t>(selection.list(head, block));
  for (int32_t i = selection.block_ptr[list]; i < selection.block_ptr[list + 1]; ++i) {
    const int32_t begin = selection.block_begin[static_cast<size_t>(i)];
    EXPECT_EQ(begin % selection.block_k, 0);
    blocks.insert(begin / selection.block_k);
  }
  EXPECT_EQ(selection.column_ptr[list], selection.column_ptr[list + 1]);
  return blocks;
}

/// The rows of one query head. -> [n_q][head_dim]
inline std::vector<std::vector<double>> queries(SiteFixture& fixture, int32_t head) {
  std::vector<std::vector<double>> q;
  for (int32_t row = 0; row < fixture.shape().n_q; ++row) {
    const float* at = fixture.query(row, head);
    q.emplace_back(at, at + fixture.shape().head_dim);
  }
  return q;
}

/// The slots of one kv head. -> [n_slots][head_dim]
inline std::vector<std::vector<double>> keys(SiteFixture& fixture, int32_t kv) {
  std::vector<std::vector<double>> k;
  for (int32_t slot = 0; slot < fixture.n_slots(kv); ++slot) {
    const float* at = fixture.key(kv, slot);
    k.emplace_back(at, at + fixture.shape().head_dim);
  }
  return k;
}

}  // namespace winnow::test
