// seerattention: a small trained gate in each layer tells from pooled queries and keys which blocks are worth it.
//
// Paper: Gao et al., "SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs", arXiv 2410.13276.
// Idea: queries before RoPE are pooled over blocks of 64 rows (mean), keys over blocks of 64 slots (greatest, least and
// mean, beside one another). A matrix for each query head, distilled from the frozen model's own attention, maps pooled
// keys to the size of a head; both are turned by the position of their block's first token; the softmax of their
// products estimates how attention is spread over blocks. A block of rows computes those above a threshold, or a fixed
// share of them. The rules follow the released code where the paper says less or something else: positions and
// frequencies are the model's own, and the last two blocks of rows are dense.
// Choices and deviations:
// - Gates come from a file (parameter `weights`; methods/weights_file.h tells its facts). None is shipped with winnow,
//   and none is made up: without the file the method refuses. Read are gates of the paper's default shape: as wide as a
//   head, one pooling of queries and no matrix for them.
// - A block of rows always sees its own blocks, so that every row sees itself. The released code does not force that.
// - threshold=0 is dense attention; ratio < 1 takes the place of the threshold.
// - The rows' own RoPE is undone, since nobody keeps queries and keys of before: from the cache, in the precision that
//   it stores. Models that normalise heads do so before RoPE, and the gate sees what they normalised.
// - Blocks of slots begin at multiples of 64 slots and blocks of rows at the first row that is read. Behind a prefix
//   that is no multiple of 64 a block of rows straddles two of slots; chunks that are multiples of 64 change nothing
//   but which rows are the last ones.
// - min_len: with a quarter of the blocks (ratio=0.25) 1,024 tokens were read as fast as densely (534 tokens a second
//   against 529, the 1.5B on two cores) and 2,048 faster (553 against 528); choosing takes 3 to 4 %. On a GPU (H100, 8B
//   shape, time of a prompt beside dense) 32,768 tokens took 89 %, but 4,096 took 225 %: the gate of a layer is read
//   and sent anew for each prompt, 3 ms.
// - Sliding-window layers, layers without a gate in the file, and decode are dense.
#include "methods/method.h"
#include "methods/weights_file.h"

namespace winnow {
namespace {

constexpr int32_t kBlock = 64;
constexpr std::string_view kGate = "gate_k.weight";

struct Settings {
  double threshold, ratio;
  bool last_dense;
};

std::vector<WeightTensor> weights(const MethodShape& shape) {
  const int64_t dim = shape.head_dim;
  return {{std::string(kGate),
           {shape.n_head * dim, 3 * dim},
           "head after head, a row for each value of the gate's key; from a block's greatest, least and mean key"}};
}

class SeerAttention final : public Selector {
 public:
  SeerAttention(const Settings& settings, std::shared_ptr<const WeightsFile> file)
      : s_(settings), file_(std::move(file)) {}

  Selection select(const Site& site) override {
    const bool everything = s_.ratio >= 1 && s_.threshold <= 0;
    if (site.q.n_rows <= 1 || everything || !file_->has(site.layer)) return {};
    const std::vector<float> gate = file_->values(kGate, site.layer);
    return site.ops.select_gated(
        {.rows = {.q = site.q, .limit = site.limit, .kv = site.kv, .rope = site.rope, .block = kBlock},
         .gate = gate,
         .threshold = s_.threshold,
         .ratio = s_.ratio,
         .last_dense = s_.last_dense});
  }

 private:
  Settings s_;
  std::shared_ptr<const WeightsFile> file_;
};

constexpr double kMany = 1e9;
constexpr ParamInfo kParams[] = {
    {"threshold", "share of a row of blocks above which a block is computed; 0 computes everything", 5e-4, 0, 1, false},
    {"ratio", "instead of the threshold: share of the blocks that is computed; 1: the threshold decides", 1, 0.001, 1,
     false},
    {"last_dense", "1: the last two blocks of rows see everything", 1, 0, 1, true},
    last_rows_param(),
    {"min_len", "tokens in the cache below which prefill is dense", 1024, 0, kMany, true},
};
constexpr std::string_view kTexts[] = {"weights"};

Method make(const Params& params, const MethodShape& shape) {
  auto file = std::make_shared<const WeightsFile>(params.text("weights"), "seerattention", shape, weights(shape));
  Method method;
  method.selector = std::make_unique<SeerAttention>(Settings{.threshold = params.number("threshold"),
                                                             .ratio = params.number("ratio"),
                                                             .last_dense = params.flag("last_dense")},
                                                    std::move(file));
  return method;
}

}  // namespace

namespace roster {

const MethodInfo& method_seerattention() {
  static const MethodInfo kInfo = {
      .name = "seerattention",
      .title = "a trained gate estimates which blocks of keys a block of rows attends to",
      .paper = "SeerAttention, arXiv 2410.13276",
      .parts = "selector",
      .neutral = "seerattention(threshold=0)",
      .params = kParams,
      .gpu_min_len = 32768,
      .knob = {.param = "threshold", .dense = 1e-5, .sparse = 2e-2, .geometric = true},
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
