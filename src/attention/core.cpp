#include "attention/core.h"

#include <algorithm>
#include <numeric>

#include "attention/sets.h"

namespace winnow {
namespace {

double concentration(std::span<const float> mass) {
  double sum = 0, squares = 0;
  for (const float x : mass) {
    sum += double{x};
    squares += double{x} * double{x};
  }
  return sum > 1e-30 ? squares / (sum * sum) : 1.0 / kCoreBlock;
}

// The share of the votes that went to the core and to slots from `near` on.
double share_of_core(const Voted& voted, std::span<const int32_t> core, int32_t near) {
  if (voted.mass.empty()) return 1;
  const auto n_old = std::clamp<int64_t>(near - voted.begin, 0, std::ssize(voted.mass));
  double lost = std::accumulate(voted.mass.begin(), voted.mass.begin() + n_old, 0.0);
  for (const int32_t slot : core) {
    if (slot >= voted.begin && slot < voted.begin + n_old)
      lost -= double{voted.mass[static_cast<size_t>(slot - voted.begin)]};
  }
  return 1 - lost / voted.total;
}

}  // namespace

Voted count_votes(const KvView& kv, const Votes& votes, int32_t kv_head, int32_t begin, int32_t end) {
  Voted voted{.begin = begin, .mass = {}, .concentration = {}, .total = 0};
  const int32_t n = std::max(0, end - begin) / kCoreBlock * kCoreBlock;
  if (n == 0) return voted;
  const size_t group = votes.size() / kv.heads.size();
  std::vector<float> paid(static_cast<size_t>(kv.heads[static_cast<size_t>(kv_head)].n_slots));
  for (size_t i = 0; i < group; ++i) {
    const std::vector<float>& of_head = votes[static_cast<size_t>(kv_head) * group + i];
    for (size_t slot = 0; slot < paid.size(); ++slot) paid[slot] += of_head[slot];
  }
  voted.total = std::accumulate(paid.begin(), paid.end(), 0.0);
  voted.mass.assign(paid.begin() + begin, paid.begin() + begin + n);
  for (size_t at = 0; at < voted.mass.size(); at += kCoreBlock) {
    voted.concentration.push_back(concentration(std::span(voted.mass).subspan(at, kCoreBlock)));
  }
  return voted;
}

int64_t budget_at(const CoreShares& shares, double place) {
  double sum = 0;
  for (size_t i = 0; i < shares.size(); ++i) {
    sum += shares[i];
    if (place < sum) return int64_t{1} << i;
  }
  return kCoreBlock;
}

std::vector<int32_t> core_of(const Voted& voted, const CoreShares& shares, int32_t sinks) {
  const size_t n_block = voted.concentration.size();
  std::vector<size_t> order(n_block);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return voted.concentration[a] > voted.concentration[b]; });
  std::vector<int64_t> budget(n_block);
  for (size_t rank = 0; rank < n_block; ++rank) {
    budget[order[rank]] = budget_at(shares, (static_cast<double>(rank) + 0.5) / static_cast<double>(n_block));
  }
  std::vector<int32_t> core(static_cast<size_t>(voted.begin));
  std::iota(core.begin(), core.end(), 0);
  for (size_t block = 0; block < n_block; ++block) {
    const auto begin = static_cast<int32_t>(block) * kCoreBlock;
    std::vector<float> mass(voted.mass.begin() + begin, voted.mass.begin() + begin + kCoreBlock);
    const int32_t first = voted.begin + begin;
    int64_t n = budget[block];
    if (first < sinks) {  // these come on top where the votes would not take them
      const int32_t n_sink = std::min(kCoreBlock, sinks - first);
      const std::vector<int32_t> best = top_k(mass, n);
      n += n_sink - (std::lower_bound(best.begin(), best.end(), n_sink) - best.begin());
      std::fill_n(mass.begin(), n_sink, 1e30F);
    }
    for (const int32_t i : top_k(mass, n)) core.push_back(first + i);
  }
  return core;
}

Selection Ops::choose_core(const CoreArgs& args) {
  Votes votes;
  window_mass(args.votes, votes);
  const KvView& kv = args.votes.kv;
  std::vector<std::vector<int32_t>> cores(kv.heads.size());
  std::vector<double> kept(cores.size());
  for_each(std::ssize(cores), [&](int64_t item, int /*thread*/) {
    const auto head = static_cast<size_t>(item);
    const int32_t n_slots = kv.heads[head].n_slots;
    const Voted voted =
        count_votes(kv, votes, static_cast<int32_t>(item), std::min(args.begin[head], n_slots), n_slots);
    cores[head] = core_of(voted, args.shares[head], args.sinks);
    kept[head] = share_of_core(voted, cores[head], args.near[head]);
  });
  return join_sets(kv, cores, kept);
}

}  // namespace winnow
