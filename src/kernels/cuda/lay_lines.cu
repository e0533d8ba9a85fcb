// Lists of blocks and columns from chosen lines. Neither every distance nor every column is looked at: an interval's
// next step is searched for, and columns between two intervals are one run of the chosen ones.
#include <cub/device/device_scan.cuh>

#include "kernels/cuda/check.h"
#include "kernels/cuda/lines.h"
#include "kernels/cuda/search.cuh"

namespace winnow::cuda {
namespace {

constexpr int kLayThreads = 256;

/// The first of the values from `from` on, of `n` ascending ones, that is not below `bound`. It tends to be near.
__device__ int first_from(const int32_t* values, int from, int n, int bound) {
  int low = from;
  int step = 1;
  while (low + step <= n && values[low + step - 1] < bound) {
    low += step;
    step *= 2;
  }
  return low + count_below(values + low, min(low + step - 1, n) - low, bound);
}

/// The first of the distances behind the one at `at` that is below `limit`; the one at `at` is not. They descend by 1
/// at least, which says how far it can be.
__device__ int next_below(const int32_t* distance, int at, int n, int limit) {
  int low = at + 1;
  int high = min(n, low + distance[at] - limit);
  if (low >= high || distance[low] < limit) return low;  // distances stand apart
  ++low;
  if (distance[high - 1] >= limit) return high;  // distances stand side by side
  while (low < high) {
    const int middle = (low + high) / 2;
    if (distance[middle] < limit) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

/// The intervals of push_lines of attention/lines.h for one query block, one after the other.
struct Intervals {
  const int32_t* distance;  // [n] descending
  int n, end_of_rows;
  int at = 0;  // the distance that begins the next interval
  int begin = 0, end = 0;

  /// To the first distance that is not longer than the last row stands deep.
  __device__ void start() {
    for (int high = n; at < high;) {
      const int middle = (at + high) / 2;
      if (distance[middle] >= end_of_rows) {
        at = middle + 1;
      } else {
        high = middle;
      }
    }
  }

  /// -> whether there is one more.
  __device__ bool next() {
    if (at >= n) return false;
    end = max(end_of_rows - distance[at], kLineBlock);
    begin = end - kLineBlock;
    while (true) {
      at = next_below(distance, at, n, end_of_rows - end);
      if (at >= n || end_of_rows - distance[at] > end + kLineBlock) return true;
      end += kLineBlock;
    }
  }
};

/// Copies of all lanes of a warp: each n values from `from` to `to`. Long ones are done by all lanes together.
__device__ void copy_runs(const int32_t* from, int32_t* to, int n) {
  constexpr int kLong = 8;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (unsigned left = __ballot_sync(~0U, n >= kLong); left != 0; left &= left - 1) {
    const int other = __ffs(static_cast<int>(left)) - 1;
    const auto* its_from = reinterpret_cast<const int32_t*>(__shfl_sync(~0U, reinterpret_cast<uint64_t>(from), other));
    auto* its_to = reinterpret_cast<int32_t*>(__shfl_sync(~0U, reinterpret_cast<uint64_t>(to), other));
    const int its_n = __shfl_sync(~0U, n, other);
    for (int i = lane; i < its_n; i += 32) its_to[i] = its_from[i];
  }
  for (int i = 0; i < n && n < kLong; ++i) to[i] = from[i];
}

/// A thread for each query block. Without block_begin: how long each list is, written one behind its place. With it:
/// the lists.
__global__ void __launch_bounds__(kLayThreads) lay(const __grid_constant__ LayArgs args, int n_block_q) {
  const int block_q = static_cast<int>(blockIdx.x * kLayThreads + threadIdx.x);
  const int head = static_cast<int>(blockIdx.y);
  const bool there = block_q < n_block_q;
  const int64_t list = static_cast<int64_t>(head) * n_block_q + (there ? block_q : 0);
  const int2* visible = args.visible + static_cast<int64_t>(head / args.group) * args.n_rows;
  const int64_t row = there ? static_cast<int64_t>(block_q) * kLineBlock : 0;
  const int n_seen = visible[min(row + kLineBlock, args.n_rows) - 1].y;
  const int32_t* verticals = args.chosen.vertical + static_cast<int64_t>(head) * args.chosen.most_vertical;
  const int n_vertical = args.chosen.n[head * 2];
  Intervals intervals = {.distance = args.chosen.slash + static_cast<int64_t>(head) * args.chosen.most_slash,
                         .n = there ? args.chosen.n[head * 2 + 1] : 0,
                         .end_of_rows = visible[row].y - 1 + kLineBlock};
  intervals.start();
  const bool writes = args.block_begin != nullptr;
  int32_t* block = writes ? args.block_begin + args.block_ptr[list] : nullptr;
  int32_t* column = writes ? args.column + args.column_ptr[list] : nullptr;
  int n_block = 0, n_column = 0;
  int vertical = 0;  // the first that is behind the intervals so far
  while (true) {     // all lanes stay until none has more, since they copy together
    const bool more = intervals.next();
    if (!__any_sync(~0U, more)) break;
    const int first = vertical;
    int n_before = 0;  // columns in front of the interval
    if (more) {
      n_before = first_from(verticals, first, n_vertical, intervals.begin) - first;
      vertical = first_from(verticals, first + n_before, n_vertical, intervals.end);
    }
    if (writes) copy_runs(verticals + first, column + n_column, n_before);
    n_column += n_before;
    for (int slot = intervals.begin; more && slot < min(intervals.end, n_seen); slot += kLineBlock) {
      if (writes) block[n_block] = slot;
      ++n_block;
    }
  }
  if (writes || !there) return;
  args.block_ptr[list + 1] = n_block;
  args.column_ptr[list + 1] = n_column;
  if (list == 0) args.block_ptr[0] = args.column_ptr[0] = 0;
}

size_t scan_bytes(int64_t n) {
  size_t bytes = 0;
  int32_t* none = nullptr;
  check(cub::DeviceScan::InclusiveSum(nullptr, bytes, none, none, n), "size of a scan");
  return bytes;
}

}  // namespace

size_t lay_work_bytes(int32_t n_head, int64_t n_rows) {
  return scan_bytes(n_head * ((n_rows + kLineBlock - 1) / kLineBlock));
}

void lay_lines(const LayArgs& args) {
  const auto n_block_q = static_cast<int>((args.n_rows + kLineBlock - 1) / kLineBlock);
  const dim3 grid(static_cast<unsigned>((n_block_q + kLayThreads - 1) / kLayThreads),
                  static_cast<unsigned>(args.n_head));
  lay<<<grid, kLayThreads, 0, args.stream>>>(args, n_block_q);
  check(cudaGetLastError(), "lists of lines");
  if (args.block_begin != nullptr) return;
  const int64_t n = int64_t{args.n_head} * n_block_q;
  size_t bytes = scan_bytes(n);
  for (int32_t* ptr : {args.block_ptr, args.column_ptr}) {
    check(cub::DeviceScan::InclusiveSum(args.work, bytes, ptr + 1, ptr + 1, n, args.stream), "ends of the lists");
  }
}

}  // namespace winnow::cuda
