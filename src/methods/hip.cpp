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
#include <numeric>

#include "base/error.h"
#include "methods/lists.h"

namespace winnow {
namespace {

constexpr int32_t kBlock = 64;  // rows of a query block, slots of a block of the window

struct Settings {
  int32_t k, key_block, query_stride, key_stride;
  int32_t window, sinks, dense_layers, refresh;
  bool decode;
};

// What one block of rows searches: slots [begin, end) of one head's keys.
struct Search {
  int32_t kv_head = 0;
  int32_t begin = 0, end = 0;
  std::vector<float> queries;                // [n, head_dim]
  const std::vector<float>* keys = nullptr;  // [n_slots, head_dim]; null: read what is needed
};

// Key blocks [start, start + size) of the searched slots.
struct Branch {
  int32_t start, size;
  int32_t middle() const { return start + size / 2; }
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
    return site.q.n_rows == 1 ? select_row(site) : select_blocks(site);
  }

 private:
  // Of one layer, what the last search of decode found.
  struct Held {
    std::vector<int32_t> n_slots;             // [n_head_kv] when it searched
    std::vector<int32_t> window_begin;        // [n_head]
    std::vector<std::vector<int32_t>> found;  // [n_head] slots
    int32_t n_used = 0;                       // rows that it served
  };

  Selection select_blocks(const Site& site) {
    held_[static_cast<size_t>(site.layer)] = {};
    const std::span<const KvHead> kv = site.kv.heads;
    std::vector<std::vector<float>> keys(kv.size());
    site.ops.for_each(static_cast<int64_t>(kv.size()), [&](int64_t head, int) {
      site.ops.pool_keys(site.kv, static_cast<int32_t>(head), 1, keys[static_cast<size_t>(head)]);
    });
    std::vector<HeadLists> lists(static_cast<size_t>(site.q.n_head));
    const auto group = site.q.n_head / static_cast<int32_t>(kv.size());
    site.ops.for_each(site.q.n_head, [&](int64_t item, int) {
      const auto head = static_cast<int32_t>(item);
      for (int64_t row = 0; row < site.q.n_rows; row += kBlock) {
        const int64_t n_rows = std::min<int64_t>(kBlock, site.q.n_rows - row);
        const int32_t window = window_begin(site, kv_head_of(site, head), row);
        const std::vector<int32_t> found =
            find(site, head, site.q.rows(row, n_rows), window, &keys[static_cast<size_t>(head / group)]);
        push(found, window, slot_of_row(site, kv_head_of(site, head), row + n_rows - 1) + 1,
             lists[static_cast<size_t>(item)]);
      }
    });
    return join_lists(lists, kBlock, kBlock);
  }

  Selection select_row(const Site& site) {
    Held& held = held_[static_cast<size_t>(site.layer)];
    if (!holds(held, site)) search_again(held, site);
    ++held.n_used;
    std::vector<HeadLists> lists(static_cast<size_t>(site.q.n_head));
    for (int32_t head = 0; head < site.q.n_head; ++head) {
      const auto at = static_cast<size_t>(head);
      push(held.found[at], held.window_begin[at], slot_of_row(site, kv_head_of(site, head), 0) + 1, lists[at]);
    }
    return join_lists(lists, kBlock, kBlock);
  }

  // Whether only the rows since have been added.
  bool holds(const Held& held, const Site& site) const {
    if (held.n_used == 0 || held.n_used >= s_.refresh) return false;
    for (size_t h = 0; h < held.n_slots.size(); ++h) {
      if (site.kv.heads[h].n_slots != held.n_slots[h] + held.n_used) return false;
    }
    return true;
  }

  void search_again(Held& held, const Site& site) const {
    const auto n_head = static_cast<size_t>(site.q.n_head);
    held = {.n_slots = {}, .window_begin = std::vector<int32_t>(n_head), .found = {}, .n_used = 0};
    held.found.resize(n_head);
    for (const KvHead& kv : site.kv.heads) held.n_slots.push_back(kv.n_slots);
    site.ops.for_each(site.q.n_head, [&](int64_t item, int) {
      const auto head = static_cast<int32_t>(item);
      const int32_t window = window_begin(site, kv_head_of(site, head), 0);
      held.window_begin[static_cast<size_t>(item)] = window;
      held.found[static_cast<size_t>(item)] = find(site, head, site.q, window, nullptr);
    });
  }

  // The first slot of the window of `row`.
  int32_t window_begin(const Site& site, const KvHead& kv, int64_t row) const {
    return std::max(0, slot_of_row(site, kv, row) + 1 - s_.window);
  }

