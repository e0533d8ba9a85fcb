// Slots are chosen by a warp for each block of a core, and by sorting where they are important ones: both orders leave
// equal slots as they stand. Weights are summed as integers, so that their order does not matter.
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "attention/important.h"
#include "kernels/cuda/carve.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/over_block.cuh"
#include "kernels/cuda/sets.h"

namespace winnow::cuda {
namespace {

using Weight = unsigned long long;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kFactThreads = 1024;
constexpr double kUnit = 1099511627776.0;  // of weights: 2^-40
constexpr int32_t kLaneSlots = kCoreBlock / 32;

unsigned blocks_of(int64_t n, int64_t unit) {
  return static_cast<unsigned>((n + unit - 1) / unit);
}

/// Sums or means over the heads of set blockIdx.y, in their order.
template <bool kMean>
__global__ void __launch_bounds__(kThreads) sum_heads(const __grid_constant__ SetsCall call) {
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, set = blockIdx.y;
  if (slot >= call.max_slots) return;
  float sum = 0;
  for (int32_t i = 0; i < call.n_together; ++i) {
    const float of_head = call.mass[(set * call.n_together + i) * call.max_slots + slot];
    sum += kMean ? of_head / static_cast<float>(call.n_together) : of_head;
  }
  const bool there = slot < call.n_slots[set];
  call.sum[set * call.max_slots + slot] = there ? sum : 0.0F;
  call.taken[set * call.max_slots + slot] = 0;
}

/// One set's blocks that vote.
struct CoreBlocks {
  int32_t begin, n;
  __device__ CoreBlocks(const SetsCall& call, const CoreChoice& choice, int64_t set)
      : begin(min(choice.begin[set], call.n_slots[set])), n((call.n_slots[set] - begin) / kCoreBlock) {}
};

__device__ double sum_of_warp(double x) {
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0U, x, i);
  return x;
}

__global__ void __launch_bounds__(kThreads)
    concentrate(const __grid_constant__ SetsCall call, const __grid_constant__ CoreChoice choice) {
  const int64_t set = blockIdx.y;
  const CoreBlocks blocks(call, choice, set);
  const int32_t block = static_cast<int32_t>(blockIdx.x) * kWarps + static_cast<int32_t>(threadIdx.x) / 32;
  if (block >= blocks.n) return;
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const float* mass = call.sum + set * call.max_slots + blocks.begin + static_cast<int64_t>(block) * kCoreBlock;
  double sum = 0, squares = 0;
  for (int32_t i = lane; i < kCoreBlock; i += 32) {
    const double x = mass[i];
    sum += x;
    squares += x * x;
  }
  sum = sum_of_warp(sum);
  squares = sum_of_warp(squares);
  if (lane == 0) {
    choice.concentration[set * (call.max_slots / kCoreBlock) + block] =
        sum > 1e-30 ? squares / (sum * sum) : 1.0 / kCoreBlock;
  }
}

/// How many slots a block keeps whose concentration is the rank-th of n, from 0.
__device__ int32_t budget_of(const double* shares, int32_t rank, int32_t n) {
  const double place = (static_cast<double>(rank) + 0.5) / static_cast<double>(n);
  double sum = 0;
  for (int32_t i = 0; i < 7; ++i) {
    sum += shares[i];
    if (place < sum) return 1 << i;
  }
  return kCoreBlock;
}

/// Which of a block's slots are the n heaviest, of equal ones the lower: bit i says so of slot lane + 32 i.
__device__ uint32_t heaviest(const float (&mass)[kLaneSlots], int32_t n) {
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  int32_t rank[kLaneSlots] = {};
  for (int32_t j = 0; j < kCoreBlock; ++j) {
    const float other = __shfl_sync(~0U, mass[j / 32], j % 32);
    for (int32_t i = 0; i < kLaneSlots; ++i) {
      rank[i] += other > mass[i] || (other == mass[i] && j < lane + 32 * i) ? 1 : 0;
    }
  }
  uint32_t bits = 0;
  for (int32_t i = 0; i < kLaneSlots; ++i) bits |= rank[i] < n ? 1U << i : 0U;
  return bits;
}

/// A warp for each block; blocks from the last one of a set on see to the slots before `begin`.
__global__ void __launch_bounds__(kThreads)
    take_core(const __grid_constant__ SetsCall call, const __grid_constant__ CoreChoice choice) {
  const int64_t set = blockIdx.y;
  const CoreBlocks blocks(call, choice, set);
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const int32_t block = static_cast<int32_t>(blockIdx.x) * kWarps + static_cast<int32_t>(threadIdx.x) / 32;
  int32_t* taken = call.taken + set * call.max_slots;
  for (int32_t slot = block * kCoreBlock + lane; slot < min((block + 1) * kCoreBlock, blocks.begin); slot += 32) {
    taken[slot] = 1;
  }
  if (block >= blocks.n) return;
  const double* all = choice.concentration + set * (call.max_slots / kCoreBlock);
  const double own = all[block];
  int32_t rank = 0;
  for (int32_t i = lane; i < blocks.n; i += 32) rank += all[i] > own || (all[i] == own && i < block) ? 1 : 0;
  rank = __reduce_add_sync(~0U, rank);
  int32_t n = budget_of(choice.shares + set * 7, rank, blocks.n);

  const int32_t first = blocks.begin + block * kCoreBlock;
  float mass[kLaneSlots];
  for (int32_t i = 0; i < kLaneSlots; ++i) mass[i] = call.sum[set * call.max_slots + first + lane + 32 * i];
  uint32_t best = heaviest(mass, n);
  if (first < choice.sinks) {  // these come on top where the votes would not take them
    const int32_t n_sink = min(kCoreBlock, choice.sinks - first);
    int32_t n_best = 0;
    for (int32_t i = 0; i < kLaneSlots; ++i) {
      const bool sink = lane + 32 * i < n_sink;
      n_best += sink && (best >> i & 1) != 0 ? 1 : 0;
      if (sink) mass[i] = 1e30F;
    }
    n += n_sink - __reduce_add_sync(~0U, n_best);
    best = heaviest(mass, n);
  }
  for (int32_t i = 0; i < kLaneSlots; ++i) {
    if ((best >> i & 1) != 0) taken[first + lane + 32 * i] = 1;
  }
}

/// What a row that sees a slot spends on it, and the slots' numbers.
__global__ void __launch_bounds__(kThreads)
    average(const __grid_constant__ SetsCall call, const __grid_constant__ ImportantChoice choice, int32_t set,
            float* means, int32_t* index) {
  const int32_t slot = static_cast<int32_t>(blockIdx.x) * kThreads + static_cast<int32_t>(threadIdx.x);
  if (slot >= call.n_slots[set]) return;
  const int2* visible = choice.visible + static_cast<int64_t>(set) * choice.n_rows;
  int32_t n_seen = 0;
  for (int32_t row = 0; row < choice.n_rows; ++row) n_seen += visible[row].y > slot ? 1 : 0;
  means[slot] = n_seen > 0 ? call.sum[set * call.max_slots + slot] / static_cast<float>(n_seen) : 0.0F;
  index[slot] = slot;
}

__global__ void __launch_bounds__(kThreads) weigh(const float* sorted, int32_t n, Weight* weight) {
  const int32_t i = static_cast<int32_t>(blockIdx.x) * kThreads + static_cast<int32_t>(threadIdx.x);
  if (i < n) weight[i] = static_cast<Weight>(static_cast<double>(sorted[i]) * kUnit);
}

/// Takes as many of the best means as there are heaviest slots until their weight reaches `limit`. means: descending,
/// with the slots that they are of; sums: of the heaviest weights.
__global__ void __launch_bounds__(kThreads)
    take_important(const __grid_constant__ SetsCall call, int32_t set, const int32_t* best, const Weight* sums,
                   Weight limit, int32_t first) {
  const int32_t i = static_cast<int32_t>(blockIdx.x) * kThreads + static_cast<int32_t>(threadIdx.x);
  const int32_t n = call.n_slots[set];
  if (i >= n) return;
  int32_t* taken = call.taken + set * call.max_slots;
  if (i < first || i == n - 1) taken[i] = 1;
  const Weight before = i == 0 ? 0 : sums[i - 1];
  if (before < limit) taken[best[i]] = 1;
}

/// Where the sets end, and what they hold; one block for each.
__global__ void __launch_bounds__(kFactThreads)
    state_facts(const __grid_constant__ SetsCall call, const __grid_constant__ SetEnds ends) {
  const int64_t set = blockIdx.x, first = set * call.max_slots;
  const auto end_of = [&](int64_t n_sets) { return n_sets == 0 ? 0 : call.taken[n_sets * call.max_slots - 1]; };
  const int32_t n_lost = ends.near == nullptr ? call.n_slots[set] : min(ends.near[set], call.n_slots[set]);
  double lost = 0, all = 0;
  for (int32_t slot = threadIdx.x; slot < call.n_slots[set]; slot += kFactThreads) {
    const int64_t i = first + slot;
    const bool taken = call.taken[i] != (i == 0 ? 0 : call.taken[i - 1]);
    if (!taken && slot < n_lost) lost += call.sum[i];
    all += call.sum[i];
  }
  const auto add = [](double a, double b) { return a + b; };
  lost = over_block(lost, add);
  all = over_block(all, add);
  if (threadIdx.x != 0) return;
  ends.facts[set] = {end_of(set + 1) - end_of(set), lost > 0 ? 1 - lost / (ends.total > 0 ? ends.total : all) : 1.0};
  ends.ptr[set + 1] = end_of(set + 1);
  if (set == 0) ends.ptr[0] = 0;
}

__global__ void __launch_bounds__(kThreads) write_slots(const __grid_constant__ SetsCall call, int32_t* slots) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= call.n_set * call.max_slots) return;
  const int32_t before = i == 0 ? 0 : call.taken[i - 1];
  if (call.taken[i] != before) slots[before] = static_cast<int32_t>(i % call.max_slots);
}

