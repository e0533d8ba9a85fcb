// proxyattn: one averaged head ranks the blocks of a group of heads; each head has its own budget.
//
// Paper: Wang et al., "ProxyAttn: Guided Sparse Attention via Representative Heads", arXiv 2509.24745.
// Idea: heads of a layer agree on which tokens matter and differ in how many they need. So the queries and the keys of
// a group of heads are averaged into one proxy head, whose attention among every `stride`-th token ranks the blocks
// once for the group (a block's score for a block of rows is the largest probability between them), and the exact
// attention of each head's last rows says what share of the blocks this head needs to cover `gamma` of its mass. This
// rests on descriptions of the paper, not on its text or code; what they do not say is our choice:
// - A head that needs k of N blocks in the last row of blocks gets ceil(k (m + 1) / N) of the m + 1 that block row m
//   sees. `literal=1` takes k in every row, which makes early rows dense.
// - The first block and those of the rows themselves are always computed, within the count. Ties take the lower block.
// - Blocks are of 128. Without a number of groups there is one for each kv head where there are at most 4 (few keys
//   cancel when they are averaged), else one in all; the paper has 4 for Qwen2.5-7B and 1 for Llama-3.1-8B.
// - Rows after a cached prefix are sampled from their own first one on, and budgets come from their own last rows.
// - Where kv heads hold different slots, after an eviction, each is a group of its own.
// - A softcap is applied to the budgets' probabilities but not to the proxies' scores.
#include <cmath>
#include <limits>

#include "base/error.h"
#include "methods/lists.h"

namespace winnow {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kPieceRows = 64;    // sampled rows that are scored at once
constexpr int64_t kPieceKeys = 1024;  // sampled slots, a multiple of those of a block
constexpr double kTolerance = 1e-6;   // of a share that floats add up to

struct Settings {
  int32_t groups, stride, block;
  double gamma;
  int64_t min_budget;  // tokens
  bool literal;
};

// A sampled row's logits on their way through the slots.
struct Online {
  float top = -kInfinity;
  double sum = 0;

  void add(std::span<const float> logits) {
    const float before = top;
    for (const float x : logits) top = std::max(top, x);
    float part = 0;
    for (const float x : logits) part += std::exp(x - top);
    sum = sum * std::exp(double{before} - double{top}) + double{part};
  }
};

// The proxy head of one group.
class Proxy {
 public:
  Proxy(const Site& site, const Settings& settings, int32_t n_kv, int32_t first_kv)
      : site_(site),
        s_(settings),
        n_kv_(n_kv),
        first_kv_(first_kv),
        kv_(site.kv.heads[static_cast<size_t>(first_kv)]),
        n_block_(static_cast<size_t>(ceil_div(visible_slots(kv_, site.limit.back()), s_.block))),
        scores_(static_cast<size_t>(ceil_div(site.q.n_rows, s_.block)) * n_block_, -kInfinity) {}

  /// Averages the sampled keys of the group.
  void read_keys() {
    const auto dim = static_cast<size_t>(site_.kv.head_dim), step = static_cast<size_t>(s_.stride);
    const auto n = static_cast<size_t>(ceil_div(visible_slots(kv_, site_.limit.back()), s_.stride));
    std::vector<float> all;
    for (size_t begin = 0; begin < n; begin += kPieceKeys) {
      keys_.emplace_back(std::min<size_t>(kPieceKeys, n - begin) * dim, 0.0F);
    }
    for (int32_t i = 0; i < n_kv_; ++i) {
      site_.ops.pool_keys(site_.kv, first_kv_ + i, 1, all);
      for (size_t u = 0; u < n; ++u) {
        float* sum = keys_[u / kPieceKeys].data() + u % kPieceKeys * dim;
        const float* from = all.data() + u * step * dim;
        for (size_t d = 0; d < dim; ++d) sum[d] += from[d];
      }
    }
    for (std::vector<float>& piece : keys_) {
      for (float& x : piece) x /= static_cast<float>(n_kv_);
    }
  }

  int64_t n_pieces() const { return ceil_div(ceil_div(site_.q.n_rows, s_.block), blocks_of_piece()); }

