// The probe is multiplied by the keys twice: once for each row's softmax denominator, once for the probabilities, which
// are then summed along columns and diagonals. All of that happens in the registers that hold a tile's products:
// nothing of the size rows x slots is stored, and a tile's probabilities never reach shared memory.
#include "kernels/cuda/lines.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/probe_tiles.cuh"

namespace winnow::cuda {
namespace {

constexpr int kJoined = 16;  // threads that share the chunks of one row

/// partial [n_head, n_chunk, kRows]: largest logit of a row in a chunk, and the sum of 2^(logit - largest).
template <int kDim>
__global__ void __launch_bounds__(kThreads, kDim == 256 ? 2 : 3)
    row_sums(const __grid_constant__ LineProbe probe, float2* partial) {
  extern __shared__ __align__(16) std::byte bytes[];
  __shared__ float2 second[kRows];  // of the warps with the second half of the keys
  const Part part = part_of(probe);
  float2 sums[4];
#pragma unroll
  for (float2& sum : sums) sum = {kNothing, 0};
  for_tiles<kDim>(probe, part, bytes, [&](int, const Products& x, float scale) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float largest = kNothing;
#pragma unroll
      for (int at = 0; at < 8; ++at) largest = fmaxf(largest, x[i / 2][at / 2][i % 2 * 2 + at % 2]);
      largest = fmaxf(sums[i].x, largest * scale);
      const float base = largest > kNothing ? largest : 0.0F;
      float sum = sums[i].y * exp2_fast(sums[i].x - base);
#pragma unroll
      for (int at = 0; at < 8; ++at) sum += exp2_fast(fmaf(x[i / 2][at / 2][i % 2 * 2 + at % 2], scale, -base));
      sums[i] = {largest, sum};
    }
  });
#pragma unroll
  for (float2& sum : sums) {
#pragma unroll
    for (int other = 1; other < 4; other *= 2) {
      sum = join(sum, {__shfl_xor_sync(~0U, sum.x, other), __shfl_xor_sync(~0U, sum.y, other)});
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (part.first_key > 0 && part.t == 0) second[part.row(i)] = sums[i];
  }
  __syncthreads();
  if (part.first_key > 0 || part.t > 0) return;
  float2* to = partial + (static_cast<int64_t>(part.head) * gridDim.y + blockIdx.y) * kRows;
#pragma unroll
  for (int i = 0; i < 4; ++i) to[part.row(i)] = join(sums[i], second[part.row(i)]);
}

/// denominator [n_head, kRows]: log2 of each row's softmax denominator; infinite where there is no row, whose
/// probabilities then are zero.
__global__ void __launch_bounds__(kRows* kJoined)
    join_sums(const float2* partial, int64_t n_rows, int n_chunk, float* denominator) {
  __shared__ float2 parts[kJoined][kRows];
  const int row = static_cast<int>(threadIdx.x) % kRows;
  const int part = static_cast<int>(threadIdx.x) / kRows;
  const float2* from = partial + static_cast<int64_t>(blockIdx.x) * n_chunk * kRows + row;
  float2 all = {kNothing, 0};
#pragma unroll 8
  for (int i = part; i < n_chunk; i += kJoined) all = join(all, from[static_cast<int64_t>(i) * kRows]);
  parts[part][row] = all;
  __syncthreads();
  if (part > 0) return;
  for (int i = 1; i < kJoined; ++i) all = join(all, parts[i][row]);
  denominator[blockIdx.x * kRows + row] = row < n_rows && all.x > kNothing ? all.x + log2f(all.y) : INFINITY;
}

/// Of 2 kKept values keeps one half and gives the other away: to the first half what lane `other` has of it is added,
/// or to the second, moved to the first place, where `second`.
template <int kKept>
__device__ __forceinline__ void fold(float* v, bool second, int other) {
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const float given = second ? v[i] : v[i + kKept];
    const float kept = second ? v[i + kKept] : v[i];
    v[i] = kept + __shfl_sync(~0U, given, other);
  }
}

