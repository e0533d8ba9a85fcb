#include "methods/recall.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "base/error.h"

namespace winnow {
namespace {

// Mass of one row's probabilities [n_slots] that lies in list `list`.
double selected_mass(const Selection& selection, int64_t list, std::span<const float> probabilities) {
  const auto n_slots = static_cast<int32_t>(probabilities.size());
  double mass = 0;
  for (const int32_t first : selection.blocks(list)) {
    const int32_t begin = std::min(first, n_slots), end = std::min(begin + selection.block_k, n_slots);
    for (int32_t slot = begin; slot < end; ++slot) mass += probabilities[static_cast<size_t>(slot)];
  }
  for (const int32_t slot : selection.columns(list)) {
    if (slot < n_slots) mass += probabilities[static_cast<size_t>(slot)];
  }
  return mass;
}

}  // namespace

Recall sample_recall(const Site& site, const Selection& made, int32_t n_rows) {
  WINNOW_ASSERT(n_rows > 0);
  const int64_t n_sample = std::min<int64_t>(n_rows, site.q.n_rows);
  const int64_t n_pair = n_sample * site.q.n_head;
  if (made.everything()) return {static_cast<double>(n_pair), n_pair};
  const Selection selection = site.ops.on_host(made);

  // Every step-th row, counted back from the last: a view with a longer stride.
  const int64_t step = site.q.n_rows / n_sample;
  const int64_t first = site.q.n_rows - 1 - (n_sample - 1) * step;
  HeadsView q = site.q.rows(first, n_sample);
  q.stride *= step;
  std::vector<int32_t> limit;
  for (int64_t i = 0; i < n_sample; ++i) limit.push_back(site.limit[static_cast<size_t>(first + i * step)]);
  const ProbeArgs probe = {.q = q,
                           .kv = site.kv,
                           .limit = limit.data(),
                           .scale = site.scale,
                           .softcap = site.softcap,
                           .window = site.window};

  std::vector<double> mass(static_cast<size_t>(site.q.n_head));
  site.ops.for_each(site.q.n_head, [&](int64_t item, int) {
    const auto head = static_cast<int32_t>(item);
    std::vector<float> probabilities;
    site.ops.score_window(probe, head, probabilities);
    const std::span<const float> all = probabilities;
    const size_t n_slots = all.size() / static_cast<size_t>(n_sample);
    for (int64_t i = 0; i < n_sample; ++i) {
      const int32_t block = selection.block_of(first + i * step);
      if (block < 0) continue;
      if (selection.full(block)) {
        mass[static_cast<size_t>(item)] += 1;
        continue;
      }
      const double kept =
          selected_mass(selection, selection.list(head, block), all.subspan(static_cast<size_t>(i) * n_slots, n_slots));
      mass[static_cast<size_t>(item)] += std::min(kept, 1.0);
    }
  });
  return {std::accumulate(mass.begin(), mass.end(), 0.0), n_pair};
}

}  // namespace winnow
