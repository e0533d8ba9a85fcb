// Estimates of attention that are products of fewer rows than attention's own, on pointers into GPU memory: what is
// multiplied is gathered, cuBLAS multiplies it panel by panel, and what a panel says of blocks is reduced.
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
  bool reversed = false;         // the last row of each group first
  bool only_first = false;       // just the first row of each group
  int64_t n_out = 0;             // groups, some of which may lie behind the last row
  __nv_bfloat16* out = nullptr;  // [n_out, stride or 1, head_dim]
  Stream stream = {};
};
void gather(const GatherArgs& args);

/// A panel of logits: rows [first, first + n) of all, each a group of `stride` rows of the head.
struct Panel {
  const float* logits = nullptr;  // [n, ld]
  int64_t ld = 0;
  int64_t first = 0, n = 0;
};

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

/// antidiagonal_scores of the panel's blocks of rows, of which it holds whole ones. scores [n_block_q, n_block]
void antidiagonal_sums(const BlockRows& rows, const Panel& panel, float* scores);

/// proxy_scores of the panel's blocks of rows: logits are of every stride-th row and slot.
void proxy_maxima(const BlockRows& rows, const Panel& panel, float* scores);

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

/// Marks of one head by select_antidiagonals' rule: blocks that hold any of the `last_rows` take everything. scores as
/// above; marks [n_block_q, words]
void mark_heaviest(const BlockRows& rows, const float* scores, double share, int32_t last_rows, uint32_t* marks);

}  // namespace winnow::cuda