  /// Scores the blocks of rows of one piece; pieces are independent.
  void score(int64_t piece) {
    const int64_t first = piece * blocks_of_piece() * s_.block;
    const int64_t n_rows = std::min(blocks_of_piece() * s_.block, site_.q.n_rows - first);
    const std::vector<float> queries = read_queries(first, n_rows);
    const int64_t n = ceil_div(n_rows, s_.stride);
    std::vector<Online> rows(static_cast<size_t>(n));
    std::vector<float> best(static_cast<size_t>(n) * n_block_, -kInfinity), logits;  // best: [n, n_block]
    const int64_t per_block = s_.block / s_.stride;
    for (size_t k = 0; k < keys_.size(); ++k) {
      const int64_t n_keys = std::ssize(keys_[k]) / site_.kv.head_dim, first_key = static_cast<int64_t>(k) * kPieceKeys;
      if (first_key >= n_seen(first + (n - 1) * s_.stride)) break;
      site_.ops.score_blocks(queries, keys_[k], site_.kv.head_dim, site_.scale, logits);
      for (int64_t t = 0; t < n; ++t) {
        const int64_t seen = std::min(n_keys, n_seen(first + t * s_.stride) - first_key);
        if (seen <= 0) continue;
        const std::span<const float> row(logits.data() + t * n_keys, static_cast<size_t>(seen));
        rows[static_cast<size_t>(t)].add(row);
        float* out = best.data() + static_cast<size_t>(t) * n_block_ + first_key / per_block;
        for (int64_t u = 0; u < seen; u += per_block) {
          *out++ = *std::max_element(row.begin() + u, row.begin() + std::min(u + per_block, seen));
        }
      }
    }
    for (int64_t t = 0; t < n; ++t) {
      const Online& row = rows[static_cast<size_t>(t)];
      const float log_sum = row.top + static_cast<float>(std::log(row.sum));
      float* out = scores_.data() + static_cast<size_t>((first + t * s_.stride) / s_.block) * n_block_;
      const float* from = best.data() + static_cast<size_t>(t) * n_block_;
      for (size_t x = 0; x < n_block_; ++x) out[x] = std::max(out[x], from[x] - log_sum);
    }
  }

  /// Logarithms of the scores of block row `m`. -> [n_block]
  std::span<const float> row(int64_t m) const { return {scores_.data() + static_cast<size_t>(m) * n_block_, n_block_}; }

 private:
  int64_t blocks_of_piece() const { return std::max<int64_t>(1, kPieceRows * s_.stride / s_.block); }

  // Sampled slots that a row sees.
  int64_t n_seen(int64_t row) const {
    return ceil_div(visible_slots(kv_, site_.limit[static_cast<size_t>(row)]), s_.stride);
  }

  // Mean queries of the group's heads at every stride-th row.
  std::vector<float> read_queries(int64_t first, int64_t n_rows) const {
    HeadsView sampled = site_.q.rows(first, n_rows);
    sampled.n_rows = ceil_div(n_rows, s_.stride);
    sampled.stride *= s_.stride;
    const int32_t group = site_.q.n_head / static_cast<int32_t>(site_.kv.heads.size());
    std::vector<float> mean, one;
    for (int32_t head = first_kv_ * group; head < (first_kv_ + n_kv_) * group; ++head) {
      site_.ops.pool_queries(sampled, head, 1, one);
      mean.resize(one.size());
      for (size_t i = 0; i < one.size(); ++i) mean[i] += one[i];
    }
    for (float& x : mean) x /= static_cast<float>(n_kv_ * group);
    return mean;
  }

  const Site& site_;
  const Settings& s_;
  int32_t n_kv_, first_kv_;
  const KvHead& kv_;
  size_t n_block_;
  std::vector<std::vector<float>> keys_;  // pieces of [kPieceKeys, head_dim]
  std::vector<float> scores_;             // [n_block_q, n_block]
};

class ProxyAttn final : public Selector {
 public:
  ProxyAttn(const Settings& settings, const MethodShape& shape) : s_(settings) {
    if (s_.groups == 0) s_.groups = shape.n_head_kv <= 4 ? shape.n_head_kv : 1;
  }

  Selection select(const Site& site) override {
    const std::span<const KvHead> kv = site.kv.heads;
    const auto n_keys = [&](const KvHead& head) { return visible_slots(head, site.limit.back()); };
    const auto within = [&](const KvHead& head) { return n_keys(head) <= s_.min_budget; };
    if (site.q.n_rows <= 1 || s_.gamma >= 1 || std::all_of(kv.begin(), kv.end(), within)) return {};
    const bool alike = std::all_of(kv.begin(), kv.end(), [&](const KvHead& head) {
      return head.idx == nullptr && head.n_slots == kv.front().n_slots;
    });
    const auto n_group = alike ? s_.groups : static_cast<int32_t>(kv.size());
    const int32_t n_kv = static_cast<int32_t>(kv.size()) / n_group;
    std::vector<Proxy> proxies;
    proxies.reserve(static_cast<size_t>(n_group));
    for (int32_t p = 0; p < n_group; ++p) proxies.emplace_back(site, s_, n_kv, p * n_kv);
    site.ops.for_each(n_group, [&](int64_t p, int) { proxies[static_cast<size_t>(p)].read_keys(); });
    const int64_t n_pieces = proxies.front().n_pieces();
    site.ops.for_each(n_group * n_pieces,
                      [&](int64_t item, int) { proxies[static_cast<size_t>(item / n_pieces)].score(item % n_pieces); });
    std::vector<HeadLists> lists(static_cast<size_t>(site.q.n_head));
    site.ops.for_each(site.q.n_head, [&](int64_t head, int) {
      const int64_t proxy = head / (site.q.n_head / n_group);
      select_head(site, static_cast<int32_t>(head), proxies[static_cast<size_t>(proxy)],
                  lists[static_cast<size_t>(head)]);
    });
    return join_lists(lists, s_.block, s_.block);
  }

