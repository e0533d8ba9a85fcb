// New rows of K and V into cache blocks on the GPU.
#pragma once

#include <cuda_runtime.h>

#include "attention/device.h"
#include "kernels/cuda/stream.h"

namespace winnow::cuda {

struct StoreArgs {
  HeadsView rows;                            // k or v [n_rows, n_head, head_dim]; head_dim a multiple of 8
  Type type = Type::f16;                     // of the cache: f32, f16, bf16, q8_0 or fp8
  const std::byte* const* blocks = nullptr;  // GPU memory: head h's blocks from first_block[h] on
  const int32_t* first_block = nullptr;      // [n_head]
  const int32_t* first_slot = nullptr;       // [n_head] of row 0
};

/// Rounds as encode_row_plain (kernels/rows.h) does, bit by bit.
void store_rows(const StoreArgs& k, const StoreArgs& v, Stream stream);

}  // namespace winnow::cuda
