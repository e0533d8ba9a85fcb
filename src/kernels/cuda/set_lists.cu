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

/// One thread for each row.
__global__ void __launch_bounds__(kThreads) attending(const __grid_constant__ SetRows call, int32_t* attends) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= call.n_all) return;
  bool is = row >= call.n_all - call.n_wanted;
  for (int32_t set = 0; !is && set < call.sets.n_set; ++set) {
    const int64_t own = call.own[set] + row, end = call.sets.ptr[set + 1];
    const int64_t i = first_that(call.sets.ptr[set], end, [&](int64_t j) { return call.sets.slots[j] >= own; });
    is = i < end && call.sets.slots[i] == own;
  }
  attends[row] = is ? 1 : 0;
}

__global__ void __launch_bounds__(kThreads) list_rows(const __grid_constant__ SetRows call, const int32_t* places) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= call.n_all) return;
  const int32_t before = row == 0 ? 0 : places[row - 1];
  if (places[row] != before) call.rows[places[row]] = static_cast<int32_t>(row);
  if (row == call.n_all - 1) call.rows[0] = places[row];
}

/// What a block of rows that attend sees of its set, and what it has for itself: the set's last slots before the first
/// row where they are no whole block, and the rows' own slots. Between two rows' slots there are only other rows'
/// slots, so that a set's are among those of rows that attend.
struct RowList {
  Both from, to;         // of the set's entries
  int64_t tail, n_tail;  // slots of the set
  const int32_t* rows;
  int32_t own, n_own;  // 0: all of it is the set's

  __device__ RowList(const SetRows& call, const Both* ends, int64_t list) {
    const SetLists& sets = call.sets;
    const int64_t set = list / sets.n_block_q, begin = sets.ptr[set], end = sets.ptr[set + 1];
    const int64_t first_row = list % sets.n_block_q * kSetRows;
    rows = call.rows + 1 + first_row;
    own = call.own[set];
    n_own = static_cast<int32_t>(min(int64_t{kSetRows}, sets.n_rows - first_row));
    const auto upto = [&](int64_t i) { return i == 0 ? Both{0} : ends[i - 1]; };
    const auto first_from = [&](int64_t slot) {
      return first_that(begin, end, [&](int64_t i) { return sets.slots[i] >= slot; });
    };
    const int64_t front = own + rows[0], first = first_from(front), last = first_from(own + rows[n_own - 1] + 1);
    from = upto(begin);
    tail = last;
    if (last - first < n_own) {
      tail = first;
      if (first > begin && sets.slots[first - 1] == front - 1) {
        const int64_t diagonal = front - first;
        const int64_t run = first_that(begin, first, [&](int64_t i) { return sets.slots[i] - i == diagonal; });
        tail = run + (first - run) / kSetBlock * kSetBlock;
      }
    } else {
      n_own = 0;
    }
    n_tail = n_own == 0 ? 0 : first - tail;
    to = upto(tail);
  }
  __device__ int32_t set_columns() const { return static_cast<int32_t>(static_cast<uint32_t>(to)) - first_column(); }
  __device__ int32_t set_blocks() const { return static_cast<int32_t>(to >> 32) - first_block(); }
  __device__ int32_t first_column() const { return static_cast<int32_t>(static_cast<uint32_t>(from)); }
  __device__ int32_t first_block() const { return static_cast<int32_t>(from >> 32); }

  /// Calls block(slot) and column(slot) for what the list has for itself, each ascending.
  template <typename Block, typename Column>
  __device__ void walk(const SetLists& sets, Block block, Column column) const {
    const auto n = static_cast<int32_t>(n_own == 0 ? 0 : n_tail + n_own);
    const auto slot = [&](int32_t i) {
      return i < n_tail ? sets.slots[tail + i] : own + rows[i - static_cast<int32_t>(n_tail)];
    };
    for (int32_t i = 0, run = 0; i < n; i += run) {
      const int32_t first = slot(i);
      run = 1;
      while (i + run < n && slot(i + run) == first + run) ++run;
      int32_t at = 0;
      for (; at + kSetBlock <= run; at += kSetBlock) block(first + at);
      for (; at < run; ++at) column(first + at);
    }
  }
};

__global__ void __launch_bounds__(kThreads) measure_row_lists(const __grid_constant__ SetRows call, const Both* ends) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= n_list(call.sets)) return;
  const RowList list(call, ends, at);
  int32_t n_block = 0, n_column = 0;
  list.walk(
      call.sets, [&](int32_t) { ++n_block; }, [&](int32_t) { ++n_column; });
  call.sets.block_ptr[at + 1] = list.set_blocks() + n_block;
  call.more[at] = list.n_own == 0 ? 0 : list.set_columns() + n_column;
  if (at == 0) call.sets.block_ptr[0] = 0;
}