/// Sums of the warp's keys over its rows: a lane gets that of key 8 (g / 2) + 2 t + g % 2.
__device__ __forceinline__ float column_sum(const Part& part, const Products& p) {
  float v[8];
#pragma unroll
  for (int at = 0; at < 8; ++at) {
    const int n = at / 2, e = at % 2;
    v[at] = (p[0][n][e] + p[0][n][2 + e]) + (p[1][n][e] + p[1][n][2 + e]);
  }
  const int lane = part.g * 4 + part.t;
  fold<4>(v, (part.g & 4) != 0, lane ^ 16);
  fold<2>(v, (part.g & 2) != 0, lane ^ 8);
  fold<1>(v, (part.g & 1) != 0, lane ^ 4);
  return v[0];
}

/// Which of a band's 8 diagonals a lane's key 2 t + e of row g of a block lies on, and which the lane gets the sum of.
__device__ __forceinline__ int diagonal_of(const Part& part, int e) {
  return (2 * part.t + e - part.g) & 7;
}

/// Sums along diagonals, in bands of 8: band b holds key - row from 8 (b - 4) on. A lane gets those of band g,
/// diagonals diagonal_of(part, 0) and (part, 1).
///
/// Blocks of equal n - i have equal diagonals, so they are summed first. Of such a block the part on and right of its
/// own diagonal belongs to the band that begins there, the rest to the band before. In a band a diagonal passes each g
/// once; a lane meets those of other g by going as many keys to the side, modulo 8.
__device__ __forceinline__ float2 diagonal_sums(const Part& part, const Products& p) {
  float blocks[2][9] = {};  // by e and n - i + 4
#pragma unroll
  for (int at = 0; at < 32; ++at) {
    const int i = at / 8, n = at / 2 % 4, e = at % 2;
    blocks[e][n - i + 4] += p[i / 2][n][i % 2 * 2 + e];
  }
  const int g = part.g, t = part.t;
  float v[2][8];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
#pragma unroll
    for (int b = 0; b < 8; ++b) v[e][b] = 2 * t + e >= g ? blocks[e][b] : blocks[e][b + 1];
    fold<4>(v[e], (g & 4) != 0, (g ^ 4) * 4 + (t ^ 2));
    fold<2>(v[e], (g & 2) != 0, (g ^ 2) * 4 + ((g & 2) != 0 ? t + 3 : t + 1) % 4);
  }
  // One row on is one key on: the other e.
  const bool odd = (g & 1) != 0;
  const float given[2] = {odd ? v[0][0] : v[0][1], odd ? v[1][0] : v[1][1]};
  const float kept[2] = {odd ? v[0][1] : v[0][0], odd ? v[1][1] : v[1][0]};
  const float first = __shfl_sync(~0U, given[1], (g ^ 1) * 4 + (odd ? t + 3 : t) % 4);
  const float second = __shfl_sync(~0U, given[0], (g ^ 1) * 4 + (odd ? t : t + 1) % 4);
  return {kept[0] + first, kept[1] + second};
}

/// What warps have summed of a chunk, each for itself, so that all sums are made in the same order every time.
struct ChunkSums {
  float column[2][kChunk];                 // by rows' half
  float diagonal[kWarps][kChunk + kRows];  // by key - row + kRows, counted from the chunk's first key
};

