// The pooled maps of select_cover: products in float32 on tiles of 64 by 64, since they decide what attention computes,
// and the marks of what is chosen.
#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/cover_rows.cuh"
#include "kernels/cuda/cut.cuh"
#include "kernels/cuda/vec_inl.h"

namespace winnow::cuda {
namespace {

constexpr int kTile = 64;
constexpr int kDepth = 32;  // values of a row in shared memory at a time
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

/// Scores of the pooled queries of head first + blockIdx.z; each thread takes four rows by four columns, 16 apart.
__global__ void __launch_bounds__(kThreads) map_kernel(const __grid_constant__ CoverCall call, int32_t first) {
  __shared__ float left[kDepth][kTile + 1], right[kDepth][kTile + 1];
  const int32_t head = first + static_cast<int32_t>(blockIdx.z);
  const int32_t first_k = static_cast<int32_t>(blockIdx.x) * kTile, first_q = static_cast<int32_t>(blockIdx.y) * kTile;
  if (call.pooled[head] == 0) return;
  if (first_k >= blocks_seen(call, head, min(first_q + kTile, call.n_block_q) - 1)) return;
  const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  const float* q = call.queries + static_cast<int64_t>(head) * call.n_block_q * call.head_dim;
  const float* k = call.keys + static_cast<int64_t>(head / call.group) * call.n_block * call.head_dim;
  float sum[4][4] = {};
  for (int begin = 0; begin < call.head_dim; begin += kDepth) {
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kDepth; i += kThreads) {
      const int row = i / kDepth, d = i % kDepth;
      const bool in = begin + d < call.head_dim;
      const int64_t at = begin + d;
      left[d][row] = in && first_q + row < call.n_block_q ? q[int64_t{first_q + row} * call.head_dim + at] : 0.0F;
      right[d][row] = in && first_k + row < call.n_block ? k[int64_t{first_k + row} * call.head_dim + at] : 0.0F;
    }
    __syncthreads();
#pragma unroll 8
    for (int d = 0; d < kDepth; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(left[d][ty + 16 * i], right[d][tx + 16 * j], sum[i][j]);
      }
    }
    __syncthreads();
  }
  float* out = call.map + static_cast<int64_t>(blockIdx.z) * call.n_block_q * call.n_block;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int32_t row = first_q + ty + 16 * i, col = first_k + tx + 16 * j;
      if (row < call.n_block_q && col < call.n_block) out[int64_t{row} * call.n_block + col] = call.scale * sum[i][j];
    }
  }
}

/// Scores of a query block to probabilities, in place; a warp for each. What it does not see gets 0.
__global__ void __launch_bounds__(kThreads) map_softmax(const __grid_constant__ CoverCall call, int32_t first) {
  const int32_t b = static_cast<int32_t>(blockIdx.x) * kWarps + static_cast<int32_t>(threadIdx.x) / 32;
  const int32_t head = first + static_cast<int32_t>(blockIdx.y);
  if (b >= call.n_block_q || call.pooled[head] == 0) return;
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  float* row = call.map + (static_cast<int64_t>(blockIdx.y) * call.n_block_q + b) * call.n_block;
  const int32_t n_seen = blocks_seen(call, head, b);
  float top = -INFINITY;
  for (int32_t c = lane; c < n_seen; c += 32) top = fmaxf(top, row[c]);
  top = warp_max(top);
  float sum = 0;
  for (int32_t c = lane; c < n_seen; c += 32) sum += expf(row[c] - top);
  sum = warp_sum(sum);
  for (int32_t c = lane; c < call.n_block; c += 32) row[c] = c < n_seen ? expf(row[c] - top) / sum : 0.0F;
}

// The cut of a map: its blocks over all query blocks together while their sum stays within the share, as find_cut
// would find it, by all multiprocessors. Each round of digits is weighed by many blocks of threads and decided by one.

__global__ void __launch_bounds__(kThreads) begin_cut(const __grid_constant__ CoverCall call) {
  MapCut& cut = call.map_cut[blockIdx.x];
  for (int i = threadIdx.x; i < kCutDigits; i += kThreads) cut.weight[i] = 0;
  if (threadIdx.x == 0) cut.above = 0, cut.prefix = 0, cut.all = false, cut.ties = 0;
}