/// A warp for each list.
__global__ void __launch_bounds__(kThreads) write_row_lists(const __grid_constant__ SetRows call, const Both* ends,
                                                            const int32_t* blocks, int32_t* block_begin) {
  const SetLists& sets = call.sets;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (at >= n_list(sets)) return;
  const RowList list(call, ends, at);
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  int32_t* block = block_begin + sets.block_ptr[at];
  for (int32_t i = lane; i < list.set_blocks(); i += 32) block[i] = blocks[list.first_block() + i];
  const int32_t n_more = call.more[at], before = at == 0 ? 0 : call.more[at - 1];
  const auto n_sets = static_cast<int32_t>(sets.n);
  const bool shared = list.n_own == 0;
  if (lane == 0) {
    sets.column_ptr[at] = shared ? list.first_column() : n_sets + before;
    sets.column_end[at] = shared ? list.first_column() + list.set_columns() : n_sets + n_more;
    if (at + 1 == n_list(sets)) sets.column_ptr[at + 1] = n_sets + n_more;
  }
  if (shared) return;
  int32_t* column = sets.column + n_sets + before;
  for (int32_t i = lane; i < list.set_columns(); i += 32) column[i] = sets.column[list.first_column() + i];
  if (lane > 0) return;
  block += list.set_blocks();
  column += list.set_columns();
  list.walk(
      sets, [&](int32_t slot) { *block++ = slot; }, [&](int32_t slot) { *column++ = slot; });
}

/// Where the entries of the sets are, one behind the other.
void place_entries(const SetLists& call, Work& work) {
  if (call.n == 0) return;
  cut_runs<<<blocks_of(call.n, kThreads), kThreads, 0, call.stream>>>(call, work.ends);
  check(cub::DeviceScan::InclusiveSum(work.scratch, work.scratch_bytes, work.ends, work.ends, call.n, call.stream),
        "places of slots");
}

void write_entries(const SetLists& call, const Work& work) {
  if (call.n == 0) return;
  write_runs<<<blocks_of(call.n, kThreads), kThreads, 0, call.stream>>>(call, work.ends, work.block);
}

/// Lengths to ends.
void add_up(const SetLists& call, Work& work, int32_t* lengths) {
  check(cub::DeviceScan::InclusiveSum(work.scratch, work.scratch_bytes, lengths, lengths, n_list(call), call.stream),
        "ends of the lists");
}

}  // namespace

size_t set_lists_work_bytes(const SetLists& call) {
  return Work(call).bytes;
}

void measure_sets(const SetLists& call) {
  Work work(call);
  place_entries(call, work);
  write_entries(call, work);
  measure_lists<<<blocks_of(n_list(call), kThreads), kThreads, 0, call.stream>>>(call, work.ends, work.block);
  check(cudaGetLastError(), "lengths of lists");
  add_up(call, work, call.block_ptr + 1);
}

void write_set_blocks(const SetLists& call, int32_t* block_begin) {
  const Work work(call);
  write_blocks<<<blocks_of(n_list(call), kWarps), kThreads, 0, call.stream>>>(call, work.ends, work.block, block_begin);
  check(cudaGetLastError(), "blocks of sets");
}

size_t row_scan_bytes(const SetRows& call) {
  size_t bytes = 0;
  int32_t* none = nullptr;
  check(cub::DeviceScan::InclusiveSum(nullptr, bytes, none, none, call.n_all), "a scan");
  return bytes;
}

void find_rows(const SetRows& call, int32_t* places, std::byte* scan) {
  const unsigned n = blocks_of(call.n_all, kThreads);
  attending<<<n, kThreads, 0, call.sets.stream>>>(call, places);
  size_t bytes = row_scan_bytes(call);
  check(cub::DeviceScan::InclusiveSum(scan, bytes, places, places, call.n_all, call.sets.stream), "places of rows");
  list_rows<<<n, kThreads, 0, call.sets.stream>>>(call, places);
  check(cudaGetLastError(), "rows of sets");
}

void measure_rows(const SetRows& call) {
  const SetLists& sets = call.sets;
  Work work(sets);
  place_entries(sets, work);
  measure_row_lists<<<blocks_of(n_list(sets), kThreads), kThreads, 0, sets.stream>>>(call, work.ends);
  check(cudaGetLastError(), "lengths of lists of rows");
  add_up(sets, work, sets.block_ptr + 1);
  add_up(sets, work, call.more);
}

void write_rows(const SetRows& call, int32_t* block_begin) {
  const SetLists& sets = call.sets;
  const Work work(sets);
  write_entries(sets, work);
  write_row_lists<<<blocks_of(n_list(sets), kWarps), kThreads, 0, sets.stream>>>(call, work.ends, work.block,
                                                                                 block_begin);
  check(cudaGetLastError(), "lists of rows of sets");
}

}  // namespace winnow::cuda
