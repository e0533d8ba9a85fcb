#include "attention/drawn_lines.h"

#include <algorithm>

#include "base/random.h"

namespace winnow {
namespace {

constexpr int32_t kFirstColumns = 30;

/// A choice among [0, size).
struct Choice {
  std::vector<bool> taken;
  int32_t n = 0;

  void take(int64_t at) {
    n += taken[static_cast<size_t>(at)] ? 0 : 1;
    taken[static_cast<size_t>(at)] = true;
  }
  std::vector<int32_t> ascending() const {
    std::vector<int32_t> all;
    for (size_t i = 0; i < taken.size(); ++i) {
      if (taken[i]) all.push_back(static_cast<int32_t>(i));
    }
    return all;
  }
};

}  // namespace

Lines draw_lines(const Problem& problem, int32_t head, int32_t n_slots) {
  auto state = static_cast<uint64_t>(head);
  Choice columns{std::vector<bool>(static_cast<size_t>(n_slots))};
  const int32_t n_column = std::min(problem.verticals, n_slots);
  while (columns.n < std::min(kFirstColumns, n_column)) columns.take(columns.n);
  while (columns.n < n_column) columns.take(random_below(state, n_slots));

  Choice distances{std::vector<bool>(static_cast<size_t>(n_slots))};
  const int32_t n_distance = std::min(problem.slashes, n_slots);
  const int32_t length = ceil_div(problem.slashes, problem.runs);
  int64_t begin = 0;
  while (true) {
    const int64_t end = std::min<int64_t>(begin + length, n_slots);
    for (int64_t at = begin; at < end && distances.n < n_distance; ++at) distances.take(at);
    if (distances.n == n_distance) break;
    begin = random_below(state, n_slots);
  }
  Lines lines{columns.ascending(), distances.ascending()};
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
