// tca_attention: every block of keys gives a few of its tokens to a core context that all later rows share.
//
// Paper: You et al., "Training-free Context-adaptive Attention for Efficient Long Context Modeling", arXiv 2512.09238.
// Idea: heads differ in how many tokens they need, blocks in how their mass is spread. Offline each head gets a
// distribution of budgets 1, 2, 4, ... b tokens a block. In a prompt the last row's attention shows for each block how
// concentrated it is; the most concentrated blocks get the smallest budgets. The best tokens of all blocks are the
// core: rows see the core and a local window, in prefill and, where the rest is dropped from the cache, in decode.
// A reconstruction from the paper's abstract, public reviews and a summary (its body could not be read):
// - From these: budgets as log-Gaussian proportions of counts 1, 2, 4, ...; the last token's attention as the vote; the
//   Simpson index within a block as its concentration; a window; block-wise eviction in decode by the same budgets.
// - Ours: one core for each kv head, by the votes of its group of heads; flat blocks get the largest budgets, each
//   by its rank; first tokens (`sinks`) always kept; the grid of candidates and its choice by recall; in decode a
//   block has the budget of prefill's blocks of its concentration.
// - A later prompt leaves the core of earlier ones as it is, and votes on what came since.
// - Unlike the paper's, the cache stays whole unless cache=1. With it the 0.5B model answers ": 6." for 6795212
//   (niah_single_1, 4,096 tokens), also with mu=5 or votes=64, and rightly without: presumably the last row looks for
//   a needle's first digit, so that the needle's block counts as concentrated and keeps few tokens.
// - Rows come in blocks of 128, their windows in whole blocks of 64 slots.
// - On a GPU (H200, 8B shape, time of a prompt beside dense): 32,768 tokens 98 %, 131,072 104 %, 524,288 105 %, 1M
//   104 %; choosing takes 1.5 to 0.1 % of it. A third of the pairs is computed, as gathered columns, which are three
//   times as slow there as blocks; so attention stays dense on a GPU unless min_len is given.
// The calibration file: "layers", per layer and kv head the proportions of budgets 1, 2, 4, ... 64.
#include <cmath>
#include <numeric>

#include "attention/core.h"
#include "base/error.h"
#include "methods/calibration_file.h"
#include "methods/lists.h"

namespace winnow {
namespace {

constexpr int32_t kBlock = kCoreBlock;                          // b
constexpr size_t kCounts = std::tuple_size<CoreShares>::value;  // 1, 2, 4, ... kBlock
constexpr int64_t kSample = 64;                                 // rows that a calibration measures recall on

struct Settings {
  int32_t window, sinks, votes;
};

CoreShares log_gaussian(double mu, double sigma) {
  CoreShares shares{};
  for (size_t i = 0; i < kCounts; ++i) {
    shares[i] = std::exp(-std::pow((static_cast<double>(i) - mu) / sigma, 2) / 2);
  }
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  for (double& share : shares) share /= sum;
  return shares;
}

Votes last_votes(const Site& site, int64_t n_votes) {
  Votes votes;
  site.ops.window_mass(last_rows(site, std::min(n_votes, site.q.n_rows)), votes);
  return votes;
}

// What selector and compressor of one sequence know of each kv head.
struct State {
  Settings settings;
  std::vector<CoreShares> shares;  // [n_layer * n_head_kv] or [1]
  int32_t n_head_kv = 0;
  struct Head {
    bool has_prompt = false;
    int32_t n_core = 0;                 // leading slots that were chosen already
    std::vector<double> concentration;  // of the prompt's blocks, descending
  };
  std::vector<Head> heads;  // [n_layer * n_head_kv]

  int32_t index(const Site& site, size_t kv_head) const {
    return site.layer * n_head_kv + static_cast<int32_t>(kv_head);
  }
  const CoreShares& shares_of(int32_t index) const {
    return shares[shares.size() == 1 ? 0 : static_cast<size_t>(index)];
  }
  int32_t n_core(int32_t index) const { return heads[static_cast<size_t>(index)].n_core; }
};

class Core final : public Selector {
 public:
  explicit Core(std::shared_ptr<const State> state) : state_(std::move(state)) {}

