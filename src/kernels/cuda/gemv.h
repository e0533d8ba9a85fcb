// Products of a few rows with weights in bf16 or e4m3, bound by reading the weights.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "attention/device.h"
#include "kernels/cuda/stream.h"

namespace winnow::cuda {

// From four rows on, cuBLAS's tensor cores are the quicker ones: 18 against 15 us at [4, 2560] x [6144, 2560] on an
// H100.
constexpr int kMostGemvRows = 3;
constexpr int kMostGemvWeights = 4;

/// y = x W^T + bias for up to kMostGemvWeights weights of the same x. All pointers are GPU memory.
struct Gemv {
  struct Part {
    const void* w = nullptr;       // [n_out, n_in], rows `ld` values apart, which is whole 16 bytes; 0 from n_in to ld
    const float* scale = nullptr;  // [n_out]: the weights are e4m3, times this; null: they are bf16. All parts alike.
    const float* bias = nullptr;   // [n_out]; null: none
    int64_t ld = 0;
    int64_t n_out = 0;
    void* y = nullptr;  // [n_rows, n_out]
    int64_t y_stride = 0;
    Type y_type = Type::bf16;
    bool adds = false;  // to what y holds, which is float then
  };
  Part part[kMostGemvWeights];
  int n_parts = 0;
  const __nv_bfloat16* x = nullptr;  // [n_rows, n_in], rows on 16-byte boundaries
  int64_t x_stride = 0;
  int64_t n_in = 0;
  int n_rows = 0;         // 1 to kMostGemvRows
  bool is_gated = false;  // there are two parts, alike but for their weights; y = gate(x W_0^T) * (x W_1^T)
  Gate gate = Gate::silu;
};

/// Sums of a row do not depend on how many rows there are. n_sm: multiprocessors.
void multiply_few_rows(const Gemv& call, int n_sm, Stream stream);

}  // namespace winnow::cuda
