// lazyllm: at a few depths, the tokens that the last one attends to least go no further; a later step may revive them.
//
// Paper: Fu et al., "LazyLLM: Dynamic Token Pruning for Efficient Long Context LLM Inference", arXiv 2407.14057.
// Idea: what the next token needs of a long prompt is a small part of it, and deeper layers tell that part better.
// After some layers every token is scored by the attention that the last token pays to it, the mean over all heads (eq.
// 1), and the lowest share is dropped from all layers above. A dropped token's hidden state is kept, so that another
// step, whose last token looks elsewhere, takes it up at the layer where it stopped: no layer of a token is computed
// twice. The engine keeps states and sets; this file decides who is dropped. Deviations, and what the paper leaves
// open:
// - Places: the paper gives 30 % of the layers, prune, three times over; shares per place are tuned per target and not
//   listed, so one share serves all places. A place that falls on a sliding-window layer moves to the next layer
//   that sees everything, since a window's scores say nothing of far tokens.
// - k = floor(prune * tokens) are dropped; the last token never; of equal scores the older (our choice).
// - The same schedule in prefill and in decode; generated tokens are candidates like the prompt's (second-hand, from an
//   independent implementation).
// - Decode pays for what prefill saved: a token that is taken up again passes every layer that it missed, once. After a
//   prompt of 2,304 tokens (0.5B model, 24 layers, defaults) the first four steps computed 900 to 1,700 (token, layer)
//   pairs each, instead of 24; steps 20 to 32 from 45 to 280. Of the 17,600 pairs that prefill saved 12,800 were spent
//   after 32 tokens; revive=0 spends none.
// - A prompt is read layer-major whatever the engine's schedule: the score needs the prompt's last row.
// - Prefill gains at any length (the 1.5B on two cores: 523 tokens a second against 412 with 256, 691 against 508 with
//   2,048), so min_len is no break-even: it spares prompts on which there is little time to save.
// - One late place instead of three (every=0.7, prune=0.8): at 32K the 1.5B has 47.2 % of the answers right beside
//   flexprefill(gamma=0.7, block=64), which alone has 49.0 and dense attention 43.1; with every=0.6 32.2, where
//   gamma=0.8. A score by the last 32 rows instead of one changed nothing (120 of 228 right, 118 by one).
// - revive=0 is the static pruning that the paper compares with: decode leaves the tokens where they stopped.
#include <cmath>

#include "base/error.h"
#include "methods/lists.h"

namespace winnow {
namespace {

struct Settings {
  double prune, every;
  bool revive;
  int32_t n_layer;
};

class LazyLlm final : public Pruner {
 public:
  explicit LazyLlm(const Settings& settings) : s_(settings) {}

  bool revives() const override { return s_.revive; }

  std::vector<int32_t> prune(const Site& site, std::span<const int32_t> candidate) override {
    if (site.layer == 0) n_done_ = 0;
    const int32_t n_due = places_until(site.layer);
    if (site.window > 0 || n_due == n_done_) return {};
    n_done_ = n_due;
    const auto n = std::ssize(candidate);
    const auto n_dropped = static_cast<int64_t>(s_.prune * static_cast<double>(n) + 1e-9);
    if (n_dropped == 0) return {};
    std::vector<float> score = scores(site, candidate);
    score.back() = INFINITY;
    std::reverse(score.begin(), score.end());  // top_k prefers the lower index: now the younger token
    std::vector<int32_t> kept = top_k(score, n - n_dropped);
    std::reverse(kept.begin(), kept.end());
    for (int32_t& index : kept) index = static_cast<int32_t>(n) - 1 - index;
    return kept;
  }

 private:
  // How many places lie after `layer` or before.
  int32_t places_until(int32_t layer) const {
    int32_t n = 0;
    int32_t before = 0;
    for (int32_t k = 1; k * s_.every < 1; ++k) {
      const auto place = static_cast<int32_t>(k * s_.every * s_.n_layer + 1e-9);  // layers below it
      if (place > before && place <= layer + 1) ++n;
      before = place;
    }
    return n;
  }

  // Mean over the heads of what the last row pays to each candidate, of all that it pays to candidates.
  static std::vector<float> scores(const Site& site, std::span<const int32_t> candidate) {
    std::vector<std::vector<float>> mass, paid(static_cast<size_t>(site.q.n_head));
    site.ops.window_mass(last_rows(site, 1), mass);
    site.ops.for_each(site.q.n_head, [&](int64_t item, int) {
      const auto head = static_cast<size_t>(item);
      const KvHead& kv = kv_head_of(site, static_cast<int32_t>(item));
      std::vector<float>& of_head = paid[head];
      double sum = 0;
      int32_t slot = 0;
      for (const int32_t position : candidate) {
        while (kv.position(slot) < position) ++slot;
        of_head.push_back(mass[head][static_cast<size_t>(slot)]);
        sum += double{of_head.back()};
      }
      for (float& p : of_head) p = static_cast<float>(double{p} / sum);
    });
    std::vector<float> score(candidate.size());
    for (const std::vector<float>& of_head : paid) {
      for (size_t i = 0; i < score.size(); ++i) score[i] += of_head[i];
    }
    return score;
  }

  Settings s_;
  int32_t n_done_ = 0;  // places of this step that are behind it
};

constexpr ParamInfo kParams[] = {
    {"prune", "share of the tokens that is dropped at each place", 0.3, 0, 0.9, false},
    {"every", "share of the layers from one place to the next", 0.3, 0.05, 1, false},
    {"min_len", "tokens in the sequence below which nothing is dropped", 2048, 0, 1e9, true},
    {"revive", "1: a later step may take dropped tokens up again; 0: they stay dropped", 1, 0, 1, true},
};

Method make(const Params& params, const MethodShape& shape) {
  Method method;
  method.pruner = std::make_unique<LazyLlm>(Settings{.prune = params.number("prune"),
                                                     .every = params.number("every"),
                                                     .revive = params.flag("revive"),
                                                     .n_layer = shape.n_layer});
  return method;
}

}  // namespace

namespace roster {

const MethodInfo& method_lazyllm() {
  static const MethodInfo kInfo = {
      .name = "lazyllm",
      .title = "tokens that the last one hardly attends to skip the upper layers, until a later token needs them",
      .paper = "LazyLLM, arXiv 2407.14057",
      .parts = "pruner",
      .neutral = "lazyllm(prune=0)",
      .params = kParams,
      .texts = {},
      .make = make,
      .calibrate = nullptr,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