  Selection select(const Site& site) override {
    if (site.q.n_rows <= 1) return {};
    const std::span<const KvHead> kv = site.kv.heads;
    const int32_t window = state_->settings.window;
    const auto covered = [&](const KvHead& head) { return visible_slots(head, site.limit.back()) <= window; };
    if (std::all_of(kv.begin(), kv.end(), covered)) return {};
    std::vector<int32_t> begin, near;
    std::vector<CoreShares> shares;
    for (size_t head = 0; head < kv.size(); ++head) {
      const int32_t index = state_->index(site, head);
      begin.push_back(state_->n_core(index));
      shares.push_back(state_->shares_of(index));
      const int32_t own = slot_of_row(site, kv[head], (site.q.n_rows - 1) / kSetRows * kSetRows);
      near.push_back(std::max(0, own + 1 - window) / kBlock * kBlock);
    }
    const Selection cores =
        site.ops.choose_core({.votes = last_rows(site, std::min<int64_t>(state_->settings.votes, site.q.n_rows)),
                              .begin = begin,
                              .shares = shares,
                              .sinks = state_->settings.sinks,
                              .near = near});
    if (cores.everything()) return {};
    return site.ops.select_sets({.kv = site.kv,
                                 .limit = site.limit,
                                 .n_head = site.q.n_head,
                                 .sets = &cores,
                                 .window = window,
                                 .unit = kBlock});
  }

 private:
  std::shared_ptr<const State> state_;
};

class CoreCache final : public Compressor {
 public:
  explicit CoreCache(std::shared_ptr<State> state) : state_(std::move(state)) {}

  KvEdit compress(const Site& site, bool prefill) override {
    if (site.window > 0 || (!prefill && !is_any_due(site))) return {};
    const Votes votes = last_votes(site, prefill ? state_->settings.votes : 1);
    KvEdit edit;
    bool any = false;
    for (size_t i = 0; i < site.kv.heads.size(); ++i) {
      KvEdit::Head& head = edit.head.emplace_back();
      any = (prefill ? after_prompt(site, votes, i, head) : after_row(site, votes, i, head)) || any;
    }
    return any ? edit : KvEdit{};
  }

 private:
  // Whether the oldest block behind the core has left the window.
  bool is_due(const Site& site, size_t kv_head) const {
    const State::Head& known = state_->heads[static_cast<size_t>(state_->index(site, kv_head))];
    const int64_t n_since = int64_t{site.kv.heads[kv_head].n_slots} - known.n_core;
    return known.has_prompt && n_since >= int64_t{state_->settings.window} + kBlock;
  }
  bool is_any_due(const Site& site) const {
    size_t head = 0;
    while (head < site.kv.heads.size() && !is_due(site, head)) ++head;
    return head < site.kv.heads.size();
  }

  // Keeps these slots and those from `rest` on. -> whether that drops any
  static bool keep(const KvHead& kv, std::vector<int32_t> slots, int32_t rest, KvEdit::Head& head) {
    for (int32_t slot = rest; slot < kv.n_slots; ++slot) slots.push_back(slot);
    head.all = std::ssize(slots) == kv.n_slots;
    if (!head.all) head.keep = std::move(slots);
    return !head.all;
  }

  // Whole blocks before the window give up all but their core.
  bool after_prompt(const Site& site, const Votes& votes, size_t kv_head, KvEdit::Head& head) {
    const KvHead& kv = site.kv.heads[kv_head];
    const int32_t index = state_->index(site, kv_head);
    const int32_t begin = std::min(state_->n_core(index), kv.n_slots);
    // The same votes and budgets as in prefill: over all whole blocks, of which those in the window stay whole.
    const Voted voted = count_votes(site.kv, votes, static_cast<int32_t>(kv_head), begin, kv.n_slots);
    std::vector<int32_t> core = core_of(voted, state_->shares_of(index), state_->settings.sinks);
    const int32_t n_old = std::max(0, kv.n_slots - state_->settings.window - begin) / kBlock * kBlock;
    core.erase(std::lower_bound(core.begin(), core.end(), begin + n_old), core.end());
    State::Head& known = state_->heads[static_cast<size_t>(index)];
    known.has_prompt = true;
    known.n_core = static_cast<int32_t>(core.size());
    known.concentration = voted.concentration;
    std::sort(known.concentration.begin(), known.concentration.end(), std::greater<>());
    return keep(kv, std::move(core), begin + n_old, head);
  }

