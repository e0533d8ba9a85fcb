#include "engine/pruned.h"

#include <algorithm>

#include "attention/lists.h"

namespace winnow {

Selection select_positions(const KvHead& head, std::span<const int32_t> position, int64_t n_rows) {
  std::vector<int32_t> slots;
  int32_t slot = 0;
  for (const int32_t wanted : position) {
    while (head.position(slot) < wanted) ++slot;
    slots.push_back(slot);
  }
  HeadLists lists;
  const int32_t n_block_q = ceil_div(n_rows, kBlockSlots);
  for (int32_t b = 0; b < n_block_q; ++b) {
    for (size_t i = 0; i < slots.size();) {  // aligned blocks where all their slots are wanted, else single columns
      const size_t end = i + kBlockSlots - 1;
      if (slots[i] % kBlockSlots == 0 && end < slots.size() && slots[end] == slots[i] + kBlockSlots - 1) {
        lists.block_begin.push_back(slots[i]);
        i = end + 1;
      } else {
        lists.column.push_back(slots[i++]);
      }
    }
    lists.end_block();
  }
  return join_lists({&lists, 1}, kBlockSlots, kBlockSlots);
}

std::vector<int32_t> missing_positions(std::span<const int32_t> wanted, const KvHead& head,
                                       std::span<const int32_t> rows) {
  std::vector<int32_t> missing;
  int32_t slot = 0;
  size_t row = 0;
  for (const int32_t position : wanted) {
    while (slot < head.n_slots && head.position(slot) < position) ++slot;
    while (row < rows.size() && rows[row] < position) ++row;
    const bool held = slot < head.n_slots && head.position(slot) == position;
    const bool here = row < rows.size() && rows[row] == position;
    if (!held && !here) missing.push_back(position);
  }
  return missing;
}

}  // namespace winnow
