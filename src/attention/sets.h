// Sets of slots that all rows behind them see: they are written once, and every list takes as much of them as lies
// before its rows.
#pragma once

#include <span>
#include <vector>

#include "attention/lists.h"
#include "attention/ops.h"

namespace winnow {

/// Ascending slots: as blocks where `block` of them follow one another, the others as columns.
inline void push_slots(std::span<const int32_t> slots, int32_t block, HeadLists& lists) {
  for (size_t i = 0; i < slots.size();) {
    const size_t last = i + static_cast<size_t>(block) - 1;
    if (last < slots.size() && slots[last] == slots[i] + block - 1) {
      lists.block_begin.push_back(slots[i]);
      i = last + 1;
    } else {
      lists.column.push_back(slots[i++]);
    }
  }
}

/// An ascending set in the lists of one head: its columns are pushed once, its blocks for each list anew.
class SharedSet {
 public:
  SharedSet(std::span<const int32_t> set, int32_t block, HeadLists& lists) : lists_(lists) {
    const auto first_column = lists.column.size();
    HeadLists whole;
    push_slots(set, block, whole);
    blocks_ = std::move(whole.block_begin);
    begin_ = static_cast<int32_t>(first_column);
    n_column_ = static_cast<int32_t>(whole.column.size());
    lists.column.insert(lists.column.end(), whole.column.begin(), whole.column.end());
    block_ = block;
  }

  /// Pushes the blocks that begin before `end`. -> `end`, or where the last of them ends, if that is later
  int32_t push_blocks(int32_t end) const {
    const auto last = std::lower_bound(blocks_.begin(), blocks_.end(), end);
    lists_.block_begin.insert(lists_.block_begin.end(), blocks_.begin(), last);
    return last == blocks_.begin() ? end : std::max(end, last[-1] + block_);
  }
  /// Ends a list whose columns are those of the set before `end`.
  void end_block(int32_t end) const {
    const auto first = lists_.column.begin() + begin_;
    const auto last = std::lower_bound(first, first + n_column_, end);
    lists_.end_block(begin_, static_cast<int32_t>(last - lists_.column.begin()));
  }

 private:
  HeadLists& lists_;
  std::vector<int32_t> blocks_;
  int32_t begin_ = 0, n_column_ = 0, block_ = 0;
};

/// Sets as Ops::choose_core gives them: one for all kv heads or one for each. kept: what they hold, in the same order.
Selection join_sets(const KvView& kv, std::span<const std::vector<int32_t>> sets, std::span<const double> kept);

}  // namespace winnow
