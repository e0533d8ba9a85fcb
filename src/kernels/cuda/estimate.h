// Estimates of attention that are products of fewer rows than attention's own, on pointers into GPU memory. Logits stay
// in the registers that they are made in: of a group of rows and a block of slots one value is written.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "attention/types.h"
#include "kernels/cuda/cover.h"

namespace winnow::cuda {

/// Rows of several heads, and what is made of them in bf16: row g of `out` holds rows [g * stride, (g + 1) * stride)
/// one behind the other, each the mean over n_head heads; 0 where there are none.
struct GatherArgs {
  const void* data = nullptr;  // [n_head, n_rows, head_dim], distances in values
  Type type = Type::bf16;
  int64_t head_stride = 0, row_stride = 0;
  int64_t n_rows = 0;
  int32_t n_head = 1, head_dim = 0;
  int32_t stride = 1;
  bool only_first = false;       // just the first row of each group; else all of them, the last one first
  int64_t n_out = 0;             // groups, some of which may lie behind the last row
  int32_t dim = 0;               // head_dim and zeros behind it
  __nv_bfloat16* out = nullptr;  // [n_out, stride or 1, dim]
  Stream stream = {};
};
void gather(const GatherArgs& args);

/// What blocks are estimated for.
struct BlockRows {
  const int2* visible = nullptr;  // [n_rows] of the head: the row sees slots [.., y)
  int64_t n_rows = 0;
  int32_t stride = 1;  // rows and slots that a logit stands for
  int32_t block = 64;  // rows and slots
  int32_t n_block = 0;
  float scale = 1, softcap = 0;  // of the logits
  Stream stream = {};
};

/// Slot groups of a tile of logits, and so what a row's sum is written for.
inline constexpr int32_t kEstimateColumns = 256;

/// Logits between row groups and slot groups of some heads, as far as rows see, and what blocks get of them: each row
/// group's softmax, of which a block has the sum over its row groups and slot groups (antidiagonal_scores), or the
/// logarithm of the largest (`maxima`: proxy_scores). A row group looks at the slot groups that begin where its last
/// row sees, or its first row (`maxima`). All pointers are device memory.
struct EstimateCall {
  BlockRows rows;                          // visible: [n_kv, n_rows]
  const __nv_bfloat16* queries = nullptr;  // [n_head, n_q, depth] row groups
  const __nv_bfloat16* keys = nullptr;     // [n_kv, n_k, depth] slot groups
  int64_t n_q = 0, n_k = 0, depth = 0;     // depth: a multiple of 64
  int32_t first_head = 0, n_head = 1;      // of the heads, `group` of which share a kv head
  int32_t n_kv = 1, group = 1;
  bool maxima = false;
  float* scores = nullptr;  // [n_head, n_block_q, n_block]
  int32_t n_sm = 1;         // multiprocessors

  // Row groups [first, first + n), whole blocks of rows, of which `parts` [n_head, n, ld] holds, in base 2: for each
  // block of slots the logarithm of what its logits' powers sum to, or its largest logit; behind these, if `maxima`,
  // that logarithm for each kEstimateColumns slot groups.
  int64_t first = 0, n = 0;
  float* parts = nullptr;
  int64_t ld = 0;

  __host__ __device__ int64_t kv_head(int32_t head) const { return (first_head + head) / group; }
};

/// The parts of the row groups. wgmma and TMA, compute capability 9.0 only.
void estimate_hopper(const EstimateCall& call);
/// mma.sync and cp.async, compute capability 8.0 and later. Same results.
void estimate_portable(const EstimateCall& call);
/// The scores of the row groups' blocks, from their parts.
void score_parts(const EstimateCall& call);

/// Marks of the heads of one group by select_ranked's rule. `rows` sees what all of them see; scores as proxy_scores
/// writes them.
struct RankedMarks {
  BlockRows rows;
  int32_t n_head = 0;
  int64_t max_slots = 0;
  double share = 1;
  int64_t least = 0;
  bool same_all = false;
  const float* scores = nullptr;  // [n_block_q, n_block]
  const float* mass = nullptr;    // [n_head, max_slots] what the probe spends
  float* by_block = nullptr;      // [n_head, n_block], work
  int32_t* budget = nullptr;      // [n_head], work
  uint32_t* marks = nullptr;      // [n_head, n_block_q, words]
  float* kept = nullptr;          // [n_head] the share of the mass that the last row's blocks hold
};
void mark_ranked(const RankedMarks& call);

/// Marks of one head by select_antidiagonals' rule. scores [n_block_q, n_block]; marks [n_block_q, words]
void mark_heaviest(const BlockRows& rows, const float* scores, double share, uint32_t* marks);

}  // namespace winnow::cuda