  // The oldest block, once it has left the window.
  bool after_row(const Site& site, const Votes& votes, size_t kv_head, KvEdit::Head& head) {
    if (!is_due(site, kv_head)) return false;
    const KvHead& kv = site.kv.heads[kv_head];
    const int32_t index = state_->index(site, kv_head);
    State::Head& known = state_->heads[static_cast<size_t>(index)];
    const int32_t begin = known.n_core;
    const Voted voted = count_votes(site.kv, votes, static_cast<int32_t>(kv_head), begin, begin + kBlock);
    std::vector<int32_t> slots(static_cast<size_t>(begin));
    std::iota(slots.begin(), slots.end(), 0);
    // The budget of the band of prompt blocks that a block of this concentration belongs to.
    const std::vector<double>& all = known.concentration;
    const auto rank =
        std::lower_bound(all.begin(), all.end(), voted.concentration.front(), std::greater<>()) - all.begin();
    const double place = (static_cast<double>(rank) + 0.5) / static_cast<double>(all.size() + 1);
    for (const int32_t i : top_k(voted.mass, budget_at(state_->shares_of(index), place))) slots.push_back(begin + i);
    known.n_core = static_cast<int32_t>(slots.size());
    return keep(kv, std::move(slots), begin + kBlock, head);
  }

  std::shared_ptr<State> state_;
};

std::vector<CoreShares> candidates() {
  std::vector<CoreShares> all = {{0, 0, 0, 0, 0, 0, 1}};
  for (size_t mu = 0; mu < kCounts; ++mu) {
    for (const double sigma : {0.5, 1.0, 2.0}) all.push_back(log_gaussian(static_cast<double>(mu), sigma));
  }
  const auto kept = [](const CoreShares& shares) {
    double tokens = 0;
    for (size_t i = 0; i < kCounts; ++i) tokens += shares[i] * (1 << i);
    return tokens;
  };
  std::sort(all.begin(), all.end(), [&](const CoreShares& a, const CoreShares& b) { return kept(a) < kept(b); });
  return all;
}

// The least share of tokens with which core and window hold `recall` of the attention of rows all over the prompts.
class Budgets final : public Calibration {
 public:
  Budgets(const Settings& settings, double recall, const MethodShape& shape)
      : s_(settings),
        recall_(recall),
        shape_(shape),
        candidates_(candidates()),
        mass_(static_cast<size_t>(shape.n_layer * shape.n_head_kv), std::vector<double>(candidates_.size())),
        n_(mass_.size()) {}

  void observe(const Site& site) override {
    const Votes votes = last_votes(site, s_.votes);
    site.ops.for_each(shape_.n_head_kv, [&](int64_t head, int) { measure(site, votes, static_cast<int32_t>(head)); });
  }

  std::string result() const override {
    if (std::all_of(n_.begin(), n_.end(), [](int64_t n) { return n == 0; })) {
      fail("tca_attention: there is nothing to calibrate on; the model has no full-attention layer");
    }
    nlohmann::ordered_json file = open_calibration("tca_attention", shape_);
    std::vector<std::vector<CoreShares>> layers(static_cast<size_t>(shape_.n_layer));
    for (size_t i = 0; i < mass_.size(); ++i) {
      size_t c = 0;
      while (c + 1 < candidates_.size() && !(mass_[i][c] >= recall_ * static_cast<double>(n_[i]))) ++c;
      layers[i / static_cast<size_t>(shape_.n_head_kv)].push_back(candidates_[c]);
    }
    file["layers"] = layers;
    return file.dump() + "\n";
  }

 private:
  void measure(const Site& site, const Votes& votes, int32_t kv_head) {
    const KvHead& kv = site.kv.heads[static_cast<size_t>(kv_head)];
    const Voted voted = count_votes(site.kv, votes, kv_head, 0, kv.n_slots);
    std::vector<std::vector<int32_t>> cores;
    for (const CoreShares& shares : candidates_) cores.push_back(core_of(voted, shares, s_.sinks));
    // Rows at even distances, the last one among them.
    const int64_t n = std::min(kSample, site.q.n_rows), step = site.q.n_rows / n;
    const int64_t first = site.q.n_rows - 1 - (n - 1) * step;
    const SpreadRows rows(site, first, step, n);
    const size_t index = static_cast<size_t>(site.layer * shape_.n_head_kv + kv_head);
    const int32_t group = shape_.n_head / shape_.n_head_kv;
    std::vector<float> probabilities;
    for (int32_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      site.ops.score_window(rows.args(), head, probabilities);
      for (int64_t i = 0; i < n; ++i) {
        const std::span<const float> p =
            std::span(probabilities).subspan(static_cast<size_t>(i * kv.n_slots), static_cast<size_t>(kv.n_slots));
        const int32_t window = std::max(0, visible_slots(kv, rows.args().limit[i]) - s_.window);
        const double near = std::accumulate(p.begin() + window, p.end(), 0.0);
        for (size_t c = 0; c < cores.size(); ++c) {
          double mass = near;
          for (const int32_t slot : cores[c]) {
            if (slot >= window) break;
            mass += double{p[static_cast<size_t>(slot)]};
          }
          mass_[index][c] += mass;
        }
      }
      n_[index] += n;
    }
  }

