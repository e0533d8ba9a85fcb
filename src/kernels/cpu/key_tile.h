// The parts that a query tile's computation is made of: panels of rows on the lanes, tiles of keys, and what the
// products of the two read and add to.
#pragma once

#include "kernels/cpu/attend_kernel.h"
#include "kernels/cpu/transpose.h"

namespace winnow::cpu {
namespace {

constexpr int kPanel = 2 * kLanes;
constexpr int kPanels = kTileRows / kPanel;
constexpr float kLog2E = 1.44269504F;
constexpr float kLn2 = 0.693147181F;
constexpr int32_t kFetchTiles = 3;  // key tiles during which what comes after them is fetched
constexpr float kNothing = -__builtin_inff();

inline int32_t smaller(int32_t a, int32_t b) {
  return a < b ? a : b;
}

inline int32_t clamp(int32_t x, int32_t low, int32_t high) {
  return x < low ? low : (x > high ? high : x);
}

/// Calls f(begin, size) over [0, n) in pieces of at most kStep, the last two of about equal size: a small piece has too
/// few independent sums to hide the latency of a multiply-add. `size` is a constant.
template <int kStep, typename F>
inline void each_piece(int32_t n, const F& f) {
  const auto piece = [&]<int... kSize>(int32_t begin, int32_t size, std::integer_sequence<int, kSize...> /*sizes*/) {
    static_cast<void>(
        ((size == kSize + 1 ? (f(begin, std::integral_constant<int, kSize + 1>{}), true) : false) || ...));
  };
  for (int32_t begin = 0; begin < n;) {
    const int32_t rest = n - begin;
    const int32_t size = rest >= 2 * kStep || rest == kStep ? kStep : (rest > kStep ? (rest + 1) / 2 : rest);
    piece(begin, size, std::make_integer_sequence<int, kStep>{});
    begin += size;
  }
}

/// The transpose of n_rows rows of n_columns values: to[column * kPanel + row], times `factor`; rows up to kPanel are
/// 0.
inline void transpose_panel(const float* from, int64_t stride, int32_t n_rows, int32_t n_columns, float factor,
                            float* to) {
  for (int32_t lane = 0; lane < kPanel; lane += kLanes) {
    for (int32_t column = 0; column < n_columns; column += kLanes) {
      Floats block[kLanes];
      load_block(from + lane * stride + column, stride, n_rows - lane, n_columns - column, factor, block);
      transpose(block);
      float* out = to + column * kPanel + lane;
      WINNOW_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        if (i < n_columns - column) store(out + i * kPanel, block[i]);
      }
    }
  }
}

/// What a product reads of a tile: its keys [from, to), of which key i is row `row` + i of the unpacked K or V.
/// Those from `split` on are seen by no row of a panel's first vector, which need not be computed for them.
struct Keys {
  const std::byte* rows;
  int32_t row, from, split, to, dim;
};

/// Where a product with V adds to: the sums of one panel [result_dim][kPanel].
struct Results {
  float* o;
  const float* shrink;  // [kPanel] times which the sums are taken before; or null
  bool fresh;           // nothing was added yet, and o holds anything
};

/// Keys of one tile: consecutive slots from `first` on, or the `slot`s of columns gathered into consecutive rows.
struct KeyTile {
  const std::byte* k;  // unpacked keys and values, of which
  const std::byte* v;
  int32_t row;        // this row is the tile's first
  const float* bias;  // [n] or null
  const int32_t* slot;
  int32_t first;
  int32_t n;

  int32_t slot_at(int32_t i) const { return slot == nullptr ? first + i : slot[i]; }
  /// How many of the tile's slots lie below `limit`.
  int32_t below(int32_t limit) const {
    if (slot == nullptr) return clamp(limit - first, 0, n);
    if (slot[n - 1] < limit) return n;
    int32_t count = 0;
    while (count < n && slot[count] < limit) ++count;
    return count;
  }
};

/// A tile's turn over a span of keys. The tiles of a stack share the work of fetching what lies `ahead` slots behind
/// (0: nothing).
struct Turn {
  int32_t until;
  int32_t ahead;
  int32_t part, n_parts;
};

/// A part of the query tile that fills the lanes, and the part of the current key tile that any of its rows sees.
struct Panel {
  int32_t n_rows;
  int32_t begin_low, begin_high;  // of the rows' visible intervals
  int32_t end_low, end_high;
  int32_t from, split, to;  // slots of the current tile; those from `split` on only the last kLanes rows may see
  bool fresh;               // has no results yet
};

}  // namespace
}  // namespace winnow::cpu
