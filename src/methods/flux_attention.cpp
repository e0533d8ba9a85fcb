// flux_attention: a trained router looks at a prompt's ends and decides, layer by layer, between full and sparse.
//
// Paper: "Flux Attention: Context-Aware Hybrid Attention for Efficient LLMs Inference", arXiv 2604.07394.
// Idea: prompts differ in how many layers need all of the context. In each layer a router (0.6 M parameters) gets the
// mean query, before RoPE, of the first and last `pool` tokens over all heads; two small perceptrons make two numbers
// of it, and the greater one is the layer's route for this sequence, in prefill and in decode. What sparse means is
// fixed per trained model:
//   mode=0  sinks and a sliding window, in blocks of 128;
//   mode=1  XAttention's blocks (Ops::select_antidiagonals), stride 16, threshold 0.9;
//   mode=2  as mode 0, but the last 128 rows see everything.
// Choices and deviations:
// - Routers come from a file (parameter `weights`; methods/weights_file.h tells its facts). None is shipped with
// winnow,
//   and none is made up: without the file the method refuses.
// - Equal numbers mean full attention. Computed in float32.
// - The window counts the block of the row itself. A block of rows that holds any of the last 128 is dense as a whole
//   in mode 2.
// - The first rows that are asked about decide, and their route holds until the sequence is cut. In layer-major prefill
//   these are the prompt; in chunk-major prefill the first chunk, whose last tokens stand for the prompt's.
// - decode=1 is the paper's sparse decode, for every mode: a new token of a sparse layer sees sinks and window. The
//   cache keeps the rest all the same.
// - The rows' RoPE is undone, since nobody keeps queries of before.
// - min_len: up to 2,304 tokens sinks and window are everything; with every second layer sparse 3,072 tokens were read
//   5 % faster than densely (the 1.5B on two cores), and the router took 1 %.
// - Sliding-window layers and layers without a router in the file stay as they are.
#include <cmath>
#include <map>

#include "base/error.h"
#include "methods/lists.h"
#include "methods/weights_file.h"

namespace winnow {
namespace {

constexpr int32_t kBlock = 128;
constexpr int32_t kStride = 16;     // of XAttention's tiles
constexpr double kThreshold = 0.9;  // of its mass
constexpr int64_t kLastRows = 128;  // of mode 2
enum class Mode { window, antidiagonals, window_and_last_rows };

struct Settings {
  int32_t pool, sink_blocks, local_blocks;
  Mode mode;
  bool decode;
};

// The router's layers: what goes in and out, in sizes of a head, and whether SiLU follows.
struct Step {
  std::string_view name;
  int64_t n_out, n_in;
  bool silu;
};
std::vector<Step> steps(int64_t dim) {
  return {{"router.0", 8 * dim, dim, true},
          {"router.1", 2 * dim, 8 * dim, false},
          {"router.2", 4 * dim, 2 * dim, true},
          {"router.3", dim, 4 * dim, true},
          {"router.4", 2, dim, false}};
}

std::vector<WeightTensor> weights(const MethodShape& shape) {
  std::vector<WeightTensor> all;
  for (const Step& step : steps(shape.head_dim)) {
    const std::string name(step.name);
    const bool last = step.n_out == 2;
    all.push_back({name + ".weight",
                   {step.n_out, step.n_in},
                   last ? "the two numbers: sparse, full" : (step.silu ? "SiLU follows" : "nothing follows")});
    all.push_back({name + ".bias", {step.n_out}, "added before what follows"});
  }
  return all;
}

class Flux final : public Selector {
 public:
  Flux(const Settings& settings, std::shared_ptr<const WeightsFile> file) : s_(settings), file_(std::move(file)) {}

  bool in_decode() const override { return s_.decode; }

  Selection select(const Site& site) override {
    if (site.q.n_rows <= 1) {  // decode never asks the router
      const auto known = sparse_.find(site.layer);
      return known != sparse_.end() && known->second ? windows(site, false) : Selection{};
    }
    if (!file_->has(site.layer)) return {};
    const auto [known, is_new] = sparse_.try_emplace(site.layer, false);
    if (is_new) known->second = wants_sparse(site);
    if (!known->second) return {};
    if (s_.mode == Mode::antidiagonals) {
      return site.ops.select_antidiagonals({last_rows(site, site.q.n_rows), kStride, kBlock}, kThreshold);
    }
    return windows(site, s_.mode == Mode::window_and_last_rows);
  }

 private:
  bool wants_sparse(const Site& site) const {
    std::vector<float> x = mean_query(site);
    for (const Step& step : steps(site.q.head_dim)) {
      const std::string name(step.name);
      std::vector<float> y;
      site.ops.score_blocks(x, file_->values(name + ".weight", site.layer), static_cast<int32_t>(step.n_in), 1, y);
      const std::vector<float> bias = file_->values(name + ".bias", site.layer);
      for (size_t i = 0; i < y.size(); ++i) {
        y[i] += bias[i];
        if (step.silu) y[i] /= 1 + std::exp(-y[i]);
      }
      x = std::move(y);
    }
    return x[0] > x[1];
  }

