// tca_attention: every block of keys gives a few of its tokens to a core context that all later rows share.
//
// Paper: You et al., "Training-free Context-adaptive Attention for Efficient Long Context Modeling", arXiv 2512.09238.
// Idea: heads differ in how many tokens they need, blocks in how their mass is spread. Offline each head gets a
// distribution of budgets 1, 2, 4, ... b tokens a block. In a prompt the last row's attention shows for each block how
// concentrated it is; the most concentrated blocks get the smallest budgets. The best tokens of all blocks are the
// core: rows see the core and a local window, in prefill and, since the rest is dropped from the cache, in decode.
// The paper's body could not be read; this is a reconstruction from its abstract, public reviews and a summary:
// - From these: budgets as log-Gaussian proportions of counts 1, 2, 4, ...; the last token's attention as the vote; the
//   Simpson index within a block as its concentration; a window; block-wise eviction in decode by the same budgets.
// - Ours: one core for each kv head, by the votes of its group of heads; flat blocks get the largest budgets; counts by
//   largest remainder; first tokens (`sinks`) always kept; the grid of candidates and its choice by recall; in decode a
//   block's budget is the one that prefill gave to blocks of its concentration.
// - A later prompt leaves the core of earlier ones as it is, and votes on what came since.
// - Rows are cut into blocks of 128, whose windows are covered by whole blocks of 64 slots.
//
// The calibration file: "layers", per layer and kv head the proportions of budgets 1, 2, 4, ... 64.
#include <array>
#include <cmath>
#include <map>
#include <numeric>

#include "base/error.h"
#include "methods/calibration_file.h"
#include "methods/lists.h"

namespace winnow {
namespace {

constexpr int32_t kBlock = 64;   // b
constexpr int32_t kRows = 128;   // of a query block
constexpr size_t kCounts = 7;    // 1, 2, 4, ... kBlock
constexpr int64_t kSample = 64;  // rows that a calibration measures recall on

using Shares = std::array<double, kCounts>;  // of blocks that keep 1, 2, 4, ... tokens; their sum is 1

struct Settings {
  int32_t window, sinks, votes;
};

Shares log_gaussian(double mu, double sigma) {
  Shares shares{};
  for (size_t i = 0; i < kCounts; ++i) {
    const double x = (static_cast<double>(i) - mu) / sigma;
    shares[i] = std::exp(-x * x / 2);
  }
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  for (double& share : shares) share /= sum;
  return shares;
}

double kept_share(const Shares& shares) {
  double sum = 0;
  for (size_t i = 0; i < kCounts; ++i) sum += shares[i] * (1 << i) / kBlock;
  return sum;
}

// How many of n blocks get each budget: by largest remainder, the smaller budget first.
std::array<int64_t, kCounts> block_counts(const Shares& shares, int64_t n) {
  std::array<int64_t, kCounts> counts{};
  std::array<double, kCounts> remainder{};
  int64_t left = n;
  for (size_t i = 0; i < kCounts; ++i) {
    const double exact = shares[i] * static_cast<double>(n);
    counts[i] = static_cast<int64_t>(exact + 1e-9);
    remainder[i] = exact - static_cast<double>(counts[i]);
    left -= counts[i];
  }
  std::array<size_t, kCounts> order{};
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return remainder[a] > remainder[b]; });
  for (size_t i = 0; left > 0; --left, i = (i + 1) % kCounts) ++counts[order[i]];
  return counts;
}

// The Simpson index of what one block's tokens share: 1 / kBlock where all are alike, 1 where one has everything.
double concentration(std::span<const float> mass) {
  double sum = 0, squares = 0;
  for (const float x : mass) {
    sum += double{x};
    squares += double{x} * double{x};
  }
  return sum > 1e-30 ? squares / (sum * sum) : 1.0 / kBlock;
}

// Whole blocks of one kv head's slots from `begin` on, with the votes for them.
struct Voted {
  int32_t begin = 0;
  std::vector<float> mass;            // [n_block * kBlock]
  std::vector<double> concentration;  // [n_block]
};

