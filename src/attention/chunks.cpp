// A budget of slots for each block of rows, given to the chunks of keys whose means score best (DHSA, arXiv
// 2510.24606): the default for all devices, on the verbs that they have.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "attention/lists.h"
#include "attention/ops.h"

namespace winnow {
namespace {

struct Run {
  int32_t begin, end;
};

// What blocks of rows are scored by.
struct ChunkMeans {
  std::vector<float> queries;  // [n_block_q, head_dim] means
  std::vector<float> keys;     // [n_chunk, head_dim] means times the root of a chunk's length
};

// Chunks that begin before slot `end`.
int32_t n_before(const ChunkArgs& args, int32_t end) {
  if (args.bounds.empty()) return static_cast<int32_t>(ceil_div(end, args.chunk));
  return static_cast<int32_t>(std::lower_bound(args.bounds.begin(), args.bounds.end() - 1, end) - args.bounds.begin());
}

// The part of a chunk that lies before slot `end`.
Run chunk_at(const ChunkArgs& args, int32_t chunk, int32_t end) {
  if (args.bounds.empty()) return {chunk * args.chunk, std::min((chunk + 1) * args.chunk, end)};
  const auto at = static_cast<size_t>(chunk);
  return {args.bounds[at], std::min(args.bounds[at + 1], end)};
}

// Means over chunks of any length, of which the keys of some are held at once.
void mean_keys(Ops& ops, const ChunkArgs& args, int32_t kv_head, std::vector<float>& means) {
  constexpr int32_t kPiece = 4096;
  const std::span<const int32_t> bounds = args.bounds;
  const auto dim = static_cast<size_t>(args.q.head_dim);
  means.assign((bounds.size() - 1) * dim, 0);
  std::vector<int32_t> slots;
  std::vector<float> keys;
  size_t chunk = 0;
  for (int32_t begin = 0; begin < bounds.back(); begin += kPiece) {
    slots.resize(static_cast<size_t>(std::min(kPiece, bounds.back() - begin)));
    std::iota(slots.begin(), slots.end(), begin);
    ops.gather_keys(args.kv, kv_head, slots, keys);
    for (size_t i = 0; i < slots.size(); ++i) {
      while (slots[i] >= bounds[chunk + 1]) ++chunk;
      const auto share = 1 / static_cast<float>(bounds[chunk + 1] - bounds[chunk]);
      for (size_t d = 0; d < dim; ++d) means[chunk * dim + d] += share * keys[i * dim + d];
    }
  }
}

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
      if (n_allowed <= args_.budget) {
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
    std::vector<int32_t> heap(static_cast<size_t>(n_before(args_, recent)));  // the best on top
    std::iota(heap.begin(), heap.end(), 0);
    const auto worse = [scores](int32_t a, int32_t b) {
      const float x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
      return x != y ? x < y : a > b;
    };
    std::make_heap(heap.begin(), heap.end(), worse);
    std::vector<Run> runs;
    for (int32_t left = args_.budget - args_.recent; left > 0 && !heap.empty();) {
      Run run = chunk_at(args_, heap.front(), recent);
      std::pop_heap(heap.begin(), heap.end(), worse);
      heap.pop_back();
      run.end = std::min(run.end, run.begin + left);
      runs.push_back(run);
      left -= run.end - run.begin;
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

// -> [n_kv_head] of ChunkMeans::keys
std::vector<std::vector<float>> chunk_keys(Ops& ops, const ChunkArgs& args) {
  std::vector<std::vector<float>> keys(args.kv.heads.size());
  ops.for_each(std::ssize(keys), [&](int64_t head, int) {
    std::vector<float>& pooled = keys[static_cast<size_t>(head)];
    if (args.bounds.empty()) {
      ops.pool_keys(args.kv, static_cast<int32_t>(head), args.chunk, pooled);
    } else {
      mean_keys(ops, args, static_cast<int32_t>(head), pooled);
    }
    const int32_t n_slots = args.kv.heads[static_cast<size_t>(head)].n_slots;
    const auto dim = static_cast<size_t>(args.q.head_dim);
    for (size_t i = 0; i < pooled.size(); ++i) {
      const Run chunk = chunk_at(args, static_cast<int32_t>(i / dim), n_slots);
      pooled[i] *= std::sqrt(static_cast<float>(chunk.end - chunk.begin));
    }
  });
  return keys;
}

std::vector<float> mean(const std::vector<std::vector<float>>& of_heads) {
  std::vector<float> sum(of_heads.front().size());
  for (const std::vector<float>& values : of_heads) {
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += values[i];
  }
  for (float& x : sum) x /= static_cast<float>(of_heads.size());
  return sum;
}

}  // namespace

Selection Ops::select_chunks(const ChunkArgs& args) {
  const std::vector<std::vector<float>> keys = chunk_keys(*this, args);
  std::vector<std::vector<float>> queries(static_cast<size_t>(args.q.n_head));
  for_each(args.q.n_head, [&](int64_t head, int) {
    pool_queries(args.q, static_cast<int32_t>(head), args.block, queries[static_cast<size_t>(head)]);
  });
  const Chunks chunks(args);
  std::vector<HeadLists> lists(args.together ? 1 : queries.size());
  if (args.together) {
    chunks.fill(*this, 0, {mean(queries), mean(keys)}, lists.front());
  } else {
    for_each(args.q.n_head, [&](int64_t item, int) {
      const auto head = static_cast<size_t>(item);
      chunks.fill(*this, static_cast<int32_t>(item), {queries[head], keys[head / (queries.size() / keys.size())]},
                  lists[head]);
    });
  }
  return join_lists(lists, args.block, kChunkBlock);
}

}  // namespace winnow
