// The probe is multiplied by the keys twice: once for each row's softmax denominator, once for the probabilities, which
// are then summed along columns and diagonals of a tile in shared memory. So nothing of the size rows x slots is
// stored.
#include "kernels/cuda/lines.h"

#include <mma.h>

#include "kernels/cuda/check.h"

namespace winnow::cuda {
namespace {

constexpr int kRows = kMaxProbeRows;
constexpr int kTile = 64;        // keys
constexpr int kChunkTiles = 16;  // of one thread block
constexpr int kChunk = kTile * kChunkTiles;
constexpr int kThreads = 128;                  // four warps of 16 rows each
constexpr int kPad = 8;                        // bf16 values behind a row in shared memory, against bank conflicts
constexpr int kScoreStride = 68;               // floats
constexpr int kDiagonals = kTile + kRows - 1;  // of one tile
constexpr float kLog2E = 1.4426950408889634F;
constexpr float kNothing = -INFINITY;

struct Shared {
  __nv_bfloat16* q;  // [kRows, dim + kPad]
  __nv_bfloat16* k;  // [kTile, dim + kPad]
  float* s;          // [kRows, kScoreStride]
};

__host__ __device__ constexpr size_t shared_bytes(int dim) {
  return static_cast<size_t>(kRows + kTile) * (dim + kPad) * sizeof(__nv_bfloat16) +
         kRows * kScoreStride * sizeof(float);
}

__device__ Shared carve(std::byte* bytes, int dim) {
  auto* q = reinterpret_cast<__nv_bfloat16*>(bytes);
  __nv_bfloat16* k = q + kRows * (dim + kPad);
  return {q, k, reinterpret_cast<float*>(k + kTile * (dim + kPad))};
}

__device__ float value_of(const HeadRows& q, int64_t row, int head, int d) {
  const int64_t at = row * q.stride + static_cast<int64_t>(head) * q.head_dim + d;
  if (q.type == Type::f32) return static_cast<const float*>(q.data)[at];
  return __bfloat162float(static_cast<const __nv_bfloat16*>(q.data)[at]);
}

/// The probe's queries of one head; rows and values that there are not become zero.
__device__ void load_queries(const LineProbe& probe, int head, const Shared& shared) {
  const int dim = probe.kv.dim;
  for (int i = threadIdx.x; i < kRows * dim; i += kThreads) {
    const int row = i / dim;
    const int d = i % dim;
    const bool there = row < probe.q.n_rows && d < probe.q.head_dim;
    shared.q[row * (dim + kPad) + d] = __float2bfloat16(there ? value_of(probe.q, row, head, d) : 0.0F);
  }
}

/// Logits, in base 2, of all rows with the keys [begin, begin + kTile); -infinity where a row does not see one.
__device__ void score_tile(const LineProbe& probe, int kv_head, int64_t begin, const Shared& shared) {
  namespace wmma = nvcuda::wmma;
  const int dim = probe.kv.dim;
  const int stride = dim + kPad;
  const __nv_bfloat16* keys = probe.kv.k + (static_cast<int64_t>(kv_head) * probe.kv.capacity + begin) * dim;
  for (int i = threadIdx.x; i < kTile * dim / 8; i += kThreads) {
    const int key = i / (dim / 8);
    const int at = i % (dim / 8) * 8;
    uint4 eight = {};
    if (begin + key < probe.kv.capacity)
      eight = *reinterpret_cast<const uint4*>(keys + static_cast<int64_t>(key) * dim + at);
    *reinterpret_cast<uint4*>(shared.k + key * stride + at) = eight;
  }
  __syncthreads();
  const int first_row = static_cast<int>(threadIdx.x) / 32 * 16;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums[kTile / 16];
  for (auto& sum : sums) wmma::fill_fragment(sum, 0.0F);
  for (int d = 0; d < dim; d += 16) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> a;
    wmma::load_matrix_sync(a, shared.q + first_row * stride + d, stride);
#pragma unroll
    for (int n = 0; n < kTile / 16; ++n) {
      wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::col_major> b;
      wmma::load_matrix_sync(b, shared.k + n * 16 * stride + d, stride);
      wmma::mma_sync(sums[n], a, b, sums[n]);
    }
  }
#pragma unroll
  for (int n = 0; n < kTile / 16; ++n) {
    wmma::store_matrix_sync(shared.s + first_row * kScoreStride + n * 16, sums[n], kScoreStride, wmma::mem_row_major);
  }
  __syncthreads();
}

__device__ float logit(const LineProbe& probe, int kv_head, int64_t slot, int2 visible, float product) {
  if (slot < visible.x || slot >= visible.y) return kNothing;
  float x = product * probe.scale;
  if (probe.softcap > 0) x = probe.softcap * tanhf(x / probe.softcap);
  if (probe.kv.bias != nullptr) x += probe.kv.bias[static_cast<int64_t>(kv_head) * probe.kv.capacity + slot];
  return x * kLog2E;
}

__device__ int2 visible_of(const LineProbe& probe, int kv_head, int row) {
  return row < probe.q.n_rows ? probe.visible[kv_head * probe.q.n_rows + row] : int2{0, 0};
}

/// partial [n_head, n_chunk, kRows]: largest logit of a row in a chunk, and the sum of 2^(logit - largest).
__global__ void __launch_bounds__(kThreads) row_sums(const LineProbe probe, float2* partial) {
  extern __shared__ std::byte bytes[];
  const Shared shared = carve(bytes, probe.kv.dim);
  const int head = blockIdx.y;
  const int kv_head = head / (probe.q.n_head / probe.kv.n_head_kv);
  load_queries(probe, head, shared);
  // Two threads a row, each for half of a tile's keys.
  const int row = static_cast<int>(threadIdx.x) / 2;
  const int half = static_cast<int>(threadIdx.x) % 2 * (kTile / 2);
  const int2 visible = visible_of(probe, kv_head, row);
  float largest = kNothing;
  float sum = 0;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
  for (int64_t begin = first; begin < first + kChunk && begin < probe.max_slots; begin += kTile) {
    score_tile(probe, kv_head, begin, shared);
    for (int i = 0; i < kTile / 2; ++i) {
      const int key = half + (i + row) % (kTile / 2);
      const float x = logit(probe, kv_head, begin + key, visible, shared.s[row * kScoreStride + key]);
      if (x == kNothing) continue;
      if (x > largest) {
        sum *= exp2f(largest - x);
        largest = x;
      }
      sum += exp2f(x - largest);
    }
    __syncthreads();
  }
  const float other_largest = __shfl_xor_sync(0xffffffffU, largest, 1);
  const float other_sum = __shfl_xor_sync(0xffffffffU, sum, 1);
  if (half != 0) return;
  const float both = fmaxf(largest, other_largest);
  float total = 0;
  if (both > kNothing) total = sum * exp2f(largest - both) + other_sum * exp2f(other_largest - both);
  partial[(static_cast<int64_t>(head) * gridDim.x + blockIdx.x) * kRows + row] = {both, total};
}

/// denominator [n_head, kRows]: log2 of each row's softmax denominator.
__global__ void join_sums(const float2* partial, int n_chunk, float* denominator) {
  const float2* from = partial + static_cast<int64_t>(blockIdx.x) * n_chunk * kRows + threadIdx.x;
  float largest = kNothing;
  for (int i = 0; i < n_chunk; ++i) largest = fmaxf(largest, from[static_cast<int64_t>(i) * kRows].x);
  float sum = 0;
  for (int i = 0; i < n_chunk && largest > kNothing; ++i) {
    const float2 part = from[static_cast<int64_t>(i) * kRows];
    sum += part.y * exp2f(part.x - largest);
  }
  denominator[blockIdx.x * kRows + threadIdx.x] = largest > kNothing ? largest + log2f(sum) : INFINITY;
}

/// Turns a tile's logits into probabilities.
__device__ void softmax_tile(const LineProbe& probe, int kv_head, int64_t begin, const float* denominator,
                             const Shared& shared) {
  const int key = static_cast<int>(threadIdx.x) % kTile;
  for (int row = static_cast<int>(threadIdx.x) / kTile; row < kRows; row += kThreads / kTile) {
    float& s = shared.s[row * kScoreStride + key];
    s = exp2f(logit(probe, kv_head, begin + key, visible_of(probe, kv_head, row), s) - denominator[row]);
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads)
    sum_lines(const LineProbe probe, const float* all_denominators, float* vertical, float* slash) {
  extern __shared__ std::byte bytes[];
  __shared__ float denominator[kRows];
  __shared__ float diagonal[kChunk + kRows];  // by key - row + kRows - 1, counted from the chunk's first key
  const Shared shared = carve(bytes, probe.kv.dim);
  const int head = blockIdx.y;
  const int kv_head = head / (probe.q.n_head / probe.kv.n_head_kv);
  load_queries(probe, head, shared);
  if (threadIdx.x < kRows) denominator[threadIdx.x] = all_denominators[head * kRows + threadIdx.x];
  for (int i = threadIdx.x; i < kChunk + kRows; i += kThreads) diagonal[i] = 0;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
  for (int64_t begin = first; begin < first + kChunk && begin < probe.max_slots; begin += kTile) {
    score_tile(probe, kv_head, begin, shared);
    softmax_tile(probe, kv_head, begin, denominator, shared);
    const int d = static_cast<int>(threadIdx.x);
    if (d < kTile && begin + d < probe.max_slots) {
      float sum = 0;
      for (int row = 0; row < kRows; ++row) sum += shared.s[row * kScoreStride + d];
      vertical[static_cast<int64_t>(head) * probe.max_slots + begin + d] = sum;
    }
    if (d < kDiagonals) {
      float sum = 0;
      for (int row = max(0, kRows - 1 - d); row < min(kRows, kRows - 1 - d + kTile); ++row) {
        sum += shared.s[row * kScoreStride + d - (kRows - 1) + row];
      }
      diagonal[begin - first + d] += sum;
    }
    __syncthreads();
  }
  // A diagonal that crosses the border of two chunks gets two addends, whose order does not matter.
  const int64_t own = probe.visible[kv_head * probe.q.n_rows].y - 1;  // row 0's slot
  for (int i = threadIdx.x; i < kChunk + kRows; i += kThreads) {
    const int64_t distance = own - first + kRows - 1 - i;
    if (distance < 0 || distance >= probe.max_slots || diagonal[i] == 0) continue;
    atomicAdd(slash + static_cast<int64_t>(head) * probe.max_slots + distance, diagonal[i]);
  }
}

int n_chunk_of(const LineProbe& probe) {
  return (probe.max_slots + kChunk - 1) / kChunk;
}

size_t partial_bytes(const LineProbe& probe) {
  return static_cast<size_t>(probe.q.n_head) * n_chunk_of(probe) * kRows * sizeof(float2);
}

}  // namespace

size_t line_work_bytes(const LineProbe& probe) {
  return partial_bytes(probe) + static_cast<size_t>(probe.q.n_head) * kRows * sizeof(float);
}

void line_mass(const LineProbe& probe, float* vertical, float* slash, std::byte* work) {
  const size_t shared = shared_bytes(probe.kv.dim);
  for (const auto* kernel : {reinterpret_cast<const void*>(row_sums), reinterpret_cast<const void*>(sum_lines)}) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          "shared memory of the probe");
  }
  auto* partial = reinterpret_cast<float2*>(work);
  auto* denominator = reinterpret_cast<float*>(work + partial_bytes(probe));
  const dim3 grid(static_cast<unsigned>(n_chunk_of(probe)), static_cast<unsigned>(probe.q.n_head));
  const size_t bytes = static_cast<size_t>(probe.q.n_head) * static_cast<size_t>(probe.max_slots) * sizeof(float);
  check(cudaMemsetAsync(slash, 0, bytes, probe.stream), "clearing the slashes");
  row_sums<<<grid, kThreads, shared, probe.stream>>>(probe, partial);
  join_sums<<<static_cast<unsigned>(probe.q.n_head), kRows, 0, probe.stream>>>(partial, n_chunk_of(probe), denominator);
  sum_lines<<<grid, kThreads, shared, probe.stream>>>(probe, denominator, vertical, slash);
  check(cudaGetLastError(), "mass of lines");
}

}  // namespace winnow::cuda