__global__ void __launch_bounds__(kThreads)
    weigh_map(const __grid_constant__ CoverCall call, int32_t first, int32_t round) {
  __shared__ unsigned long long weight[kCutDigits];
  const int32_t head = first + static_cast<int32_t>(blockIdx.y);
  MapCut& cut = call.map_cut[blockIdx.y];
  if (call.pooled[head] == 0 || cut.all) return;
  for (int i = threadIdx.x; i < kCutDigits; i += kThreads) weight[i] = 0;
  __syncthreads();
  const uint32_t prefix = cut.prefix;
  for (auto b = static_cast<int32_t>(blockIdx.x); b < call.n_block_q; b += static_cast<int32_t>(gridDim.x)) {
    const float* row = call.map + (static_cast<int64_t>(blockIdx.y) * call.n_block_q + b) * call.n_block;
    const int32_t n_seen = blocks_seen(call, head, b);
    for (auto c = static_cast<int32_t>(threadIdx.x); c < n_seen; c += kThreads) {
      weigh<true>(__float_as_uint(row[c]), prefix, round, weight);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kCutDigits; i += kThreads) {
    if (weight[i] > 0) atomicAdd(&cut.weight[i], weight[i]);
  }
}

/// One block of threads for each head.
__global__ void __launch_bounds__(kCutThreads)
    decide_digit(const __grid_constant__ CoverCall call, int32_t first, int32_t round) {
  __shared__ CutShared shared;
  MapCut& cut = call.map_cut[blockIdx.x];
  if (call.pooled[first + blockIdx.x] == 0 || cut.all) return;
  for (int i = threadIdx.x; i < kCutDigits; i += kCutThreads) {
    shared.weight[i] = cut.weight[i];
    cut.weight[i] = 0;
  }
  Border border = {cut.prefix, cut.above};
  const auto limit = static_cast<unsigned long long>(call.share * call.n_block_q * kUnit);
  __syncthreads();
  const bool found = find_digit(border, round, limit, shared);
  if (threadIdx.x != 0) return;
  cut.all = !found;
  cut.prefix = border.prefix;
  cut.above = border.above;
  if (found && round + 1 < kCutRounds) return;
  cut.ties = found ? static_cast<long long>((limit - border.above) / weight_of<true>(border.prefix)) : 0;
  call.cut[blockIdx.x] = found ? Cut{border.prefix, -1} : kEverything;
}

/// A warp for each query block counts what equals the border.
__global__ void __launch_bounds__(kThreads) count_ties(const __grid_constant__ CoverCall call, int32_t first) {
  const int32_t b = static_cast<int32_t>(blockIdx.x) * kWarps + static_cast<int32_t>(threadIdx.x) / 32;
  const int32_t head = first + static_cast<int32_t>(blockIdx.y);
  const MapCut& cut = call.map_cut[blockIdx.y];
  if (b >= call.n_block_q || call.pooled[head] == 0 || cut.ties == 0) return;
  const int64_t list = static_cast<int64_t>(blockIdx.y) * call.n_block_q + b;
  const float* row = call.map + list * call.n_block;
  const int32_t n_seen = blocks_seen(call, head, b);
  int32_t n = 0;
  for (auto c = static_cast<int32_t>(threadIdx.x % 32); c < n_seen; c += 32) {
    n += __float_as_uint(row[c]) == cut.prefix ? 1 : 0;
  }
  n = static_cast<int32_t>(__reduce_add_sync(~0U, static_cast<uint32_t>(n)));
  if (threadIdx.x % 32 == 0) call.ties[list] = n;
}

/// The last of the taken ones that equal the border. One block of threads for each head.
__global__ void __launch_bounds__(kCutThreads) place_ties(const __grid_constant__ CoverCall call, int32_t first) {
  __shared__ CutShared shared;
  __shared__ int32_t row;
  __shared__ long long rank;  // among the row's
  const MapCut& cut = call.map_cut[blockIdx.x];
  if (call.pooled[first + blockIdx.x] == 0 || cut.ties == 0) return;
  const int32_t* ties = call.ties + static_cast<int64_t>(blockIdx.x) * call.n_block_q;
  const int32_t each = (call.n_block_q + kCutThreads - 1) / kCutThreads;
  const int32_t begin = static_cast<int32_t>(threadIdx.x) * each, end = min(begin + each, call.n_block_q);
  unsigned long long own = 0, before = 0;
  for (int32_t b = begin; b < end; ++b) own += static_cast<unsigned long long>(ties[b]);
  cub::BlockScan<unsigned long long, kCutThreads>(shared.sums).ExclusiveSum(own, before);
  auto left = cut.ties - static_cast<long long>(before);
  for (int32_t b = begin; b < end && left > 0; ++b) {
    if (ties[b] >= left) row = b, rank = left;
    left -= ties[b];
  }
  __syncthreads();
  const float* map = call.map + (static_cast<int64_t>(blockIdx.x) * call.n_block_q + row) * call.n_block;
  const int32_t last =
      find_tie([map](int32_t c) { return __float_as_uint(map[c]); }, call.n_block, cut.prefix, rank, shared);
  if (threadIdx.x == 0) call.cut[blockIdx.x].last = row * call.n_block + last;
}

/// What a query block computes; a warp for each, a lane for each key block.
__global__ void __launch_bounds__(kThreads) mark_kernel(const __grid_constant__ CoverCall call, int32_t first) {
  const int32_t b = static_cast<int32_t>(blockIdx.x) * kWarps + static_cast<int32_t>(threadIdx.x) / 32;
  const int32_t head = first + static_cast<int32_t>(blockIdx.y);
  if (b >= call.n_block_q) return;
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const uint8_t* blocks = call.lines + static_cast<int64_t>(head) * 2 * call.n_block;
  const uint8_t* distances = blocks + call.n_block;
  const bool pooled = call.pooled[head] != 0;
  const int64_t in_map = static_cast<int64_t>(b) * call.n_block;
  const float* map = call.map + static_cast<int64_t>(blockIdx.y) * call.n_block_q * call.n_block + in_map;
  const Cut cut = pooled ? call.cut[blockIdx.y] : Cut{};
  // Rows of one query block may stand in two key blocks, or in more after an eviction.
  const int32_t begin = (slots_seen(call, head, static_cast<int64_t>(b) * call.block) - 1) / call.block;
  const int32_t last = blocks_seen(call, head, b) - 1;
  uint32_t* marks = call.marks + (static_cast<int64_t>(head) * call.n_block_q + b) * call.mark_words();
  for (int32_t word = 0; word < call.mark_words(); ++word) {
    const int32_t c = word * 32 + lane;
    bool taken = false;
    if (c <= last) {
      taken = blocks[c] != 0 || (pooled && takes(cut, __float_as_uint(map[c]), static_cast<int32_t>(in_map) + c));
      for (int32_t r = max(begin, c); r <= last; ++r) taken |= distances[r - c] != 0;
    }
    const uint32_t bits = __ballot_sync(~0U, taken);
    if (lane == 0) marks[word] = bits;
  }
}

unsigned blocks_of(int64_t n, int64_t unit) {
  return static_cast<unsigned>((n + unit - 1) / unit);
}

void cut_maps(const CoverCall& call, int32_t first, int32_t n) {
  constexpr int64_t kValues = 32768;  // of a block of threads that weighs, at least
  constexpr int64_t kMostBlocks = 1024;
  const auto n_heads = static_cast<unsigned>(n);
  const int64_t n_blocks = std::clamp<int64_t>(int64_t{call.n_block_q} * call.n_block / kValues, 1, kMostBlocks);
  begin_cut<<<n_heads, kThreads, 0, call.stream>>>(call);
  for (int32_t round = 0; round < kCutRounds; ++round) {
    weigh_map<<<dim3(static_cast<unsigned>(n_blocks), n_heads), kThreads, 0, call.stream>>>(call, first, round);
    decide_digit<<<n_heads, kCutThreads, 0, call.stream>>>(call, first, round);
  }
  count_ties<<<dim3(blocks_of(call.n_block_q, kWarps), n_heads), kThreads, 0, call.stream>>>(call, first);
  place_ties<<<n_heads, kCutThreads, 0, call.stream>>>(call, first);
}

}  // namespace

void mark_cover(const CoverCall& call, int32_t first, int32_t n) {
  const auto n_heads = static_cast<unsigned>(n);
  const dim3 tiles(blocks_of(call.n_block, kTile), blocks_of(call.n_block_q, kTile), n_heads);
  const dim3 rows(blocks_of(call.n_block_q, kWarps), n_heads);
  map_kernel<<<tiles, kThreads, 0, call.stream>>>(call, first);
  map_softmax<<<rows, kThreads, 0, call.stream>>>(call, first);
  cut_maps(call, first, n);
  mark_kernel<<<rows, kThreads, 0, call.stream>>>(call, first);
  check(cudaGetLastError(), "maps of blocks");
}

}  // namespace winnow::cuda
