// zipvl: each layer keeps as many tokens as it takes to hold a share of its attention's mass, and no others.
//
// Paper: He et al., "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification", arXiv
// 2410.08584. Idea: layers and inputs differ in how many tokens matter. The attention of some probe rows says how much
// of the mass each token gets; p is the least number of tokens that hold a share tau of it. The p best tokens, by what
// a row that can see them spends on them on average, are the layer's important ones: attention goes to these only, and
// the cache keeps only these. Nothing in this needs images; text is treated alike. The running text of the paper was
// not available, only its equations and pseudo-code. Our choices and deviations:
// - all_rows=0 is the paper's attention among the important tokens: the other rows skip the layer's attention, get
//   zeros for it, and go on with their residual; density falls to (p / n)^2. Rows whose logits somebody reads attend in
//   any case, as the last one does; where they are not important, no later row sees them but those of their block of
//   128 attending rows. Where kv heads have sets of their own, a row attends if any of them finds it important.
// - It is not the default, since text does not survive it. With all_rows=1 unimportant tokens attend, too: to the
//   important ones before them and to their own 128 or fewer neighbours; density falls to p / n. The 1.5B model on
//   demo/station-book.txt (11,185 tokens; KL to dense over the dense answer): all_rows=1 70 % and 0.001; all_rows=0
//   59 % and 3.4, an answer that knows nothing of the book, with tau=0.99 74 % and 3.6, with 0.999 94 % and 0.12. That
//   the question's tokens miss attention is not the reason: with the last 512 tokens protected it was 3.5. Prefill at
//   8,192 tokens: dense 21.2 s, all_rows=1 19.7 s, all_rows=0 19.2 s.
// - Half of the probes are the last rows, as in the paper; the others lie at even distances from a fixed offset instead
//   of at random, so that a run can be repeated.
// - The estimated mass is what the probes, whether they attend or not, spend on important tokens.
// - Probabilities are averaged over heads. Where kv heads hold different slots, each kv head has a set of its own.
// - The last token is always important, and so are the first `protect` tokens, none unless asked for.
// - The cache drops unimportant rows (the paper's second version; the first stores them in fewer bits). A layer whose
//   prompt the selector did not see (short prompts) is judged by the last 128 rows alone.
// - In decode every `interval` new rows are judged by the newest row's attention to them; tau counts within these.
#include <map>
#include <numeric>
#include <optional>

#include "attention/important.h"
#include "base/error.h"
#include "methods/lists.h"

namespace winnow {
namespace {

struct Settings {
  double tau;
  int32_t probes, interval, protect;
  bool all_rows, cache;
};

// The last rows, and as many at even distances before them. Few rows are all probes.
class Probes {
 public:
  Probes(const Site& site, int64_t n) {
    const int64_t n_rows = site.q.n_rows, n_last = n_rows <= 2 * n ? n_rows : n;
    views_.push_back(last_rows(site, n_last));
    if (n_last == n_rows) return;
    const int64_t step = (n_rows - n) / n;
    views_.push_back(spread_.emplace(site, step / 2, step, n).args());
  }
  Probes(const Probes&) = delete;
  Probes& operator=(const Probes&) = delete;
  std::span<const ProbeArgs> views() const { return views_; }

 private:
  std::optional<SpreadRows> spread_;
  std::vector<ProbeArgs> views_;
};

// One set for all kv heads where these hold the same slots, else one for each.
Selection choose(const Site& site, const Settings& settings) {
  const Probes probes(site, settings.probes);
  return site.ops.choose_important(
      {.probes = probes.views(), .share = settings.tau, .first = settings.protect, .together = alike(site.kv.heads)});
}

std::vector<int32_t> n_slots_of(std::span<const KvHead> kv) {
  std::vector<int32_t> n;
  for (const KvHead& head : kv) n.push_back(head.n_slots);
  return n;
}

// What selector and compressor of one sequence share, by layer.
struct State {
  struct Prompt {
    Selection sets;
    std::vector<int32_t> n_slots;  // [n_head_kv] of which these were chosen
  };
  Settings settings;
  std::map<int32_t, Prompt> prompts;  // that are being read
  std::map<int32_t, int32_t> n_new;   // rows decoded since the last judgement
};

class Important final : public Selector {
 public:
  explicit Important(std::shared_ptr<State> state) : state_(std::move(state)) {}

  Selection select(const Site& site) override {
    if (site.q.n_rows <= 1 || state_->settings.tau >= 1) return {};
    const Settings& settings = state_->settings;
    const Selection sets = choose(site, settings);
    if (settings.cache) state_->prompts[site.layer] = {sets, n_slots_of(site.kv.heads)};
    if (sets.everything()) return {};
    return site.ops.select_sets({.kv = site.kv,
                                 .limit = site.limit,
                                 .n_head = site.q.n_head,
                                 .sets = &sets,
                                 .only_rows_of_sets = !settings.all_rows,
                                 .n_wanted = site.n_wanted});
  }

 private:
  std::shared_ptr<State> state_;
};

class ImportantCache final : public Compressor {
 public:
  explicit ImportantCache(std::shared_ptr<State> state) : state_(std::move(state)) {}

