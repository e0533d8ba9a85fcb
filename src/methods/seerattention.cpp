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
//   against 529, the 1.5B on two cores) and 2,048 faster (553 against 528); choosing takes 3 to 4 %.
// - Sliding-window layers, layers without a gate in the file, and decode are dense.
#include <cmath>

#include "attention/rope_angles.h"
#include "base/error.h"
#include "methods/lists.h"
#include "methods/weights_file.h"

namespace winnow {
namespace {

constexpr int32_t kBlock = 64;
constexpr std::string_view kGate = "gate_k.weight";
constexpr size_t kScores = size_t{1} << 22;  // scores of blocks that are held at once

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

// Turns row i of [n, dim] by position(i).
template <typename Position>
void turn_rows(const RopeArgs& rope, std::vector<float>& rows, int32_t dim, const Position& position) {
  Turn turn(rope, Turn::Way::forth);
  for (size_t i = 0; i * static_cast<size_t>(dim) < rows.size(); ++i) {
    turn(rows.data() + i * static_cast<size_t>(dim), position(static_cast<int64_t>(i)));
  }
}

class SeerAttention final : public Selector {
 public:
  SeerAttention(const Settings& settings, std::shared_ptr<const WeightsFile> file)
      : s_(settings), file_(std::move(file)) {}

  Selection select(const Site& site) override {
    const bool everything = s_.ratio >= 1 && s_.threshold <= 0;
    if (site.q.n_rows <= 1 || everything || !file_->has(site.layer)) return {};
    const std::vector<float> gate = file_->values(kGate, site.layer);
    const UnturnedArgs rows = {.q = site.q, .limit = site.limit, .kv = site.kv, .rope = site.rope, .block = kBlock};
    std::vector<std::vector<float>> keys(site.kv.heads.size());
    site.ops.for_each(std::ssize(keys), [&](int64_t head, int) {
      site.ops.pool_unturned_keys(rows, static_cast<int32_t>(head), keys[static_cast<size_t>(head)]);
    });
    std::vector<HeadLists> lists(static_cast<size_t>(site.q.n_head));
    const size_t group = lists.size() / keys.size(), n = gate.size() / lists.size();
    site.ops.for_each(site.q.n_head, [&](int64_t head, int) {
      const auto at = static_cast<size_t>(head);
      const auto first = gate.begin() + static_cast<std::ptrdiff_t>(at * n);
      const std::vector<float> own(first, first + static_cast<std::ptrdiff_t>(n));
      fill(site, static_cast<int32_t>(head), gate_keys(site, static_cast<int32_t>(head), keys[at / group], own),
           lists[at]);
    });
    return join_lists(lists, kBlock, kBlock);
  }

 private:
  // -> [n_block_k, head_dim]
  static std::vector<float> gate_keys(const Site& site, int32_t head, const std::vector<float>& pooled,
                                      const std::vector<float>& gate) {
    const KvHead& kv = kv_head_of(site, head);
    std::vector<float> keys;
    site.ops.score_blocks(pooled, gate, 3 * site.q.head_dim, 1, keys);
    turn_rows(site.rope, keys, site.q.head_dim,
              [&](int64_t block) { return kv.position(static_cast<int32_t>(block) * kBlock); });
    return keys;
  }

  void fill(const Site& site, int32_t head, const std::vector<float>& keys, HeadLists& lists) const {
    const KvHead& kv = kv_head_of(site, head);
    const auto dim = static_cast<size_t>(site.q.head_dim);
    std::vector<float> queries, scores;
    site.ops.pool_unturned_queries({site.q, site.limit, site.kv, site.rope, kBlock}, head, queries);
    turn_rows(site.rope, queries, site.q.head_dim,
              [&](int64_t block) { return site.limit[static_cast<size_t>(block * kBlock)]; });
    const size_t n_block_k = keys.size() / dim, n_block_q = queries.size() / dim;
    const size_t piece = std::max<size_t>(1, kScores / n_block_k);
    const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dim)));
    for (size_t begin = 0; begin < n_block_q; begin += piece) {
      const size_t end = std::min(begin + piece, n_block_q);
      const std::vector<float> some(queries.begin() + static_cast<std::ptrdiff_t>(begin * dim),
                                    queries.begin() + static_cast<std::ptrdiff_t>(end * dim));
      site.ops.score_blocks(some, keys, site.q.head_dim, scale, scores);
      for (size_t block = begin; block < end; ++block) {
        const int64_t row = static_cast<int64_t>(block) * kBlock;
        const int64_t last_row = std::min<int64_t>(row + kBlock, site.q.n_rows) - 1;
        const auto n_seen = static_cast<size_t>(slot_of_row(site, kv, last_row) / kBlock) + 1;
        const bool dense = s_.last_dense && block + 2 >= n_block_q;
        push(std::span(scores).subspan((block - begin) * n_block_k, n_seen), slot_of_row(site, kv, row) / kBlock,
             dense ? n_seen : count(n_block_k), lists);
      }
    }
  }

  // Blocks of a row of `n` that the share leaves; 0: the threshold decides.
  size_t count(size_t n) const {
    if (s_.ratio >= 1) return 0;
    const double share = 1 - std::sqrt(1 - s_.ratio);
    return std::max<size_t>(1, static_cast<size_t>(share * static_cast<double>(n) + 1e-9));
  }

  // The best n of the blocks (0: those above the threshold), and from `own` on all.
  void push(std::span<float> scores, int32_t own, size_t n, HeadLists& lists) const {
    const auto end = static_cast<int32_t>(scores.size());
    std::vector<int32_t> best;  // by the scores themselves: probabilities may be rounded to 0
    if (n > 0) best = top_k(scores, static_cast<int64_t>(n));
    const float most = *std::max_element(scores.begin(), scores.end());
    float sum = 0, kept = 0;
    for (float& score : scores) sum += score = std::exp(score - most);
    const auto add = [&](int32_t block) {
      lists.block_begin.push_back(block * kBlock);
      kept += scores[static_cast<size_t>(block)];
    };
    const auto bound = static_cast<float>(s_.threshold) * sum;
    for (int32_t block = 0; n == 0 && block < own; ++block) {
      if (scores[static_cast<size_t>(block)] > bound) add(block);
    }
    for (const int32_t block : best) {
      if (block < own) add(block);
    }
    for (int32_t block = own; block < end; ++block) add(block);
    lists.kept.add(double{kept / sum});
    lists.end_block();
  }

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
