#include "kernels/cuda/estimate.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/cut.cuh"
#include "kernels/cuda/over_block.cuh"
#include "kernels/cuda/vec_inl.h"

namespace winnow::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_of(int64_t n, int64_t unit) {
  return static_cast<unsigned>((n + unit - 1) / unit);
}

/// A thread for each eight values.
template <typename T>
__global__ void __launch_bounds__(kThreads) gather_kernel(const __grid_constant__ GatherArgs args) {
  const int32_t in_group = args.only_first ? 1 : args.stride, chunks = args.head_dim / 8;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t at = i / chunks, group = at / in_group;
  if (group >= args.n_out) return;
  const auto in = static_cast<int32_t>(at % in_group);
  const int64_t row = group * args.stride + (args.reversed ? args.stride - 1 - in : in);
  const int64_t d = i % chunks * 8;
  float sum[8] = {};
  for (int32_t head = 0; head < args.n_head && row < args.n_rows; ++head) {
    const T* from = static_cast<const T*>(args.data) + head * args.head_stride + row * args.row_stride + d;
    float v[8];
    load_some(from, 8, reinterpret_cast<uintptr_t>(from) % 16 == 0, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum[j] += v[j];
  }
#pragma unroll
  for (float& x : sum) x /= static_cast<float>(args.n_head);
  store8(args.out + at * args.head_dim + d, sum);
}

template <typename T>
__device__ T largest_of(T x) {
  return over_block(x, [](T a, T b) { return a > b ? a : b; });
}

template <typename T>
__device__ T sum_of(T x) {
  return over_block(x, [](T a, T b) { return a + b; });
}

__device__ float logit(const BlockRows& rows, float product) {
  const float x = product * rows.scale;
  return rows.softcap > 0 ? rows.softcap * tanhf(x / rows.softcap) : x;
}

/// Slots that the last row of group `group` sees.
__device__ int32_t slots_seen(const BlockRows& rows, int64_t group) {
  return rows.visible[min((group + 1) * rows.stride, rows.n_rows) - 1].y;
}

/// One block of threads for each block of rows.
__global__ void __launch_bounds__(kThreads)
    antidiagonal_kernel(const __grid_constant__ BlockRows rows, const __grid_constant__ Panel panel, float* scores) {
  const int32_t per_block = rows.block / rows.stride;
  const int64_t first = panel.first + static_cast<int64_t>(blockIdx.x) * per_block;
  const int64_t end = min(first + per_block, panel.first + panel.n);
  float* out = scores + first / per_block * rows.n_block;
  for (int32_t c = threadIdx.x; c < rows.n_block; c += kThreads) out[c] = 0;
  for (int64_t group = first; group < end; ++group) {
    const float* logits = panel.logits + (group - panel.first) * panel.ld;
    const int32_t n = (slots_seen(rows, group) + rows.stride - 1) / rows.stride;
    float top = -INFINITY;
    for (int32_t i = threadIdx.x; i < n; i += kThreads) top = fmaxf(top, logit(rows, logits[i]));
    top = largest_of(top);
    float total = 0;
    for (int32_t i = threadIdx.x; i < n; i += kThreads) total += expf(logit(rows, logits[i]) - top);
    total = sum_of(total);
    for (int32_t c = threadIdx.x; c * per_block < n; c += kThreads) {  // each thread has its own blocks
      float sum = 0;
      for (int32_t i = c * per_block; i < min((c + 1) * per_block, n); ++i) {
        sum += expf(logit(rows, logits[i]) - top);
      }
      out[c] += sum / total;
    }
  }
}

/// Numbers that order as floats do, and back.
__device__ int32_t order_of(float x) {
  const int32_t bits = __float_as_int(x);
  return bits >= 0 ? bits : bits ^ 0x7fffffff;
}
__device__ float of_order(int32_t order) {
  return __int_as_float(order >= 0 ? order : order ^ 0x7fffffff);
}

/// One block of threads for each block of rows, one warp for each of its sampled rows.
__global__ void __launch_bounds__(kThreads)
    proxy_kernel(const __grid_constant__ BlockRows rows, const __grid_constant__ Panel panel, float* scores) {
  extern __shared__ int32_t largest[];  // [n_block], as order_of
  const int32_t per_block = rows.block / rows.stride;
  const int64_t first = panel.first + static_cast<int64_t>(blockIdx.x) * per_block;
  const int64_t end = min(first + per_block, panel.first + panel.n);
  for (int32_t c = threadIdx.x; c < rows.n_block; c += kThreads) largest[c] = order_of(-INFINITY);
  __syncthreads();
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  for (int64_t sample = first + threadIdx.x / 32; sample < end; sample += kThreads / 32) {
    const float* logits = panel.logits + (sample - panel.first) * panel.ld;
    const int32_t n = (rows.visible[sample * rows.stride].y + rows.stride - 1) / rows.stride;
    float top = -INFINITY;
#pragma unroll 8
    for (int32_t i = lane; i < n; i += 32) top = fmaxf(top, logit(rows, logits[i]));
    top = warp_max(top);
    float total = 0;
#pragma unroll 8
    for (int32_t i = lane; i < n; i += 32) total += expf(logit(rows, logits[i]) - top);
    const float log_sum = top + logf(warp_sum(total));
#pragma unroll 4
    for (int32_t c = 0; c * per_block < n; ++c) {
      float x = -INFINITY;
      for (int32_t i = c * per_block + lane; i < min((c + 1) * per_block, n); i += 32) {
        x = fmaxf(x, logit(rows, logits[i]));
      }
      x = warp_max(x);
      if (lane == 0) atomicMax(&largest[c], order_of(x - log_sum));
    }
  }
  __syncthreads();
  float* out = scores + first / per_block * rows.n_block;
  for (int32_t c = threadIdx.x; c < rows.n_block; c += kThreads) out[c] = of_order(largest[c]);
}

/// One block of threads for each block of rows.
__global__ void __launch_bounds__(kCutThreads)
    heaviest_kernel(const __grid_constant__ BlockRows rows, const float* scores, double share, int32_t last_rows,
                    uint32_t* marks) {
  __shared__ CutShared shared;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * rows.block;
  const float* own_scores = scores + static_cast<int64_t>(blockIdx.x) * rows.n_block;
  const int64_t end = min(row + rows.block, rows.n_rows);
  const int32_t own = end > rows.n_rows - last_rows ? 0 : (rows.visible[row].y - 1) / rows.block;
  const int32_t n = (rows.visible[end - 1].y - 1) / rows.block + 1;
  const auto forced = [own](int32_t c) { return c == 0 || c >= own; };
  double total = 0, mass = 0;
  for (int32_t c = threadIdx.x; c < n; c += kCutThreads) {
    total += own_scores[c];
    if (forced(c)) mass += own_scores[c];
  }
  total = sum_of(total);
  mass = sum_of(mass);
  Cut cut = {~0U, -1};  // nothing else
  if (mass < share * total) {
    const auto keys = [&](int32_t c) { return forced(c) ? 0U : __float_as_uint(own_scores[c]); };
    cut = find_cut<true>(keys, n, static_cast<unsigned long long>((share * total - mass) * kUnit), shared);
    // The one that passes the limit is taken too.
    unsigned long long next = 0;
    for (int32_t c = threadIdx.x; c < n; c += kCutThreads) {
      const unsigned long long order = static_cast<unsigned long long>(keys(c)) << 32 | static_cast<uint32_t>(~c);
      if (!forced(c) && !takes(cut, keys(c), c) && order > next) next = order;
    }
    next = largest_of(next);
    if (next > 0) cut = {static_cast<uint32_t>(next >> 32), static_cast<int32_t>(~static_cast<uint32_t>(next))};
  }
  const int32_t words = (rows.n_block + 31) / 32;
  uint32_t* out = marks + static_cast<int64_t>(blockIdx.x) * words;
  for (int32_t word = static_cast<int32_t>(threadIdx.x) / 32; word < words; word += kCutThreads / 32) {
    const int32_t c = word * 32 + static_cast<int32_t>(threadIdx.x) % 32;
    const bool taken = c < n && (forced(c) || takes(cut, __float_as_uint(own_scores[c]), c));
    const uint32_t bits = __ballot_sync(~0U, taken);
    if (threadIdx.x % 32 == 0) out[word] = bits;
  }
}

}  // namespace

