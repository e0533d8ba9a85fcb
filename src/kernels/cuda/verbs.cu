// Products in float32 on tiles of 64 by 64, since scores decide what attention computes; softmax row by row.
#include "kernels/cuda/verbs.h"

#include <cuda_fp16.h>

#include "kernels/cuda/check.h"
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/vec_inl.h"

namespace winnow::cuda {
namespace {

constexpr int kTile = 64;
constexpr int kDepth = 32;  // values of a row in shared memory at a time
constexpr int kThreads = 256;
constexpr int kPoolThreads = 128;
constexpr int kSoftmaxThreads = 1024;

/// One value of a row in a storage type of the cache.
__device__ float decode(const std::byte* row, Type type, int d) {
  switch (type) {
    case Type::f32:
      return reinterpret_cast<const float*>(row)[d];
    case Type::bf16:
      return __bfloat162float(reinterpret_cast<const bf16*>(row)[d]);
    case Type::f16:
      return __half2float(reinterpret_cast<const __half*>(row)[d]);
    case Type::fp8:
      return fp8_floats(static_cast<uint32_t>(row[d])).x;
    default: {  // q8_0
      const std::byte* block = row + d / 32 * 34;
      return __half2float(*reinterpret_cast<const __half*>(block)) *
             static_cast<float>(reinterpret_cast<const int8_t*>(block)[2 + d % 32]);
    }
  }
}

__host__ __device__ int32_t row_bytes(Type type, int32_t dim) {
  if (type == Type::q8_0) return dim / 32 * 34;
  return dim * (type == Type::f32 ? 4 : type == Type::fp8 ? 1 : 2);
}

/// Rows of a product, whatever they are stored in.
struct FloatRows {
  const float* data;
  int64_t n;
  int32_t dim;
  __device__ float at(int64_t row, int d) const { return data[row * dim + d]; }
};
/// Of the head that the grid's third extent counts.
struct FloatRowsOfHeads {
  RowsOfHeads rows;
  int64_t n;
  int32_t dim;
  __device__ float at(int64_t row, int d) const {
    return rows.data[static_cast<int32_t>(blockIdx.z) / rows.group * rows.stride + row * dim + d];
  }
};
struct HeadRowsOf {
  ProbeRows q;
  int64_t n;
  __device__ float at(int64_t row, int d) const {
    const int64_t i = row * q.stride + d;
    return q.type == Type::f32 ? static_cast<const float*>(q.data)[i]
                               : __bfloat162float(static_cast<const bf16*>(q.data)[i]);
  }
};
struct SlotRows {
  KeyBlocks k;
  int64_t n;
  int32_t bytes;  // of a row
  __device__ float at(int64_t slot, int d) const {
    return decode(k.blocks[slot / kBlockSlots] + slot % kBlockSlots * bytes, k.type, d);
  }
};

/// out [heads, a.n, b.n] = scale * a b^T. Each thread takes four rows by four columns, 16 apart.
template <typename A, typename B>
__global__ void __launch_bounds__(kThreads) product_kernel(A a, B b, int32_t dim, float scale, float* out) {
  __shared__ float left[kDepth][kTile + 1], right[kDepth][kTile + 1];
  const int64_t first_b = static_cast<int64_t>(blockIdx.x) * kTile, first_a = static_cast<int64_t>(blockIdx.y) * kTile;
  const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  float sum[4][4] = {};
  for (int begin = 0; begin < dim; begin += kDepth) {
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kDepth; i += kThreads) {
      const int row = i / kDepth, d = i % kDepth;
      const bool in = begin + d < dim;
      left[d][row] = in && first_a + row < a.n ? a.at(first_a + row, begin + d) : 0.0F;
      right[d][row] = in && first_b + row < b.n ? b.at(first_b + row, begin + d) : 0.0F;
    }
    __syncthreads();
#pragma unroll 8
    for (int d = 0; d < kDepth; ++d) {
      float x[4], y[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] = left[d][ty + 16 * i];
        y[i] = right[d][tx + 16 * i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = first_a + ty + 16 * i;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t col = first_b + tx + 16 * j;
      if (row < a.n && col < b.n) out[(blockIdx.z * a.n + row) * b.n + col] = scale * sum[i][j];
    }
  }
}

template <typename A, typename B>
void launch_product(const A& a, const B& b, const HeadProducts& products, float* out, cudaStream_t stream) {
  if (a.n == 0 || b.n == 0) return;
  const dim3 grid(static_cast<unsigned>((b.n + kTile - 1) / kTile), static_cast<unsigned>((a.n + kTile - 1) / kTile),
                  static_cast<unsigned>(products.n_head));
  product_kernel<<<grid, kThreads, 0, stream>>>(a, b, products.dim, products.scale, out);
  check(cudaGetLastError(), "launching scores");
}

/// Sum or maximum over a block; every thread gets it.
template <typename Reduce>
__device__ float over_block(float x, float nothing, const Reduce& reduce) {
  __shared__ float partial[32];
  __syncthreads();  // the last use's readers are done
  x = reduce(x);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  return reduce(threadIdx.x % 32 < blockDim.x / 32 ? partial[threadIdx.x % 32] : nothing);
}

/// Products of one row to probabilities, in place. One block for each row.
__global__ void softmax_kernel(ScoreArgs args, float* rows) {
  float* row = rows + static_cast<int64_t>(blockIdx.x) * args.k.n_slots;
  const int2 seen = args.visible[blockIdx.x];
  float max = -INFINITY;
  for (int slot = seen.x + static_cast<int>(threadIdx.x); slot < seen.y; slot += static_cast<int>(blockDim.x)) {
    float x = row[slot];
    if (args.softcap > 0) x = args.softcap * tanhf(x / args.softcap);
    if (args.bias != nullptr) x += args.bias[slot];
    row[slot] = x;
    max = fmaxf(max, x);
  }
  max = over_block(max, -INFINITY, warp_max);
  float sum = 0;
  if (max > -INFINITY) {
    for (int slot = seen.x + static_cast<int>(threadIdx.x); slot < seen.y; slot += static_cast<int>(blockDim.x)) {
      sum += expf(row[slot] - max);
    }
  }
  sum = over_block(sum, 0, warp_sum);
  const float share = sum > 0 ? 1 / sum : 0.0F;
  for (int slot = static_cast<int>(threadIdx.x); slot < args.k.n_slots; slot += static_cast<int>(blockDim.x)) {
    const bool in = slot >= seen.x && slot < seen.y && sum > 0;
    row[slot] = in ? expf(row[slot] - max) * share : 0.0F;
  }
}

/// One block for each mean; threads run along the head.
template <typename A>
__global__ void pool_kernel(A a, int32_t dim, int32_t block, float* out) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * block;
  const int64_t end = min(begin + block, a.n);
  for (int d = static_cast<int>(threadIdx.x); d < dim; d += kPoolThreads) {
    float sum = 0;
#pragma unroll 8
    for (int64_t row = begin; row < end; ++row) sum += a.at(row, d);
    out[static_cast<int64_t>(blockIdx.x) * dim + d] = sum / static_cast<float>(end - begin);
  }
}

template <typename A>
void launch_pool(const A& a, int32_t dim, int32_t block, float* out, cudaStream_t stream) {
  if (a.n == 0) return;
  pool_kernel<<<static_cast<unsigned>((a.n + block - 1) / block), kPoolThreads, 0, stream>>>(a, dim, block, out);
  check(cudaGetLastError(), "launching means");
}

}  // namespace

