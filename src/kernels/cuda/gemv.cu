#include "kernels/cuda/gemv.h"

#include <cuda_fp8.h>

#include <algorithm>

#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vec_inl.h"

namespace winnow::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kOutputs = 4;  // of one group of warps, each lane
template <typename W>
constexpr int kWide = 16 / sizeof(W);  // values of a lane's read
template <typename W>
constexpr int kStep = 32 * kWide<W>;   // values of a row that a warp reads at once
constexpr int kWarpsWanted = 20;       // on a multiprocessor, to keep enough reads under way
constexpr int64_t kLeastInputs = 256;  // of a warp
constexpr int kAhead = 1;              // steps that are asked for before the inputs are there
// Blocks that a multiprocessor holds: four, so that all of a product of 4,096 outputs stand there at once.
template <typename W, int kRows>
constexpr int kResident = kRows == 1 && sizeof(W) == 2 ? 4 : 2;

__device__ float scaled(const Gemv::Part& part, int64_t out, float value) {
  return part.scale != nullptr ? value * part.scale[out] : value;
}

__device__ void write(const Gemv::Part& part, int64_t row, int64_t out, float value) {
  if (part.bias != nullptr) value += part.bias[out];
  const int64_t at = row * part.y_stride + out;
  if (part.y_type == Type::f32) {
    static_cast<float*>(part.y)[at] = part.adds ? static_cast<const float*>(part.y)[at] + value : value;
  } else {
    static_cast<bf16*>(part.y)[at] = __float2bfloat16_rn(value);
  }
}

using fp8 = __nv_fp8_storage_t;  // e4m3

__device__ __forceinline__ void unpack_wide(uint4 words, float (&v)[8]) {
  unpack8(words, v);
}
__device__ __forceinline__ void unpack_wide(uint4 words, float (&v)[16]) {
  const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const auto two = static_cast<__nv_fp8x2_storage_t>(word[i / 2] >> (16 * (i % 2)));
    const float2 both = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(two, __NV_E4M3)));
    v[2 * i] = both.x;
    v[2 * i + 1] = both.y;
  }
}

template <typename W>
__device__ __forceinline__ void read_weights(const W* const (&w)[kOutputs], int k, uint4 (&words)[kOutputs]) {
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) words[j] = __ldcs(reinterpret_cast<const uint4*>(w[j] + k));
}

/// Into the L2 cache, a line for each caller.
template <typename W>
__device__ __forceinline__ void prefetch_weights(const W* const (&w)[kOutputs], int k) {
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) asm volatile("prefetch.global.L2 [%0];" ::"l"(w[j] + k));
}

/// Outputs of a group of warps: of a gated product half of its weight rows are those of the gate.
__host__ __device__ int outputs_of_group(const Gemv& call) {
  return call.is_gated ? kOutputs / 2 : kOutputs;
}
__host__ __device__ int64_t groups_of(const Gemv& call, int which) {
  const int each = outputs_of_group(call);
  return (call.part[which].n_out + each - 1) / each;
}
/// Parts that have groups of their own.
__host__ __device__ int parts_with_groups(const Gemv& call) {
  return call.is_gated ? 1 : call.n_parts;
}

/// Lane r * kOutputs + j has the sum of row r and the group's weight row j; there are no other lanes.
template <int kRows>
__device__ void finish(const Gemv& call, const Gemv::Part& part, int64_t first, float total) {
  const int lane = static_cast<int>(threadIdx.x % 32), row = lane / kOutputs, j = lane % kOutputs;
  const int each = outputs_of_group(call);
  const int64_t out = min(first + j % each, part.n_out - 1);
  total = scaled(j < each ? part : call.part[1], out, total);
  if (call.is_gated) {
    constexpr unsigned kLanes = (1U << (kRows * kOutputs)) - 1;
    const float up = __shfl_down_sync(kLanes, total, kOutputs / 2);
    total = up * (call.gate == Gate::silu ? activate<Gate::silu>(total) : activate<Gate::gelu_tanh>(total));
  }
  if (j < each && first + j < part.n_out) write(part, row, out, total);
}

