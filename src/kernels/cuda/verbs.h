// The verbs that methods choose keys by (attention/ops.h), on pointers into GPU memory.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "attention/types.h"

namespace winnow::cuda {

/// Rows of one head of q, float or bf16.
struct ProbeRows {
  const void* data = nullptr;  // row r's values from data + r * stride on
  Type type = Type::f32;
  int64_t stride = 0;
  int64_t n = 0;
};

/// Keys of one kv head in their blocks.
struct KeyBlocks {
  const std::byte* const* blocks = nullptr;  // GPU memory, as the table
  Type type = Type::f16;
  int32_t n_slots = 0;
};

struct ScoreArgs {
  ProbeRows q;
  KeyBlocks k;
  int32_t head_dim = 0;
  const int2* visible = nullptr;  // [q.n] row r sees slots [x, y)
  const float* bias = nullptr;    // [n_slots] or null
  float scale = 1, softcap = 0;
};
/// Softmax over the slots of each row; what a row does not see gets 0. -> out [q.n, n_slots]
void score_window(const ScoreArgs& args, float* out, cudaStream_t stream);

/// Means of each `block` rows or slots, the last of what there is. -> out [ceil(n / block), head_dim]
void pool_rows(const ProbeRows& q, int32_t head_dim, int32_t block, float* out, cudaStream_t stream);
void pool_keys(const KeyBlocks& k, int32_t head_dim, int32_t block, float* out, cudaStream_t stream);

/// scale * a b^T. a [n_a, dim], b [n_b, dim] -> out [n_a, n_b]
void score_blocks(const float* a, int64_t n_a, const float* b, int64_t n_b, int32_t dim, float scale, float* out,
                  cudaStream_t stream);

/// Rows of several heads: those of head h, [n, dim], from data + h / group * stride on.
struct RowsOfHeads {
  const float* data = nullptr;
  int64_t n = 0, stride = 0;
  int32_t group = 1;
};
struct HeadProducts {
  int32_t dim = 0, n_head = 0;
  float scale = 1;
};
/// score_blocks of each head. -> out [n_head, a.n, b.n]
void score_blocks_of_heads(const RowsOfHeads& a, const RowsOfHeads& b, const HeadProducts& products, float* out,
                           cudaStream_t stream);

}  // namespace winnow::cuda