Voted vote(const Site& site, int32_t kv_head, int32_t begin, int32_t end, int64_t n_votes) {
  const int32_t group = site.q.n_head / static_cast<int32_t>(site.kv.heads.size());
  Voted voted{.begin = begin, .mass = {}, .concentration = {}};
  voted.mass.resize(static_cast<size_t>(std::max(0, end - begin) / kBlock * kBlock));
  if (voted.mass.empty()) return voted;
  const ProbeArgs probe = last_rows(site, std::min(n_votes, site.q.n_rows));
  std::vector<float> mass;
  for (int32_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    site.ops.window_mass(probe, head, mass);
    for (size_t i = 0; i < voted.mass.size(); ++i) voted.mass[i] += mass[static_cast<size_t>(begin) + i];
  }
  for (size_t at = 0; at < voted.mass.size(); at += kBlock) {
    voted.concentration.push_back(concentration(std::span(voted.mass).subspan(at, kBlock)));
  }
  return voted;
}

// The core of the voted blocks, and of everything before them. -> ascending slots
std::vector<int32_t> core_of(const Voted& voted, const Shares& shares, int32_t sinks) {
  const size_t n_block = voted.concentration.size();
  std::vector<size_t> order(n_block);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return voted.concentration[a] > voted.concentration[b]; });
  std::vector<size_t> budget(n_block);
  size_t next = 0;
  const auto counts = block_counts(shares, static_cast<int64_t>(n_block));
  for (size_t i = 0; i < kCounts; ++i) {
    for (int64_t n = 0; n < counts[i]; ++n) budget[order[next++]] = size_t{1} << i;
  }
  std::vector<int32_t> core(static_cast<size_t>(voted.begin));
  std::iota(core.begin(), core.end(), 0);
  for (size_t block = 0; block < n_block; ++block) {
    const auto begin = static_cast<int32_t>(block) * kBlock;
    std::vector<float> mass(voted.mass.begin() + begin, voted.mass.begin() + begin + kBlock);
    const int32_t first = voted.begin + begin;
    size_t n = budget[block];
    if (first < sinks) {  // these come on top where the votes would not take them
      const auto n_sink = static_cast<size_t>(std::min(kBlock, sinks - first));
      std::vector<int32_t> best = top_k(mass, static_cast<int64_t>(n));
      const auto inside = std::lower_bound(best.begin(), best.end(), static_cast<int32_t>(n_sink)) - best.begin();
      n += n_sink - static_cast<size_t>(inside);
      std::fill_n(mass.begin(), n_sink, 1e30F);
    }
    for (const int32_t i : top_k(mass, static_cast<int64_t>(n))) core.push_back(first + i);
  }
  return core;
}

// What selector and compressor of one sequence know of each kv head.
struct State {
  Settings settings;
  std::vector<Shares> shares;  // [n_layer * n_head_kv] or [1]
  int32_t n_head_kv = 0;
  struct Head {
    int32_t n_core = 0;                 // leading slots that were chosen already
    std::vector<double> concentration;  // of the prompt's blocks, descending
  };
  std::map<int32_t, Head> heads;  // by layer * n_head_kv + kv head

  int32_t index(const Site& site, size_t kv_head) const {
    return site.layer * n_head_kv + static_cast<int32_t>(kv_head);
  }
  const Shares& shares_of(int32_t index) const {
    return shares.size() == 1 ? shares.front() : shares[static_cast<size_t>(index)];
  }
  int32_t n_core(int32_t index) const {
    const auto found = heads.find(index);
    return found == heads.end() ? 0 : found->second.n_core;
  }
};

class Core final : public Selector {
 public:
  explicit Core(std::shared_ptr<const State> state) : state_(std::move(state)) {}

