// flexprefill: every head decides for every prompt what it computes and how much.
//
// Paper: Lai et al., "FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient Long-Sequence Inference",
// arXiv 2502.20766.
// Idea: the last rows of the prompt are the probe; their exact attention shows which key blocks (verticals) and which
// block distances (slashes) matter, and so many of each are taken that a share gamma of the probe's mass is covered.
// Where the attention of mean queries to mean keys agrees with the exact one (Jensen-Shannon distance below tau), the
// head is query-aware: the pooled map of all blocks is trusted, and its best blocks are added until it too is covered.
// Deviations:
// - A count of tokens becomes one of blocks by dividing by `block`; the reference code divides by 128 for every block
//   size. At the default, 128, they are the same.
// - 0 ln 0 counts as 0 in the divergence; the reference gets a NaN there, and with it vertical-slash.
// - Rows after a cached prefix (a later turn, a chunk) are probed by their own last rows; blocks and distances are
// those
//   of the slots, and a query block that straddles two key blocks computes the union of both rows of the block map.
// - Below `block` rows the probe is all of them.
// - A logit softcap is applied to the probe but not to pooled scores.
#include <cmath>
#include <limits>
#include <numeric>

#include "attention/lines.h"
#include "base/error.h"
#include "methods/lists.h"

namespace winnow {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Settings {
  double gamma, tau;
  int32_t block;
  int64_t min_budget, max_budget;  // tokens
};

// The probe's mass by key and by distance counted from the far end, each of sum 1.
LineMass project(const Site& site, int32_t head, int64_t n_probe) {
  LineMass lines = line_mass(site.ops, last_rows(site, n_probe), head);
  std::reverse(lines.slash.begin(), lines.slash.end());
  for (float& mass : lines.vertical) mass /= static_cast<float>(n_probe);
  for (float& mass : lines.slash) mass /= static_cast<float>(n_probe);
  return lines;
}

std::vector<float> block_sums(std::span<const float> values, int32_t block) {
  std::vector<float> sums(static_cast<size_t>(ceil_div(static_cast<int64_t>(values.size()), block)));
  for (size_t i = 0; i < values.size(); ++i) sums[i / static_cast<size_t>(block)] += values[i];
  return sums;
}

void softmax(std::span<float> scores) {
  const float top = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (float& score : scores) sum += score = std::exp(score - top);
  for (float& score : scores) score = static_cast<float>(score / sum);
}

// Square root of the Jensen-Shannon divergence, natural logarithm.
double divergence(std::span<const float> p, std::span<const float> q) {
  double sum = 0;
  const auto term = [](double x, double mean) { return x > 0 ? x * std::log(x / mean) : 0.0; };
  for (size_t i = 0; i < p.size(); ++i) {
    const double mean = (double{p[i]} + double{q[i]}) / 2;
    sum += term(p[i], mean) + term(q[i], mean);
  }
  return std::sqrt(std::max(0.0, sum / 2));
}

class FlexPrefill final : public Selector {
 public:
  explicit FlexPrefill(const Settings& settings) : s_(settings) {}

  Selection select(const Site& site) override {
    if (site.q.n_rows <= 1) return {};
    const std::span<const KvHead> kv = site.kv.heads;
    if (std::all_of(kv.begin(), kv.end(), [&](const KvHead& head) { return bypass(n_keys(site, head)); })) return {};
    std::vector<std::vector<float>> pooled_keys(kv.size());
    site.ops.for_each(static_cast<int64_t>(kv.size()), [&](int64_t head, int) {
      site.ops.pool_keys(site.kv, static_cast<int32_t>(head), s_.block, pooled_keys[static_cast<size_t>(head)]);
    });
    std::vector<HeadLists> lists(static_cast<size_t>(site.q.n_head));
    const auto group = site.q.n_head / static_cast<int64_t>(kv.size());
    site.ops.for_each(site.q.n_head, [&](int64_t head, int) {
      select_head(site, static_cast<int32_t>(head), pooled_keys[static_cast<size_t>(head / group)],
                  lists[static_cast<size_t>(head)]);
    });
    return join_lists(lists, s_.block, s_.block);
  }