/// What choose_important works in: two arrays of keys and their indices, from which sorted ones are made, and weights.
struct ImportantWork {
  float* keys[2];
  int32_t* index[2];
  Weight* weight;
  std::byte* scratch;
  size_t scratch_bytes = 0;
  size_t bytes = 0;  // of all

  ImportantWork(const SetsCall& call, std::byte* memory) {
    const auto n = static_cast<int32_t>(call.max_slots);
    Carve carve(memory);
    for (float*& part : keys) carve(part, n);
    for (int32_t*& part : index) carve(part, n);
    carve(weight, n);
    size_t needed = 0;
    check(cub::DeviceRadixSort::SortKeysDescending(nullptr, needed, keys[0], keys[1], n), "a sort");
    scratch_bytes = needed;
    check(cub::DeviceRadixSort::SortPairsDescending(nullptr, needed, keys[0], keys[1], index[0], index[1], n),
          "a sort");
    scratch_bytes = std::max(scratch_bytes, needed);
    check(cub::DeviceScan::InclusiveSum(nullptr, needed, weight, weight, n), "a scan");
    scratch_bytes = std::max(scratch_bytes, needed);
    carve(scratch, static_cast<int64_t>(scratch_bytes));
    bytes = carve.bytes();
  }
};

}  // namespace

