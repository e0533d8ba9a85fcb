// How a call of few rows is divided: items (a kv head with all its query heads, or one query head with lists of its
// own), each a row of vote tiles of 64 keys; chunks of 16 keys; parts, each a range of one item's chunks and the work
// of one block of the grid. Whatever depends on lengths is computed on the device.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/few_tile.cuh"
#include "kernels/cuda/search.cuh"

namespace winnow::cuda {

inline constexpr int32_t kTileChunks = kVoteSlots / kChunk;

/// About one query head's lists; `examine_lists` finds out whether those of a group are equal.
struct ListFacts {
  int32_t n_columns, n_blocks;  // without the entries beyond the last slot
  int32_t equal;                // all heads of the group have these lists
};

/// A call with its division and the parts of its work memory.
struct FewJob {
  FewRows call;
  Lists lists;
  bool has_lists = false;
  int32_t group = 1;
  int32_t n_items = 0;        // kv heads, or query heads where lists may differ
  int32_t n_padded = 0;       // queries of the largest item, rounded up to what blocks take
  int32_t n_split = 1;        // parts that there may be, at least n_items
  int32_t n_warps = 4;        // of a block
  int32_t n_stages = 2;       // chunks in a warp's ring
  int32_t dim = 64;           // head_dim rounded up
  size_t shares_offset = 0;   // of the items' shares in shared memory
  int32_t max_tiles = 0;      // of one item, for the parts of two passes below
  int32_t item_operands = 0;  // tiles of 8 queries for which each item has room in `logits`
  int32_t n_units = 1;        // voters of an item, see unit_of
  bool votes = false;
  float* o = nullptr;          // [n_split, n_padded, dim] partial sums
  float2* mass = nullptr;      // [n_split, n_padded] their maximum (base 2) and denominator
  ListFacts* facts = nullptr;  // [n_head], where lists of a group may differ
  float4* logits = nullptr;    // [n_items, max_tiles * kTileChunks, item_operands, 32 lanes] as the products leave them
  float* largest = nullptr;    // [n_items, max_tiles * kTileChunks, item_operands * 8]
  uint8_t* keep = nullptr;     // [n_items, max_tiles, n_units]

  __device__ bool by_head() const { return n_items != call.n_head_kv; }
  __device__ uint8_t* keep_of(int32_t item, int32_t tile) const {
    return keep + (static_cast<int64_t>(item) * max_tiles + tile) * n_units;
  }
};

/// Writes o and lse of the job's call from its partial results.
void merge_few(const FewJob& job);

struct Item {
  int32_t index = 0;
  int32_t head_kv = 0;
  int32_t head = 0;     // its first query head
  int32_t n_heads = 0;  // 0: another item has this head
  int32_t n_slots = 0;
  int32_t first_block = 0;
  int32_t begin = 0, end = 0;          // slots that some row sees
  int32_t all_begin = 0, all_end = 0;  // slots that every row sees
  int32_t first_tile = 0;              // without lists: the first tile of 64 slots that anybody sees
  int32_t n_columns = 0;
  const int32_t* column = nullptr;
  const int32_t* block_begin = nullptr;
  int32_t n_tiles = 0;

  int32_t n_operands = 0;  // tiles of 8 queries of a chunk in `logits`; they reach into the room of n_heads items

  __device__ int32_t column_tiles() const { return (n_columns + kVoteSlots - 1) / kVoteSlots; }
};

__device__ inline int64_t list_of(const FewJob& job, int32_t head) {
  return job.lists.list(head, static_cast<int32_t>(job.call.first_row / job.lists.block_q));
}

/// Entries of ascending `list` below `limit`; mostly all of them.
__device__ inline int32_t entries_below(const int32_t* list, int32_t n, int32_t limit) {
  return n == 0 || list[n - 1] < limit ? n : count_below(list, n, limit);
}

__device__ inline ListFacts facts_of(const FewJob& job, int32_t head, int32_t n_slots, bool equal) {
  const int64_t list = list_of(job, head);
  const Lists& lists = job.lists;
  const auto below = [&](const int32_t* all, int32_t begin, int32_t end) {
    return entries_below(all + begin, end - begin, n_slots);
  };
  return {below(lists.column, lists.column_ptr[list], lists.column_end[list]),
          below(lists.block_begin, lists.block_ptr[list], lists.block_ptr[list + 1]), equal};
}

__device__ inline Item make_item(const FewJob& job, int32_t index) {
  const FewRows& call = job.call;
  Item item;
  item.index = index;
  const bool by_head = job.by_head();
  item.head_kv = by_head ? index / job.group : index;
  item.head = by_head ? index : index * job.group;
  item.n_heads = job.group;
  item.n_operands = job.item_operands;
  item.n_slots = call.n_slots[item.head_kv];
  item.first_block = call.first_block[item.head_kv];
  item.begin = item.all_end = item.n_slots;
  for (int64_t row = 0; row < call.q.n_rows; ++row) {
    const int2 seen = call.visible[item.head_kv * call.q.n_rows + row];
    if (seen.x < seen.y) {
      item.begin = min(item.begin, seen.x);
      item.end = max(item.end, seen.y);
    }
    item.all_begin = max(item.all_begin, seen.x);
    item.all_end = min(item.all_end, seen.y);
  }
  if (!job.has_lists) {
    item.first_tile = item.begin / kVoteSlots;
    item.n_tiles = max(0, (item.end + kVoteSlots - 1) / kVoteSlots - item.first_tile);
    return item;
  }
  const ListFacts facts = by_head ? job.facts[item.head] : facts_of(job, item.head, item.n_slots, true);
  if (by_head) item.n_heads = !facts.equal ? 1 : index % job.group == 0 ? job.group : 0;
  if (by_head) item.n_operands *= item.n_heads;
  const int64_t list = list_of(job, item.head);
  item.n_columns = facts.n_columns;
  item.column = job.lists.column + job.lists.column_ptr[list];
  item.block_begin = job.lists.block_begin + job.lists.block_ptr[list];
  item.n_tiles = item.n_heads == 0 || item.begin >= item.end
                     ? 0
                     : item.column_tiles() + facts.n_blocks * (job.lists.block_k / kVoteSlots);
  return item;
}

/// Which tile of 32 float4 (and 8 maxima) belongs to 8 queries and one chunk.
__device__ inline int64_t operand_of(const FewJob& job, const Item& item, int32_t chunk, int32_t query) {
  return static_cast<int64_t>(item.index) * job.max_tiles * kTileChunks * job.item_operands +
         static_cast<int64_t>(chunk) * item.n_operands + query / 8;
}

/// An item's share of the grid: parts [first, first + n), each of which has at least a tile of its chunks.
struct Share {
  int32_t n_chunks = 0;
  int32_t first = 0, n = 0;

