// Products of many rows in 8-bit integers: what an instruction set supplies. Two forms of one idea, that rounding must
// cost less than what it saves:
//
//   rotated (portable, AVX-512 VNNI)  Every block of up to 128 or 256 inputs is turned by a Hadamard matrix, which
//     spreads outliers evenly; then weights and activations are rounded to 8 bits with one scale for each block.
//   exact (AVX2)  Without VNNI 8 times 8 bits do not fit the processor's sums. Weights keep the codes of their file,
//     which have 4 to 6 bits, and only activations are rounded, to 8 bits with one scale for each 32.
//
// Either way y[row, channel] = sum over groups of inputs: scale_a * scale_w * sum of code_a * code_w (+ what a weight
// adds to each activation of the group). Activations carry a zero point of 128, because the processors' 8-bit products
// take one factor without sign; what that adds is known when weights are packed, and stands there, negated, as the
// value that sums start from.
//
//   activations, a tile of `tile_rows` rows:  codes u8, n_in a row, in the kernel's own order; groups follow each other
//                                             scales [n_in / group, scale_floats, tile_rows] f32
//   weights: panels of `panel_channels` channels; a panel is [n_in / group] entries of Int8Layout::group_bytes
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"
#include "kernels/cpu/cpu_features.h"

namespace winnow {

inline constexpr int kZeroPoint = 128;  // of activations
inline constexpr int kLevels = 127;     // their codes lie in [-kLevels, kLevels]
inline constexpr int kMaxTileRows = 8;
inline constexpr int kMaxPanelChannels = 32;

/// How weights of one type and width are packed.
struct Int8Layout {
  int group = 0;           // inputs that share a scale; 0: these weights cannot be packed
  size_t group_bytes = 0;  // of a panel
  int kind = 0;            // the kernel's own
};

/// The rows of a weight that become one panel.
struct Int8Source {
  Type type;
  const std::byte* rows;  // the first channel's
  size_t row_bytes;
  int n_channels;  // up to panel_channels; the rest of the panel becomes zero
  int64_t n_in;
  void (*decode)(Type type, const std::byte* from, float* to, int64_t n);
};

/// A row of activations and its place in a tile.
struct Int8Row {
  const float* x;
  int64_t n;
  int group;
  int row;         // in [0, tile_rows)
  uint8_t* codes;  // of the tile
  float* scales;   // of the tile
};

struct Int8Tile {
  const uint8_t* codes;    // of the activations
  const float* scales;     // of the activations
  const std::byte* panel;  // of the weights
  int64_t n_groups;
  Int8Layout layout;
  float* y;                // [tile_rows, panel_channels], all of it is written
  bool add;                // the tile's whole sum to what y holds, so that a tile's place changes no rounding
  int64_t stride;          // floats from one row of y to the next
  const std::byte* ahead;  // weights that a later call reads: they may be fetched meanwhile
  size_t ahead_bytes;
};

struct Int8Ops {
  const char* name;
  int tile_rows;       // up to kMaxTileRows
  int panel_channels;  // up to kMaxPanelChannels
  int scale_floats;    // for each group of a row
  // A piece of work goes over its inputs in spans, each as long as a panel's share of it stays in the first-level cache
  // from tile to tile, while the activations' share stays in the second-level cache from panel to panel.
  int64_t span_inputs;
  int64_t piece_codes;  // bytes of activations in a span
  Int8Layout (*layout)(Type type, int64_t n_in);
  void (*quantise)(const Int8Row& row);
  void (*pack)(const Int8Source& from, const Int8Layout& layout, std::byte* to);
  void (*multiply)(const Int8Tile& tile);
};

extern const Int8Ops kRotatedInt8Portable;
extern const Int8Ops kRotatedInt8Avx512;  // only where the processor is x86-64, with VNNI
extern const Int8Ops kExactInt8Avx2;      // only where the processor is x86-64

const Int8Ops& choose_int8_ops(const CpuFeatures& features);

}  // namespace winnow