void choose_core(const SetsCall& call, const CoreChoice& choice) {
  const auto n_set = static_cast<unsigned>(call.n_set);
  const dim3 warps(blocks_of(call.max_slots, int64_t{kCoreBlock} * kWarps), n_set);
  sum_heads<false><<<dim3(blocks_of(call.max_slots, kThreads), n_set), kThreads, 0, call.stream>>>(call);
  concentrate<<<warps, kThreads, 0, call.stream>>>(call, choice);
  take_core<<<warps, kThreads, 0, call.stream>>>(call, choice);
  check(cudaGetLastError(), "choice of a core");
}

size_t important_work_bytes(const SetsCall& call) {
  return ImportantWork(call, nullptr).bytes;
}

void choose_important(const SetsCall& call, const ImportantChoice& choice) {
  ImportantWork work(call, choice.work);
  const dim3 slots(blocks_of(call.max_slots, kThreads), static_cast<unsigned>(call.n_set));
  sum_heads<true><<<slots, kThreads, 0, call.stream>>>(call);
  const auto limit = static_cast<Weight>(choice.share * choice.n_rows * kShareReached * kUnit);
  for (int32_t set = 0; set < call.n_set; ++set) {
    const int32_t n = choice.host_n_slots[set];
    const unsigned blocks = blocks_of(n, kThreads);
    check(cub::DeviceRadixSort::SortKeysDescending(work.scratch, work.scratch_bytes, call.sum + set * call.max_slots,
                                                   work.keys[0], n, 0, 32, call.stream),
          "sorting mass");
    weigh<<<blocks, kThreads, 0, call.stream>>>(work.keys[0], n, work.weight);
    check(cub::DeviceScan::InclusiveSum(work.scratch, work.scratch_bytes, work.weight, work.weight, n, call.stream),
          "sums of mass");
    average<<<blocks, kThreads, 0, call.stream>>>(call, choice, set, work.keys[0], work.index[0]);
    check(cub::DeviceRadixSort::SortPairsDescending(work.scratch, work.scratch_bytes, work.keys[0], work.keys[1],
                                                    work.index[0], work.index[1], n, 0, 32, call.stream),
          "sorting means");
    take_important<<<blocks, kThreads, 0, call.stream>>>(call, set, work.index[1], work.weight, limit, choice.first);
  }
  check(cudaGetLastError(), "choice of important slots");
}

size_t sets_scan_bytes(const SetsCall& call) {
  size_t bytes = 0;
  check(cub::DeviceScan::InclusiveSum(nullptr, bytes, call.taken, call.taken, call.n_set * call.max_slots), "a scan");
  return bytes;
}

void end_sets(const SetsCall& call, const SetEnds& ends) {
  size_t bytes = sets_scan_bytes(call);
  check(cub::DeviceScan::InclusiveSum(ends.scan_work, bytes, call.taken, call.taken, call.n_set * call.max_slots,
                                      call.stream),
        "ends of sets");
  state_facts<<<static_cast<unsigned>(call.n_set), kFactThreads, 0, call.stream>>>(call, ends);
  check(cudaGetLastError(), "facts of sets");
}

void write_sets(const SetsCall& call, int32_t* slots) {
  write_slots<<<blocks_of(call.n_set * call.max_slots, kThreads), kThreads, 0, call.stream>>>(call, slots);
  check(cudaGetLastError(), "slots of sets");
}

}  // namespace winnow::cuda
