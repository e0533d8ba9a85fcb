// A set is written once, as blocks of neighbours and columns; every list then finds out how much of it lies before its
// rows. The set's slots ascend, so that a run of neighbours is where slot minus index stays the same.
#include <cub/device/device_scan.cuh>

#include "kernels/cuda/carve.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/sets.h"

namespace winnow::cuda {
namespace {

/// How many columns (low half) and blocks (high half).
using Both = unsigned long long;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

unsigned blocks_of(int64_t n, int64_t unit) {
  return static_cast<unsigned>((n + unit - 1) / unit);
}

__host__ __device__ int64_t n_list(const SetLists& call) {
  return static_cast<int64_t>(call.n_set) * call.n_block_q;
}

/// What measure_sets works in, and leaves for write_set_blocks.
struct Work {
  Both* ends = nullptr;      // [n] entries up to this slot of the set
  int32_t* block = nullptr;  // [n / kSetBlock] blocks of all sets, one set behind the other
  std::byte* scratch = nullptr;
  size_t scratch_bytes = 0;
  size_t bytes = 0;  // of all

  explicit Work(const SetLists& call) {
    Carve carve(call.work);
    carve(ends, call.n);
    carve(block, call.n / kSetBlock + 1);
    size_t needed = 0;
    check(cub::DeviceScan::InclusiveSum(nullptr, needed, ends, ends, call.n), "a scan");
    scratch_bytes = needed;
    check(cub::DeviceScan::InclusiveSum(nullptr, needed, block, block, n_list(call)), "a scan");
    scratch_bytes = std::max(scratch_bytes, needed);
    carve(scratch, static_cast<int64_t>(scratch_bytes));
    bytes = carve.bytes();
  }
};

/// The first index in [begin, end) for which `is`; it is so for all behind. Else end.
template <typename Is>
__device__ int64_t first_that(int64_t begin, int64_t end, const Is& is) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (is(middle)) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

/// Whether each slot of the sets is a column, begins a block, or is inside one.
__global__ void __launch_bounds__(kThreads) cut_runs(const __grid_constant__ SetLists call, Both* kind) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= call.n) return;
  int32_t set = 0;
  while (call.ptr[set + 1] <= i) ++set;
  const int64_t diagonal = call.slots[i] - i;
  const int64_t first = first_that(call.ptr[set], i, [&](int64_t j) { return call.slots[j] - j == diagonal; });
  const int64_t end = first_that(i, call.ptr[set + 1], [&](int64_t j) { return call.slots[j] - j != diagonal; });
  const bool in_block = i - first < (end - first) / kSetBlock * kSetBlock;
  kind[i] = !in_block ? 1 : (i - first) % kSetBlock == 0 ? Both{1} << 32 : 0;
}

__global__ void __launch_bounds__(kThreads)
    write_runs(const __grid_constant__ SetLists call, const Both* ends, int32_t* block) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= call.n) return;
  const Both before = i == 0 ? 0 : ends[i - 1], own = ends[i] - before;
  if (own == 1) call.column[static_cast<uint32_t>(before)] = call.slots[i];
  if (own > 1) block[before >> 32] = call.slots[i];
}

/// One list's part of its set and what follows it.
struct SetList {
  int32_t first_column, end_column;  // in `column`
  int32_t first_block, n_block;      // in Work::block
  int32_t near, end;                 // slots from here on, as far as the rows see

  __device__ SetList(const SetLists& call, const Both* ends, const int32_t* block, int64_t list) {
    const int64_t set = list / call.n_block_q, row = list % call.n_block_q * kSetRows;
    const int2* visible = call.visible + set * call.n_rows;
    near = max(0, visible[row].y - call.window) / call.unit * call.unit;
    end = visible[min(row + kSetRows, call.n_rows) - 1].y;
    const auto upto = [&](int32_t i) { return i == 0 ? Both{0} : ends[i - 1]; };
    const Both from = upto(call.ptr[set]);
    // Everything of the set that lies before `near`; a block that reaches beyond it moves it.
    const auto n_before = static_cast<int32_t>(
        first_that(call.ptr[set], call.ptr[set + 1], [&](int64_t i) { return call.slots[i] >= near; }));
    const Both to = upto(n_before);
    first_column = static_cast<int32_t>(static_cast<uint32_t>(from));
    end_column = static_cast<int32_t>(static_cast<uint32_t>(to));
    first_block = static_cast<int32_t>(from >> 32);
    n_block = static_cast<int32_t>(to >> 32) - first_block;
    if (n_block > 0) near = max(near, block[first_block + n_block - 1] + kSetBlock);
  }
  __device__ int32_t n_near() const { return max(0, end - near + kSetBlock - 1) / kSetBlock; }
};

__global__ void __launch_bounds__(kThreads)
    measure_lists(const __grid_constant__ SetLists call, const Both* ends, const int32_t* block) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= n_list(call)) return;
  const SetList list(call, ends, block, at);
  call.column_ptr[at] = list.first_column;
  call.column_end[at] = list.end_column;
  call.block_ptr[at + 1] = list.n_block + list.n_near();
  if (at > 0) return;
  call.block_ptr[0] = 0;
  call.column_ptr[n_list(call)] = call.n == 0 ? 0 : static_cast<int32_t>(static_cast<uint32_t>(ends[call.n - 1]));
}

/// A warp for each list.
__global__ void __launch_bounds__(kThreads)
    write_blocks(const __grid_constant__ SetLists call, const Both* ends, const int32_t* block, int32_t* block_begin) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (at >= n_list(call)) return;
  const SetList list(call, ends, block, at);
  int32_t* to = block_begin + call.block_ptr[at];
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  for (int32_t i = lane; i < list.n_block; i += 32) to[i] = block[list.first_block + i];
  for (int32_t i = lane; i < list.n_near(); i += 32) to[list.n_block + i] = list.near + i * kSetBlock;
}

}  // namespace

size_t set_lists_work_bytes(const SetLists& call) {
  return Work(call).bytes;
}

void measure_sets(const SetLists& call) {
  Work work(call);
  if (call.n > 0) {
    cut_runs<<<blocks_of(call.n, kThreads), kThreads, 0, call.stream>>>(call, work.ends);
    check(cub::DeviceScan::InclusiveSum(work.scratch, work.scratch_bytes, work.ends, work.ends, call.n, call.stream),
          "places of slots");
    write_runs<<<blocks_of(call.n, kThreads), kThreads, 0, call.stream>>>(call, work.ends, work.block);
  }
  measure_lists<<<blocks_of(n_list(call), kThreads), kThreads, 0, call.stream>>>(call, work.ends, work.block);
  check(cudaGetLastError(), "lengths of lists");
  int32_t* ends = call.block_ptr + 1;
  check(cub::DeviceScan::InclusiveSum(work.scratch, work.scratch_bytes, ends, ends, n_list(call), call.stream),
        "ends of the lists");
}

void write_set_blocks(const SetLists& call, int32_t* block_begin) {
  const Work work(call);
  write_blocks<<<blocks_of(n_list(call), kWarps), kThreads, 0, call.stream>>>(call, work.ends, work.block, block_begin);
  check(cudaGetLastError(), "blocks of sets");
}

}  // namespace winnow::cuda
