// dhsa: keys are cut into chunks, chunks are scored by their mean, and each block of rows gets a budget of tokens.
//
// Paper: Xiong et al., "Long-Context Modeling with Dynamic Hierarchical Sparse Attention for On-Device LLMs",
// arXiv 2510.24606.
// Idea: what a block of rows looks at lies in a few stretches of the text. The mean query of a block is multiplied with
// the mean key of every chunk, times the root of the chunk's length, so that a long chunk is not paid for by its weak
// tokens alone; all tokens of a chunk have its score. The budget goes to the last tokens first, then to the best
// others; the first tokens take the places of the lowest ones that were picked. The prompt's last rows, an instruction
// or a question, stay dense. Deviations:
// - Chunks begin where a trained predictor sees boundaries, as in the authors' first generation, if its weights
//   are given (parameter `weights`; methods/boundaries.h). They are found in the first layer that is asked and
//   used in all. Without the file, and where kv heads hold different slots, chunks have equal lengths, as in the
//   second generation, which has no predictor. What was published does not settle the number of the predictor's
//   heads (4 or 8: parameter `heads`); that all its products have biases, and 1e-5 in its norm, are the usual
//   choices. Where no logit is above `boundary` the last rows are the only other chunk.
// - Each head chooses by its own means, as in the second generation; shared=1 averages queries and keys over all heads
//   first, as the first does (where all heads have the same slots).
// - A block of rows that holds any of the last rows is dense as a whole (methods/last_rows.h). Rows are counted in the
//   whole prompt, blocks in what is read at once.
// - Of a chunk that the budget ends in, the first tokens are taken; chunks of equal score go by their order.
// - min_len is that of chunks of equal length; with a predictor (random weights) 2,432 tokens and more were read no
//   slower than densely (the 1.5B on two cores), and choosing took 1.5 %.
// - The rest as published: factors that are common to a block's scores are left out, and decode is dense.
#include "base/error.h"
#include "methods/boundaries.h"
#include "methods/lists.h"

namespace winnow {
namespace {

constexpr int64_t kBoundariesOfABlock = 8;  // of predicted ones, for each block of rows, at most

struct Settings {
  int32_t budget, block, chunk, sinks, recent;
  int32_t last_rows;  // the engine's; a chunk of their own in what is predicted
  bool shared;
  double boundary;
  int32_t apart, heads;
};

class Dhsa final : public Selector {
 public:
  Dhsa(const Settings& settings, std::shared_ptr<const WeightsFile> file) : s_(settings), file_(std::move(file)) {}

  Selection select(const Site& site) override {
    if (site.q.n_rows == 1) return {};
    const std::span<const KvHead> kv = site.kv.heads;
    if (std::all_of(kv.begin(), kv.end(),
                    [&](const KvHead& head) { return visible_slots(head, site.limit.back()) <= s_.budget; })) {
      return {};
    }
    const bool alike = std::all_of(kv.begin(), kv.end(), [&](const KvHead& head) {
      return head.idx == nullptr && head.n_slots == kv.front().n_slots;
    });
    ChunkArgs chunks = chunks_of(site);
    if (file_ != nullptr && alike) {
      predict(site);
      chunks.bounds = boundaries_;
    }
    chunks.together = s_.shared && alike;
    return site.ops.select_chunks(chunks);
  }

 private:
  // Anew in the first layer of every prompt or chunk.
  void predict(const Site& site) {
    if (predicted_at_ >= 0 && site.layer > predicted_at_) return;
    predicted_at_ = site.layer;
    const std::vector<float> logits = boundary_logits(site, *file_, s_.heads);
    boundaries_ = pick_boundaries(logits, {.least = s_.boundary,
                                           .apart = s_.apart,
                                           .last_rows = s_.last_rows,
                                           .most = std::ssize(logits) / s_.block * kBoundariesOfABlock});
  }

  ChunkArgs chunks_of(const Site& site) const {
    return {.q = site.q,
            .kv = site.kv,
            .limit = site.limit,
            .budget = s_.budget,
            .block = s_.block,
            .chunk = s_.chunk,
            .sinks = s_.sinks,
            .recent = s_.recent};
  }

  Settings s_;
  std::shared_ptr<const WeightsFile> file_;  // null: no predictor
  std::vector<int32_t> boundaries_;          // predicted
  int32_t predicted_at_ = -1;                // the layer where they were
};

constexpr double kMany = 1e9;
constexpr ParamInfo kParams[] = {
    {"budget", "tokens that a block of rows sees, sinks and recent ones among them", 2048, 256, kMany, true},
    {"block", "rows of a block: 64 or 128", 128, 64, 128, true},
    {"chunk", "tokens of a chunk", 64, 8, 1024, true},
    {"sinks", "first tokens that every block sees", 128, 0, kMany, true},
    {"recent", "last tokens that a block sees, its own rows among them", 128, 128, kMany, true},
    last_rows_param(64),
    {"shared", "1: all heads choose together; 0: each by itself", 0, 0, 1, true},
    {"boundary", "with weights: logit above which a chunk may begin behind a token", 1.1, -100, 100, false},
    {"apart", "with weights: beginnings of chunks are more than so many tokens from each other", 8, 0, 1024, true},
    {"heads", "with weights: heads of the predictor's attention", 8, 1, 1024, true},
    {"min_len", "tokens in the cache below which prefill is dense", 4096, 0, kMany, true},
};

constexpr std::string_view kTexts[] = {"weights"};

Method make(const Params& params, const MethodShape& shape) {
  const Settings settings = {.budget = params.whole("budget"),
                             .block = block_size(params, "dhsa"),
                             .chunk = params.whole("chunk"),
                             .sinks = params.whole("sinks"),
                             .recent = params.whole("recent"),
                             .last_rows = params.whole("last_rows"),
                             .shared = params.flag("shared"),
                             .boundary = params.number("boundary"),
                             .apart = params.whole("apart"),
                             .heads = params.whole("heads")};
  if (settings.budget < int64_t{settings.sinks} + settings.recent) {
    fail("dhsa: budget={} must have room for sinks={} and recent={}, which are always seen", settings.budget,
         settings.sinks, settings.recent);
  }
  std::shared_ptr<const WeightsFile> file;
  if (!params.text("weights").empty()) {
    const int32_t n = shape.n_head_kv * shape.head_dim;
    if (n % settings.heads != 0) fail("dhsa: heads={} must divide {}, the values of a token's keys", settings.heads, n);
    file = std::make_shared<const WeightsFile>(params.text("weights"), "dhsa", shape, boundary_weights(shape));
  }
  Method method;
  method.selector = std::make_unique<Dhsa>(settings, std::move(file));
  return method;
}

}  // namespace

namespace roster {

const MethodInfo& method_dhsa() {
  static const MethodInfo kInfo = {
      .name = "dhsa",
      .title = "a budget of tokens for each block of rows, given to the chunks whose mean keys score best",
      .paper = "DHSA, arXiv 2510.24606",
      .parts = "selector",
      .neutral = "dhsa(budget=1000000000)",
      .params = kParams,
      .gpu_min_len = 16384,
      .knob = {.param = "budget", .dense = 32768, .sparse = 512, .geometric = true},
      .texts = kTexts,
      .make = make,
      .calibrate = nullptr,
      .weights = boundary_weights,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