  Selection select(const Site& site) override {
    if (site.q.n_rows <= 1) return {};
    const std::span<const KvHead> kv = site.kv.heads;
    if (std::all_of(kv.begin(), kv.end(), [&](const KvHead& head) {
          return visible_slots(head, site.limit.back()) <= state_->settings.window;
        })) {
      return {};
    }
    std::vector<std::vector<int32_t>> cores(kv.size());
    site.ops.for_each(std::ssize(cores), [&](int64_t head, int) {
      const auto at = static_cast<size_t>(head);
      const int32_t index = state_->index(site, at);
      const Voted voted = vote(site, static_cast<int32_t>(head), std::min(state_->n_core(index), kv[at].n_slots),
                               kv[at].n_slots, state_->settings.votes);
      cores[at] = core_of(voted, state_->shares_of(index), state_->settings.sinks);
    });
    std::vector<HeadLists> lists(kv.size());
    site.ops.for_each(std::ssize(lists), [&](int64_t head, int) {
      const auto at = static_cast<size_t>(head);
      write(site, kv[at], cores[at], lists[at]);
    });
    Selection selection = join_lists(lists, kRows, kBlock);
    selection.group = site.q.n_head / static_cast<int32_t>(kv.size());
    return selection;
  }

 private:
  // Whole blocks that the core keeps are blocks; other tokens are columns.
  void write(const Site& site, const KvHead& kv, const std::vector<int32_t>& core, HeadLists& lists) const {
    for (int64_t row = 0; row < site.q.n_rows; row += kRows) {
      const int64_t last = std::min<int64_t>(row + kRows, site.q.n_rows) - 1;
      const int32_t begin = std::max(0, slot_of_row(site, kv, row) + 1 - state_->settings.window) / kBlock * kBlock;
      const int32_t end = slot_of_row(site, kv, last) + 1;
      const auto n = static_cast<size_t>(std::lower_bound(core.begin(), core.end(), begin) - core.begin());
      for (size_t i = 0; i < n;) {
        const size_t whole = i + kBlock - 1;
        if (whole < n && core[whole] == core[i] + kBlock - 1) {
          lists.block_begin.push_back(core[i]);
          i += kBlock;
        } else {
          lists.column.push_back(core[i++]);
        }
      }
      for (int32_t slot = begin; slot < end; slot += kBlock) lists.block_begin.push_back(slot);
      lists.end_block();
    }
  }

  std::shared_ptr<const State> state_;
};

class CoreCache final : public Compressor {
 public:
  explicit CoreCache(std::shared_ptr<State> state) : state_(std::move(state)) {}

  KvEdit compress(const Site& site, bool prefill) override {
    if (site.window > 0) return {};
    KvEdit edit;
    bool any = false;
    for (size_t i = 0; i < site.kv.heads.size(); ++i) {
      KvEdit::Head& head = edit.head.emplace_back();
      any = (prefill ? after_prompt(site, i, head) : after_row(site, i, head)) || any;
    }
    return any ? edit : KvEdit{};
  }

 private:
  static void keep(const KvHead& kv, std::vector<int32_t> slots, int32_t rest, KvEdit::Head& head) {
    for (int32_t slot = rest; slot < kv.n_slots; ++slot) slots.push_back(slot);
    head.all = std::ssize(slots) == kv.n_slots;
    if (!head.all) head.keep = std::move(slots);
  }

  // Whole blocks before the window give up all but their core.
  bool after_prompt(const Site& site, size_t kv_head, KvEdit::Head& head) {
    const KvHead& kv = site.kv.heads[kv_head];
    const int32_t index = state_->index(site, kv_head);
    const int32_t begin = std::min(state_->n_core(index), kv.n_slots);
    // The same votes and budgets as in prefill: over all whole blocks, of which those in the window stay whole.
    const Voted voted = vote(site, static_cast<int32_t>(kv_head), begin, kv.n_slots, state_->settings.votes);
    std::vector<int32_t> core = core_of(voted, state_->shares_of(index), state_->settings.sinks);
    const int32_t n_old = std::max(0, kv.n_slots - state_->settings.window - begin) / kBlock * kBlock;
    core.erase(std::lower_bound(core.begin(), core.end(), begin + n_old), core.end());
    State::Head& known = state_->heads[index];
    known.n_core = static_cast<int32_t>(core.size());
    known.concentration = voted.concentration;
    std::sort(known.concentration.begin(), known.concentration.end(), std::greater<>());
    keep(kv, std::move(core), begin + n_old, head);
    return !head.all;
  }

