// Rows of queries and outputs between global memory and the registers of wgmma, 16 bytes at a time where they are
// aligned.
//
// A quad, four neighbouring threads, shares a row: of every 8 columns thread t holds the two from 2 t on.
#pragma once

#include "kernels/cuda/hopper.cuh"

namespace winnow::cuda::hopper {

/// A 4 x 4 transpose over the threads of a quad: x[j] of thread t goes to x[t] of thread j.
__device__ __forceinline__ void transpose_in_quad(uint32_t (&x)[4]) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = (threadIdx.x & bit) != 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if ((j & bit) != 0) continue;
      const uint32_t got = __shfl_xor_sync(~0U, upper ? x[j] : x[j + bit], bit);
      x[j] = upper ? got : x[j];
      x[j + bit] = upper ? x[j + bit] : got;
    }
  }
}

template <typename T>
__device__ __forceinline__ bool is_aligned(const T* row) {
  return reinterpret_cast<uintptr_t>(row) % 16 == 0;
}

/// Eight neighbouring values of a row that has n of them, as pairs of bf16; 0 behind these.
__device__ __forceinline__ void load_eight(const __nv_bfloat16* row, int32_t n, int32_t column, uint32_t (&x)[4]) {
  if (column + 8 <= n && is_aligned(row)) {
    const auto all = *reinterpret_cast<const uint4*>(row + column);
    x[0] = all.x;
    x[1] = all.y;
    x[2] = all.z;
    x[3] = all.w;
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int32_t c = column + 2 * j;
    x[j] = pack_bf16(c < n ? __bfloat162float(row[c]) : 0.0F, c + 1 < n ? __bfloat162float(row[c + 1]) : 0.0F);
  }
}

__device__ __forceinline__ void load_eight(const float* row, int32_t n, int32_t column, uint32_t (&x)[4]) {
  if (column + 8 <= n && is_aligned(row)) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const auto four = *reinterpret_cast<const float4*>(row + column + 4 * j);
      x[2 * j] = pack_bf16(four.x, four.y);
      x[2 * j + 1] = pack_bf16(four.z, four.w);
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int32_t c = column + 2 * j;
    x[j] = pack_bf16(c < n ? row[c] : 0.0F, c + 1 < n ? row[c + 1] : 0.0F);
  }
}

/// A quad's 32 columns of a row that has n values, from `column` on: of the j-th eight of them a thread gives its two,
/// low[j] and high[j].
__device__ __forceinline__ void store_quad(__nv_bfloat16* row, int32_t n, int32_t column, const float (&low)[4],
                                           const float (&high)[4]) {
  uint32_t x[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) x[j] = pack_bf16(low[j], high[j]);
  transpose_in_quad(x);
  column += static_cast<int32_t>(threadIdx.x % 4) * 8;
  if (column + 8 <= n && is_aligned(row)) {
    *reinterpret_cast<uint4*>(row + column) = {x[0], x[1], x[2], x[3]};
    return;
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const auto bits = static_cast<unsigned short>(x[j / 2] >> (j % 2 * 16));
    if (column + j < n) row[column + j] = __ushort_as_bfloat16(bits);
  }
}

__device__ __forceinline__ void store_quad(float* row, int32_t n, int32_t column, const float (&low)[4],
                                           const float (&high)[4]) {
  uint32_t x[4];
  uint32_t y[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    x[j] = __float_as_uint(low[j]);
    y[j] = __float_as_uint(high[j]);
  }
  transpose_in_quad(x);
  transpose_in_quad(y);
  column += static_cast<int32_t>(threadIdx.x % 4) * 8;
  if (column + 8 <= n && is_aligned(row)) {
    *reinterpret_cast<uint4*>(row + column) = {x[0], y[0], x[1], y[1]};
    *reinterpret_cast<uint4*>(row + column + 4) = {x[2], y[2], x[3], y[3]};
    return;
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    if (column + j < n) row[column + j] = __uint_as_float(j % 2 == 0 ? x[j / 2] : y[j / 2]);
  }
}

}  // namespace winnow::cuda::hopper
