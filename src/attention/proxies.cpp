// Scores of blocks by averaged heads: the default for all devices, on the verbs that they have.
#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/lists.h"
#include "attention/ops.h"

namespace winnow {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kPieceRows = 64;    // sampled rows that are scored at once
constexpr int64_t kPieceKeys = 1024;  // sampled slots, a multiple of those of a block

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
  Proxy(Ops& ops, const ProxyArgs& args, int32_t first_kv)
      : ops_(ops),
        args_(args),
        n_kv_(static_cast<int32_t>(args.kv.heads.size()) / args.n_group),
        first_kv_(first_kv),
        kv_(args.kv.heads[static_cast<size_t>(first_kv)]),
        n_block_(static_cast<size_t>(ceil_div(visible_slots(kv_, args.limit.back()), args.block))),
        scores_(static_cast<size_t>(ceil_div(args.q.n_rows, args.block)) * n_block_, -kInfinity) {}

  /// Averages the sampled keys of the group.
  void read_keys() {
    const auto dim = static_cast<size_t>(args_.kv.head_dim), step = static_cast<size_t>(args_.stride);
    const auto n = static_cast<size_t>(ceil_div(visible_slots(kv_, args_.limit.back()), args_.stride));
    std::vector<float> all;
    for (size_t begin = 0; begin < n; begin += kPieceKeys) {
      keys_.emplace_back(std::min<size_t>(kPieceKeys, n - begin) * dim, 0.0F);
    }
    for (int32_t i = 0; i < n_kv_; ++i) {
      ops_.pool_keys(args_.kv, first_kv_ + i, 1, all);
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

  int64_t n_pieces() const { return ceil_div(ceil_div(args_.q.n_rows, args_.block), blocks_of_piece()); }

  /// Scores the blocks of rows of one piece; pieces are independent.
  void score(int64_t piece) {
    const int64_t first = piece * blocks_of_piece() * args_.block;
    const int64_t n_rows = std::min(blocks_of_piece() * args_.block, args_.q.n_rows - first);
    const std::vector<float> queries = read_queries(first, n_rows);
    const int64_t n = ceil_div(n_rows, args_.stride);
    std::vector<Online> rows(static_cast<size_t>(n));
    std::vector<float> best(static_cast<size_t>(n) * n_block_, -kInfinity), logits;  // best: [n, n_block]
    const int64_t per_block = args_.block / args_.stride;
    for (size_t k = 0; k < keys_.size(); ++k) {
      const int64_t n_keys = std::ssize(keys_[k]) / args_.kv.head_dim, first_key = static_cast<int64_t>(k) * kPieceKeys;
      if (first_key >= n_seen(first + (n - 1) * args_.stride)) break;
      ops_.score_blocks(queries, keys_[k], args_.kv.head_dim, args_.scale, logits);
      for (int64_t t = 0; t < n; ++t) {
        const int64_t seen = std::min(n_keys, n_seen(first + t * args_.stride) - first_key);
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
      float* out = scores_.data() + static_cast<size_t>((first + t * args_.stride) / args_.block) * n_block_;
      const float* from = best.data() + static_cast<size_t>(t) * n_block_;
      for (size_t x = 0; x < n_block_; ++x) out[x] = std::max(out[x], from[x] - log_sum);
    }
  }

  std::vector<float> scores() { return std::move(scores_); }

 private:
  int64_t blocks_of_piece() const { return std::max<int64_t>(1, kPieceRows * args_.stride / args_.block); }

  // Sampled slots that a row sees.
  int64_t n_seen(int64_t row) const {
    return ceil_div(visible_slots(kv_, args_.limit[static_cast<size_t>(row)]), args_.stride);
  }

  // Mean queries of the group's heads at every stride-th row.
  std::vector<float> read_queries(int64_t first, int64_t n_rows) const {
    HeadsView sampled = args_.q.rows(first, n_rows);
    sampled.n_rows = ceil_div(n_rows, args_.stride);
    sampled.stride *= args_.stride;
    const int32_t group = args_.q.n_head / static_cast<int32_t>(args_.kv.heads.size());
    std::vector<float> mean, one;
    for (int32_t head = first_kv_ * group; head < (first_kv_ + n_kv_) * group; ++head) {
      ops_.pool_queries(sampled, head, 1, one);
      mean.resize(one.size());
      for (size_t i = 0; i < one.size(); ++i) mean[i] += one[i];
    }
    for (float& x : mean) x /= static_cast<float>(n_kv_ * group);
    return mean;
  }

  Ops& ops_;
  const ProxyArgs& args_;
  int32_t n_kv_, first_kv_;
  const KvHead& kv_;
  size_t n_block_;
  std::vector<std::vector<float>> keys_;  // pieces of [kPieceKeys, head_dim]
  std::vector<float> scores_;             // [n_block_q, n_block]
};

}  // namespace

void Ops::proxy_scores(const ProxyArgs& args, std::vector<std::vector<float>>& scores) {
  const int32_t n_kv = static_cast<int32_t>(args.kv.heads.size()) / args.n_group;
  std::vector<Proxy> proxies;
  proxies.reserve(static_cast<size_t>(args.n_group));
  for (int32_t p = 0; p < args.n_group; ++p) proxies.emplace_back(*this, args, p * n_kv);
  for_each(args.n_group, [&](int64_t p, int) { proxies[static_cast<size_t>(p)].read_keys(); });
  const int64_t n_pieces = proxies.front().n_pieces();
  for_each(args.n_group * n_pieces,
           [&](int64_t item, int) { proxies[static_cast<size_t>(item / n_pieces)].score(item % n_pieces); });
  scores.clear();
  for (Proxy& proxy : proxies) scores.push_back(proxy.scores());
}

}  // namespace winnow
