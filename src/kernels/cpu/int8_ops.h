// Products of many rows in rotated int8: the parts that are compiled once for each instruction set.
//
// Every block of up to 128 inputs is turned by a Hadamard matrix, which spreads outliers evenly; then weights (of one
// output channel) and activations (of one row) are rounded to whole numbers with one scale for each block:
//   y[row, channel] = sum over blocks: scale_a[row, block] * scale_w[channel, block] * sum of code_a * code_w
//
// Codes lie in [-levels, levels]. Activations carry a zero point (levels + 1), because the processors' 8-bit products
// take one factor without sign; what that adds is known when weights are packed, and stands there, negated, as the
// value that accumulators start from.
//
//   activations, a tile of `tile_rows` rows:  codes  [n_in / 4, tile_rows, 4] u8
//                                             scales [n_in / block, tile_rows] f32, with the rotation's 1 / block
//   weights, a panel of 16 channels, for each block of inputs:
//     for each window of 16 inputs:  codes [4, 16, 4] s8, starts 64 bytes as the kernel wants them
//     scales [16] f32
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/cpu_features.h"

namespace winnow {

inline constexpr int kPanelChannels = 16;
inline constexpr int kWindowInputs = 16;
inline constexpr int kMaxBlock = 128;  // inputs that are turned together and share a scale; a power of two, at least 16

/// Bytes of one block of inputs in a panel.
constexpr size_t panel_block_bytes(int block) {
  constexpr size_t kWindowBytes = static_cast<size_t>(kPanelChannels) * kWindowInputs + 64;
  return static_cast<size_t>(block / kWindowInputs) * kWindowBytes + kPanelChannels * sizeof(float);
}

struct Int8Tile {
  const uint8_t* codes;    // of the activations
  const float* scales;     // of the activations
  const std::byte* panel;  // of the weights
  int64_t n_blocks;
  int block;
  float* y;        // [tile_rows, 16], all of it is written
  bool add;        // to what y holds
  int64_t stride;  // floats from one row of y to the next
};

struct Int8Ops {
  const char* name;
  int tile_rows;
  /// Rotates and rounds one row of n inputs into its place in a tile; codes and scales point at the row's first entry.
  void (*quantise)(const float* x, int64_t n, int block, uint8_t* codes, float* scales);
  /// Rotates and rounds one block of 16 channels, w [16, block] (overwritten), into its place in a panel. `stride`:
  /// floats from one channel to the next.
  void (*pack)(float* w, int64_t stride, int block, std::byte* to);
  void (*multiply)(const Int8Tile& tile);
};

extern const Int8Ops kInt8OpsPortable;
extern const Int8Ops kInt8OpsAvx2;    // only where the processor is x86-64; the same below
extern const Int8Ops kInt8OpsAvx512;  // with VNNI

const Int8Ops& choose_int8_ops(const CpuFeatures& features);

}  // namespace winnow
