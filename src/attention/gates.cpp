// Blocks that a trained gate finds worth it: the default for all devices, on the verbs that they have.
#include "attention/gates.h"

#include <algorithm>
#include <cmath>

#include "attention/lists.h"
#include "attention/ops.h"
#include "attention/rope_angles.h"

namespace winnow {
namespace {

constexpr size_t kScores = size_t{1} << 22;  // scores of blocks that are held at once

// Turns row i of [n, dim] by position(i).
template <typename Position>
void turn_rows(const RopeArgs& rope, std::vector<float>& rows, int32_t dim, const Position& position) {
  Turn turn(rope, Turn::Way::forth);
  for (size_t i = 0; i * static_cast<size_t>(dim) < rows.size(); ++i) {
    turn(rows.data() + i * static_cast<size_t>(dim), position(static_cast<int64_t>(i)));
  }
}

// One head's choice.
class Gated {
 public:
  Gated(Ops& ops, const GateArgs& args, int32_t head)
      : ops_(ops),
        args_(args),
        rows_(args.rows),
        head_(head),
        kv_(rows_.kv.heads[static_cast<size_t>(head) / group()]) {}

  // pooled: keys of the kv head, as pool_unturned_keys gives them
  void fill(const std::vector<float>& pooled, HeadLists& lists) const {
    const std::vector<float> keys = gate_keys(pooled);
    const auto dim = static_cast<size_t>(rows_.q.head_dim);
    std::vector<float> queries, scores;
    ops_.pool_unturned_queries(rows_, head_, queries);
    turn_rows(rows_.rope, queries, rows_.q.head_dim,
              [&](int64_t block) { return rows_.limit[static_cast<size_t>(block * rows_.block)]; });
    const size_t n_block_k = keys.size() / dim, n_block_q = queries.size() / dim;
    const size_t piece = std::max<size_t>(1, kScores / n_block_k);
    const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dim)));
    for (size_t begin = 0; begin < n_block_q; begin += piece) {
      const size_t end = std::min(begin + piece, n_block_q);
      const std::vector<float> some(queries.begin() + static_cast<std::ptrdiff_t>(begin * dim),
                                    queries.begin() + static_cast<std::ptrdiff_t>(end * dim));
      ops_.score_blocks(some, keys, rows_.q.head_dim, scale, scores);
      for (size_t block = begin; block < end; ++block) {
        const int64_t row = static_cast<int64_t>(block) * rows_.block;
        const int64_t last_row = std::min<int64_t>(row + rows_.block, rows_.q.n_rows) - 1;
        const auto n_seen = static_cast<size_t>(block_of_row(last_row)) + 1;
        const bool dense = args_.last_dense && block + 2 >= n_block_q;
        push(std::span(scores).subspan((block - begin) * n_block_k, n_seen), block_of_row(row),
             dense ? static_cast<int64_t>(n_seen) : gate_count(args_.ratio, static_cast<int64_t>(n_block_k)), lists);
      }
    }
  }

 private:
  size_t group() const { return static_cast<size_t>(rows_.q.n_head) / rows_.kv.heads.size(); }
  int32_t block_of_row(int64_t row) const {
    return (visible_slots(kv_, rows_.limit[static_cast<size_t>(row)]) - 1) / rows_.block;
  }

  // -> [n_block_k, head_dim]
  std::vector<float> gate_keys(const std::vector<float>& pooled) const {
    const size_t n = args_.gate.size() / static_cast<size_t>(rows_.q.n_head);
    const std::span<const float> own = args_.gate.subspan(static_cast<size_t>(head_) * n, n);
    std::vector<float> keys;
    ops_.score_blocks(pooled, {own.begin(), own.end()}, 3 * rows_.q.head_dim, 1, keys);
    turn_rows(rows_.rope, keys, rows_.q.head_dim,
              [&](int64_t block) { return kv_.position(static_cast<int32_t>(block) * rows_.block); });
    return keys;
  }

  // The best n of the blocks (0: those above the threshold), and from `own` on all.
  void push(std::span<float> scores, int32_t own, int64_t n, HeadLists& lists) const {
    const auto end = static_cast<int32_t>(scores.size());
    std::vector<int32_t> best;  // by the scores themselves: probabilities may be rounded to 0
    if (n > 0) best = top_k(scores, n);
    const float most = *std::max_element(scores.begin(), scores.end());
    float sum = 0, kept = 0;
    for (float& score : scores) sum += score = std::exp(score - most);
    const auto add = [&](int32_t block) {
      lists.block_begin.push_back(block * rows_.block);
      kept += scores[static_cast<size_t>(block)];
    };
    const auto bound = static_cast<float>(args_.threshold) * sum;
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

  Ops& ops_;
  const GateArgs& args_;
  const UnturnedArgs& rows_;
  int32_t head_;
  const KvHead& kv_;
};

}  // namespace

int64_t gate_count(double ratio, int64_t n) {
  if (ratio >= 1) return 0;
  const double share = 1 - std::sqrt(1 - ratio);
  return std::max<int64_t>(1, static_cast<int64_t>(share * static_cast<double>(n) + 1e-9));
}

Selection Ops::select_gated(const GateArgs& args) {
  const UnturnedArgs& rows = args.rows;
  std::vector<std::vector<float>> keys(rows.kv.heads.size());
  for_each(std::ssize(keys), [&](int64_t head, int /*thread*/) {
    pool_unturned_keys(rows, static_cast<int32_t>(head), keys[static_cast<size_t>(head)]);
  });
  std::vector<HeadLists> lists(static_cast<size_t>(rows.q.n_head));
  const size_t group = lists.size() / keys.size();
  for_each(rows.q.n_head, [&](int64_t head, int /*thread*/) {
    const auto at = static_cast<size_t>(head);
    Gated(*this, args, static_cast<int32_t>(head)).fill(keys[at / group], lists[at]);
  });
  return join_lists(lists, rows.block, rows.block);
}

}  // namespace winnow
