// select_chunks on the GPU: attention/chunks.cpp for all heads, below the Device interface.
#pragma once

#include "kernels/cuda/attention.h"

namespace winnow::cuda {

/// All pointers are device memory; lists as in Lists, one for each head and block of rows.
struct ChunkCall {
  int64_t n_rows = 0;
  int32_t n_head = 0, group = 1;
  const int2* visible = nullptr;  // [n_head_kv, n_rows]
  int32_t budget = 0, block = 0, chunk = 0, sinks = 0, recent = 0;
  int32_t n_block_q = 0, n_chunk = 0;
  uint32_t* chosen = nullptr;     // [n_list, words] a bit for each chunk that is taken
  int2* last = nullptr;           // [n_list] the lowest in rank of these, and how many slots of it are taken
  int32_t* block_ptr = nullptr;   // [n_list + 1]
  int32_t* column_ptr = nullptr;  // [n_list + 1]
  Stream stream = {};

  __host__ __device__ int32_t words() const { return (n_chunk + 31) / 32; }
  __host__ __device__ int64_t n_list() const { return static_cast<int64_t>(n_head) * n_block_q; }
};

/// Means [n_head_kv, n_chunk, dim] times the root of each chunk's length.
void weigh_means(float* keys, const int32_t* n_slots, int32_t n_head_kv, const ChunkCall& call, int32_t dim);
/// Means over heads [n_head, n], in the first one's place.
void mean_of_heads(float* values, int32_t n_head, int64_t n, Stream stream);
/// What blocks of rows of one head take. scores [n_block_q, n_chunk]
void choose_chunks(const ChunkCall& call, int32_t head, const float* scores);
/// The ends of the lists. work: chunk_work_bytes(call).
size_t chunk_work_bytes(const ChunkCall& call);
void measure_chunks(const ChunkCall& call, std::byte* work);
/// Their entries.
void write_chunks(const ChunkCall& call, int32_t* block_begin, int32_t* column);

}  // namespace winnow::cuda
