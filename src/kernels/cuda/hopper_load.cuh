// The loading half of attend_hopper: which pieces a tile needs, in which order, and how they get into the ring.
#pragma once

#include "kernels/cuda/hopper_ring.cuh"

namespace winnow::cuda::hopper {

/// Begins of the pieces of one list, or of everything, that reach into a range; ascending. Every lane of a warp has the
/// same.
class Intervals {
 public:
  /// Entries [at, end) of the lists; at < 0: everything.
  __device__ Intervals(const Lists& lists, int32_t at, int32_t end, int2 range) : at_(at), end_(end) {
    if (at_ >= 0) {
      refill(lists, range);
      advance(lists, range);
    } else {
      next = range.x < range.y ? range.x / kPiece * kPiece : kEnd;
    }
  }

  __device__ void advance(const Lists& lists, int2 range) {
    if (at_ < 0) {
      next = range.y - next > kPiece ? next + kPiece : kEnd;
      return;
    }
    do {
      if (i_ == 32) refill(lists, range);
      if (at_ + i_ >= end_) {
        next = kEnd;
        return;
      }
      next = __shfl_sync(~0U, cached_, i_) + part_;
      part_ += kPiece;
      if (part_ == lists.block_k) {
        part_ = 0;
        ++i_;
      }
    } while (next + kPiece <= range.x);
    if (next >= range.y) next = kEnd;
  }

  int32_t next = kEnd;

 private:
  /// Reads the next 32 entries, passing over those that end before the range.
  __device__ void refill(const Lists& lists, int2 range) {
    do {
      at_ += i_;
      i_ = 32;
      const int32_t mine = at_ + thread_index() % 32;
      cached_ = mine < end_ ? lists.block_begin[mine] : kNothing;
    } while (at_ < end_ && __shfl_sync(~0U, cached_, 31) + lists.block_k <= range.x);
    i_ = 0;
  }

  int32_t at_, end_;
  int32_t i_ = 0, part_ = 0, cached_ = 0;
};

constexpr int32_t kWarpRows = kPiece / static_cast<int32_t>(kLoadingWarps);  // of a piece that one warp gathers

/// What is left of a list of columns: entries [at, end) of the lists.
struct Columns {
  int32_t at, end;
  __device__ int32_t n() const { return end - at; }
};

/// How many of 64 ascending values, of which a lane holds number lane and lane + 32, are less than x.
__device__ int32_t count_less(int32_t x, const int32_t (&value)[2]) {
  int32_t count = 0;
#pragma unroll
  for (int32_t step = 32; step > 0; step /= 2) {
    const int32_t probe = count + step - 1;
    const int32_t low = __shfl_sync(~0U, value[0], probe % 32);
    const int32_t high = __shfl_sync(~0U, value[1], probe % 32);
    if ((probe < 32 ? low : high) < x) count += step;
  }
  const int32_t low = __shfl_sync(~0U, value[0], count % 32);
  const int32_t high = __shfl_sync(~0U, value[1], count % 32);
  return (count < 32 ? low : high) < x ? count + 1 : count;
}

/// A window of 64 columns, two to a lane, with their places in the union with another window.
struct Window {
  int32_t value[2];  // kEnd behind the last
  int32_t place[2];
  bool shared[2];  // also in the other window

  __device__ Window(const int32_t* column, const Columns& left) {
    const auto lane = thread_index() % 32;
    for (int i = 0; i < 2; ++i) value[i] = lane + 32 * i < left.n() ? column[left.at + lane + 32 * i] : kEnd;
  }

  /// -> how many columns are also in the other window
  __device__ int32_t merge(const int32_t (&other)[2]) {
    int32_t n_shared = 0;
    const auto lane = thread_index() % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t less = count_less(value[i], other);
      const int32_t low = __shfl_sync(~0U, other[0], less % 32);
      const int32_t high = __shfl_sync(~0U, other[1], less % 32);
      shared[i] = less < kPiece && value[i] != kEnd && (less < 32 ? low : high) == value[i];
      const uint32_t mask = __ballot_sync(~0U, shared[i]);
      place[i] = lane + 32 * i + less - n_shared - __popc(mask & ((1U << lane) - 1));
      n_shared += __popc(mask);
    }
    return n_shared;
  }