template <int kDim>
__global__ void __launch_bounds__(kThreads, kDim == 256 ? 2 : 3)
    sum_lines(const __grid_constant__ LineProbe probe, const float* all_denominators, const LineSums lines) {
  extern __shared__ __align__(16) std::byte bytes[];
  auto& sums = *reinterpret_cast<ChunkSums*>(bytes + 2 * stage_bytes(kDim));
  const Part part = part_of(probe);
  float denominator[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) denominator[i] = all_denominators[part.head * kRows + part.row(i)];
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(ChunkSums) / sizeof(float)); i += kThreads) {
    reinterpret_cast<float*>(&sums)[i] = 0;
  }
  float* column = sums.column[part.first_row / 32] + part.first_key + part.g / 2 * 8 + part.t * 2 + part.g % 2;
  float* diagonal = sums.diagonal[part.warp] + part.first_key - part.first_row + kRows + (part.g - 4) * 8;
  for_tiles<kDim>(probe, part, bytes, [&](int begin, Products& x, float scale) {
#pragma unroll
    for (int at = 0; at < 32; ++at) {
      float& p = x[at / 16][at / 4 % 4][at % 4];
      p = exp2_fast(fmaf(p, scale, -denominator[at / 16 * 2 + at % 4 / 2]));
    }
    const int at = begin - part.first;
    column[at] = column_sum(part, x);
    if (lines.slash == nullptr) return;
    const float2 two = diagonal_sums(part, x);
    diagonal[at + diagonal_of(part, 0)] += two.x;
    diagonal[at + diagonal_of(part, 1)] += two.y;
  });
  const int64_t of_head = static_cast<int64_t>(part.head) * probe.max_slots;
  for (int i = threadIdx.x; i < kChunk && part.first + i < probe.max_slots; i += kThreads) {
    float& to = lines.vertical[of_head + part.first + i];
    to = sums.column[0][i] + sums.column[1][i] + (lines.adds ? to : 0.0F);
  }
  if (lines.slash == nullptr) return;
  // A diagonal that crosses the border of two chunks gets two addends, whose order does not matter.
  const int own = probe.visible[part.kv_head * probe.q.n_rows].y - 1;  // row 0's slot
  for (int i = threadIdx.x; i < kChunk + kRows; i += kThreads) {
    const int distance = own - part.first + kRows - i;
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += sums.diagonal[warp][i];
    if (distance >= 0 && distance < probe.max_slots && sum > 0) atomicAdd(lines.slash + of_head + distance, sum);
  }
}

int n_chunk_of(const LineProbe& probe) {
  return (probe.max_slots + kChunk - 1) / kChunk;
}

size_t partial_bytes(const LineProbe& probe) {
  return static_cast<size_t>(probe.q.n_head) * n_chunk_of(probe) * kRows * sizeof(float2);
}

template <typename Kernel>
void allow_shared(const Kernel& kernel, size_t bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "shared memory of the probe");
}

/// Neighbouring blocks have the heads of a chunk, so that query heads of one kv head find its keys in the cache.
template <int kDim>
void launch(const LineProbe& probe, const LineSums& sums, std::byte* work) {
  constexpr size_t kStages = 2 * stage_bytes(kDim);
  allow_shared(row_sums<kDim>, kStages);
  allow_shared(sum_lines<kDim>, kStages + sizeof(ChunkSums));
  auto* partial = reinterpret_cast<float2*>(work);
  auto* denominator = reinterpret_cast<float*>(work + partial_bytes(probe));
  const auto n_head = static_cast<unsigned>(probe.q.n_head);
  const dim3 grid(n_head, static_cast<unsigned>(n_chunk_of(probe)));
  row_sums<kDim><<<grid, kThreads, kStages, probe.stream>>>(probe, partial);
  join_sums<<<n_head, kRows * kJoined, 0, probe.stream>>>(partial, probe.q.n_rows, n_chunk_of(probe), denominator);
  sum_lines<kDim><<<grid, kThreads, kStages + sizeof(ChunkSums), probe.stream>>>(probe, denominator, sums);
}

}  // namespace

size_t line_work_bytes(const LineProbe& probe) {
  return partial_bytes(probe) + static_cast<size_t>(probe.q.n_head) * kRows * sizeof(float);
}

void line_mass(const LineProbe& probe, const LineSums& sums, std::byte* work) {
  if (sums.slash != nullptr) {
    const size_t bytes = static_cast<size_t>(probe.q.n_head) * static_cast<size_t>(probe.max_slots) * sizeof(float);
    check(cudaMemsetAsync(sums.slash, 0, bytes, probe.stream), "clearing the slashes");
  }
  const auto chosen = probe.kv.dim == 64 ? launch<64> : probe.kv.dim == 128 ? launch<128> : launch<256>;
  chosen(probe, sums, work);
  check(cudaGetLastError(), "mass of lines");
}

}  // namespace winnow::cuda
