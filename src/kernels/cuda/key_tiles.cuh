// Rows of queries by tiles of keys in shared memory: products that stay in registers, 32 x 32 of a warp.
#pragma once

#include "kernels/cuda/mma_sm80.cuh"

namespace winnow::cuda {
namespace {

constexpr int kTile = 64;  // keys
constexpr int kPad = 8;    // bf16 values behind a row in shared memory, against bank conflicts
constexpr float kLog2E = 1.4426950408889634F;
constexpr float kNothing = -INFINITY;

// Fragments of mma_sm80.cuh. A warp's 32x32 products are 4x4 blocks of 8x8: of the block of rows i and keys n lane
// (g, t) holds, for e = 0 and 1, row 8 i + g and key 8 n + 2 t + e as x[i / 2][n][i % 2 * 2 + e].
using Products = float[2][4][4];

/// The warp's queries by the warp's keys. keys: where the lane reads matrices, for the first 16 keys and values.
template <int kDim>
__device__ __forceinline__ void multiply(const uint32_t (&q)[2][kDim / 16][4], uint32_t keys, Products& x) {
  constexpr int kStride = kDim + kPad;
#pragma unroll
  for (int at = 0; at < 32; ++at) x[at / 16][at / 4 % 4][at % 4] = 0;
#pragma unroll
  for (int d = 0; d < kDim / 16; ++d) {
    uint32_t k[2][4];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      load_matrices(k[n], keys + static_cast<uint32_t>((n * 16 * kStride + d * 16) * sizeof(__nv_bfloat16)));
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) mma<true>(x[i][n], q[i][d], k[n / 2][n % 2 * 2], k[n / 2][n % 2 * 2 + 1]);
    }
  }
}

/// Two largest logits x with the sums y of 2^(logit - x), as one.
__device__ inline float2 join(float2 a, float2 b) {
  const float x = fmaxf(a.x, b.x);
  const float base = x > kNothing ? x : 0.0F;
  return {x, a.y * exp2_fast(a.x - base) + b.y * exp2_fast(b.x - base)};
}

__host__ __device__ constexpr size_t stage_bytes(int dim) {
  return static_cast<size_t>(kTile) * (dim + kPad) * sizeof(__nv_bfloat16);
}

}  // namespace
}  // namespace winnow::cuda