  // The oldest block, once it has left the window.
  bool after_row(const Site& site, size_t kv_head, KvEdit::Head& head) {
    const KvHead& kv = site.kv.heads[kv_head];
    const int32_t index = state_->index(site, kv_head);
    const auto found = state_->heads.find(index);
    if (found == state_->heads.end()) return false;
    State::Head& known = found->second;
    if (int64_t{kv.n_slots} - known.n_core < int64_t{state_->settings.window} + kBlock) return false;
    const int32_t begin = known.n_core;
    const Voted voted = vote(site, static_cast<int32_t>(kv_head), begin, begin + kBlock, 1);
    std::vector<int32_t> slots(static_cast<size_t>(begin));
    std::iota(slots.begin(), slots.end(), 0);
    const int64_t n = budget_like(known, state_->shares_of(index), voted.concentration.front());
    for (const int32_t i : top_k(voted.mass, n)) slots.push_back(begin + i);
    known.n_core = static_cast<int32_t>(slots.size());
    keep(kv, std::move(slots), begin + kBlock, head);
    return !head.all;
  }

  // The budget of the band of prompt blocks that a block of this concentration belongs to.
  static int64_t budget_like(const State::Head& known, const Shares& shares, double concentration) {
    const auto rank =
        std::lower_bound(known.concentration.begin(), known.concentration.end(), concentration, std::greater<>()) -
        known.concentration.begin();
    const double share = (static_cast<double>(rank) + 0.5) / static_cast<double>(known.concentration.size() + 1);
    double sum = 0;
    for (size_t i = 0; i < kCounts; ++i) {
      sum += shares[i];
      if (share < sum) return int64_t{1} << i;
    }
    return kBlock;
  }

  std::shared_ptr<State> state_;
};

