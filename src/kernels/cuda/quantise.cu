#include "kernels/cuda/quantise.h"

#include <cuda_fp8.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/over_block.cuh"
#include "kernels/cuda/vec_inl.h"

namespace winnow::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kLargest = 448;  // of e4m3

__device__ uint32_t four_of(const float* v) {
  const auto two = [](float a, float b) {
    return static_cast<uint32_t>(__nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3));
  };
  return two(v[0], v[1]) | two(v[2], v[3]) << 16;
}

/// One block for each row; the second reading of the row comes from the cache.
template <typename T>
__global__ void quantise_rows_kernel(const T* x, int64_t stride, bool is_wide, int64_t cols, uint8_t* to, int64_t ld,
                                     float* scale) {
  take_turn();
  const T* from = x + blockIdx.x * stride;
  uint8_t* out = to + blockIdx.x * ld;
  float largest = 0;
  for (int64_t col = 8 * static_cast<int64_t>(threadIdx.x); col < cols; col += 8 * blockDim.x) {
    float v[8];
    load_some(from + col, cols - col, is_wide, v);
#pragma unroll
    for (const float value : v) largest = fmaxf(largest, fabsf(value));
  }
  largest = over_block(largest, [](float a, float b) { return fmaxf(a, b); });
  if (threadIdx.x == 0) scale[blockIdx.x] = largest / kLargest;
  const float by = largest > 0 ? kLargest / largest : 0;
  for (int64_t col = 8 * static_cast<int64_t>(threadIdx.x); col < ld; col += 8 * blockDim.x) {
    float v[8];
    load_some(from + col, cols - col, is_wide, v);
#pragma unroll
    for (float& value : v) value *= by;
    *reinterpret_cast<uint2*>(out + col) = {four_of(v), four_of(v + 4)};
  }
}

}  // namespace

void quantise_rows(Mat x, uint8_t* to, int64_t ld, float* scale, Stream stream) {
  if (x.rows == 0) return;
  with_type(x.type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const auto* data = reinterpret_cast<const T*>(x.data);
    launch_early({.grid = static_cast<unsigned>(x.rows),
                  .threads = kThreads,
                  .stream = stream,
                  .what = "launching a change to eight bits"},
                 quantise_rows_kernel<T>, data, x.stride, wide(data, x.stride), x.cols, to, ld, scale);
  });
}

}  // namespace winnow::cuda
