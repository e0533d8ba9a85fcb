#include "attention/drawn_lines.h"

#include <algorithm>

#include "base/random.h"

namespace winnow {
namespace {

constexpr int32_t kFirstColumns = 30;

/// Where `taken` is set, ascending.
std::vector<int32_t> places(const std::vector<bool>& taken) {
  std::vector<int32_t> all;
  for (size_t i = 0; i < taken.size(); ++i) {
    if (taken[i]) all.push_back(static_cast<int32_t>(i));
  }
  return all;
}

}  // namespace

Lines draw_lines(const Problem& problem, int32_t head, int32_t n_slots) {
  auto state = static_cast<uint64_t>(head);
  std::vector<bool> column(static_cast<size_t>(n_slots)), distance(static_cast<size_t>(n_slots));
  int32_t n = 0;
  const auto take = [&n](std::vector<bool>& taken, int64_t at) {
    if (taken[static_cast<size_t>(at)]) return;
    taken[static_cast<size_t>(at)] = true;
    ++n;
  };
  const int32_t n_column = std::min(problem.verticals, n_slots);
  while (n < std::min(kFirstColumns, n_column)) take(column, n);
  while (n < n_column) take(column, random_below(state, n_slots));

  n = 0;
  const int32_t n_distance = std::min(problem.slashes, n_slots);
  const int32_t length = ceil_div(problem.slashes, problem.runs);
  for (int64_t begin = 0; n < n_distance; begin = random_below(state, n_slots)) {
    for (int64_t at = begin; at < std::min<int64_t>(begin + length, n_slots) && n < n_distance; ++at) {
      take(distance, at);
    }
  }
  Lines lines{places(column), places(distance)};
  std::reverse(lines.slashes.begin(), lines.slashes.end());
  return lines;
}

Selection lay_drawn_lines(const Problem& problem, const KvHead& kv, std::span<const int32_t> limit) {
  std::vector<HeadLists> lists(problem.shared ? 1 : static_cast<size_t>(problem.heads));
  const auto n_rows = std::ssize(limit);
  for (size_t head = 0; head < lists.size(); ++head) {
    const Lines lines = draw_lines(problem, static_cast<int32_t>(head), kv.n_slots);
    for (int64_t row = 0; row < n_rows; row += kLineBlock) {
      const int64_t last = std::min<int64_t>(row + kLineBlock, n_rows) - 1;
      push_lines(lines, visible_slots(kv, limit[static_cast<size_t>(row)]) - 1,
                 visible_slots(kv, limit[static_cast<size_t>(last)]), lists[head]);
      lists[head].end_block();
    }
  }
  return join_lists(lists, kLineBlock, kLineBlock);
}

}  // namespace winnow