  /// Writes the columns whose places are among the first 64 and of this warp's quarter of them, for the warpgroups in
  /// `wanted` or, if shared, for both. -> how many of this window are among the first 64
  __device__ int32_t write(int32_t (&column)[kPiece], uint32_t wanted, bool skip_shared) const {
    int32_t n = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool taken = value[i] != kEnd && place[i] < kPiece;
      if (taken && place[i] / kWarpRows == thread_index() / 32 && !(skip_shared && shared[i])) {
        const uint32_t to = shared[i] ? 3 : wanted;
        column[place[i]] = static_cast<int32_t>(static_cast<uint32_t>(value[i]) << 2 | to);
      }
      n += __popc(__ballot_sync(~0U, taken));
    }
    return n;
  }
};

/// The loading warpgroup. All four warps gather columns, side by side; the first also starts the copies of intervals,
/// which the others follow, so that they know where they are. Without lists the first works alone.
template <int kDim, bool kPairs>
class Loader {
  using S = Shape<kDim, kPairs>;

 public:
  __device__ Loader(const Params& p, Shared<kDim, kPairs>& shared) : p_(p), shared_(shared) {}

  __device__ void run() {
    if (alone() && thread_index() >= 32) return;
    auto index = static_cast<int32_t>(blockIdx.x);
    while (true) {
      const Tile tile(p_, index);
      if (tile.n_rows == 0) return;
      range_ = {tile.visible(p_, 0).x, tile.visible(p_, tile.n_rows - 1).y};
      base_ = static_cast<int32_t>(tile.kv_head * p_.kv.capacity);
      next_ = next_tile();
      if (!alone()) load_columns(index);
      pin(index);  // so that the tile is computed anew, not kept in registers meanwhile
      if constexpr (kPairs) {
        load_pairs(Tile(p_, index));
      } else {
        load_intervals(Tile(p_, index));
      }
      index = next_;
    }
  }

 private:
  __device__ bool alone() const { return p_.lists.n_block_q == 0; }

  /// The first tile that no block has taken. Whoever is told last that there are none cleans up.
  __device__ int32_t next_tile() {
    int32_t index = 0;
    if (thread_index() == 0) {
      const int32_t n_taken = atomicAdd(p_.n_taken, 1);
      if (n_taken == p_.n_tiles - 1) *p_.n_taken = 0;
      index = n_taken + static_cast<int32_t>(gridDim.x);
    }
    if (alone()) return __shfl_sync(~0U, index, 0);
    sync_named(kLoading, kWarpgroup);  // all know the tile before
    if (thread_index() == 0) shared_.next_tile = index;
    sync_named(kLoading, kWarpgroup);
    return shared_.next_tile;
  }

  __device__ int64_t list_of(const Tile& tile, int32_t w) const {
    const int64_t row = p_.first_row + tile.row + w * kGroupRows;
    return p_.lists.list(tile.head, static_cast<int32_t>(row / p_.lists.block_q));
  }

  __device__ Intervals intervals(const Tile& tile, int32_t w) const {
    if (alone()) return {p_.lists, -1, 0, range_};
    const int64_t list = list_of(tile, w);
    return {p_.lists, p_.lists.block_ptr[list], p_.lists.block_ptr[list + 1], range_};
  }

  /// A tile without intervals ends with a pair that nobody sees.
  __device__ void load_pairs(const Tile& tile) {
    Intervals list = intervals(tile, 0);
    bool last = false;
    while (!last) {
      int2 begin = {kNothing, kNothing};
      if (list.next != kEnd) {
        begin.x = list.next;
        list.advance(p_.lists, range_);
      }
      if (list.next != kEnd) {
        begin.y = list.next;
        list.advance(p_.lists, range_);
      }
      last = list.next == kEnd;
      load_slot(begin, 3, last);
    }
  }