void gather(const GatherArgs& args) {
  if (args.n_out == 0) return;
  const int64_t n = args.n_out * (args.only_first ? 1 : args.stride) * (args.head_dim / 8);
  if (args.type == Type::f32) {
    gather_kernel<float><<<blocks_of(n, kThreads), kThreads, 0, args.stream>>>(args);
  } else {
    gather_kernel<bf16><<<blocks_of(n, kThreads), kThreads, 0, args.stream>>>(args);
  }
  check(cudaGetLastError(), "gathering rows");
}

void antidiagonal_sums(const BlockRows& rows, const Panel& panel, float* scores) {
  const unsigned n = blocks_of(panel.n, rows.block / rows.stride);
  antidiagonal_kernel<<<n, kThreads, 0, rows.stream>>>(rows, panel, scores);
  check(cudaGetLastError(), "antidiagonals");
}

void proxy_maxima(const BlockRows& rows, const Panel& panel, float* scores) {
  const unsigned n = blocks_of(panel.n, rows.block / rows.stride);
  const size_t shared = static_cast<size_t>(rows.n_block) * sizeof(int32_t);
  check(cudaFuncSetAttribute(proxy_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "shared memory of proxies");
  proxy_kernel<<<n, kThreads, shared, rows.stream>>>(rows, panel, scores);
  check(cudaGetLastError(), "proxies' maxima");
}

void mark_heaviest(const BlockRows& rows, const float* scores, double share, int32_t last_rows, uint32_t* marks) {
  heaviest_kernel<<<blocks_of(rows.n_rows, rows.block), kCutThreads, 0, rows.stream>>>(rows, scores, share, last_rows,
                                                                                       marks);
  check(cudaGetLastError(), "choice of the heaviest blocks");
}

}  // namespace winnow::cuda