 private:
  // Blocks of the last row of blocks that hold gamma of the head's mass there.
  int64_t budget(const Site& site, int32_t head, int32_t n_block) const {
    const int64_t n_probe = std::min<int64_t>(s_.block, site.q.n_rows);
    std::vector<float> probabilities;
    site.ops.score_window(last_rows(site, n_probe), head, probabilities);
    const size_t n_slots = probabilities.size() / static_cast<size_t>(n_probe);
    const auto block = static_cast<size_t>(s_.block), n = static_cast<size_t>(n_block);
    std::vector<float> mass(n);
    for (size_t t = 0; t < static_cast<size_t>(n_probe); ++t) {
      const float* row = probabilities.data() + t * n_slots;
      for (size_t x = 0; x < n; ++x) {
        const size_t end = std::min(n_slots, (x + 1) * block);
        float sum = 0;
        for (size_t j = x * block; j < end; ++j) sum += row[j];
        mass[x] += sum;
      }
    }
    double total = 0;
    for (const float x : mass) total += double{x};
    return top_p_count(mass, (s_.gamma - kTolerance) * total);
  }

  void select_head(const Site& site, int32_t head, const Proxy& proxy, HeadLists& lists) const {
    const KvHead& kv = kv_head_of(site, head);
    const int32_t n_block = ceil_div(visible_slots(kv, site.limit.back()), s_.block);
    const int64_t k = budget(site, head, n_block);
    std::vector<float> scores;
    for (int64_t row = 0; row < site.q.n_rows; row += s_.block) {
      const int64_t last_row = std::min<int64_t>(row + s_.block, site.q.n_rows) - 1;
      const int32_t first = slot_of_row(site, kv, row) / s_.block, last = slot_of_row(site, kv, last_row) / s_.block;
      const std::span<const float> all = proxy.row(row / s_.block);
      scores.assign(all.begin(), all.begin() + last + 1);
      scores.front() = kInfinity;
      std::fill(scores.begin() + first, scores.end(), kInfinity);
      const int64_t n_forced = last - first + (first > 0 ? 2 : 1);
      const int64_t wanted = s_.literal ? k : ceil_div(k * (last + 1), n_block);
      const int64_t least = std::max<int64_t>(n_forced, ceil_div(s_.min_budget, s_.block));
      for (const int32_t block : top_k(scores, std::max(wanted, least))) lists.block_begin.push_back(block * s_.block);
      lists.end_block();
    }
  }

  Settings s_;
};

constexpr double kMany = 1e9;
constexpr ParamInfo kParams[] = {
    {"groups", "proxy heads, a divisor of the kv heads; 0: one for each kv head if there are at most 4, else 1", 0, 0,
     1024, true},
    {"stride", "every stride-th token takes part in scoring: a power of two", 4, 1, 16, true},
    {"gamma", "share of a head's attention mass that sets its budget; 1 computes everything", 0.95, 0, 1, false},
    {"min_budget", "least tokens that a row computes", 2048, 1, kMany, true},
    {"literal", "1: early rows get as many blocks as the last ones, not their share", 0, 0, 1, true},
    {"block", "rows and slots of a block: 64 or 128", 128, 64, 128, true},
    {"min_len", "tokens in the cache below which prefill is dense", 4096, 0, kMany, true},
};

Method make(const Params& params, const MethodShape& shape) {
  const Settings settings = {.groups = params.whole("groups"),
                             .stride = params.whole("stride"),
                             .block = block_size(params, "proxyattn"),
                             .gamma = params.number("gamma"),
                             .min_budget = params.whole("min_budget"),
                             .literal = params.flag("literal")};
  if (settings.block % settings.stride != 0) {
    fail("proxyattn: stride={} must be a power of two, at most 16", settings.stride);
  }
  if (settings.groups > 0 && shape.n_head_kv % settings.groups != 0) {
    fail("proxyattn: groups={} must divide the model's {} kv heads", settings.groups, shape.n_head_kv);
  }
  Method method;
  method.selector = std::make_unique<ProxyAttn>(settings, shape);
  return method;
}

}  // namespace

namespace roster {

const MethodInfo& method_proxyattn() {
  static const MethodInfo kInfo = {
      .name = "proxyattn",
      .title = "block-sparse prefill; averaged heads rank the blocks, each head has its budget",
      .paper = "ProxyAttn, arXiv 2509.24745",
      .parts = "selector",
      .neutral = "proxyattn(gamma=1)",
      .params = kParams,
      .knob = {.param = "gamma", .dense = 0.99, .sparse = 0.5},
      .texts = {},
      .make = make,
      .calibrate = nullptr,
  };
  return kInfo;
}

}  // namespace roster
}  // namespace winnow
