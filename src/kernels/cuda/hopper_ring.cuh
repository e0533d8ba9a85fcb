// What the two halves of attend_hopper share: the call, the tiles that a thread block walks through, and the ring in
// shared memory through which keys and values go from the loading warpgroup to the computing ones.
#pragma once

#include <limits>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/hopper.cuh"

namespace winnow::cuda::hopper {

constexpr int kPiece = kVoteSlots;     // slots of a piece
constexpr int kWarpgroup = 128;        // threads
constexpr int kGroupRows = kVoteRows;  // rows of a computing warpgroup: wgmma's m
constexpr int kTileRows = 2 * kGroupRows;
constexpr int kThreads = 3 * kWarpgroup;
// Lane 0 arrives for its warp, after __syncwarp. compute-sanitizer's racecheck does not follow that: it reports what
// the other lanes read of a piece (take_piece) against the loader's next write to the slot (load_interval,
// load_columns), which waits for these arrivals.
constexpr uint32_t kLoadingWarps = 4;    // arrivals that make a slot full
constexpr uint32_t kComputingWarps = 8;  // arrivals that make it empty

// Named barriers. Of those of the computing warpgroups, one for each.
constexpr int kFirstVote = 3;
constexpr int kFirstQueries = 5;
constexpr int kLoading = 7;
constexpr int kFirstTurn = 8;

// First slots of pieces that are no intervals. Nobody sees slots from kNothing on.
constexpr int32_t kColumns = -1;
constexpr int32_t kNothing = 1 << 29;
constexpr int32_t kEnd = std::numeric_limits<int32_t>::max();  // of the tile

struct Params {
  CUtensorMap k, v;
  HeadRows q, o;
  StagedKv kv;
  Lists lists;  // n_block_q 0: everything
  const int2* visible;
  int64_t first_row;
  float scale, softcap;
  const float* skip;
  float* lse;
  unsigned long long* computed;
  int32_t n_tiles;   // of all heads
  int32_t* n_taken;  // of the tiles behind the blocks' first ones; 0 before and after the launch
};

/// kPairs: both computing warpgroups want the same pieces, and so these come two in a slot.
template <int kDim, bool kPairs>
struct Shape {
  static constexpr bool kOverlaps = kDim <= 128;   // registers suffice for queries and two steps at a time
  static constexpr int kStep = kOverlaps ? 2 : 1;  // pieces that a warpgroup takes at a time
  static constexpr int kPieces = kPairs ? 2 : 1;   // of a slot
  static constexpr int kSlots = !kOverlaps ? 2 : (kPairs ? 3 : 7);  // of the ring
  static constexpr int kHalves = kDim / 64;                         // groups of 64 columns: the width of the swizzle
  static constexpr int kWide = kDim < 128 ? 64 : 128;               // columns of one product with V
  static constexpr uint32_t kPieceBytes = kPiece * 128;             // of a half
  static constexpr uint32_t kHalfBytes = kPieceBytes * kPieces;
  static constexpr uint32_t kSlotBytes = kHalfBytes * kHalves;
  static_assert(!kPairs || kStep == 2);
};

/// What a slot of the ring holds besides K and V.
template <int kPieces>
struct alignas(8 * kPieces) Pieces {
  int32_t begin[kPieces];           // first slots, or one of the constants above
  int32_t tag;                      // see below
  int32_t column[kPieces][kPiece];  // of kColumns: 4 slot + wanted, wanted as in tags; kEnd: none
};

// Tags of slots: 4 next + wanted. Bit w of `wanted`: by computing warpgroup w. `next`: of the last slot of a tile, 1 +
// the next tile; else 0.
__device__ __forceinline__ constexpr bool is_wanted(int32_t tag, int32_t w) {
  return (tag >> w & 1) != 0;
}
__device__ __forceinline__ constexpr bool is_last(int32_t tag) {
  return tag >= 4;
}
__device__ __forceinline__ constexpr int32_t next_tile(int32_t tag) {
  return (tag >> 2) - 1;
}

template <int kDim, bool kPairs>
struct Ring {
  using S = Shape<kDim, kPairs>;
  std::byte k[S::kSlots][S::kSlotBytes];  // [kHalves][kPieces * kPiece] rows of 128 bytes, swizzled
  std::byte v[S::kSlots][S::kSlotBytes];
  Pieces<S::kPieces> pieces[S::kSlots];
  Barrier full[S::kSlots];
  Barrier empty[S::kSlots];
  int32_t next_tile;              // among loading warps
  int2 sees[kTileRows];           // slots that a row sees
  int2 all_see[kComputingWarps];  // slots that all rows of a computing warpgroup see, as each warp wrote it
};

template <int kDim, bool kPairs>
struct Shared : Ring<kDim, kPairs> {};

template <>
struct Shared<256, false> : Ring<256, false> {
  alignas(1024) std::byte q[2][Shape<256, false>::kSlotBytes];  // queries of each computing warpgroup, laid out like K
};

static_assert(sizeof(Shared<64, false>) <= 227 * 1024 && sizeof(Shared<128, false>) <= 227 * 1024 &&
              sizeof(Shared<128, true>) <= 227 * 1024 && sizeof(Shared<256, false>) <= 227 * 1024);

/// A place in the ring; parity turns with every round.
template <int kSlots>
class Cursor {
 public:
  __device__ __forceinline__ int32_t slot() const { return at_ < kSlots ? at_ : at_ - kSlots; }
  __device__ __forceinline__ uint32_t parity() const { return at_ < kSlots ? 0 : 1; }
  __device__ __forceinline__ void advance() { at_ = at_ + 1 < 2 * kSlots ? at_ + 1 : 0; }

 private:
  int32_t at_ = 0;  // of two rounds
};

/// The rows that a thread block computes at a time.
struct Tile {
  int32_t head, kv_head;
  int64_t row;
  int32_t n_rows;  // 0: there are no more tiles
  bool split;      // the warpgroups have wants of their own

  /// The longest tiles come first, heads of one kv head side by side.
  __device__ Tile(const Params& p, int32_t index) {
    const int32_t group = p.q.n_head / p.kv.n_head_kv;
    const auto n_tiles = static_cast<int32_t>((p.q.n_rows + kTileRows - 1) / kTileRows);
    kv_head = index / group / n_tiles;
    head = kv_head * group + index % group;
    row = static_cast<int64_t>(n_tiles - 1 - index / group % n_tiles) * kTileRows;
    n_rows = kv_head < p.kv.n_head_kv ? static_cast<int32_t>(min(p.q.n_rows - row, int64_t{kTileRows})) : 0;
    split = n_rows <= kGroupRows || (p.lists.n_block_q > 0 && p.lists.block_q < kTileRows);
  }

  /// Whether the computing warpgroups follow different lists, not just the first some list.
  __device__ bool has_two_lists() const { return split && n_rows > kGroupRows; }

  /// Slots that row r of the tile sees, [x, y).
  __device__ int2 visible(const Params& p, int32_t r) const {
    const int2 range = p.visible[kv_head * p.q.n_rows + row + r];
    return {max(range.x, 0), min(range.y, p.kv.n_slots[kv_head])};
  }
};

}  // namespace winnow::cuda::hopper