  __device__ void load_intervals(const Tile& tile) {
    Intervals first = intervals(tile, 0);
    int32_t begin = first.next;
    if (!tile.has_two_lists()) {
      const uint32_t wanted = tile.split ? 1 : 3;
      do {
        if (begin != kEnd) first.advance(p_.lists, range_);
        load_slot({begin, kNothing}, begin == kEnd ? 0 : wanted, first.next == kEnd);
        begin = first.next;
      } while (begin != kEnd);
      return;
    }
    Intervals second = intervals(tile, 1);
    begin = min(begin, second.next);
    do {
      const uint32_t wanted = (first.next == begin ? 1 : 0) | (second.next == begin ? 2 : 0);
      if (begin != kEnd && (wanted & 1) != 0) first.advance(p_.lists, range_);
      if (begin != kEnd && (wanted & 2) != 0) second.advance(p_.lists, range_);
      const int32_t after = min(first.next, second.next);
      load_slot({begin, kNothing}, begin == kEnd ? 0 : wanted, after == kEnd);
      begin = after;
    } while (begin != kEnd);
  }

  /// The pieces of a slot. kEnd: none, only word that the tile ends.
  __device__ void load_slot(int2 begin, uint32_t wanted, bool last) {
    const int32_t slot = cursor_.slot();
    if (thread_index() % 32 == 0) {
      if constexpr (kPairs) {
        wait_at_ease(shared_.empty[slot], cursor_.parity() ^ 1);
      } else {
        wait(shared_.empty[slot], cursor_.parity() ^ 1);
      }
      if (thread_index() == 0) {
        describe_slot(begin, static_cast<int32_t>(wanted) + (last ? 4 * (next_ + 1) : 0));
        if (begin.x != kEnd) copy_rows(begin);
      }
      arrive(shared_.full[slot], alone() ? kLoadingWarps : 1);
    }
    __syncwarp();
    cursor_.advance();
  }

  __device__ void describe_slot(int2 begin, int32_t tag) {
    Pieces<S::kPieces>& pieces = shared_.pieces[cursor_.slot()];
    pieces.begin[0] = begin.x;
    if constexpr (kPairs) pieces.begin[1] = begin.y;
    pieces.tag = tag;
  }

