// select_tree on the GPU: attention/tree.h for all heads and blocks of rows at once, below the Device interface.
#pragma once

#include "attention/ops.h"
#include "kernels/cuda/attention.h"

namespace winnow::cuda {

/// All pointers are device memory; lists as in Lists, one for each head and block of kTreeBlock rows.
struct TreeCall {
  HeadRows q;
  StagedKv kv;                           // of few rows, which look at few of the keys, without the keys:
  const std::byte* const* k = nullptr;   // then these blocks of the cache
  const int32_t* first_block = nullptr;  // [n_head_kv]
  Type k_type = Type::f16;
  const int2* visible = nullptr;  // [n_head_kv, n_rows]
  float scale = 1;
  int32_t n_keep = 0;  // key blocks that a block of rows finds, n_keys / key_block
  int32_t n_keys = 0, key_block = 1, query_stride = 1, key_stride = 1, window = 1, sinks = 0, n_later = 0;
  int32_t* found = nullptr;       // [n_list, n_keep] key blocks from the sinks on, ascending
  int32_t* block_ptr = nullptr;   // [n_list + 1]
  int32_t* column_ptr = nullptr;  // [n_list + 1]
  Stream stream = {};

  __host__ __device__ int32_t n_block_q() const;
};

/// Whether a block's shared memory has room for so many key blocks.
bool tree_fits(const TreeCall& call);
/// Searches, and writes `found` and the ends of the lists. work: tree_work_bytes(call).
size_t tree_work_bytes(const TreeCall& call);
void search_tree(const TreeCall& call, std::byte* work);
/// The lists' entries.
void write_tree(const TreeCall& call, int32_t* block_begin, int32_t* column);

}  // namespace winnow::cuda