  /// Where part first + i begins in the item; the first parts are a chunk longer, if they cannot all be equal.
  __device__ int32_t begin(int32_t i) const { return i * (n_chunks / n) + min(i, n_chunks % n); }
};

/// The sum of `x` of this lane and those before it.
__device__ __forceinline__ int32_t sum_up_to(int32_t x) {
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
#pragma unroll
  for (int32_t step = 1; step < 32; step *= 2) {
    const int32_t left = __shfl_up_sync(~0U, x, step);
    if (lane >= step) x += left;
  }
  return x;
}

/// Gives every item parts in proportion to its tiles, n_split at most. All threads of the block; shares: [n_items] in
/// shared memory.
__device__ inline void divide(const FewJob& job, Share* shares) {
  for (int32_t i = threadIdx.x; i < job.n_items; i += blockDim.x) {
    shares[i].n_chunks = make_item(job, i).n_tiles * kTileChunks;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    int32_t total = 0;
    for (int32_t i = threadIdx.x; i < job.n_items; i += 32) total += shares[i].n_chunks / kTileChunks;
    total = __reduce_add_sync(~0U, total);
    int32_t first = 0;
    for (int32_t base = 0; base < job.n_items; base += 32) {
      const int32_t i = base + static_cast<int32_t>(threadIdx.x);
      const int32_t n_tiles = i < job.n_items ? shares[i].n_chunks / kTileChunks : 0;
      const int64_t even = total == 0 ? 0 : static_cast<int64_t>(n_tiles) * (job.n_split - job.n_items) / total;
      const int32_t n = min(n_tiles, static_cast<int32_t>(even) + 1);
      const int32_t sum = sum_up_to(n);
      if (i < job.n_items) shares[i].first = first + sum - n, shares[i].n = n;
      first += __shfl_sync(~0U, sum, 31);
    }
  }
  __syncthreads();
}

/// Who votes with query `index` of an item: a single row with all heads of the item, else the rows of one head.
__device__ inline int32_t unit_of(const FewJob& job, int32_t index) {
  return job.call.q.n_rows == 1 ? 0 : index / static_cast<int32_t>(job.call.q.n_rows);
}

/// Sixteen keys: slots from `begin` on, or list entries.
struct Chunk {
  int32_t begin = 0;
  int32_t n = 0;                    // keys that there are
  const int32_t* column = nullptr;  // null: consecutive slots

  __device__ int32_t slot(int32_t i) const { return i >= n ? -1 : column == nullptr ? begin + i : column[i]; }
  /// Whether the item's rows may see any of it.
  __device__ bool matters(const Item& item) const {
    return n > 0 && (column != nullptr || (begin < item.end && begin + n > item.begin));
  }
  __device__ bool all_see(const Item& item) const {
    return n == kChunk && column == nullptr && begin >= item.all_begin && begin + kChunk <= item.all_end;
  }
};

__device__ inline Chunk make_chunk(const FewJob& job, const Item& item, int32_t index) {
  Chunk chunk;
  const int32_t tile = index / kTileChunks;
  const int32_t offset = index % kTileChunks * kChunk;
  if (!job.has_lists) {
    chunk.begin = (item.first_tile + tile) * kVoteSlots + offset;
  } else if (tile < item.column_tiles()) {
    const int32_t entry = tile * kVoteSlots + offset;
    chunk.column = item.column + entry;
    chunk.n = max(0, min(kChunk, item.n_columns - entry));
    return chunk;
  } else {
    const int32_t pieces = job.lists.block_k / kVoteSlots;
    const int32_t piece = tile - item.column_tiles();
    chunk.begin = item.block_begin[piece / pieces] + piece % pieces * kVoteSlots + offset;
  }
  chunk.n = max(0, min(kChunk, item.n_slots - chunk.begin));
  return chunk;
}

}  // namespace winnow::cuda