  // Slots below `end` that the rows of `q` compute beside the sinks.
  std::vector<int32_t> find(const Site& site, int32_t head, const HeadsView& q, int32_t end,
                            const std::vector<float>* keys) const {
    const int32_t begin = std::min(s_.sinks, end);
    std::vector<int32_t> slots;
    if (end - begin <= s_.k) {
      slots.resize(static_cast<size_t>(end - begin));
      std::iota(slots.begin(), slots.end(), begin);
      return slots;
    }
    Search search{.kv_head = head / (site.q.n_head / static_cast<int32_t>(site.kv.heads.size())),
                  .begin = begin,
                  .end = end,
                  .queries = {},
                  .keys = keys};
    HeadsView sampled = q;
    sampled.n_rows = ceil_div(q.n_rows, s_.query_stride);
    sampled.stride *= s_.query_stride;
    site.ops.pool_queries(sampled, head, 1, search.queries);
    for (const int32_t block : descend(site, search)) {
      const int32_t first = begin + block * s_.key_block;
      for (int32_t slot = first; slot < std::min(first + s_.key_block, end); ++slot) slots.push_back(slot);
    }
    return slots;
  }

  // The tree search. -> key blocks, ascending
  std::vector<int32_t> descend(const Site& site, const Search& search) const {
    const int32_t n_block = ceil_div(search.end - search.begin, s_.key_block);
    const int32_t n_keep = std::min(s_.k / s_.key_block, n_block);
    const auto start = [&](int64_t j) { return static_cast<int32_t>(j * n_block / n_keep); };
    std::vector<Branch> branches;
    branches.reserve(static_cast<size_t>(n_keep));
    for (int32_t j = 0; j < n_keep; ++j) branches.push_back({start(j), start(j + 1) - start(j)});
    const auto wide = [](const Branch& branch) { return branch.size > 1; };
    while (std::any_of(branches.begin(), branches.end(), wide)) {
      std::vector<Branch> halves;
      for (const Branch& branch : branches) {
        const int32_t left = branch.size / 2;
        if (left > 0) halves.push_back({branch.start, left});
        halves.push_back({branch.start + left, branch.size - left});
      }
      const std::vector<float> scores = score(site, search, halves);
      branches.clear();
      for (const int32_t i : top_k(scores, n_keep)) branches.push_back(halves[static_cast<size_t>(i)]);
    }
    std::vector<int32_t> blocks;
    blocks.reserve(branches.size());
    for (const Branch& branch : branches) blocks.push_back(branch.start);
    return blocks;
  }

  // Largest product of a sampled row with a sampled key of the block in the middle, for each branch.
  std::vector<float> score(const Site& site, const Search& search, const std::vector<Branch>& branches) const {
    const auto dim = static_cast<size_t>(site.kv.head_dim);
    const int32_t n_key = ceil_div(s_.key_block, s_.key_stride);
    std::vector<int32_t> slots;
    for (const Branch& branch : branches) {
      const int32_t first = search.begin + branch.middle() * s_.key_block;
      for (int32_t i = 0; i < n_key; ++i) slots.push_back(std::min(first + i * s_.key_stride, search.end - 1));
    }
    std::vector<float> keys, products;
    if (search.keys == nullptr) {
      site.ops.gather_keys(site.kv, search.kv_head, slots, keys);
    } else {
      keys.resize(slots.size() * dim);
      for (size_t i = 0; i < slots.size(); ++i) {
        std::copy_n(search.keys->data() + static_cast<size_t>(slots[i]) * dim, dim, keys.data() + i * dim);
      }
    }
    site.ops.score_blocks(search.queries, keys, site.kv.head_dim, site.scale, products);
    std::vector<float> best(products.begin(), products.begin() + std::ssize(slots));
    for (size_t row = slots.size(); row < products.size(); row += slots.size()) {
      for (size_t i = 0; i < slots.size(); ++i) best[i] = std::max(best[i], products[row + i]);
    }
    std::vector<float> scores;
    for (auto at = best.begin(); at != best.end(); at += n_key) scores.push_back(*std::max_element(at, at + n_key));
    return scores;
  }

  // Sinks, what was found, and the window up to `end`.
  void push(const std::vector<int32_t>& found, int32_t window, int32_t end, HeadLists& lists) const {
    for (int32_t slot = 0; slot < std::min(s_.sinks, window); ++slot) lists.column.push_back(slot);
    lists.column.insert(lists.column.end(), found.begin(), found.end());
    for (int32_t slot = window; slot < end; slot += kBlock) lists.block_begin.push_back(slot);
    lists.end_block();
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
    {"refresh", "decoded tokens that one search serves", 8, 1, kMany, true},
    {"min_len", "tokens in the cache below which attention is dense", 8192, 0, kMany, true},
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
      .knob = {.param = "k", .dense = 16384, .sparse = 128, .geometric = true},
      .texts = {},
      .make = make,
      .calibrate = nullptr,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
