#include "kernels/cpu/attend_lists.h"

#include <algorithm>

namespace winnow::cpu {

int64_t Visible::pairs() const {
  int64_t sum = 0;
  for (size_t r = 0; r < begin.size(); ++r) sum += std::max(0, end[r] - begin[r]);
  return sum;
}

Visible visible_slots(const KvHead& kv, const int32_t* limit, int64_t n_rows, int32_t window) {
  // The first slot whose position is `position` or later.
  const auto first_at = [&kv](int64_t position) {
    if (kv.idx == nullptr) return static_cast<int32_t>(std::clamp<int64_t>(position, 0, kv.n_slots));
    return static_cast<int32_t>(std::lower_bound(kv.idx, kv.idx + kv.n_slots, position) - kv.idx);
  };
  Visible visible;
  visible.begin.resize(static_cast<size_t>(n_rows));
  visible.end.resize(static_cast<size_t>(n_rows));
  for (size_t r = 0; r < visible.end.size(); ++r) {
    visible.end[r] = first_at(int64_t{limit[r]} + 1);
    visible.begin[r] = window > 0 ? first_at(int64_t{limit[r]} - window + 1) : 0;
  }
  return visible;
}

KeyLists lists_of(const AttnArgs& args, int32_t head, int64_t row, int32_t n_slots) {
  static constexpr int32_t kFirst[1] = {0};
  if (args.selection == nullptr || args.selection->everything()) return {{}, kFirst, n_slots};
  const Selection& s = *args.selection;
  const int64_t list = s.list(head, static_cast<int32_t>((args.first_row + row) / s.block_q));
  return {s.columns(list), s.blocks(list), s.block_k};
}

bool same_lists(const KeyLists& a, const KeyLists& b) {
  return std::ranges::equal(a.column, b.column) && std::ranges::equal(a.block, b.block);
}

}  // namespace winnow::cpu
