// What a block of attend_portable.cu takes: the tiles of keys of its rows, one after another; and what four warps or
// four lanes find out together.
#pragma once

#include "kernels/cuda/attention.h"

namespace winnow::cuda::portable {

constexpr int32_t kTile = kVoteSlots;  // keys multiplied at a time

struct Job {
  ManyRows call;
  Lists lists;
  bool has_lists = false;
  int32_t n_stages = 2;  // tiles of K and V that there is room for: 1 or 2
};

/// The keys of one tile: slots from `begin` on, or list entries.
struct Keys {
  int32_t begin = 0;
  int32_t n = 0;
  const int32_t* column = nullptr;  // null: consecutive slots

  __device__ int32_t slot(int32_t i) const { return i >= n ? -1 : column == nullptr ? begin + i : column[i]; }
};

/// The tiles of one list (or of all slots) of which slots in [begin, end) may be seen, in the order of the votes.
class Walk {
 public:
  __device__ Walk(const Job& job, int32_t head, int64_t first_row, int2 seen)
      : begin_(seen.x), end_(seen.y), has_lists_(job.has_lists) {
    if (!has_lists_) {
      at_ = begin_ / kTile;
      return;
    }
    const Lists& lists = job.lists;
    const int64_t list = lists.list(head, static_cast<int32_t>((job.call.first_row + first_row) / lists.block_q));
    column_ = lists.column + lists.column_ptr[list];
    n_columns_ = lists.column_end[list] - lists.column_ptr[list];
    block_begin_ = lists.block_begin + lists.block_ptr[list];
    pieces_ = lists.block_k / kTile;
    n_pieces_ = (lists.block_ptr[list + 1] - lists.block_ptr[list]) * pieces_;
  }

  /// Goes on to the next tile; false at the end.
  __device__ bool next(Keys& keys) {
    if (!has_lists_) {
      keys = {at_++ * kTile, kTile, nullptr};
      return keys.begin < end_;
    }
    for (; at_ * kTile < n_columns_; ++at_) {
      keys = {0, min(kTile, n_columns_ - at_ * kTile), column_ + at_ * kTile};
      if (keys.column[0] >= end_ || keys.column[keys.n - 1] < begin_) continue;
      ++at_;
      return true;
    }
    while (piece_ < n_pieces_) {
      keys = {block_begin_[piece_ / pieces_] + piece_ % pieces_ * kTile, kTile, nullptr};
      if (keys.begin >= end_) return false;  // begins ascend
      ++piece_;
      if (keys.begin + kTile > begin_) return true;
    }
    return false;
  }

 private:
  int32_t begin_, end_;
  bool has_lists_;
  int32_t at_ = 0;     // tile of slots or of columns
  int32_t piece_ = 0;  // tile of the key blocks
  int32_t pieces_ = 1, n_pieces_ = 0, n_columns_ = 0;
  const int32_t* column_ = nullptr;
  const int32_t* block_begin_ = nullptr;
};

/// Whether any thread of four warps says yes; each such group of a block needs a barrier of its own.
template <int32_t kBarrier>
__device__ __forceinline__ bool any_of_four_warps(bool mine) {
  uint32_t any = 0;
  asm volatile(
      "{\n"
      ".reg .pred p, q;\n"
      "setp.ne.u32 p, %1, 0;\n"
      "barrier.cta.red.or.pred q, %2, 128, p;\n"
      "selp.u32 %0, 1, 0, q;\n"
      "}\n"
      : "=r"(any)
      : "r"(static_cast<uint32_t>(mine)), "n"(kBarrier)
      : "memory");
  return any != 0;
}

__device__ __forceinline__ float largest_of_quad(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0U, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0U, x, 2));
}

__device__ __forceinline__ float sum_of_quad(float x) {
  x += __shfl_xor_sync(~0U, x, 1);
  return x + __shfl_xor_sync(~0U, x, 2);
}

}  // namespace winnow::cuda::portable
