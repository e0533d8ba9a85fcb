// powerattention: a fixed pattern of blocks at distances that are powers of two.
//
// Paper: Chen et al., "PowerAttention: Exponentially Scaling of Receptive Fields for Effective Sparse Attention", arXiv
// 2503.03588.
// Idea: a block of tokens sees a small window of blocks before it, the first block, and the blocks 1, 2, 4, 8, ...
// blocks back. What any token says then reaches any later one within log2(n) layers, while each row computes a number
// of blocks that grows with log(n). The same pattern holds in prefill and in decode, for all heads of a layer.
// Deviations and choices:
// - The paper trains models under this pattern. On one that was not, it is a lossy one, so that the default here is the
//   paper's hybrid of RULER: 2 dense layers of every 7. Which 2 the paper does not say; here they are the first ones.
// - Blocks are a multiple of 64 tokens, because the kernels' are; the paper's is 256.
// - Blocks are of absolute positions. Where a cache was evicted from, the kernels' blocks of 64 or 128 slots may cover
//   some slots more. A query block of the kernels that straddles two blocks (after a prefix that is no multiple of
//   them) computes what either needs.
// - Prompts of fewer than 64 rows after a prefix are read dense, as with every selector.
// - Nothing is estimated, so there is no length at which the pattern costs more than dense attention: min_len is 0. On
//   a GPU the making of lists costs more than it saves below 8,192 tokens.
#include "base/error.h"
#include "methods/lists.h"

namespace winnow {
namespace {

struct Settings {
  int32_t block;
  int64_t window;  // blocks
  int32_t sinks;   // blocks
  int32_t full, of;
};

class PowerAttention final : public Selector {
 public:
  explicit PowerAttention(const Settings& settings) : s_(settings), block_(settings.block % 128 == 0 ? 128 : 64) {}

  bool in_decode() const override { return true; }

  Selection select(const Site& site) override {
    if (site.layer % s_.of < s_.full || site.limit.back() / s_.block < s_.window) return {};
    return pattern_lists(site, block_, [&](const KvHead& head, HeadLists& lists) { write(site, head, lists); });
  }

 private:
  // Whether a row of block `own` sees block `other`, which does not come after it.
  bool sees(int32_t own, int32_t other) const {
    const int32_t distance = own - other;
    return distance < s_.window || (distance & (distance - 1)) == 0 || other < s_.sinks;
  }

  void write(const Site& site, const KvHead& kv, HeadLists& lists) const {
    for (int64_t row = 0; row < site.q.n_rows; row += block_) {
      const int64_t last_row = std::min<int64_t>(row + block_, site.q.n_rows) - 1;
      const int32_t first = site.limit[static_cast<size_t>(row)] / s_.block;
      const int32_t last = site.limit[static_cast<size_t>(last_row)] / s_.block;
      int32_t end = 0;  // of the slots that are covered so far
      for (int32_t other = 0; other <= last; ++other) {
        bool any = false;
        for (int32_t own = std::max(first, other); own <= last; ++own) any = any || sees(own, other);
        if (!any) continue;
        end = std::max(end, visible_slots(kv, other * s_.block - 1));
        const int32_t until = visible_slots(kv, other * s_.block + s_.block - 1);
        for (; end < until; end += block_) lists.block_begin.push_back(end);
      }
      lists.end_block();
    }
  }

  Settings s_;
  int32_t block_;  // of the kernels
};

constexpr double kMany = 1e9;
constexpr ParamInfo kParams[] = {
    {"block", "tokens of a block: a multiple of 64", 256, 64, 1 << 20, true},
    {"window", "blocks up to a row's own, itself included, that it sees", 5, 1, kMany, true},
    {"sinks", "first blocks that every row sees", 1, 0, kMany, true},
    {"full", "of each `of` layers, the first ones that are dense; those of a model trained for the pattern: 0", 2, 0,
     kMany, true},
    {"of", "layers that `full` counts in", 7, 1, kMany, true},
    last_rows_param(),
    {"min_len", "tokens in the cache below which attention is dense", 0, 0, kMany, true},
};

Method make(const Params& params, const MethodShape&) {
  const Settings settings = {.block = params.whole("block"),
                             .window = params.whole("window"),
                             .sinks = params.whole("sinks"),
                             .full = params.whole("full"),
                             .of = params.whole("of")};
  if (settings.block % 64 != 0) fail("powerattention: block={} must be a multiple of 64", settings.block);
  Method method;
  method.selector = std::make_unique<PowerAttention>(settings);
  return method;
}

}  // namespace

namespace roster {

const MethodInfo& method_powerattention() {
  static const MethodInfo kInfo = {
      .name = "powerattention",
      .title = "fixed blocks at power-of-two distances, in prefill and decode",
      .paper = "PowerAttention, arXiv 2503.03588",
      .parts = "selector",
      .neutral = "powerattention(window=1000000000)",
      .params = kParams,
      .gpu_min_len = 8192,
      .knob = {.param = "window", .dense = 128, .sparse = 1, .geometric = true},
      .texts = {},
      .make = make,
      .calibrate = nullptr,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
