// snapkv: after the prompt, the cache keeps the slots that the prompt's last rows attend to.
//
// Papers: Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", arXiv 2404.14469; Feng et al.,
// "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference", arXiv 2407.11550.
// Idea: what the last rows of a prompt attend to is what the answer will attend to. Each head's slots get the votes of
// this observation window, the sum of its attention probabilities; pooling over neighbours keeps the surroundings of a
// found detail; the best slots stay, and the window itself. Heads differ in how widely they look, so Ada-KV pools the
// budget of a layer: the best votes of all its heads together decide how many slots each gets, above a floor.
// Deviations:
// - One set of slots for each kv head, by the votes of its whole group of query heads: SnapKV repeats keys and values
//   for every query head and keeps a set for each, which would undo what grouping saves.
// - Votes are summed over the group before they are pooled.
// - The budget counts all kept slots of a head, on average over the layer's heads, the window included. Shares are
//   rounded down, so a layer never keeps more.
// - A later turn compresses what is left of earlier ones again, together with what it added.
// - Decode only adds to the cache, as in the papers.
#include <bit>

#include "base/error.h"
#include "methods/lists.h"

namespace winnow {
namespace {

struct Settings {
  int32_t budget, window, kernel;
  bool max_pool, adaptive;
  double floor_share;
};

// Of each kv head, for the slots before the window. [n_head_kv] of [n_slots - window], empty where there are none
using Votes = std::vector<std::vector<float>>;

// How many of the `n` best votes of all heads each head has; of equal ones those of the lower head count first. The
// n-th best is found digit by digit, since bits of numbers that are not negative order as these do: a layer has as many
// votes as would take several milliseconds to sort on one thread.
std::vector<int64_t> best_of_all(Ops& ops, const Votes& votes, int64_t n) {
  constexpr uint32_t kDigits = 1U << 11;
  std::vector<int64_t> best(votes.size());
  std::vector<std::vector<int64_t>> count(votes.size());  // of votes that agree with the n-th best so far, by digit
  uint32_t digits = 0, digit = 0;                         // of the n-th best
  for (const int shift : {22, 11, 0}) {
    ops.for_each(std::ssize(votes), [&](int64_t head, int) {
      std::vector<int64_t>& of_head = count[static_cast<size_t>(head)];
      of_head.assign(kDigits, 0);
      for (const float vote : votes[static_cast<size_t>(head)]) {
        const uint32_t bits = std::bit_cast<uint32_t>(vote) >> shift;
        if (bits / kDigits == digits) ++of_head[bits % kDigits];
      }
    });
    for (digit = kDigits - 1;; --digit) {
      int64_t n_here = 0;
      for (const std::vector<int64_t>& of_head : count) n_here += of_head[digit];
      if (n_here >= n || digit == 0) break;
      for (size_t head = 0; head < best.size(); ++head) best[head] += count[head][digit];
      n -= n_here;
    }
    digits = digits * kDigits + digit;
  }
  for (size_t head = 0; head < best.size(); ++head) {
    const int64_t n_taken = std::min(n, count[head][digit]);
    best[head] += n_taken;
    n -= n_taken;
  }
  return best;
}

class SnapKv final : public Compressor {
 public:
  explicit SnapKv(const Settings& settings) : s_(settings) {}

  bool begin(const Site& site) override {
    pending_ = keeps_all(site.kv) ? nullptr : site.ops.begin_window_mass(voters(site));
    return pending_ != nullptr;
  }

  KvEdit compress(const Site& site, bool prefill) override {
    const std::span<const KvHead> kv = site.kv.heads;
    if (!prefill || keeps_all(site.kv)) return {};
    const Votes votes = vote(site);
    const std::vector<int64_t> share = shares(site.ops, votes);
    KvEdit edit;
    edit.head.resize(kv.size());
    site.ops.for_each(std::ssize(kv), [&](int64_t item, int) {
      const auto i = static_cast<size_t>(item);
      if (share[i] >= std::ssize(votes[i])) return;
      KvEdit::Head& head = edit.head[i];
      head.all = false;
      head.keep = top_k(votes[i], share[i]);
      for (auto slot = static_cast<int32_t>(votes[i].size()); slot < kv[i].n_slots; ++slot) head.keep.push_back(slot);
    });
    return edit;
  }

