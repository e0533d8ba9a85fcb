// The heaviest lines: the border is found by digits of the scores' bits, from the highest on; then the lines are
// written in order.
#include <cub/block/block_scan.cuh>

#include "kernels/cuda/check.h"
#include "kernels/cuda/lines.h"

namespace winnow::cuda {
namespace {

constexpr int kSelectThreads = 1024;
constexpr int kItems = 8;  // scores of one thread in a strip
constexpr int kDigits = 2048;

struct Scores {
  const float* at;
  int n, n_forced;
  /// Scores are not negative, so their bits order as they do.
  __device__ uint32_t key(int i) const { return i < n_forced ? 0x7f800000U : __float_as_uint(at[i]); }
};

using SelectScan = cub::BlockScan<int, kSelectThreads>;

struct SelectShared {
  int count[kDigits];
  uint32_t digit;
  int above;
  typename SelectScan::TempStorage scan;
};

/// One digit of the k-th largest key, and how many keys lie above it: `prefix` holds the digits found so far.
__device__ void find_digit(const Scores& scores, int shift, int bits, uint32_t& prefix, int& k, SelectShared& shared) {
  for (int i = threadIdx.x; i < kDigits; i += kSelectThreads) shared.count[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < scores.n; i += kSelectThreads) {
    const uint32_t key = scores.key(i);
    if (shift + bits < 32 && (key >> (shift + bits)) != prefix) continue;
    atomicAdd(&shared.count[key >> shift & ((1U << bits) - 1)], 1);
  }
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
  int n_above = 0;  // of the strips so far
  int n_equal = 0;
  for (int strip = 0; strip < scores.n; strip += kSelectThreads * kItems) {
    const int first = strip + static_cast<int>(threadIdx.x) * kItems;
    int own = 0;  // above in the high half, equal in the low half: both at most 8192
    for (int i = first; i < min(first + kItems, scores.n); ++i) {
      const uint32_t key = scores.key(i);
      own += key > threshold ? 1 << 16 : key == threshold ? 1 : 0;
    }
    int before = 0;
    int all = 0;
    SelectScan(shared.scan).ExclusiveSum(own, before, all);
    int above = n_above + (before >> 16);
    int equal = n_equal + (before & 0xffff);
    for (int i = first; i < min(first + kItems, scores.n); ++i) {
      const uint32_t key = scores.key(i);
      if (key > threshold || (key == threshold && equal < ties)) {
        const int at = above + min(equal, ties);
        out[backwards ? k - 1 - at : at] = i;
      }
      above += key > threshold ? 1 : 0;
      equal += key == threshold ? 1 : 0;
    }
    n_above += all >> 16;
    n_equal += all & 0xffff;
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kSelectThreads)
    select_lines(const LineProbe probe, const float* vertical, const float* slash, const LineBudget* budgets,
                 const ChosenLines chosen) {
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
