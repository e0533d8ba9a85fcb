// Blocks in the order of averaged heads' scores: the default for all devices, on the verbs that they have.
#include <algorithm>
#include <limits>
#include <numeric>

#include "attention/lists.h"
#include "attention/ops.h"

namespace winnow {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One head's choice.
class Ranked {
 public:
  Ranked(const RankedArgs& args, const KvHead& kv, std::span<const float> paid)
      : args_(args), kv_(kv), mass_(n_block()) {
    const auto block = static_cast<size_t>(args.scores.block), n_seen = std::min(paid.size(), mass_.size() * block);
    for (size_t slot = 0; slot < n_seen; ++slot) mass_[slot / block] += paid[slot];
    total_ = std::accumulate(mass_.begin(), mass_.end(), 0.0);
    k_ = top_p_count(mass_, args.share * total_);
  }

  // scores: of blocks [n_block_q, n_block]
  void push(std::span<const float> scores, HeadLists& lists) const {
    const int64_t n_rows = args_.scores.q.n_rows, block = args_.scores.block;
    std::vector<float> of_row;
    for (int64_t row = 0; row < n_rows; row += block) {
      const int64_t last_row = std::min(row + block, n_rows) - 1;
      const int32_t first = block_of_row(row), last = block_of_row(last_row);
      const std::span<const float> all = scores.subspan(static_cast<size_t>(row / block) * mass_.size());
      of_row.assign(all.begin(), all.begin() + last + 1);
      of_row.front() = kInfinity;
      std::fill(of_row.begin() + first, of_row.end(), kInfinity);
      const int64_t n_forced = last - first + (first > 0 ? 2 : 1);
      const int64_t wanted = args_.same_all ? k_ : ceil_div(k_ * (last + 1), std::ssize(mass_));
      double kept = 0;
      for (const int32_t c : top_k(of_row, std::max({wanted, n_forced, args_.least}))) {
        lists.block_begin.push_back(c * args_.scores.block);
        kept += double{mass_[static_cast<size_t>(c)]};
      }
      lists.end_block();
      if (last_row + 1 == n_rows) lists.kept.add(kept / total_);
    }
  }

 private:
  size_t n_block() const {
    return static_cast<size_t>(ceil_div(visible_slots(kv_, args_.scores.limit.back()), args_.scores.block));
  }
  int32_t block_of_row(int64_t row) const {
    return (visible_slots(kv_, args_.scores.limit[static_cast<size_t>(row)]) - 1) / args_.scores.block;
  }

  const RankedArgs& args_;
  const KvHead& kv_;
  std::vector<float> mass_;  // what the probe pays for each block [n_block]
  double total_ = 0;
  int64_t k_ = 0;  // blocks that hold the share of it
};

}  // namespace

Selection Ops::select_ranked(const RankedArgs& args) {
  std::vector<std::vector<float>> scores, paid;
  proxy_scores(args.scores, scores);
  window_mass(args.probe, paid);
  std::vector<HeadLists> lists(paid.size());
  const std::span<const KvHead> kv = args.scores.kv.heads;
  for_each(std::ssize(lists), [&](int64_t item, int /*thread*/) {
    const auto head = static_cast<size_t>(item);
    const Ranked ranked(args, kv[head / (lists.size() / kv.size())], paid[head]);
    ranked.push(scores[head / (lists.size() / scores.size())], lists[head]);
  });
  return join_lists(lists, args.scores.block, args.scores.block);
}

}  // namespace winnow
