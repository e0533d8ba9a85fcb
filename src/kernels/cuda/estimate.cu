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

__global__ void __launch_bounds__(kThreads) nothing_kernel(float* scores, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) scores[i] = -INFINITY;
}

/// One block of threads for each sampled row, whose logits are read once: many rows are under way at a time. Of numbers
/// that are not positive the largest is the one whose bits are least, so that the rows of a block meet in `scores`.
__global__ void __launch_bounds__(kThreads)
    proxy_kernel(const __grid_constant__ BlockRows rows, const __grid_constant__ Panel panel, float* scores) {
  extern __shared__ int32_t largest[];  // [n_block], as order_of
  constexpr int32_t kTogether = 8;      // logits of a lane that are under way at a time
  const int64_t sample = panel.first + blockIdx.x;
  const float* logits = panel.logits + blockIdx.x * panel.ld;
  const int32_t per_block = rows.block / rows.stride, width = min(per_block, 32);  // powers of two
  const int32_t n = (rows.visible[sample * rows.stride].y + rows.stride - 1) / rows.stride;
  const int32_t n_seen = (n + per_block - 1) / per_block;
  for (int32_t c = threadIdx.x; c < n_seen; c += kThreads) largest[c] = order_of(-INFINITY);
  __syncthreads();
  const auto lane = static_cast<int32_t>(threadIdx.x % 32), warp = static_cast<int32_t>(threadIdx.x / 32);
  float top = -INFINITY, total = 0;
  for (int32_t begin = warp * 32 * kTogether; begin < n; begin += kThreads * kTogether) {
    float x[kTogether], most = top, part = 0;
#pragma unroll
    for (int32_t j = 0; j < kTogether; ++j) {
      const int32_t i = begin + j * 32 + lane;
      x[j] = i < n ? logit(rows, logits[i]) : -INFINITY;
      most = fmaxf(most, x[j]);
    }
    if (most > -INFINITY) {
#pragma unroll
      for (const float one : x) part += expf(one - most);
      total = total * expf(top - most) + part;
      top = most;
    }
#pragma unroll
    for (int32_t j = 0; j < kTogether; ++j) {
      const int32_t i = begin + j * 32 + lane;
      for (int32_t step = width / 2; step > 0; step /= 2) x[j] = fmaxf(x[j], __shfl_xor_sync(~0U, x[j], step));
      if (lane % width == 0 && i < n) atomicMax(&largest[i / per_block], order_of(x[j]));
    }
  }
  const float most = largest_of(top);
  const float log_sum = most + logf(sum_of(top > -INFINITY ? total * expf(top - most) : 0.0F));
  __syncthreads();
  float* out = scores + sample / per_block * rows.n_block;
  for (int32_t c = threadIdx.x; c < n_seen; c += kThreads) {
    const float score = fminf(of_order(largest[c]) - log_sum, 0.0F);
    atomicMin(reinterpret_cast<uint32_t*>(out + c), __float_as_uint(score));
  }
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
  const int32_t per_block = rows.block / rows.stride;
  const int64_t n_scores = (panel.n + per_block - 1) / per_block * rows.n_block;
  nothing_kernel<<<blocks_of(n_scores, kThreads), kThreads, 0, rows.stream>>>(
      scores + panel.first / per_block * rows.n_block, n_scores);
  const size_t shared = static_cast<size_t>(rows.n_block) * sizeof(int32_t);
  check(cudaFuncSetAttribute(proxy_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "shared memory of proxies");
  proxy_kernel<<<static_cast<unsigned>(panel.n), kThreads, shared, rows.stream>>>(rows, panel, scores);
  check(cudaGetLastError(), "proxies' maxima");
}

void mark_heaviest(const BlockRows& rows, const float* scores, double share, int32_t last_rows, uint32_t* marks) {
  heaviest_kernel<<<blocks_of(rows.n_rows, rows.block), kCutThreads, 0, rows.stream>>>(rows, scores, share, last_rows,
                                                                                       marks);
  check(cudaGetLastError(), "choice of the heaviest blocks");
}

}  // namespace winnow::cuda
