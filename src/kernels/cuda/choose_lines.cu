// The heaviest lines: the border is found by digits of the scores' bits, from the highest on; then the lines are
// written in order.
#include <cub/block/block_scan.cuh>

#include "kernels/cuda/check.h"
#include "kernels/cuda/lines.h"

namespace winnow::cuda {
namespace {

constexpr int kSelectThreads = 1024;
constexpr int kItems = 8;  // scores of one thread in a strip, all of them fetched before one is looked at
constexpr int kStrip = kSelectThreads * kItems;
constexpr int kDigits = 2048;

struct Scores {
  const float* at;
  int n, n_forced;
  /// Scores are not negative, so their bits order as they do.
  __device__ uint32_t key(int i) const { return i < n_forced ? 0x7f800000U : __float_as_uint(at[i]); }
  /// Keys from `first` on, `step` apart; those behind the end are 0.
  __device__ void load(int first, int step, uint32_t (&keys)[kItems]) const {
#pragma unroll
    for (int j = 0; j < kItems; ++j) keys[j] = first + j * step < n ? key(first + j * step) : 0;
  }
};

using SelectScan = cub::BlockScan<int, kSelectThreads>;

struct SelectShared {
  int count[kDigits];
  uint32_t digit;
  int above;
  typename SelectScan::TempStorage scan;
};

/// Of the keys counted so far: the digit of the k-th largest, and how many have larger ones. Where there are less than
/// k both stay as they are.
__device__ void rank_digit(int k, SelectShared& shared) {
  __syncthreads();
  // From the largest digit down: two to a thread.
  const int high = kDigits - 1 - 2 * static_cast<int>(threadIdx.x);
  const int counts[2] = {shared.count[high], shared.count[high - 1]};
  int before = 0;
  SelectScan(shared.scan).ExclusiveSum(counts[0] + counts[1], before);
  for (int i = 0; i < 2; ++i) {
    if (before < k && before + counts[i] >= k) {
      shared.digit = static_cast<uint32_t>(high - i);
      shared.above = before;
    }
    before += counts[i];
  }
  __syncthreads();
}

/// One digit of the k-th largest key, and how many keys lie above it: `prefix` holds the digits found so far.
///
/// Most keys are small, have few digits between them, and would wait for each other's counts. But the k-th largest of
/// some keys is a lower bound: what lies below that of the first strip, the first 4, the first 16, is not counted.
__device__ void find_digit(const Scores& scores, int shift, int bits, uint32_t& prefix, int& k, SelectShared& shared) {
  for (int i = threadIdx.x; i < kDigits; i += kSelectThreads) shared.count[i] = 0;
  if (threadIdx.x == 0) shared.digit = 0;
  __syncthreads();
  int next_rank = kStrip;
  for (int strip = 0; strip < scores.n; strip += kStrip) {
    if (strip == next_rank) {
      rank_digit(k, shared);
      next_rank *= 4;
    }
    const uint32_t least = shared.digit;
    const int first = strip + static_cast<int>(threadIdx.x);
    uint32_t keys[kItems];
    scores.load(first, kSelectThreads, keys);
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const uint32_t digit = keys[j] >> shift & ((1U << bits) - 1);
      const bool counts = shift + bits == 32 || keys[j] >> (shift + bits) == prefix;
      if (first + j * kSelectThreads < scores.n && counts && digit >= least) atomicAdd(&shared.count[digit], 1);
    }
  }
  rank_digit(k, shared);
  prefix = prefix << bits | shared.digit;
  k -= shared.above;
  __syncthreads();
}

/// Indices of the k largest scores, ascending, or descending where `backwards`.
__device__ void select_largest(const Scores& scores, int k, bool backwards, int32_t* out, SelectShared& shared) {
  uint32_t threshold = 0;
  int ties = k;  // how many of the keys equal to the threshold are taken
  find_digit(scores, 21, 11, threshold, ties, shared);
  find_digit(scores, 10, 11, threshold, ties, shared);
  find_digit(scores, 0, 10, threshold, ties, shared);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const unsigned lanes_before = (1U << lane) - 1;
  int n_above = 0;  // of the strips so far
  int n_equal = 0;
  for (int strip = 0; strip < scores.n; strip += kStrip) {
    const int first = strip + static_cast<int>(threadIdx.x) / 32 * (32 * kItems) + lane;  // warps have runs
    uint32_t keys[kItems];
    scores.load(first, 32, keys);
    int own = 0;  // the warp's: above in the high half, equal in the low half, both at most 8192 in a strip
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const bool there = first + j * 32 < scores.n;
      own += __popc(__ballot_sync(~0U, there && keys[j] > threshold)) << 16;
      own += __popc(__ballot_sync(~0U, there && keys[j] == threshold));
    }
    int before = 0;
    int all = 0;
    SelectScan(shared.scan).ExclusiveSum(lane == 0 ? own : 0, before, all);
    before = __shfl_sync(~0U, before, 0);
    int above = n_above + (before >> 16);
    int equal = n_equal + (before & 0xffff);
#pragma unroll
    for (int j = 0; j < kItems && own > 0; ++j) {
      const bool there = first + j * 32 < scores.n;
      const unsigned over = __ballot_sync(~0U, there && keys[j] > threshold);
      const unsigned level = __ballot_sync(~0U, there && keys[j] == threshold);
      const int own_equal = equal + __popc(level & lanes_before);
      if ((over >> lane & 1) != 0 || ((level >> lane & 1) != 0 && own_equal < ties)) {
        const int at = above + __popc(over & lanes_before) + min(own_equal, ties);
        out[backwards ? k - 1 - at : at] = first + j * 32;
      }
      above += __popc(over);
      equal += __popc(level);
    }
    n_above += all >> 16;
    n_equal += all & 0xffff;
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kSelectThreads)
    select_lines(const __grid_constant__ LineProbe probe, const float* vertical, const float* slash,
                 const LineBudget* budgets, const __grid_constant__ ChosenLines chosen) {
  __shared__ SelectShared shared;
  const int head = blockIdx.x;
  const bool slashes = blockIdx.y == 1;
  const int kv_head = head / (probe.q.n_head / probe.kv.n_head_kv);
  const LineBudget budget = budgets[head];
  const int n = probe.visible[(kv_head + 1) * probe.q.n_rows - 1].y;
  const int k = min(slashes ? budget.n_slash : budget.n_vertical, n);
  const Scores scores = {(slashes ? slash : vertical) + static_cast<int64_t>(head) * probe.max_slots, n,
                         slashes ? budget.forced_slashes : budget.forced_verticals};
  int32_t* out = slashes ? chosen.slash + static_cast<int64_t>(head) * chosen.most_slash
                         : chosen.vertical + static_cast<int64_t>(head) * chosen.most_vertical;
  if (threadIdx.x == 0) chosen.n[head * 2 + (slashes ? 1 : 0)] = k;
  if (k > 0) select_largest(scores, k, slashes, out, shared);
}

}  // namespace

void choose_lines(const LineProbe& probe, const float* vertical, const float* slash, const LineBudget* budget,
                  const ChosenLines& chosen) {
  const dim3 grid(static_cast<unsigned>(probe.q.n_head), 2);
  select_lines<<<grid, kSelectThreads, 0, probe.stream>>>(probe, vertical, slash, budget, chosen);
  check(cudaGetLastError(), "choice of lines");
}

}  // namespace winnow::cuda
