#include "attention/important.h"

#include <algorithm>
#include <numeric>

#include "attention/sets.h"

namespace winnow {
namespace {

// The least number of scores whose sum is at least `mass`.
int64_t count_to_reach(std::span<const float> scores, double mass) {
  std::vector<float> sorted(scores.begin(), scores.end());
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  double sum = 0;
  int64_t n = 0;
  while (n < std::ssize(sorted) && sum < mass) sum += double{sorted[static_cast<size_t>(n++)]};
  return n;
}

// What all probes spend on the slots of `kv`, as a mean over heads.
SlotMass mass_of(const ImportantArgs& args, std::span<const std::vector<float>> sums, const KvHead& kv) {
  const auto n = static_cast<size_t>(kv.n_slots);
  SlotMass mass{.sum = std::vector<float>(n), .seen = std::vector<int32_t>(n)};
  for (const std::vector<float>& of_head : sums) {
    for (size_t slot = 0; slot < n; ++slot) mass.sum[slot] += of_head[slot] / static_cast<float>(sums.size());
  }
  for (const ProbeArgs& probe : args.probes) {
    for (int64_t row = 0; row < probe.q.n_rows; ++row) {
      ++mass.seen[static_cast<size_t>(visible_slots(kv, probe.limit[row]) - 1)];
    }
    mass.total += static_cast<double>(probe.q.n_rows);
  }
  // Rows that see a slot see those before it.
  for (size_t slot = n - 1; slot-- > 0;) mass.seen[slot] += mass.seen[slot + 1];
  return mass;
}

}  // namespace

std::vector<int32_t> important_slots(const SlotMass& mass, double share, int64_t first) {
  const int64_t n = count_to_reach(mass.sum, share * mass.total * kShareReached);
  std::vector<float> average(mass.sum.size());
  for (size_t i = 0; i < average.size(); ++i) {
    average[i] = mass.seen[i] > 0 ? mass.sum[i] / static_cast<float>(mass.seen[i]) : 0;
  }
  std::vector<int32_t> kept = top_k(average, n);
  const auto n_first = std::min<int64_t>(first, std::ssize(average));
  kept.erase(kept.begin(), std::lower_bound(kept.begin(), kept.end(), static_cast<int32_t>(n_first)));
  std::vector<int32_t> all(static_cast<size_t>(n_first));
  std::iota(all.begin(), all.end(), 0);
  all.insert(all.end(), kept.begin(), kept.end());
  const auto last = static_cast<int32_t>(average.size()) - 1;
  if (all.empty() || all.back() != last) all.push_back(last);
  return all;
}

Selection Ops::choose_important(const ImportantArgs& args) {
  const KvView& kv = args.probes.front().kv;
  std::vector<std::vector<float>> sums, more;  // [n_head] of [n_slots]
  window_mass(args.probes.front(), sums);
  for (const ProbeArgs& probe : args.probes.subspan(1)) {
    window_mass(probe, more);
    for_each(std::ssize(sums), [&](int64_t head, int /*thread*/) {
      std::vector<float>& sum = sums[static_cast<size_t>(head)];
      const std::vector<float>& other = more[static_cast<size_t>(head)];
      for (size_t slot = 0; slot < sum.size(); ++slot) sum[slot] += other[slot];
    });
  }
  std::vector<std::vector<int32_t>> sets(args.together ? 1 : kv.heads.size());
  std::vector<double> kept(sets.size());
  const size_t n_together = sums.size() / sets.size();
  for_each(std::ssize(sets), [&](int64_t item, int /*thread*/) {
    const auto set = static_cast<size_t>(item);
    const SlotMass mass = mass_of(args, std::span(sums).subspan(set * n_together, n_together), kv.heads[set]);
    sets[set] = important_slots(mass, args.share, args.first);
    for (const int32_t slot : sets[set]) kept[set] += double{mass.sum[static_cast<size_t>(slot)]};
    kept[set] /= mass.total;
  });
  return join_sets(kv, sets, kept);
}

}  // namespace winnow