  // Of the first and the last rows, over all heads, before RoPE.
  std::vector<float> mean_query(const Site& site) const {
    const int64_t n = std::min<int64_t>(s_.pool, site.q.n_rows), last = site.q.n_rows - n;
    std::vector<std::vector<float>> of_head(static_cast<size_t>(site.q.n_head));
    site.ops.for_each(site.q.n_head, [&](int64_t head, int) {
      std::vector<float>& sum = of_head[static_cast<size_t>(head)];
      for (const int64_t begin : {int64_t{0}, last}) {
        const UnturnedArgs rows = {.q = site.q.rows(begin, n),
                                   .limit = site.limit.subspan(static_cast<size_t>(begin), static_cast<size_t>(n)),
                                   .kv = site.kv,
                                   .rope = site.rope,
                                   .block = static_cast<int32_t>(n)};
        std::vector<float> mean;
        site.ops.pool_unturned_queries(rows, static_cast<int32_t>(head), mean);
        sum.resize(mean.size());
        for (size_t d = 0; d < mean.size(); ++d) sum[d] += mean[d];
      }
    });
    std::vector<float> mean(static_cast<size_t>(site.q.head_dim));
    for (const std::vector<float>& sum : of_head) {
      for (size_t d = 0; d < mean.size(); ++d) mean[d] += sum[d] / static_cast<float>(2 * site.q.n_head);
    }
    return mean;
  }

  // Blocks of sinks and the window of each block of rows.
  Selection windows(const Site& site, bool last_rows_dense) const {
    const std::span<const KvHead> kv = site.kv.heads;
    const auto n_near = int64_t{s_.sink_blocks} + s_.local_blocks;
    if (std::all_of(kv.begin(), kv.end(),
                    [&](const KvHead& head) { return slot_of_row(site, head, site.q.n_rows - 1) / kBlock < n_near; })) {
      return {};
    }
    return pattern_lists(site, kBlock, [&](const KvHead& head, HeadLists& lists) {
      for (int64_t row = 0; row < site.q.n_rows; row += kBlock) {
        const int64_t end = std::min<int64_t>(row + kBlock, site.q.n_rows);
        const int32_t own = slot_of_row(site, head, row) / kBlock, last = slot_of_row(site, head, end - 1) / kBlock;
        const bool dense = last_rows_dense && end > site.q.n_rows - n_of_last_rows(site, kLastRows);
        const int32_t near = dense ? 0 : std::max(0, own - s_.local_blocks + 1);
        for (int32_t block = 0; block < std::min(s_.sink_blocks, near); ++block) {
          lists.block_begin.push_back(block * kBlock);
        }
        for (int32_t block = near; block <= last; ++block) lists.block_begin.push_back(block * kBlock);
        lists.end_block();
      }
    });
  }

  Settings s_;
  std::shared_ptr<const WeightsFile> file_;
  std::map<int32_t, bool> sparse_;  // by layer, once it was decided
};

constexpr double kMany = 1e9;
constexpr ParamInfo kParams[] = {
    {"mode", "sparse layers: 0 sinks and window, 1 XAttention's blocks, 2 as 0 with dense last rows", 0, 0, 2, true},
    {"sinks", "first tokens that a row of a sparse layer sees, in blocks of 128", 128, 0, kMany, true},
    {"local", "last tokens that it sees, in blocks of 128, its own among them", 2048, 1, kMany, true},
    {"pool", "tokens at either end of the prompt that the router looks at", 100, 1, 100000, true},
    {"decode", "1: decoded tokens see sinks and window in sparse layers; 0: everything", 0, 0, 1, true},
    last_rows_param(),
    {"min_len", "tokens in the cache below which prefill is dense", 2432, 0, kMany, true},
};
constexpr std::string_view kTexts[] = {"weights"};

Method make(const Params& params, const MethodShape& shape) {
  auto file = std::make_shared<const WeightsFile>(params.text("weights"), "flux_attention", shape, weights(shape));
  Method method;
  method.selector = std::make_unique<Flux>(Settings{.pool = params.whole("pool"),
                                                    .sink_blocks = ceil_div(params.whole("sinks"), kBlock),
                                                    .local_blocks = ceil_div(params.whole("local"), kBlock),
                                                    .mode = static_cast<Mode>(params.whole("mode")),
                                                    .decode = params.flag("decode")},
                                           std::move(file));
  return method;
}

}  // namespace

namespace roster {

const MethodInfo& method_flux_attention() {
  static const MethodInfo kInfo = {
      .name = "flux_attention",
      .title = "a trained router decides for each layer whether it attends to everything or sparsely",
      .paper = "Flux Attention, arXiv 2604.07394",
      .parts = "selector",
      .neutral = "flux_attention(local=1000000000)",
      .params = kParams,
      .knob = {.param = "local", .dense = 32768, .sparse = 256, .geometric = true},
      .texts = kTexts,
      .make = make,
      .calibrate = nullptr,
      .weights = weights,
      .needs_weights = true,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