  /// Nothing is filled with rows too: what nobody sees is multiplied by 0, and has to be a number.
  __device__ void copy_rows(int2 begin) {
    const int32_t slot = cursor_.slot();
    Barrier& full = shared_.full[slot];
    expect_bytes(full, 2 * S::kSlotBytes);
    if constexpr (!kPairs) {
      copy_box(shared_.k[slot], p_.k, full, base_ + begin.x, 0);
      copy_box(shared_.v[slot], p_.v, full, base_ + begin.x, 0);
    } else {
      const int32_t first = begin.x == kNothing ? 0 : begin.x;
      const int32_t rows[2] = {base_ + first, base_ + (begin.y == kNothing ? first : begin.y)};
#pragma unroll
      for (uint32_t half = 0; half < S::kHalves; ++half) {
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
          const uint32_t to = half * S::kHalfBytes + i * S::kPieceBytes;
          copy_box(shared_.k[slot] + to, p_.k, full, rows[i], half);
          copy_box(shared_.v[slot] + to, p_.v, full, rows[i], half);
        }
      }
    }
  }

  __device__ Columns columns(const Tile& tile, int32_t w) const {
    const int64_t list = list_of(tile, w);
    return {p_.lists.column_ptr[list], p_.lists.column_end[list]};
  }

  __device__ void load_columns(int32_t index) {
    for (int32_t w = 0; w < 2; ++w) {
      pin(index);
      const Tile tile(p_, index);
      const bool two = !kPairs && tile.has_two_lists();
      const bool apart = two && p_.skip != nullptr;  // votes count in groups of each list's own
      if (w > 0 && !apart) break;
      const uint32_t wanted = two ? 1 << w : (tile.split && !kPairs ? 1 : 3);
      load_columns(columns(tile, w), two && !apart ? columns(tile, 1) : Columns{0, 0}, wanted);
    }
    flush();
  }

  /// The union of two lists, 64 at a time. The first one's columns are for the warpgroups in `wanted`, the second's
  /// for the second.
  __device__ void load_columns(Columns a, Columns b, uint32_t wanted) {
    const uint32_t wanted_of_piece = b.n() > 0 ? 3 : wanted;
    int32_t i = 0;  // piece of the slot
    while (a.n() > 0 || b.n() > 0) {
      Window of_a(p_.lists.column, a);
      Window of_b(p_.lists.column, b);
      if (__shfl_sync(~0U, min(of_a.value[0], of_b.value[0]), 0) >= range_.y) break;
      const bool a_before = __shfl_sync(~0U, of_a.value[1], 31) < range_.x;
      const bool b_before = __shfl_sync(~0U, of_b.value[1], 31) < range_.x;
      if (a_before) a.at += kPiece;
      if (b_before) b.at += kPiece;
      if (a_before || b_before) continue;
      if (i == 0) acquire();
      Pieces<S::kPieces>& pieces = shared_.pieces[cursor_.slot()];
      // Each of the four warps finds all places, and writes those whose rows it will gather.
      int32_t n = max(min(a.n(), kPiece), 0) + max(min(b.n(), kPiece), 0);
      n -= of_a.merge(of_b.value);
      a.at += of_a.write(pieces.column[i], wanted, false);
      of_b.merge(of_a.value);
      b.at += of_b.write(pieces.column[i], 2, true);
      const int32_t last = thread_index() / 32 * kWarpRows + thread_index() % 32;
      if (thread_index() % 32 < kWarpRows && last >= n) pieces.column[i][last] = kEnd;
      __syncwarp();
      gather(pieces.column[i], i);
      if (++i == S::kPieces) {
        finish_slot(wanted_of_piece, kColumns);
        i = 0;
      }
    }
    if (i == 0) return;
    gather(shared_.pieces[cursor_.slot()].column[0], 1);  // as in copy_rows
    finish_slot(wanted_of_piece, kNothing);
  }

  /// Waits for the ring's next slot, and shows what is underway before that could take long.
  __device__ void acquire() {
    Barrier& empty = shared_.empty[cursor_.slot()];
    if (__all_sync(~0U, is_over(empty, cursor_.parity() ^ 1))) return;
    flush();
    wait(empty, cursor_.parity() ^ 1);
    __syncwarp();
  }

  /// This warp's rows of piece i of the slot.
  __device__ void gather(const int32_t (&columns)[kPiece], int32_t i) {
    constexpr int kChunks = kDim / 8;  // of 16 bytes in a row
    const int32_t slot = cursor_.slot();
    const int32_t chunk = thread_index() % 32 % kChunks;
    const int32_t end = thread_index() / 32 * kWarpRows + kWarpRows;
#pragma unroll 2
    for (int32_t row = end - kWarpRows + thread_index() % 32 / kChunks; row < end; row += 32 / kChunks) {
      const int32_t column = min(columns[row] >> 2, static_cast<int32_t>(p_.kv.capacity) - 1);
      const int64_t from = static_cast<int64_t>(base_ + column) * kDim + chunk * 8;
      const uint32_t to = chunk / 8 * S::kHalfBytes + i * S::kPieceBytes + row * 128 + (chunk % 8 ^ row % 8) * 16;
      copy_16_bytes(shared_.k[slot] + to, p_.kv.k + from);
      copy_16_bytes(shared_.v[slot] + to, p_.kv.v + from);
    }
  }

  /// Of gathered pieces. `second`: what the slot's second one is.
  __device__ void finish_slot(uint32_t wanted, int32_t second) {
    if (thread_index() == 0) describe_slot({kColumns, second}, static_cast<int32_t>(wanted));
    commit_copies();
    if (underway_ >= 0) {
      wait_copies<1>();
      show(underway_);
    }
    underway_ = cursor_.slot();
    cursor_.advance();
  }

  __device__ void flush() {
    if (underway_ < 0) return;
    wait_copies<0>();
    show(underway_);
    underway_ = -1;
  }

  __device__ void show(int32_t slot) {
    show_stores();
    __syncwarp();
    if (thread_index() % 32 == 0) arrive(shared_.full[slot]);
  }

  const Params& p_;
  Shared<kDim, kPairs>& shared_;
  int32_t next_;  // tile
  int2 range_;    // slots that any of the tile's rows sees
  int32_t base_;  // row of the kv head's slot 0 in K and V
  Cursor<S::kSlots> cursor_;
  int32_t underway_ = -1;  // slot whose gathered rows have not been shown yet
};

}  // namespace winnow::cuda::hopper