 private:
  // The block map of one head: key block c of row block r is computed if vertical[c], slash[r - c], or if the query
  // block asks for it in `extra` [n_block_q, n_block].
  struct Map {
    std::vector<uint8_t> vertical, slash, extra;
  };

  static int32_t n_keys(const Site& site, const KvHead& kv) { return visible_slots(kv, site.limit.back()); }
  int32_t min_blocks() const { return ceil_div(s_.min_budget, s_.block); }
  bool bypass(int64_t n) const { return n <= std::max<int64_t>(2 * s_.block, int64_t{min_blocks()} * s_.block); }

  // Blocks that hold a share gamma of `mass`, within the budgets.
  int32_t n_cover(std::span<const float> mass, int32_t n_block) const {
    const int64_t covered = top_p_count(mass, s_.gamma) / s_.block + 1;
    const int64_t most = std::min<int64_t>(ceil_div(s_.max_budget, s_.block), n_block);
    return static_cast<int32_t>(std::min(std::max<int64_t>(covered, min_blocks()), most));
  }

  void select_head(const Site& site, int32_t head, std::vector<float>& pooled_keys, HeadLists& lists) const {
    const KvHead& kv = kv_head_of(site, head);
    const int32_t n = n_keys(site, kv), n_block = ceil_div(n, s_.block);
    Map map;
    map.vertical.assign(static_cast<size_t>(n_block), bypass(n) ? 1 : 0);
    map.slash.assign(static_cast<size_t>(n_block), 0);
    if (!bypass(n)) fill(site, head, pooled_keys, map);

    const auto nb = static_cast<size_t>(n_block);
    for (int64_t row = 0; row < site.q.n_rows; row += s_.block) {
      const int64_t last_row = std::min<int64_t>(row + s_.block, site.q.n_rows) - 1;
      const int32_t first = slot_of_row(site, kv, row) / s_.block, last = slot_of_row(site, kv, last_row) / s_.block;
      const uint8_t* extra = map.extra.empty() ? nullptr : map.extra.data() + static_cast<size_t>(row / s_.block) * nb;
      for (int32_t c = 0; c <= last; ++c) {
        bool active = map.vertical[static_cast<size_t>(c)] != 0 || (extra != nullptr && extra[c] != 0);
        for (int32_t r = std::max(first, c); r <= last; ++r) active |= map.slash[static_cast<size_t>(r - c)] != 0;
        if (active) lists.block_begin.push_back(c * s_.block);
      }
      lists.end_block();
    }
  }

  void fill(const Site& site, int32_t head, const std::vector<float>& pooled_keys, Map& map) const {
    const KvHead& kv = kv_head_of(site, head);
    const int32_t n = n_keys(site, kv), n_block = ceil_div(n, s_.block);
    const int64_t n_probe = std::min<int64_t>(s_.block, site.q.n_rows);
    const LineMass lines = project(site, head, n_probe);
    std::vector<float> by_block = block_sums(lines.vertical, s_.block);
    std::vector<float> by_distance = block_sums(lines.slash, s_.block);

    std::vector<float> pooled_probe, estimate;
    site.ops.pool_queries(site.q.rows(site.q.n_rows - n_probe, n_probe), head, s_.block, pooled_probe);
    site.ops.score_blocks(pooled_probe, pooled_keys, site.q.head_dim, site.scale, estimate);
    estimate.resize(static_cast<size_t>(n_block));
    softmax(estimate);
    const bool query_aware = divergence(by_block, estimate) < s_.tau;

    const int32_t n_vertical = query_aware ? min_blocks() : n_cover(lines.vertical, n_block);
    const int32_t n_slash = query_aware ? min_blocks() : n_cover(lines.slash, n_block);
    by_block.front() = kInfinity;
    by_distance.back() = kInfinity;
    for (const int32_t c : top_k(by_block, n_vertical)) map.vertical[static_cast<size_t>(c)] = 1;
    for (const int32_t i : top_k(by_distance, n_slash)) map.slash[static_cast<size_t>(n_block - 1 - i)] = 1;
    if (query_aware) add_query_aware(site, head, pooled_keys, map);
  }

