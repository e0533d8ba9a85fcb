// hip: a tree search finds the keys that a block of rows computes.
//
// Paper: Lee et al., "A Training-Free Sub-quadratic Cost Transformer Model Serving Framework with Hierarchically Pruned
// Attention", arXiv 2406.09827.
// Idea: scores of neighbouring keys resemble each other. The keys are cut into as many chunks as shall be left, each
// chunk is halved, one key block in the middle of each half is scored, the better half of the halves is kept, and so on
// until chunks are single key blocks. A block of rows finds its k keys in log2(n / k) rounds. First tokens and a local
// window are computed beside them. In decode the keys found for a row serve the next `refresh` rows.
// Deviations and choices:
// - A block of rows has 64 rows, the kernels' smallest; key blocks of 2 keys become single columns.
// - The window is covered by blocks of 64 slots from where the block's first row's begins, so that a row sees up to 63
//   slots more than `window`; the search ends there, so that no key is found that is computed anyway.
// - First chunks are proportional. The authors' code is said to align them, which leaves some keys unsearched.
// - The middle key block stands for a chunk. Ties keep the lower one. Scores are float32.
// - Between two searches of decode the window grows, so that no key falls between it and the keys that were found; the
//   authors' code is said to let it move on. After an eviction the next row searches anew.
// - Early layers are dense: 3, as for 7B models.
// - What is not in the paper's text (window, sinks, block sizes) has the values said to be those of the code.
#include "base/error.h"
#include "methods/lists.h"

namespace winnow {
namespace {

struct Settings {
  int32_t k, key_block, query_stride, key_stride;
  int32_t window, sinks, dense_layers, refresh;
  bool decode;
};

class Hip final : public Selector {
 public:
  Hip(const Settings& settings, const MethodShape& shape) : s_(settings), held_(static_cast<size_t>(shape.n_layer)) {}

  bool in_decode() const override { return s_.decode; }

  Selection select(const Site& site) override {
    const std::span<const KvHead> kv = site.kv.heads;
    const auto all = [&](const KvHead& head) {
      return visible_slots(head, site.limit.back()) <= int64_t{s_.k} + s_.window + s_.sinks;
    };
    if (site.layer < s_.dense_layers || std::all_of(kv.begin(), kv.end(), all)) return {};
    if (site.q.n_rows == 1) return select_row(site);
    held_[static_cast<size_t>(site.layer)] = {};
    return site.ops.select_tree(tree_of(site, 0));
  }

 private:
  // Of one layer, what the last search of decode found; its windows reach as far as the last row that it serves.
  struct Held {
    std::vector<int32_t> n_slots;  // [n_head_kv] when it searched
    Selection lists;
    int32_t n_used = 0;  // rows that it served
  };

  TreeArgs tree_of(const Site& site, int32_t n_later) const {
    return {.q = site.q,
            .kv = site.kv,
            .limit = site.limit,
            .scale = site.scale,
            .n_keys = s_.k,
            .key_block = s_.key_block,
            .query_stride = s_.query_stride,
            .key_stride = s_.key_stride,
            .window = s_.window,
            .sinks = s_.sinks,
            .n_later = n_later};
  }

  Selection select_row(const Site& site) {
    Held& held = held_[static_cast<size_t>(site.layer)];
    if (!holds(held, site)) {
      held = {{}, site.ops.select_tree(tree_of(site, s_.refresh - 1)), 0};
      for (const KvHead& kv : site.kv.heads) held.n_slots.push_back(kv.n_slots);
    }
    ++held.n_used;
    return held.lists;
  }

  // Whether only the rows since have been added.
  bool holds(const Held& held, const Site& site) const {
    if (held.n_used == 0 || held.n_used >= s_.refresh) return false;
    for (size_t h = 0; h < held.n_slots.size(); ++h) {
      if (site.kv.heads[h].n_slots != held.n_slots[h] + held.n_used) return false;
    }
    return true;
  }

  Settings s_;
  std::vector<Held> held_;  // [n_layer]
};

constexpr double kMany = 1e9;
constexpr ParamInfo kParams[] = {
    {"k", "keys that a block of 64 rows finds", 512, 1, kMany, true},
    {"key_block", "neighbouring keys that are found together", 2, 1, 64, true},
    {"query_stride", "every how many-th row of a block is scored", 2, 1, 64, true},
    {"key_stride", "every how many-th key of a key block is scored", 1, 1, 64, true},
    {"window", "last tokens that a row sees, itself included", 256, 1, kMany, true},
    {"sinks", "first tokens that every row sees", 16, 0, kMany, true},
    {"dense_layers", "first layers that stay dense", 3, 0, kMany, true},
    {"decode", "1: decoded tokens search too", 1, 0, 1, true},
    {"refresh", "decoded tokens that one search serves", 8, 1, 4096, true},
    last_rows_param(),
    {"min_len", "tokens in the cache below which attention is dense", 4096, 0, kMany, true},
};

Method make(const Params& params, const MethodShape& shape) {
  const Settings settings = {.k = params.whole("k"),
                             .key_block = params.whole("key_block"),
                             .query_stride = params.whole("query_stride"),
                             .key_stride = params.whole("key_stride"),
                             .window = params.whole("window"),
                             .sinks = params.whole("sinks"),
                             .dense_layers = params.whole("dense_layers"),
                             .refresh = params.whole("refresh"),
                             .decode = params.flag("decode")};
  if (settings.k < settings.key_block) {
    fail("hip: k={} must be at least key_block={}", settings.k, settings.key_block);
  }
  Method method;
  method.selector = std::make_unique<Hip>(settings, shape);
  return method;
}

}  // namespace

namespace roster {

const MethodInfo& method_hip() {
  static const MethodInfo kInfo = {
      .name = "hip",
      .title = "keys found by tree search, in prefill and decode",
      .paper = "HiP Attention, arXiv 2406.09827",
      .parts = "selector",
      .neutral = "hip(k=1000000000)",
      .params = kParams,
      .gpu_min_len = 65536,
      .knob = {.param = "k", .dense = 16384, .sparse = 128, .geometric = true},
      .texts = {},
      .make = make,
      .calibrate = nullptr,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
