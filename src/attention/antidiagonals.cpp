// Antidiagonal scores of blocks: the default for all devices, on the verbs that they have.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "attention/lists.h"
#include "attention/ops.h"
#include "base/error.h"

namespace winnow {
namespace {

constexpr int64_t kPieceGroups = 64;  // row groups that are scored at once

// What one head's scores are made of. A group's rows one behind the other are one vector of stride * head_dim values,
// and the sum along an antidiagonal is the product of two of them, the queries' in reverse order.
class Antidiagonals {
 public:
  Antidiagonals(Ops& ops, const AntidiagonalArgs& args, int32_t head)
      : ops_(ops),
        args_(args),
        head_(head),
        dim_(static_cast<size_t>(args.stride) * static_cast<size_t>(args.rows.q.head_dim)),
        kv_head_(head / (args.rows.q.n_head / static_cast<int32_t>(args.rows.kv.heads.size()))),
        n_block_(ceil_div(n_seen(args.rows.q.n_rows - 1), args.block)) {}

  void run(std::vector<float>& scores) {
    const int64_t n_rows = args_.rows.q.n_rows, stride = args_.stride;
    scores.assign(static_cast<size_t>(ceil_div(n_rows, args_.block)) * static_cast<size_t>(n_block_), 0.0F);
    ops_.pool_keys(args_.rows.kv, kv_head_, 1, keys_);
    // From the end, so that the keys that no row of a piece sees can be cut off.
    const int64_t n_group = ceil_div(n_rows, stride);
    for (int64_t begin = (n_group - 1) / kPieceGroups * kPieceGroups; begin >= 0; begin -= kPieceGroups) {
      const int64_t end = std::min(begin + kPieceGroups, n_group);
      keys_.resize(static_cast<size_t>(groups_seen(end - 1)) * dim_);
      read_queries(begin, end);
      const float scale = args_.rows.scale / static_cast<float>(stride);
      ops_.score_blocks(queries_, keys_, static_cast<int32_t>(dim_), scale, logits_);
      for (int64_t group = begin; group < end; ++group) {
        float* logits = logits_.data() + (group - begin) * groups_seen(end - 1);
        add(group, {logits, static_cast<size_t>(groups_seen(group))}, scores);
      }
    }
  }

 private:
  int32_t n_seen(int64_t row) const {
    return visible_slots(args_.rows.kv.heads[static_cast<size_t>(kv_head_)], args_.rows.limit[row]);
  }

  // Slot groups that the last row of row group `group` sees the beginning of.
  int32_t groups_seen(int64_t group) const {
    return ceil_div(n_seen(std::min((group + 1) * args_.stride, args_.rows.q.n_rows) - 1), args_.stride);
  }

  void read_queries(int64_t begin, int64_t end) {
    const int64_t first = begin * args_.stride;
    const int64_t n = std::min(end * args_.stride, args_.rows.q.n_rows) - first;
    ops_.pool_queries(args_.rows.q.rows(first, n), head_, 1, queries_);
    queries_.resize(static_cast<size_t>(end - begin) * dim_);
    const auto row = static_cast<size_t>(args_.rows.q.head_dim);
    for (size_t group = 0; group < queries_.size(); group += dim_) {
      for (size_t a = group, b = group + dim_ - row; a < b; a += row, b -= row) {
        std::swap_ranges(queries_.data() + a, queries_.data() + a + row, queries_.data() + b);
      }
    }
  }

  // Softmax of one row group, added to its block's sums.
  void add(int64_t group, std::span<float> logits, std::vector<float>& scores) const {
    if (args_.rows.softcap > 0) {
      for (float& x : logits) x = args_.rows.softcap * std::tanh(x / args_.rows.softcap);
    }
    const float top = logits.empty() ? 0.0F : *std::max_element(logits.begin(), logits.end());
    double total = 0;
    for (float& x : logits) total += double{x = std::exp(x - top)};
    const auto per_block = static_cast<size_t>(args_.block / args_.stride);
    float* out = scores.data() + static_cast<size_t>(group) / per_block * static_cast<size_t>(n_block_);
    for (size_t begin = 0; begin < logits.size(); begin += per_block) {
      double sum = 0;
      for (size_t i = begin; i < std::min(begin + per_block, logits.size()); ++i) sum += double{logits[i]};
      *out++ += static_cast<float>(sum / total);
    }
  }

  Ops& ops_;
  const AntidiagonalArgs& args_;
  int32_t head_;
  size_t dim_;  // values of a group
  int32_t kv_head_;
  int32_t n_block_;
  std::vector<float> keys_, queries_, logits_;  // [slot groups, dim], [row groups, dim], [row groups, slot groups]
};

// Of the blocks that a block of rows sees, those from `own` on are taken in any case: the rows' own, or all.
void push_heaviest(std::span<float> scores, int32_t own, double share, int32_t block, HeadLists& lists) {
  const double total = std::accumulate(scores.begin(), scores.end(), 0.0);
  double mass = 0;
  int64_t n = 0;
  const auto force = [&](float& score) {
    mass += std::exchange(score, 0.0F);
    ++n;
  };
  std::for_each(scores.begin() + own, scores.end(), force);
  if (own > 0) force(scores.front());
  if (mass < share * total) n += top_p_count(scores, share * total - mass);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  scores.front() = kInfinity;
  std::fill(scores.begin() + own, scores.end(), kInfinity);
  for (const int32_t c : top_k(scores, n)) {
    lists.block_begin.push_back(c * block);
    const float score = scores[static_cast<size_t>(c)];
    if (score < kInfinity) mass += double{score};
  }
  lists.kept.add(mass / total);
  lists.end_block();
}

}  // namespace

Selection Ops::select_antidiagonals(const AntidiagonalArgs& args, double share) {
  const ProbeArgs& rows = args.rows;
  const auto group = static_cast<size_t>(rows.q.n_head) / rows.kv.heads.size();
  std::vector<HeadLists> lists(static_cast<size_t>(rows.q.n_head));
  std::vector<std::vector<float>> scores;
  antidiagonal_scores(args, scores);
  for_each(rows.q.n_head, [&](int64_t item, int) {
    const auto head = static_cast<size_t>(item);
    const auto block_of = [&](int64_t row) {
      return (visible_slots(rows.kv.heads[head / group], rows.limit[row]) - 1) / args.block;
    };
    const auto n_block = static_cast<size_t>(block_of(rows.q.n_rows - 1)) + 1;
    for (int64_t row = 0; row < rows.q.n_rows; row += args.block) {
      const int64_t end = std::min<int64_t>(row + args.block, rows.q.n_rows);
      const int32_t last = block_of(end - 1), own = block_of(row);
      const auto at = static_cast<size_t>(row / args.block) * n_block;
      push_heaviest(std::span(scores[head]).subspan(at, static_cast<size_t>(last) + 1), own, share, args.block,
                    lists[head]);
    }
  });
  return join_lists(lists, args.block, args.block);
}

void Ops::antidiagonal_scores(const AntidiagonalArgs& args, std::vector<std::vector<float>>& scores) {
  WINNOW_ASSERT(args.stride > 0 && args.block % args.stride == 0 && args.rows.q.n_rows > 0);
  scores.resize(static_cast<size_t>(args.rows.q.n_head));
  for_each(args.rows.q.n_head, [&](int64_t head, int) {
    Antidiagonals(*this, args, static_cast<int32_t>(head)).run(scores[static_cast<size_t>(head)]);
  });
}

}  // namespace winnow