 private:
  bool keeps_all(const KvView& kv) const {
    return std::ranges::all_of(kv.heads, [&](const KvHead& head) { return head.n_slots <= s_.budget; });
  }
  ProbeArgs voters(const Site& site) const { return last_rows(site, std::min<int64_t>(s_.window, site.q.n_rows)); }

  Votes vote(const Site& site) {
    std::vector<std::vector<float>> mass;
    if (const auto begun = std::move(pending_)) {
      begun->get(mass);
    } else {
      site.ops.window_mass(voters(site), mass);
    }
    Votes votes(site.kv.heads.size());
    const size_t group = mass.size() / votes.size();
    site.ops.for_each(std::ssize(votes), [&](int64_t item, int) {
      const auto kv_head = static_cast<size_t>(item);
      std::vector<float>& sum = votes[kv_head];
      sum.resize(static_cast<size_t>(std::max(0, site.kv.heads[kv_head].n_slots - s_.window)));
      for (size_t head = kv_head * group; head < (kv_head + 1) * group; ++head) add_mass(mass[head], sum);
      if (s_.max_pool) {
        max_pool(sum, s_.kernel);
      } else {
        avg_pool(sum, s_.kernel);
      }
    });
    return votes;
  }

  // How many slots before the window each head keeps; on average budget - window at most.
  std::vector<int64_t> shares(Ops& ops, const Votes& votes) const {
    const int64_t even = s_.budget - s_.window;
    std::vector<int64_t> share(votes.size(), even);
    if (!s_.adaptive) return share;
    const std::vector<int64_t> won = best_of_all(ops, votes, even * std::ssize(votes));
    for (size_t i = 0; i < share.size(); ++i) {
      const double mixed =
          s_.floor_share * static_cast<double>(even) + (1 - s_.floor_share) * static_cast<double>(won[i]);
      share[i] = static_cast<int64_t>(mixed + 1e-6);  // whole numbers stay what they are
    }
    return share;
  }

  Settings s_;
  std::unique_ptr<PendingMass> pending_;  // of the layer that is under way
};

constexpr double kMany = 1e9;
constexpr ParamInfo kParams[] = {
    {"budget", "slots that a kv head keeps, on average over a layer", 2048, 2, kMany, true},
    {"window", "last rows that vote, and are kept", 32, 1, 128, true},
    {"kernel", "neighbours that votes are pooled over, an odd number", 7, 1, 255, true},
    {"max_pool", "1: pool by the maximum; 0: by the mean", 1, 0, 1, true},
    {"adaptive", "1: heads share a layer's budget by their votes; 0: all get the same", 1, 0, 1, true},
    {"floor", "share of an even budget that every head gets when adaptive", 0.2, 0, 1, false},
};

Method make(const Params& params, const MethodShape&) {
  const Settings settings = {.budget = params.whole("budget"),
                             .window = params.whole("window"),
                             .kernel = params.whole("kernel"),
                             .max_pool = params.flag("max_pool"),
                             .adaptive = params.flag("adaptive"),
                             .floor_share = params.number("floor")};
  if (settings.budget <= settings.window) {
    fail("snapkv: budget={} must be greater than window={}, which is kept in any case", settings.budget,
         settings.window);
  }
  if (settings.kernel % 2 == 0) fail("snapkv: kernel={} must be odd", settings.kernel);
  Method method;
  method.compressor = std::make_unique<SnapKv>(settings);
  return method;
}

}  // namespace

namespace roster {

const MethodInfo& method_snapkv() {
  static const MethodInfo kInfo = {
      .name = "snapkv",
      .title = "the cache keeps what the prompt's last rows attend to; budgets adapt to heads",
      .paper = "SnapKV, arXiv 2404.14469; Ada-KV, arXiv 2407.11550",
      .parts = "compressor",
      .neutral = "snapkv(budget=1000000000)",
      .params = kParams,
      .texts = {},
      .make = make,
      .calibrate = nullptr,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
