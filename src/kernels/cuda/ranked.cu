// Blocks in the order of their scores: a block of threads counts what a head needs, a warp finds the border of each row
// of blocks by digits of the scores' bits.
#include "kernels/cuda/check.h"
#include "kernels/cuda/cut.cuh"
#include "kernels/cuda/estimate.h"
#include "kernels/cuda/kth.cuh"
#include "kernels/cuda/over_block.cuh"
#include "kernels/cuda/vec_inl.h"

namespace winnow::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr uint32_t kForced = ~0U;  // no score's key

/// How many key blocks the last row of blocks sees.
__device__ int32_t blocks_seen(const BlockRows& rows) {
  return (rows.visible[rows.n_rows - 1].y + rows.block - 1) / rows.block;
}

/// One block of threads for each head: one more than the heaviest key blocks within the share of its mass.
__global__ void __launch_bounds__(kCutThreads) budget_kernel(const __grid_constant__ RankedMarks call) {
  __shared__ CutShared shared;
  const int64_t head = blockIdx.x;
  const int32_t n = blocks_seen(call.rows), block = call.rows.block;
  const float* slots = call.mass + head * call.max_slots;
  float* mass = call.by_block + head * call.rows.n_block;
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  for (int32_t b = threadIdx.x / 32; b < n; b += kCutThreads / 32) {
    const int64_t first = static_cast<int64_t>(b) * block;
    float sum = 0;
    for (int64_t slot = first + lane; slot < min(first + block, call.max_slots); slot += 32) sum += slots[slot];
    sum = warp_sum(sum);
    if (lane == 0) mass[b] = sum;
  }
  __syncthreads();
  double total = 0;
  for (int32_t b = threadIdx.x; b < n; b += kCutThreads) total += mass[b];
  total = over_block(total, [](double a, double b) { return a + b; });
  const auto keys = [mass](int32_t b) { return __float_as_uint(mass[b]); };
  const auto limit = static_cast<unsigned long long>(fmax(call.share * total, 0.0) * kUnit);
  const Cut cut = find_cut<true>(keys, n, limit, shared);
  int32_t n_taken = 0;
  for (int32_t b = threadIdx.x; b < n; b += kCutThreads) n_taken += takes(cut, keys(b), b) ? 1 : 0;
  n_taken = over_block(n_taken, [](int32_t a, int32_t b) { return a + b; });
  if (threadIdx.x == 0) call.budget[head] = min(n_taken + 1, n);
}

/// Keys of a row of blocks, as far as it sees, ordered as it takes them.
struct RowKeys {
  const float* scores;
  int32_t first, n;  // its own blocks are [first, n)
  __device__ bool forced(int32_t c) const { return c == 0 || c >= first; }
  __device__ uint32_t operator()(int32_t c) const {
    if (forced(c)) return kForced;
    return ordered(scores[c]);
  }
};

/// A warp for each row of blocks of head blockIdx.y.
__global__ void __launch_bounds__(kThreads) mark_kernel(const __grid_constant__ RankedMarks call) {
  __shared__ int32_t counts[kWarps][kKthDigits];
  const BlockRows& rows = call.rows;
  const auto n_block_q = static_cast<int32_t>((rows.n_rows + rows.block - 1) / rows.block);
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32, lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t b = static_cast<int32_t>(blockIdx.x) * kWarps + warp;
  if (b >= n_block_q) return;
  const int64_t row = static_cast<int64_t>(b) * rows.block, end = min(row + rows.block, rows.n_rows);
  const RowKeys keys = {call.scores + static_cast<int64_t>(b) * rows.n_block, (rows.visible[row].y - 1) / rows.block,
                        (rows.visible[end - 1].y - 1) / rows.block + 1};
  const int64_t n_forced = keys.n - keys.first + (keys.first > 0 ? 1 : 0);
  const int64_t budget = call.budget[blockIdx.y], n_all = blocks_seen(rows);
  const int64_t wanted = call.same_all ? budget : (budget * keys.n + n_all - 1) / n_all;
  int64_t k = max(max(wanted, n_forced), call.least);
  uint32_t border = 0;
  if (k < keys.n) {
    border = kth_key(keys, k, counts[warp]);
  } else {
    k = keys.n;
  }
  const int32_t words = (rows.n_block + 31) / 32;
  uint32_t* marks = call.marks + (static_cast<int64_t>(blockIdx.y) * n_block_q + b) * words;
  int64_t n_equal = 0;  // of those before
  for (int32_t word = 0; word < words; ++word) {
    const int32_t c = word * 32 + lane;
    const uint32_t key = c < keys.n ? keys(c) : 0;
    const uint32_t equal = __ballot_sync(~0U, c < keys.n && key == border);
    const int64_t rank = n_equal + __popc(equal & ((1U << lane) - 1));
    const uint32_t bits = __ballot_sync(~0U, c < keys.n && (key > border || (key == border && rank < k)));
    n_equal += __popc(equal);
    if (lane == 0) marks[word] = bits;
  }
}

/// One block of threads for each head.
__global__ void __launch_bounds__(kThreads) kept_kernel(const __grid_constant__ RankedMarks call) {
  const int64_t head = blockIdx.x, n_block_q = (call.rows.n_rows + call.rows.block - 1) / call.rows.block;
  const uint32_t* last = call.marks + ((head + 1) * n_block_q - 1) * ((call.rows.n_block + 31) / 32);
  const float* mass = call.by_block + head * call.rows.n_block;
  const int32_t n = blocks_seen(call.rows);
  double kept = 0, total = 0;
  for (int32_t c = threadIdx.x; c < n; c += kThreads) {
    total += mass[c];
    if ((last[c / 32] >> c % 32 & 1) != 0) kept += mass[c];
  }
  const auto add = [](double a, double b) { return a + b; };
  kept = over_block(kept, add);
  total = over_block(total, add);
  if (threadIdx.x == 0) call.kept[head] = total > 0 ? static_cast<float>(kept / total) : 1.0F;
}

}  // namespace

void mark_ranked(const RankedMarks& call) {
  const int64_t n_block_q = (call.rows.n_rows + call.rows.block - 1) / call.rows.block;
  const dim3 grid(static_cast<unsigned>((n_block_q + kWarps - 1) / kWarps), static_cast<unsigned>(call.n_head));
  budget_kernel<<<static_cast<unsigned>(call.n_head), kCutThreads, 0, call.rows.stream>>>(call);
  mark_kernel<<<grid, kThreads, 0, call.rows.stream>>>(call);
  kept_kernel<<<static_cast<unsigned>(call.n_head), kThreads, 0, call.rows.stream>>>(call);
  check(cudaGetLastError(), "ranked blocks");
}

}  // namespace winnow::cuda
