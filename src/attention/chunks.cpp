#include "attention/chunks.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace winnow {
namespace {

struct Run {
  int32_t begin, end;
};

// Long runs as blocks, what is left of them as columns.
void push_runs(const std::vector<Run>& runs, HeadLists& lists) {
  for (const Run& run : runs) {
    int32_t at = run.begin;
    for (; at + kChunkBlock <= run.end; at += kChunkBlock) lists.block_begin.push_back(at);
    for (; at < run.end; ++at) lists.column.push_back(at);
  }
  lists.end_block();
}

class Chunks {
 public:
  explicit Chunks(const ChunkArgs& args) : args_(args) {}

  void fill(Ops& ops, int32_t head, const ChunkMeans& means, HeadLists& lists) const {
    const HeadsView& q = args_.q;
    const KvHead& kv =
        args_.kv.heads[static_cast<size_t>(head) * args_.kv.heads.size() / static_cast<size_t>(q.n_head)];
    std::vector<float> scores;
    ops.score_blocks(means.queries, means.keys, q.head_dim, 1, scores);
    const size_t n_chunk = means.keys.size() / static_cast<size_t>(q.head_dim);
    for (int64_t row = 0; row < q.n_rows; row += args_.block) {
      const int64_t end = std::min<int64_t>(row + args_.block, q.n_rows);
      const int32_t n_allowed = visible_slots(kv, args_.limit[static_cast<size_t>(end - 1)]);
      if (end > q.n_rows - args_.last_rows || n_allowed <= args_.budget) {
        push_runs({{0, n_allowed}}, lists);
      } else {
        const auto block = static_cast<size_t>(row / args_.block);
        push_runs(choose(std::span(scores).subspan(block * n_chunk, n_chunk), n_allowed), lists);
      }
    }
  }

 private:
  // Which of the first n_allowed slots, more than the budget, one block of rows gets.
  std::vector<Run> choose(std::span<const float> scores, int32_t n_allowed) const {
    const int32_t recent = n_allowed - args_.recent;
    std::vector<int32_t> order(static_cast<size_t>(ceil_div(recent, args_.chunk)));
    std::iota(order.begin(), order.end(), 0);
    const auto better = [scores](int32_t a, int32_t b) {
      const float x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
      return x != y ? x > y : a < b;
    };
    int32_t left = args_.budget - args_.recent;
    const auto n_most = std::min(std::ssize(order), static_cast<std::ptrdiff_t>(left / args_.chunk + 2));
    std::partial_sort(order.begin(), order.begin() + n_most, order.end(), better);
    std::vector<Run> runs;
    for (const int32_t chunk : order) {
      if (left <= 0) break;
      const int32_t begin = chunk * args_.chunk, end = std::min({begin + args_.chunk, recent, begin + left});
      runs.push_back({begin, end});
      left -= end - begin;
    }
    runs.push_back({recent, n_allowed});
    std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.begin < b.begin; });
    return with_sinks(runs);
  }

  // The lowest slots give way to the first ones of all. Neighbouring runs become one.
  std::vector<Run> with_sinks(const std::vector<Run>& runs) const {
    std::vector<Run> result = {{0, args_.sinks}};
    int32_t to_drop = args_.sinks;
    for (Run run : runs) {
      const int32_t dropped = std::min(to_drop, run.end - run.begin);
      to_drop -= dropped;
      run.begin += dropped;
      if (run.begin == run.end) continue;
      if (run.begin == result.back().end) {
        result.back().end = run.end;
      } else {
        result.push_back(run);
      }
    }
    return result;
  }

  const ChunkArgs& args_;
};

}  // namespace

std::vector<std::vector<float>> chunk_keys(Ops& ops, const ChunkArgs& args) {
  std::vector<std::vector<float>> keys(args.kv.heads.size());
  ops.for_each(std::ssize(keys), [&](int64_t head, int) {
    std::vector<float>& pooled = keys[static_cast<size_t>(head)];
    ops.pool_keys(args.kv, static_cast<int32_t>(head), args.chunk, pooled);
    const int32_t n_slots = args.kv.heads[static_cast<size_t>(head)].n_slots;
    const auto dim = static_cast<size_t>(args.q.head_dim);
    for (size_t i = 0; i < pooled.size(); ++i) {
      const int32_t begin = static_cast<int32_t>(i / dim) * args.chunk;
      pooled[i] *= std::sqrt(static_cast<float>(std::min(args.chunk, n_slots - begin)));
    }
  });
  return keys;
}

void push_chunks(Ops& ops, const ChunkArgs& args, int32_t head, const ChunkMeans& means, HeadLists& lists) {
  Chunks(args).fill(ops, head, means, lists);
}

Selection Ops::select_chunks(const ChunkArgs& args) {
  const std::vector<std::vector<float>> keys = chunk_keys(*this, args);
  std::vector<HeadLists> lists(static_cast<size_t>(args.q.n_head));
  const size_t group = lists.size() / keys.size();
  for_each(args.q.n_head, [&](int64_t item, int) {
    const auto head = static_cast<size_t>(item);
    ChunkMeans means{.queries = {}, .keys = keys[head / group]};
    pool_queries(args.q, static_cast<int32_t>(item), args.block, means.queries);
    push_chunks(*this, args, static_cast<int32_t>(item), means, lists[head]);
  });
  return join_lists(lists, args.block, kChunkBlock);
}

}  // namespace winnow
