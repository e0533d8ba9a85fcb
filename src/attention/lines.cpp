#include "attention/lines.h"

#include <limits>

namespace winnow {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

const KvHead& kv_head_of(const HeadsView& q, const KvView& kv, int32_t head) {
  return kv.heads[static_cast<size_t>(head / (q.n_head / static_cast<int32_t>(kv.heads.size())))];
}

}  // namespace

LineMass line_mass(Ops& ops, const ProbeArgs& probe, int32_t head, std::vector<float>& probabilities) {
  const KvHead& kv = kv_head_of(probe.q, probe.kv, head);
  ops.score_window(probe, head, probabilities);
  const auto n = static_cast<size_t>(visible_slots(kv, probe.limit[probe.q.n_rows - 1]));
  LineMass mass{std::vector<float>(n), std::vector<float>(n)};
  // Distances are summed backwards, so that both loops run along the row.
  for (int64_t t = 0; t < probe.q.n_rows; ++t) {
    const float* row = probabilities.data() + t * kv.n_slots;
    const auto n_seen = static_cast<size_t>(visible_slots(kv, probe.limit[t]));
    float* slash = mass.slash.data() + (n - n_seen);
    for (size_t j = 0; j < n_seen; ++j) mass.vertical[j] += row[j];
    for (size_t j = 0; j < n_seen; ++j) slash[j] += row[j];
  }
  std::reverse(mass.slash.begin(), mass.slash.end());
  return mass;
}

Lines choose_lines(const LineMass& mass, const LineBudget& budget) {
  const auto best = [](std::vector<float> scores, int32_t n, int32_t n_forced) {
    std::fill_n(scores.begin(), std::min<size_t>(scores.size(), static_cast<size_t>(n_forced)), kInfinity);
    return top_k(scores, n);
  };
  Lines lines = {best(mass.vertical, budget.n_vertical, budget.forced_verticals),
                 best(mass.slash, budget.n_slash, budget.forced_slashes)};
  std::reverse(lines.slashes.begin(), lines.slashes.end());
  return lines;
}

double share_of_lines(const ProbeArgs& probe, int32_t head, std::span<const float> probabilities, const Lines& lines) {
  const KvHead& kv = kv_head_of(probe.q, probe.kv, head);
  std::vector<uint8_t> vertical(static_cast<size_t>(kv.n_slots));
  for (const int32_t slot : lines.verticals) vertical[static_cast<size_t>(slot)] = 1;
  double sum = 0;
  for (int64_t t = 0; t < probe.q.n_rows; ++t) {
    const float* row = probabilities.data() + t * kv.n_slots;
    const int32_t own = visible_slots(kv, probe.limit[t]) - 1;
    for (const int32_t slot : lines.verticals) sum += double{row[slot]};  // 0 beyond what the row sees
    for (const int32_t distance : lines.slashes) {
      const int32_t slot = own - distance;
      if (slot >= 0 && vertical[static_cast<size_t>(slot)] == 0) sum += double{row[slot]};
    }
  }
  return sum / static_cast<double>(probe.q.n_rows);
}

void push_lines(const Lines& lines, int32_t own, int32_t n_seen, HeadLists& lists) {
  const int32_t end_of_rows = own + kLineBlock;
  auto vertical = lines.verticals.begin();
  int32_t begin = -1, end = -1;  // the interval that still grows
  const auto flush = [&] {
    for (; vertical != lines.verticals.end() && *vertical < end; ++vertical) {
      if (*vertical < begin) lists.column.push_back(*vertical);
    }
    for (int32_t slot = begin; slot < std::min(end, n_seen); slot += kLineBlock) lists.block_begin.push_back(slot);
  };
  // The first distance that is not longer than the block's last row stands deep.
  auto slash = std::partition_point(lines.slashes.begin(), lines.slashes.end(),
                                    [=](int32_t distance) { return distance >= end_of_rows; });
  for (; slash != lines.slashes.end(); ++slash) {
    const int32_t e = std::max(end_of_rows - *slash, kLineBlock);
    if (end < 0 || e > end + kLineBlock) {
      if (end >= 0) flush();
      begin = e - kLineBlock;
      end = e;
    } else if (e > end) {
      end += kLineBlock;
    }
  }
  if (end >= 0) flush();
}

Selection Ops::select_lines(const LineArgs& args) {
  std::vector<HeadLists> lists(args.budget.size());
  for_each(static_cast<int64_t>(lists.size()), [&](int64_t item, int /*thread*/) {
    const auto head = static_cast<int32_t>(item);
    const KvHead& kv = kv_head_of(args.probe.q, args.probe.kv, head);
    std::vector<float> probabilities;
    const LineMass mass = line_mass(*this, args.probe, head, probabilities);
    const Lines lines = choose_lines(mass, args.budget[static_cast<size_t>(head)]);
    lists[static_cast<size_t>(head)].kept.add(share_of_lines(args.probe, head, probabilities, lines));
    const auto slot_after = [&](int64_t row) { return visible_slots(kv, args.limit[static_cast<size_t>(row)]); };
    const auto n_rows = static_cast<int64_t>(args.limit.size());
    for (int64_t row = 0; row < n_rows; row += kLineBlock) {
      const int64_t last = std::min<int64_t>(row + kLineBlock, n_rows) - 1;
      push_lines(lines, slot_after(row) - 1, slot_after(last), lists[static_cast<size_t>(head)]);
      lists[static_cast<size_t>(head)].end_block();
    }
  });
  return join_lists(lists, kLineBlock, kLineBlock);
}

}  // namespace winnow