  KvEdit compress(const Site& site, bool prefill) override {
    if (site.window > 0 || state_->settings.tau >= 1) return {};
    return prefill ? after_prompt(site) : after_row(site);
  }

 private:
  KvEdit after_prompt(const Site& site) {
    state_->n_new[site.layer] = 0;
    const std::span<const KvHead> kv = site.kv.heads;
    const auto known = state_->prompts.extract(site.layer);
    const bool fits = !known.empty() && known.mapped().n_slots == n_slots_of(kv) &&
                      (known.mapped().sets.n_head != 1 || alike(kv));  // and not another prompt's
    const Selection sets = site.ops.on_host(fits ? known.mapped().sets : choose(site, state_->settings));
    KvEdit edit;
    for (size_t i = 0; i < kv.size(); ++i) {
      KvEdit::Head& head = edit.head.emplace_back();
      if (sets.everything()) continue;
      const std::span<const int32_t> set = sets.columns(sets.n_head == 1 ? 0 : static_cast<int64_t>(i));
      head.all = std::ssize(set) == kv[i].n_slots;
      if (!head.all) head.keep.assign(set.begin(), set.end());
    }
    return edit;
  }

  KvEdit after_row(const Site& site) {
    int32_t& n_new = state_->n_new[site.layer];
    if (++n_new < state_->settings.interval) return {};
    n_new = 0;
    const std::span<const KvHead> kv = site.kv.heads;
    const int32_t group = site.q.n_head / static_cast<int32_t>(kv.size()), interval = state_->settings.interval;
    const bool together = alike(kv);
    KvEdit edit;
    SlotMass mass;
    std::vector<std::vector<float>> of_heads;
    site.ops.window_mass(last_rows(site, 1), of_heads);
    std::vector<float> sum;
    for (int32_t i = 0; i < static_cast<int32_t>(kv.size()); ++i) {
      const int32_t n_slots = kv[static_cast<size_t>(i)].n_slots, first = std::max(0, n_slots - interval);
      KvEdit::Head& head = edit.head.emplace_back();
      if (together && i > 0) {
        head = edit.head.front();
        continue;
      }
      sum.assign(static_cast<size_t>(n_slots), 0);
      const int32_t end = together ? site.q.n_head : (i + 1) * group;
      for (int32_t h = i * group; h < end; ++h) add_mass(of_heads[static_cast<size_t>(h)], sum);
      mass.sum.assign(sum.begin() + first, sum.end());
      mass.seen.assign(mass.sum.size(), 1);
      mass.total = std::accumulate(mass.sum.begin(), mass.sum.end(), 0.0);
      for (int32_t slot = 0; slot < first; ++slot) head.keep.push_back(slot);
      const int32_t n_protected = std::clamp(state_->settings.protect - first, 0, interval);
      for (const int32_t slot : important_slots(mass, state_->settings.tau, n_protected)) {
        head.keep.push_back(first + slot);
      }
      head.all = std::ssize(head.keep) == n_slots;
    }
    return edit;
  }

  std::shared_ptr<State> state_;
};

constexpr double kMany = 1e9;
constexpr ParamInfo kParams[] = {
    {"tau", "share of the attention's mass that a layer's important tokens hold; 1: all tokens", 0.975, 0, 1, false},
    {"probes", "last rows that are probes, and as many before them", 64, 1, 64, true},
    {"interval", "decoded rows after which these are judged", 100, 2, kMany, true},
    {"protect", "first tokens that are important in any case", 0, 0, kMany, true},
    {"all_rows", "0: unimportant tokens skip the layer's attention, as in the paper; 1: they attend, too", 1, 0, 1,
     true},
    {"cache", "1: the cache keeps important tokens only", 1, 0, 1, true},
    last_rows_param(),
    {"min_len", "tokens in the cache below which prefill is dense", 4096, 0, kMany, true},
};

Method make(const Params& params, const MethodShape&) {
  const auto state = std::make_shared<State>(State{.settings = {.tau = params.number("tau"),
                                                                .probes = params.whole("probes"),
                                                                .interval = params.whole("interval"),
                                                                .protect = params.whole("protect"),
                                                                .all_rows = params.flag("all_rows"),
                                                                .cache = params.flag("cache")},
                                                   .prompts = {},
                                                   .n_new = {}});
  Method method;
  method.selector = std::make_unique<Important>(state);
  if (state->settings.cache) method.compressor = std::make_unique<ImportantCache>(state);
  return method;
}

}  // namespace

namespace roster {

const MethodInfo& method_zipvl() {
  static const MethodInfo kInfo = {
      .name = "zipvl",
      .title = "each layer's important tokens, as many as hold a share of its attention, in prefill and in the cache",
      .paper = "ZipVL, arXiv 2410.08584",
      .parts = "selector, compressor",
      .neutral = "zipvl(tau=1)",
      .params = kParams,
      .gpu_min_len = kNeverGains,
      .knob = {.param = "tau", .dense = 0.999, .sparse = 0.8},
      .texts = {},
      .make = make,
      .calibrate = nullptr,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