/// kSplit warps share kOutputs rows of weights, each with its share of the inputs, taken in turns of kStep.
template <typename W, int kRows, int kSplit>
__global__ void __launch_bounds__(32 * kWarps, (kResident<W, kRows>)) gemv_kernel(const __grid_constant__ Gemv call) {
  constexpr int kGroups = kWarps / kSplit;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  int64_t group = static_cast<int64_t>(blockIdx.x) * kGroups + warp / kSplit;
  int which = 0;
  while (which + 1 < parts_with_groups(call) && group >= groups_of(call, which)) group -= groups_of(call, which++);
  const Gemv::Part& part = call.part[which];
  const int each = outputs_of_group(call);
  const int64_t first = group * each;
  float sum[kRows][kOutputs] = {};
  if (first < part.n_out) {
    const W* w[kOutputs];
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) {
      const Gemv::Part& from = j < each ? part : call.part[1];
      w[j] = static_cast<const W*>(from.w) + min(first + j % each, part.n_out - 1) * from.ld;
    }
    const int n_in = static_cast<int>(call.n_in);
    int k = (warp % kSplit) * kStep<W> + kWide<W> * lane;
    uint4 words[kOutputs] = {};
    if (k < n_in) read_weights(w, k, words);
    // Weights are nobody's output: the first ones are on their way while the kernel before this one still works.
    for (int i = 1; i <= kAhead; ++i) {
      const int later = k + i * kSplit * kStep<W>;
      if (lane % 8 == 0 && later < n_in) prefetch_weights(w, later);
    }
    take_turn();
#pragma unroll 1
    for (; k < n_in; k += kSplit * kStep<W>) {
      float x[kRows][kWide<W> / 8][8];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int i = 0; i < kWide<W> / 8; ++i) {
          load_some(call.x + r * call.x_stride + k + 8 * i, n_in - k - 8 * i, true, x[r][i]);
        }
      }
#pragma unroll
      for (int j = 0; j < kOutputs; ++j) {
        float v[kWide<W>];
        unpack_wide(words[j], v);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int i = 0; i < kWide<W>; ++i) sum[r][j] = fmaf(v[i], x[r][i / 8][i % 8], sum[r][j]);
        }
      }
      if (k + kSplit * kStep<W> < n_in) read_weights(w, k + kSplit * kStep<W>, words);
    }
  } else {
    take_turn();
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) sum[r][j] = warp_sum(sum[r][j]);
  }
  float total = 0;
  if constexpr (kSplit > 1) {
    __shared__ float partial[kWarps][kRows * kOutputs];
    if (lane == 0) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int j = 0; j < kOutputs; ++j) partial[warp][r * kOutputs + j] = sum[r][j];
      }
    }
    __syncthreads();
    if (warp % kSplit != 0 || lane >= kRows * kOutputs) return;
#pragma unroll
    for (int s = 0; s < kSplit; ++s) total += partial[warp + s][lane];
  } else {
    if (lane >= kRows * kOutputs) return;
#pragma unroll
    for (int i = 0; i < kRows * kOutputs; ++i) total = lane == i ? sum[i / kOutputs][i % kOutputs] : total;
  }
  if (first < part.n_out) finish<kRows>(call, part, first, total);
}

template <typename W, int kRows>
void launch(const Gemv& call, int n_sm, Stream stream) {
  int64_t n_groups = 0;
  for (int i = 0; i < parts_with_groups(call); ++i) n_groups += groups_of(call, i);
  int split = 1;
  while (split < kWarps && n_groups * split < int64_t{kWarpsWanted} * n_sm && call.n_in > split * kLeastInputs) {
    split *= 2;
  }
  const int64_t groups_a_block = kWarps / split;
  const auto n_blocks = static_cast<unsigned>((n_groups + groups_a_block - 1) / groups_a_block);
  const auto kernel = split == 1   ? gemv_kernel<W, kRows, 1>
                      : split == 2 ? gemv_kernel<W, kRows, 2>
                      : split == 4 ? gemv_kernel<W, kRows, 4>
                                   : gemv_kernel<W, kRows, 8>;
  launch_early({.grid = n_blocks, .threads = 32 * kWarps, .stream = stream, .what = "launching a product"}, kernel,
               call);
}

template <typename W>
void launch_rows(const Gemv& call, int n_sm, Stream stream) {
  if (call.n_rows == 1) {
    launch<W, 1>(call, n_sm, stream);
  } else if (call.n_rows == 2) {
    launch<W, 2>(call, n_sm, stream);
  } else {
    launch<W, 3>(call, n_sm, stream);
  }
}

}  // namespace

void multiply_few_rows(const Gemv& call, int n_sm, Stream stream) {
  if (call.part[0].scale != nullptr) {
    launch_rows<fp8>(call, n_sm, stream);
  } else {
    launch_rows<bf16>(call, n_sm, stream);
  }
}

}  // namespace winnow::cuda