  // Takes the best blocks of the pooled map, over all query blocks together, while their sum stays within gamma.
  void add_query_aware(const Site& site, int32_t head, const std::vector<float>& pooled_keys, Map& map) const {
    const KvHead& kv = kv_head_of(site, head);
    std::vector<float> pooled_queries, scores;
    site.ops.pool_queries(site.q, head, s_.block, pooled_queries);
    site.ops.score_blocks(pooled_queries, pooled_keys, site.q.head_dim, site.scale, scores);
    const size_t n_key_block = pooled_keys.size() / static_cast<size_t>(site.q.head_dim);
    const size_t n_block = map.vertical.size();
    const auto n_block_q = static_cast<size_t>(ceil_div(site.q.n_rows, s_.block));
    std::vector<std::pair<float, int32_t>> best;  // probability, flat index [n_block_q, n_block]
    for (size_t b = 0; b < n_block_q; ++b) {
      const int64_t last_row = std::min<int64_t>((static_cast<int64_t>(b) + 1) * s_.block, site.q.n_rows) - 1;
      const auto n_seen = static_cast<size_t>(slot_of_row(site, kv, last_row) / s_.block) + 1;
      const std::span<float> row(scores.data() + b * n_key_block, n_seen);
      softmax(row);
      for (size_t c = 0; c < n_seen; ++c) best.emplace_back(row[c], static_cast<int32_t>(b * n_block + c));
    }
    std::sort(best.begin(), best.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    });
    map.extra.assign(n_block_q * n_block, 0);
    const double limit = s_.gamma * static_cast<double>(n_block_q);
    double sum = 0;
    for (const auto& [probability, index] : best) {
      sum += double{probability};
      if (sum > limit) break;
      map.extra[static_cast<size_t>(index)] = 1;
    }
  }

  Settings s_;
};

constexpr double kMany = 1e9;
constexpr ParamInfo kParams[] = {
    {"gamma", "share of the probe's attention mass to cover; 1.01 computes everything", 0.9, 0, 1.01, false},
    {"tau", "distance of pooled from exact attention below which a head is query-aware", 0.1, 0, 1, false},
    {"block", "rows and slots of a block: 64 or 128", 128, 64, 128, true},
    {"min_budget", "least tokens of verticals, and of slashes", 1024, 1, kMany, true},
    {"max_budget", "most tokens of verticals, and of slashes", kMany, 1, kMany, true},
    {"min_len", "tokens in the cache below which prefill is dense", 4096, 0, kMany, true},
};

Method make(const Params& params, const MethodShape&) {
  const Settings settings = {.gamma = params.number("gamma"),
                             .tau = params.number("tau"),
                             .block = params.whole("block"),
                             .min_budget = params.whole("min_budget"),
                             .max_budget = params.whole("max_budget")};
  if (settings.block != 64 && settings.block != 128) fail("flexprefill: block={} must be 64 or 128", settings.block);
  if (settings.max_budget < settings.min_budget) {
    fail("flexprefill: max_budget={} is below min_budget={}", settings.max_budget, settings.min_budget);
  }
  Method method;
  method.selector = std::make_unique<FlexPrefill>(settings);
  return method;
}

}  // namespace

namespace roster {

const MethodInfo& method_flexprefill() {
  static const MethodInfo kInfo = {
      .name = "flexprefill",
      .title = "block-sparse prefill; pattern and budget chosen per head and prompt",
      .paper = "FlexPrefill, arXiv 2502.20766",
      .parts = "selector",
      .neutral = "flexprefill(gamma=1.01, min_budget=1)",
      .params = kParams,
      .texts = {},
      .make = make,
      .calibrate = nullptr,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