std::vector<Shares> candidates() {
  std::vector<Shares> all;
  for (size_t mu = 0; mu < kCounts; ++mu) {
    for (const double sigma : {0.5, 1.0, 2.0}) all.push_back(log_gaussian(static_cast<double>(mu), sigma));
  }
  all.push_back(Shares{0, 0, 0, 0, 0, 0, 1});
  std::sort(all.begin(), all.end(), [](const Shares& a, const Shares& b) { return kept_share(a) < kept_share(b); });
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
    site.ops.for_each(shape_.n_head_kv, [&](int64_t head, int) { measure(site, static_cast<int32_t>(head)); });
  }

  std::string result() const override {
    if (std::all_of(n_.begin(), n_.end(), [](int64_t n) { return n == 0; })) {
      fail(
          "tca_attention: there is nothing to calibrate on; the model has no "
          "full-attention layer");
    }
    nlohmann::ordered_json file = open_calibration("tca_attention", shape_);
    file["layers"] = nlohmann::ordered_json::array();
    for (size_t i = 0; i < mass_.size(); ++i) {
      if (i % static_cast<size_t>(shape_.n_head_kv) == 0) file["layers"].push_back(nlohmann::ordered_json::array());
      size_t c = 0;
      while (c + 1 < candidates_.size() && !(mass_[i][c] >= recall_ * static_cast<double>(n_[i]))) ++c;
      file["layers"].back().push_back(candidates_[c]);
    }
    return file.dump() + "\n";
  }

 private:
  void measure(const Site& site, int32_t kv_head) {
    const KvHead& kv = site.kv.heads[static_cast<size_t>(kv_head)];
    const Voted voted = vote(site, kv_head, 0, kv.n_slots, s_.votes);
    std::vector<std::vector<int32_t>> cores;
    for (const Shares& shares : candidates_) cores.push_back(core_of(voted, shares, s_.sinks));
    // Rows at even distances, the last one among them.
    const int64_t n = std::min(kSample, site.q.n_rows), step = site.q.n_rows / n;
    const int64_t first = site.q.n_rows - 1 - (n - 1) * step;
    HeadsView rows = site.q.rows(first, n);
    rows.stride *= step;
    std::vector<int32_t> limit;
    for (int64_t i = 0; i < n; ++i) limit.push_back(site.limit[static_cast<size_t>(first + i * step)]);
    const size_t index = static_cast<size_t>(site.layer * shape_.n_head_kv + kv_head);
    const int32_t group = shape_.n_head / shape_.n_head_kv;
    std::vector<float> probabilities;
    for (int32_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      site.ops.score_window({rows, site.kv, limit.data(), site.scale, site.softcap, site.window}, head, probabilities);
      for (int64_t i = 0; i < n; ++i) {
        const std::span<const float> p =
            std::span(probabilities).subspan(static_cast<size_t>(i * kv.n_slots), static_cast<size_t>(kv.n_slots));
        const int32_t window = std::max(0, visible_slots(kv, limit[static_cast<size_t>(i)]) - s_.window);
        double near = 0;
        for (size_t slot = static_cast<size_t>(window); slot < p.size(); ++slot) near += double{p[slot]};
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
  std::vector<Shares> candidates_;         // ascending in what they keep
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
    {"cache", "1: the cache keeps core and window only", 1, 0, 1, true},
    {"recall", "for calibrate: share of the attention that core and window must hold", 0.95, 0, 1, false},
    {"min_len", "tokens in the cache below which prefill is dense", 2048, 0, kMany, true},
};
constexpr std::string_view kTexts[] = {"calibration"};

Settings settings_of(const Params& params) {
  return {.window = params.whole("window"), .sinks = params.whole("sinks"), .votes = params.whole("votes")};
}

std::vector<Shares> read(const nlohmann::json& file, const MethodShape& shape) {
  std::vector<Shares> all;
  const nlohmann::json& layers = file.at("layers");
  if (layers.size() != static_cast<size_t>(shape.n_layer)) fail("it has {} layers", layers.size());
  for (const nlohmann::json& heads : layers) {
    if (heads.size() != static_cast<size_t>(shape.n_head_kv)) fail("a layer has {} kv heads", heads.size());
    for (const nlohmann::json& head : heads) {
      const auto shares = head.get<std::vector<double>>();
      const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
      const bool negative = std::any_of(shares.begin(), shares.end(), [](double x) { return !(x >= 0); });
      if (shares.size() != kCounts || negative || std::abs(sum - 1) > 1e-3) {
        fail("a kv head's shares must be {} numbers whose sum is 1", kCounts);
      }
      std::copy(shares.begin(), shares.end(), all.emplace_back().begin());
    }
  }
  return all;
}

Method make(const Params& params, const MethodShape& shape) {
  const double mu = params.number("mu"), sigma = params.number("sigma");
  auto state = std::make_shared<State>(State{
      .settings = settings_of(params), .shares = {log_gaussian(mu, sigma)}, .n_head_kv = shape.n_head_kv, .heads = {}});
  const std::string& path = params.text("calibration");
  if (!path.empty()) {
    if (mu != kMu || sigma != kSigma) {
      fail(
          "tca_attention: mu and sigma cannot be given beside a calibration "
          "file, which sets the budgets of each head");
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
      .title =
          "a core of each block's best tokens and a window, in prefill "
          "and in the cache",
      .paper = "TCA-Attention, arXiv 2512.09238",
      .parts = "selector, compressor",
      .neutral = "tca_attention(window=1000000000)",
      .params = kParams,
      .knob = {.param = "mu", .dense = 6, .sparse = 0},
      .texts = kTexts,
      .make = make,
      .calibrate = calibrate,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
