// select_cover on the GPU: attention/cover.h for all heads at once, below the Device interface.
#pragma once

#include "kernels/cuda/attention.h"

namespace winnow::cuda {

/// Means of blocks of rows. data [head, row, value] with strides in values.
struct PoolArgs {
  const void* data = nullptr;
  Type type = Type::bf16;
  int64_t head_stride = 0, row_stride = 0;
  int64_t n_rows = 0;                // of all heads,
  const int32_t* n_slots = nullptr;  // or of each [n_head], device memory
  int32_t n_head = 0, head_dim = 0;
  int32_t block = 0, n_block = 0;
  float* out = nullptr;  // [n_head, n_block, head_dim]; blocks without rows are 0
  Stream stream = {};
};
void pool_heads(const PoolArgs& args);

/// Which entries of a descending order are taken: keys above `key`, and of those equal to it the ones up to `last`.
struct Cut {
  uint32_t key = 0;
  int32_t last = -1;
};

constexpr int kCutDigits = 2048;

/// A cut of a map on its way through the digits of its key; see cut.cuh.
struct MapCut {
  unsigned long long weight[kCutDigits];  // of this round's digits
  unsigned long long above;
  uint32_t prefix;
  bool all;        // everything stays within the limit
  long long ties;  // of those whose key is the border's, how many are taken
};

/// All pointers are device memory. Strides are n_block and max_slots, the longest head's.
struct CoverCall {
  int32_t n_head = 0, group = 1, head_dim = 0;
  int32_t block = 0, n_block_q = 0, n_block = 0;
  int64_t n_rows = 0, max_slots = 0;
  int32_t n_probe = 0;
  const int2* visible = nullptr;  // [n_head_kv, n_rows]
  double share = 0, distance = 0;
  int32_t least = 0, most = 0;
  float scale = 1;

  // The probe's mass, of its first 64 rows and of the others, where there are any; the first are overwritten.
  float* vertical = nullptr;  // [n_head, max_slots]
  float* slash = nullptr;
  const float* more_vertical = nullptr;
  const float* more_slash = nullptr;
  const float* probe_mean = nullptr;  // [n_head, head_dim]
  const float* queries = nullptr;     // [n_head, n_block_q, head_dim]
  const float* keys = nullptr;        // [n_head_kv, n_block, head_dim]

  float* work = nullptr;         // [n_head, 3, n_block]
  uint8_t* lines = nullptr;      // [n_head, 2, n_block] key blocks and distances that are taken
  uint8_t* pooled = nullptr;     // [n_head] whether the head takes the pooled map's blocks
  float* map = nullptr;          // [heads at a time, n_block_q, n_block]
  Cut* cut = nullptr;            // [heads at a time]
  MapCut* map_cut = nullptr;     // [heads at a time] work
  int32_t* ties = nullptr;       // [heads at a time, n_block_q] work
  uint32_t* marks = nullptr;     // [n_head, n_block_q, mark_words] a bit for each block that is computed
  int32_t* block_ptr = nullptr;  // [n_head * n_block_q + 1]
  Stream stream = {};

  __host__ __device__ int32_t mark_words() const { return (n_block + 31) / 32; }
};

/// The pattern and the lines of each head.
void decide_cover(const CoverCall& call);
/// The marks of heads [first, first + n).
void mark_cover(const CoverCall& call, int32_t first, int32_t n);
/// The lists of what is marked: first the ends of the lists, from which the caller learns their length, then they.
size_t cover_scan_bytes(const CoverCall& call);
void measure_cover(const CoverCall& call, std::byte* scan_work);
void write_cover(const CoverCall& call, int32_t* block_begin);

}  // namespace winnow::cuda
