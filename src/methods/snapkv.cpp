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
#include "base/error.h"
#include "methods/lists.h"

namespace winnow {
namespace {

struct Settings {
  int32_t budget, window, kernel;
  bool max_pool, adaptive;
  double floor_share;
};

class SnapKv final : public Compressor {
 public:
  explicit SnapKv(const Settings& settings) : s_(settings) {}

  KvEdit compress(const Site& site, bool prefill) override {
    const std::span<const KvHead> kv = site.kv.heads;
    const auto small = [&](const KvHead& head) { return head.n_slots <= s_.budget; };
    if (!prefill || std::all_of(kv.begin(), kv.end(), small)) return {};
    std::vector<std::vector<float>> votes(kv.size());
    site.ops.for_each(static_cast<int64_t>(kv.size()), [&](int64_t head, int) {
      votes[static_cast<size_t>(head)] = vote(site, static_cast<int32_t>(head));
    });
    const std::vector<int64_t> share = shares(votes);
    KvEdit edit;
    for (size_t i = 0; i < kv.size(); ++i) {
      KvEdit::Head& head = edit.head.emplace_back();
      if (share[i] >= static_cast<int64_t>(votes[i].size())) continue;
      head.all = false;
      head.keep = top_k(votes[i], share[i]);
      for (auto slot = static_cast<int32_t>(votes[i].size()); slot < kv[i].n_slots; ++slot) head.keep.push_back(slot);
    }
    return edit;
  }

 private:
  // The votes for the slots before the window. -> [n_slots - window], empty where there are none
  std::vector<float> vote(const Site& site, int32_t kv_head) const {
    const int32_t n_slots = site.kv.heads[static_cast<size_t>(kv_head)].n_slots;
    std::vector<float> votes(static_cast<size_t>(std::max(0, n_slots - s_.window)));
    if (votes.empty()) return votes;
    const int32_t group = site.q.n_head / static_cast<int32_t>(site.kv.heads.size());
    const int64_t n_probe = std::min<int64_t>(s_.window, site.q.n_rows);
    std::vector<float> mass;
    for (int32_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      site.ops.window_mass(last_rows(site, n_probe), head, mass);
      for (size_t slot = 0; slot < votes.size(); ++slot) votes[slot] += mass[slot];
    }
    if (s_.max_pool) {
      max_pool(votes, s_.kernel);
    } else {
      avg_pool(votes, s_.kernel);
    }
    return votes;
  }

  // How many slots before the window each head keeps; on average budget - window at most.
  std::vector<int64_t> shares(const std::vector<std::vector<float>>& votes) const {
    const int64_t even = s_.budget - s_.window;
    std::vector<int64_t> share(votes.size(), even);
    if (!s_.adaptive) return share;
    std::vector<float> all;
    for (const std::vector<float>& of_head : votes) all.insert(all.end(), of_head.begin(), of_head.end());
    std::vector<int64_t> won(votes.size());
    size_t head = 0;
    size_t end = votes.front().size();
    for (const int32_t index : top_k(all, even * static_cast<int64_t>(votes.size()))) {
      while (static_cast<size_t>(index) >= end) end += votes[++head].size();
      ++won[head];
    }
    for (size_t i = 0; i < share.size(); ++i) {
      const double mixed =
          s_.floor_share * static_cast<double>(even) + (1 - s_.floor_share) * static_cast<double>(won[i]);
      share[i] = static_cast<int64_t>(mixed + 1e-6);  // whole numbers stay what they are
    }
    return share;
  }

  Settings s_;
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
