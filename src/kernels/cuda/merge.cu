// The exact sum of two attention results over disjoint slots, by their log-sum-exp.
#include <cmath>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/check.h"

namespace winnow::cuda {
namespace {

constexpr int32_t kThreads = 256;  // a warp for each row and head

__device__ float load(const HeadRows& rows, int64_t at) {
  if (rows.type == Type::bf16) return __bfloat162float(static_cast<const __nv_bfloat16*>(rows.data)[at]);
  return static_cast<const float*>(rows.data)[at];
}

__device__ void store(const HeadRows& rows, int64_t at, float value) {
  if (rows.type == Type::bf16) {
    static_cast<__nv_bfloat16*>(rows.data)[at] = __float2bfloat16_rn(value);
  } else {
    static_cast<float*>(rows.data)[at] = value;
  }
}

__device__ int64_t offset(const HeadRows& rows, int64_t row, int64_t head) {
  return row * rows.stride + head * rows.head_dim;
}

__global__ void __launch_bounds__(kThreads)
    merge_kernel(const HeadRows into, float* into_lse, const HeadRows from, const float* from_lse, float log_gain) {
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  if (index >= into.n_rows * into.n_head) return;
  const float a = into_lse[index];
  const float b = from_lse[index] + log_gain;
  const float max = fmaxf(a, b);
  if (max == -INFINITY) return;  // neither saw anything
  const float weight_a = expf(a - max);
  const float weight_b = expf(b - max);
  const float sum = weight_a + weight_b;
  const int64_t row = index / into.n_head;
  const int64_t head = index % into.n_head;
  const int64_t to = offset(into, row, head);
  const int64_t other = offset(from, row, head);
  for (int32_t i = threadIdx.x % 32; i < into.head_dim; i += 32) {
    store(into, to + i, (weight_a * load(into, to + i) + weight_b * load(from, other + i)) / sum);
  }
  __syncwarp();  // all lanes have read into_lse
  if (threadIdx.x % 32 == 0) into_lse[index] = max + logf(sum);
}

}  // namespace

void merge(const HeadRows& into, float* into_lse, const HeadRows& from, const float* from_lse, float gain,
           cudaStream_t stream) {
  const int64_t n_threads = into.n_rows * into.n_head * 32;
  if (n_threads == 0) return;
  const auto n_blocks = static_cast<uint32_t>((n_threads + kThreads - 1) / kThreads);
  merge_kernel<<<n_blocks, kThreads, 0, stream>>>(into, into_lse, from, from_lse, std::log(gain));
  check(cudaGetLastError(), "merge");
}

}  // namespace winnow::cuda
