// Attention of few rows (attend_few.cu): the partial results of a row and head, which blocks on the whole machine made,
// become one.
#include "kernels/cuda/few_segment.cuh"
#include "kernels/cuda/launch.cuh"

namespace winnow::cuda {
namespace {

constexpr int32_t kMergeThreads = 256;

/// Parts that hold the result of query head blockIdx.x and row blockIdx.y.
struct Parts {
  int32_t first, n;
  int32_t query;  // of their item

  __device__ Parts(const FewJob& job, const Share* shares) {
    const auto head = static_cast<int32_t>(blockIdx.x);
    const bool alone = job.by_head() && job.facts[head].equal == 0;
    const int32_t item = alone ? head : job.by_head() ? head / job.group * job.group : head / job.group;
    query = (alone ? 0 : head % job.group) * static_cast<int32_t>(job.call.q.n_rows) + static_cast<int32_t>(blockIdx.y);
    first = shares[item].first;
    n = shares[item].n;
  }
};

/// A partial result: four values of o and the mass that they are relative to.
struct Partial4 {
  float largest = -INFINITY;
  float sum = 0;
  float4 o = {0, 0, 0, 0};

  __device__ __forceinline__ void add(float2 mass, float4 other) {
    if (mass.x == -INFINITY) return;
    const float base = fmaxf(largest, mass.x);
    const float shrink = exp2_fast(largest - base);
    const float weight = exp2_fast(mass.x - base);
    largest = base;
    sum = sum * shrink + mass.y * weight;
    o.x = o.x * shrink + other.x * weight;
    o.y = o.y * shrink + other.y * weight;
    o.z = o.z * shrink + other.z * weight;
    o.w = o.w * shrink + other.w * weight;
  }
};

__device__ void store(const HeadRows& rows, int64_t row, int32_t head, int32_t i, float value) {
  const int64_t at = row * rows.stride + static_cast<int64_t>(head) * rows.head_dim + i;
  if (rows.type == Type::bf16) {
    static_cast<__nv_bfloat16*>(rows.data)[at] = __float2bfloat16_rn(value);
  } else {
    static_cast<float*>(rows.data)[at] = value;
  }
}

/// o and lse of query head blockIdx.x and row blockIdx.y from their partial results. `width` threads sum up one part
/// after another, four values each; the block's 1024 / dim such rows of threads take the parts by turns and are summed
/// up at the end: always in the same order.
__global__ void __launch_bounds__(kMergeThreads) merge_parts(const __grid_constant__ FewJob job) {
  extern __shared__ __align__(16) char memory[];
  __shared__ Partial4 partials[kMergeThreads];
  auto* shares = reinterpret_cast<Share*>(memory);
  divide(job, shares);
  const Parts parts(job, shares);
  const int32_t width = job.dim / 4;  // threads that share one partial result
  const int32_t column = static_cast<int32_t>(threadIdx.x) % width;
  take_turn();
  Partial4 mine;
#pragma unroll 4
  for (int32_t i = static_cast<int32_t>(threadIdx.x) / width; i < parts.n; i += kMergeThreads / width) {
    const int64_t at = static_cast<int64_t>(parts.first + i) * job.n_padded + parts.query;
    mine.add(job.mass[at], reinterpret_cast<const float4*>(job.o)[at * width + column]);
  }
  partials[threadIdx.x] = mine;
  __syncthreads();
  if (static_cast<int32_t>(threadIdx.x) >= width) return;
  for (int32_t i = column + width; i < kMergeThreads; i += width) {
    mine.add({partials[i].largest, partials[i].sum}, partials[i].o);
  }
  const float factor = mine.sum > 0 ? 1 / mine.sum : 0;
  const auto head = static_cast<int32_t>(blockIdx.x);
  const float values[4] = {mine.o.x, mine.o.y, mine.o.z, mine.o.w};
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    if (column * 4 + i < job.call.o.head_dim) {
      store(job.call.o, blockIdx.y, head, column * 4 + i, values[i] * factor);
    }
  }
  if (threadIdx.x == 0 && job.call.lse != nullptr) {
    job.call.lse[static_cast<int64_t>(blockIdx.y) * job.call.q.n_head + head] =
        mine.sum > 0 ? (mine.largest + log2f(mine.sum)) * kLn2 : -INFINITY;
  }
}

}  // namespace

void merge_few(const FewJob& job) {
  const dim3 grid(static_cast<uint32_t>(job.call.q.n_head), static_cast<uint32_t>(job.call.q.n_rows));
  const size_t shared = sizeof(Share) * static_cast<size_t>(job.n_items);
  launch_early({grid, kMergeThreads, shared, job.call.stream, "attend_few: merge"}, merge_parts, job);
}

}  // namespace winnow::cuda