  Settings s_;
  double recall_;
  MethodShape shape_;
  std::vector<CoreShares> candidates_;     // ascending in what they keep
  std::vector<std::vector<double>> mass_;  // [n_layer * n_head_kv][n_candidate]
  std::vector<int64_t> n_;                 // rows measured, the same
};

constexpr double kMany = 1e9, kMu = 4, kSigma = 1;
constexpr ParamInfo kParams[] = {
    {"mu", "log2 of a block's typical budget, where there is no calibration file", kMu, 0, 6, false},
    {"sigma", "spread of log2 of the budgets", kSigma, 0.1, 10, false},
    {"window", "last tokens that a row sees in any case", 512, 128, kMany, true},
    {"sinks", "first tokens that are always in the core", 4, 0, 64, true},
    {"votes", "last rows whose attention is the vote", 1, 1, 64, true},
    {"cache", "1: the cache keeps core and window only, which loses what the last row did not look for", 0, 0, 1, true},
    {"recall", "for calibrate: share of the attention that core and window must hold", 0.95, 0, 1, false},
    last_rows_param(),
    {"min_len", "tokens in the cache below which prefill is dense", 2048, 0, kMany, true},
};
constexpr std::string_view kTexts[] = {"calibration"};

Settings settings_of(const Params& params) {
  return {.window = params.whole("window"), .sinks = params.whole("sinks"), .votes = params.whole("votes")};
}

std::vector<CoreShares> read(const nlohmann::json& file, const MethodShape& shape) {
  std::vector<CoreShares> all;
  for (const nlohmann::json& head : calibrated_heads(file, shape, shape.n_head_kv)) {
    const auto shares = head.get<std::vector<double>>();
    const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
    const bool negative = std::any_of(shares.begin(), shares.end(), [](double x) { return !(x >= 0); });
    if (shares.size() != kCounts || negative || std::abs(sum - 1) > 1e-3) {
      fail("a kv head's shares must be {} numbers whose sum is 1", kCounts);
    }
    std::copy(shares.begin(), shares.end(), all.emplace_back().begin());
  }
  return all;
}

Method make(const Params& params, const MethodShape& shape) {
  const double mu = params.number("mu"), sigma = params.number("sigma");
  std::vector<State::Head> heads(static_cast<size_t>(shape.n_layer * shape.n_head_kv));
  auto state =
      std::make_shared<State>(State{settings_of(params), {log_gaussian(mu, sigma)}, shape.n_head_kv, std::move(heads)});
  const std::string& path = params.text("calibration");
  if (!path.empty()) {
    if (mu != kMu || sigma != kSigma) {
      fail("tca_attention: mu and sigma cannot be given beside a calibration file, which sets each head's budgets");
    }
    read_calibration(path, "tca_attention", shape,
                     [&](const nlohmann::json& file) { state->shares = read(file, shape); });
  }
  Method method;
  method.selector = std::make_unique<Core>(state);
  if (params.flag("cache")) method.compressor = std::make_unique<CoreCache>(state);
  return method;
}

std::unique_ptr<Calibration> calibrate(const Params& params, const MethodShape& shape) {
  return std::make_unique<Budgets>(settings_of(params), params.number("recall"), shape);
}

}  // namespace

namespace roster {

const MethodInfo& method_tca_attention() {
  static const MethodInfo kInfo = {
      .name = "tca_attention",
      .title = "a core of each block's best tokens and a window; with cache=1 the cache keeps no more",
      .paper = "TCA-Attention, arXiv 2512.09238",
      .parts = "selector",
      .neutral = "tca_attention(window=1000000000)",
      .params = kParams,
      .gpu_min_len = kNeverGains,
      .knob = {.param = "mu", .dense = 6, .sparse = 0},
      .texts = kTexts,
      .make = make,
      .calibrate = calibrate,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