void score_window(const ScoreArgs& args, float* out, cudaStream_t stream) {
  if (args.q.n == 0 || args.k.n_slots == 0) return;
  launch_product(HeadRowsOf{args.q, args.q.n}, SlotRows{args.k, args.k.n_slots, row_bytes(args.k.type, args.head_dim)},
                 {args.head_dim, 1, args.scale}, out, stream);
  softmax_kernel<<<static_cast<unsigned>(args.q.n), kSoftmaxThreads, 0, stream>>>(args, out);
  check(cudaGetLastError(), "launching probabilities");
}

void pool_rows(const ProbeRows& q, int32_t head_dim, int32_t block, float* out, cudaStream_t stream) {
  launch_pool(HeadRowsOf{q, q.n}, head_dim, block, out, stream);
}

void pool_keys(const KeyBlocks& k, int32_t head_dim, int32_t block, float* out, cudaStream_t stream) {
  launch_pool(SlotRows{k, k.n_slots, row_bytes(k.type, head_dim)}, head_dim, block, out, stream);
}

void score_blocks(const float* a, int64_t n_a, const float* b, int64_t n_b, int32_t dim, float scale, float* out,
                  cudaStream_t stream) {
  launch_product(FloatRows{a, n_a, dim}, FloatRows{b, n_b, dim}, {dim, 1, scale}, out, stream);
}

void score_blocks_of_heads(const RowsOfHeads& a, const RowsOfHeads& b, const HeadProducts& products, float* out,
                           cudaStream_t stream) {
  launch_product(FloatRowsOfHeads{a, a.n, products.dim}, FloatRowsOfHeads{b, b.n, products.dim}, products, out, stream);
}

}  // namespace winnow::cuda
