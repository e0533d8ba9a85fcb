// The lists of a Selection while they are written.
//
// Selections count in slots. In a cache that nothing was evicted from, slots are positions; after an eviction a
// distance between tokens is the number of slots between them.
#pragma once

#include <algorithm>
#include <iterator>
#include <span>
#include <vector>

#include "attention/types.h"
#include "base/error.h"

namespace winnow {

/// How many leading slots of `head` stand at `limit` or before it.
inline int32_t visible_slots(const KvHead& head, int32_t limit) {
  if (head.idx == nullptr) return std::clamp(limit + 1, 0, head.n_slots);
  return static_cast<int32_t>(std::upper_bound(head.idx, head.idx + head.n_slots, limit) - head.idx);
}

inline int32_t ceil_div(int64_t a, int64_t b) {
  return static_cast<int32_t>((a + b - 1) / b);
}

/// Shares of attention's mass, of rows or blocks of rows that a method looked at.
struct MassEstimate {
  double sum = 0;
  int64_t n = 0;
  void add(double share) {
    sum += std::clamp(share, 0.0, 1.0);
    ++n;
  }
};

/// The lists of one query head, written query block by query block: push entries, then end_block().
struct HeadLists {
  std::vector<int32_t> block_ptr{0}, block_begin, column_ptr{0}, column;
  std::vector<int32_t> column_end;  // of each query block; see Selection
  MassEstimate kept{};              // what the lists hold, where their author has an estimate

  void end_block() { end_block(column_ptr.back(), static_cast<int32_t>(column.size())); }
  /// The query block's columns are [begin, end) of those that were ever pushed.
  void end_block(int32_t begin, int32_t end) {
    block_ptr.push_back(static_cast<int32_t>(block_begin.size()));
    column_ptr.back() = begin;
    column_end.push_back(end);
    column_ptr.push_back(static_cast<int32_t>(column.size()));
  }
};

/// The slots [0, n_first) exactly, and [begin, end) covered by blocks that begin at multiples of `block`.
inline void push_sinks_and_window(HeadLists& lists, int32_t n_first, int32_t begin, int32_t end, int32_t block) {
  const int32_t window_begin = begin / block * block;
  const int32_t sink_end = std::min(n_first, window_begin);
  const int32_t whole = sink_end / block * block;
  for (int32_t slot = 0; slot < whole; slot += block) lists.block_begin.push_back(slot);
  for (int32_t slot = whole; slot < sink_end; ++slot) lists.column.push_back(slot);
  for (int32_t slot = window_begin; slot < end; slot += block) lists.block_begin.push_back(slot);
}

/// One Selection of the lists of all heads, or of a single list that all heads share. Its estimated mass is the mean of
/// those heads that have an estimate.
inline Selection join_lists(std::span<const HeadLists> heads, int32_t block_q, int32_t block_k) {
  Selection selection;
  selection.block_q = block_q;
  selection.block_k = block_k;
  selection.n_head = static_cast<int32_t>(heads.size());
  selection.n_block_q = static_cast<int32_t>(heads.front().block_ptr.size()) - 1;
  selection.block_ptr.push_back(0);
  MassEstimate kept;
  for (const HeadLists& head : heads) {
    if (head.kept.n > 0) kept.add(head.kept.sum / static_cast<double>(head.kept.n));
    WINNOW_ASSERT(static_cast<int32_t>(head.block_ptr.size()) - 1 == selection.n_block_q);
    const auto append = [](std::vector<int32_t>& to, auto begin, auto end, size_t offset) {
      std::transform(begin, end, std::back_inserter(to), [=](int32_t at) { return at + static_cast<int32_t>(offset); });
    };
    append(selection.block_ptr, head.block_ptr.begin() + 1, head.block_ptr.end(), selection.block_begin.size());
    append(selection.column_ptr, head.column_ptr.begin(), head.column_ptr.end() - 1, selection.column.size());
    append(selection.column_end, head.column_end.begin(), head.column_end.end(), selection.column.size());
    selection.block_begin.insert(selection.block_begin.end(), head.block_begin.begin(), head.block_begin.end());
    selection.column.insert(selection.column.end(), head.column.begin(), head.column.end());
  }
  selection.column_ptr.push_back(static_cast<int32_t>(selection.column.size()));
  if (selection.column_ptr.front() == 0 &&
      std::equal(selection.column_end.begin(), selection.column_end.end(), selection.column_ptr.begin() + 1)) {
    selection.column_end.clear();
  }
  if (kept.n > 0) selection.estimated_mass = kept.sum / static_cast<double>(kept.n);
  return selection;
}

}  // namespace winnow
