// select_gated on the GPU: attention/gates.cpp for all heads at once, below the Device interface.
#pragma once

#include "kernels/cuda/attention.h"

namespace winnow::cuda {

/// All pointers are device memory.
struct GateCall {
  HeadRows q;
  const int32_t* limit = nullptr;  // [n_rows] positions of the rows
  StagedKv kv;
  const int32_t* position = nullptr;  // [n_head_kv, position_stride] of slots, or null: slot j stands at j
  int64_t position_stride = 0;
  int32_t half = 0;  // pairs of a head's values that turn
  bool neox = true;
  float magnitude = 1;
  const float* frequency = nullptr;  // [half]

  int32_t block = 0, n_block_q = 0, n_block = 0;
  const int2* visible = nullptr;    // [n_head_kv, n_rows]
  double threshold = 0;             // where n_best is 0
  const int32_t* n_best = nullptr;  // [n_head_kv]
  bool last_dense = false;

  float* queries = nullptr;   // [n_head, n_block_q, head_dim]
  float* pooled = nullptr;    // [n_head_kv, n_block, 3, head_dim]
  float* keys = nullptr;      // [n_head, n_block, head_dim]
  float* scores = nullptr;    // [heads at a time, n_block_q, n_block]
  uint32_t* marks = nullptr;  // [n_head, n_block_q, words] a bit for each block that is computed
  float* kept = nullptr;      // [n_head, n_block_q] the share of the probabilities that these have
  Stream stream = {};

  __host__ __device__ int32_t group() const { return q.n_head / kv.n_head_kv; }
  __host__ __device__ int32_t words() const { return (n_block + 31) / 32; }
};

/// `queries`, turned, and `pooled`, of which the gate's products make `keys`.
void pool_for_gate(const GateCall& call);
/// Turns these.
void turn_gate_keys(const GateCall& call);
/// Marks and shares of heads [first, first + n), whose scores are there.
void mark_gated(const GateCall& call, int32_t first, int32_t n);

}  // namespace winnow::cuda
