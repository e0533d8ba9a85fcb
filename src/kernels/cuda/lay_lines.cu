// Lists of blocks and columns from chosen lines.
#include <cub/device/device_scan.cuh>

#include "kernels/cuda/check.h"
#include "kernels/cuda/lines.h"

namespace winnow::cuda {
namespace {

/// push_lines of attention/lines.h for one query block; `block` and `column` take the entries.
template <typename Block, typename Column>
__device__ void push_lines(const LayArgs& args, int head, int own, int n_seen, Block block, Column column) {
  const int32_t* verticals = args.chosen.vertical + static_cast<int64_t>(head) * args.chosen.most_vertical;
  const int32_t* slashes = args.chosen.slash + static_cast<int64_t>(head) * args.chosen.most_slash;
  const int n_vertical = args.chosen.n[head * 2];
  const int n_slash = args.chosen.n[head * 2 + 1];
  const int end_of_rows = own + kLineBlock;
  int vertical = 0;
  int begin = -1;
  int end = -1;
  const auto flush = [&] {
    for (; vertical < n_vertical && verticals[vertical] < end; ++vertical) {
      if (verticals[vertical] < begin) column(verticals[vertical]);
    }
    for (int slot = begin; slot < min(end, n_seen); slot += kLineBlock) block(slot);
  };
  int low = 0;  // the first distance that is not longer than the last row stands deep
  for (int high = n_slash; low < high;) {
    const int middle = (low + high) / 2;
    if (slashes[middle] >= end_of_rows) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  constexpr int kAhead = 8;  // distances that are fetched together: each by itself would be waited for
  for (int first = low; first < n_slash; first += kAhead) {
    int distance[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) distance[i] = slashes[min(first + i, n_slash - 1)];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {  // the last one again changes nothing
      const int e = max(end_of_rows - distance[i], kLineBlock);
      if (end < 0 || e > end + kLineBlock) {
        if (end >= 0) flush();
        begin = e - kLineBlock;
        end = e;
      } else if (e > end) {
        end += kLineBlock;
      }
    }
  }
  if (end >= 0) flush();
}

/// Without block_begin: how long each list is, written one behind its place. With it: the lists.
__global__ void lay(const LayArgs args, int n_block_q) {
  const int block_q = blockIdx.x * blockDim.x + threadIdx.x;
  if (block_q >= n_block_q) return;
  const int head = blockIdx.y;
  const int2* visible = args.visible + head / args.group * args.n_rows;
  const int64_t row = static_cast<int64_t>(block_q) * kLineBlock;
  const int own = visible[row].y - 1;
  const int n_seen = visible[min(row + kLineBlock, args.n_rows) - 1].y;
  const int64_t list = static_cast<int64_t>(head) * n_block_q + block_q;
  if (args.block_begin == nullptr) {
    int n_block = 0;
    int n_column = 0;
    push_lines(
        args, head, own, n_seen, [&](int) { ++n_block; }, [&](int) { ++n_column; });
    args.block_ptr[list + 1] = n_block;
    args.column_ptr[list + 1] = n_column;
    if (list == 0) args.block_ptr[0] = args.column_ptr[0] = 0;
    return;
  }
  int32_t* block = args.block_begin + args.block_ptr[list];
  int32_t* column = args.column + args.column_ptr[list];
  push_lines(
      args, head, own, n_seen, [&](int slot) { *block++ = slot; }, [&](int slot) { *column++ = slot; });
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
  constexpr int kLayThreads = 64;
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
