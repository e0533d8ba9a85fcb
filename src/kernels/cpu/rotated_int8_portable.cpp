// Rotated int8 in plain loops, which compilers turn into whatever vectors they may use.
//
// A panel's entry for a block of inputs: codes [block / 4, 16, 4] s8, scales [16] f32. The zero point is taken off the
// activations' codes as they are read.
#define WINNOW_VECTOR_BYTES 16
#include "kernels/cpu/int8_ops.h"

namespace winnow {
namespace {

#include "kernels/cpu/rotated_int8_inl.h"

constexpr int kTileRows = 4;
constexpr int kPanelChannels = 16;
constexpr int kStepBytes = kPanelChannels * 4;

Int8Layout layout(Type /*type*/, int64_t n_in) {
  const int block = rotated_block(n_in);
  return {block, static_cast<size_t>(block / 4) * kStepBytes + kPanelChannels * sizeof(float), 0};
}

void quantise(const Int8Row& row) {
  alignas(64) uint32_t words[kMaxBlock / 4];
  uint8_t* codes = row.codes + row.row * 4;
  float* scales = row.scales + row.row;
  for (int64_t begin = 0; begin < row.n; begin += row.group, scales += kTileRows) {
    *scales = quantise_block(row.x + begin, row.group, words);
    for (int i = 0; i < row.group / 4; ++i, codes += kTileRows * 4) __builtin_memcpy(codes, words + i, 4);
  }
}

void pack(const Int8Source& from, const Int8Layout& layout, std::byte* to) {
  uint32_t words[kMaxPiece / 4];
  float scales[kMaxPiece / kMinBlock];
  const int n_steps = layout.group / 4;
  const int piece = piece_values(from.type, layout.group);
  for (int64_t begin = 0; begin < from.n_in; begin += piece) {
    for (int channel = 0; channel < kPanelChannels; ++channel) {
      round_piece(from, channel, begin, layout.group, words, scales);
      for (int part = 0; part < piece / layout.group; ++part) {
        std::byte* entry = to + static_cast<size_t>(part) * layout.group_bytes;
        for (int step = 0; step < n_steps; ++step) {
          __builtin_memcpy(entry + step * kStepBytes + channel * 4, words + part * n_steps + step, 4);
        }
        __builtin_memcpy(entry + n_steps * kStepBytes + channel * 4, scales + part, 4);
      }
    }
    to += static_cast<size_t>(piece / layout.group) * layout.group_bytes;
  }
}

void multiply(const Int8Tile& tile) {
  float total[kTileRows][kPanelChannels] = {};
  const uint8_t* a = tile.codes;
  const float* a_scale = tile.scales;
  const auto* w = reinterpret_cast<const int8_t*>(tile.panel);
  for (int64_t g = 0; g < tile.n_groups; ++g) {
    int32_t sum[kTileRows][kPanelChannels] = {};
    for (int step = 0; step < tile.layout.group / 4; ++step, w += kStepBytes) {
      for (int r = 0; r < kTileRows; ++r, a += 4) {
        for (int c = 0; c < kPanelChannels; ++c) {
          for (int k = 0; k < 4; ++k) sum[r][c] += (a[k] - kZeroPoint) * w[4 * c + k];
        }
      }
    }
    float w_scale[kPanelChannels];
    __builtin_memcpy(w_scale, w, sizeof(w_scale));
    w += sizeof(w_scale);
    for (int r = 0; r < kTileRows; ++r) {
      for (int c = 0; c < kPanelChannels; ++c) {
        total[r][c] += static_cast<float>(sum[r][c]) * w_scale[c] * a_scale[r];
      }
    }
    a_scale += kTileRows;
  }
  for (int r = 0; r < kTileRows; ++r) {
    float* y = tile.y + r * tile.stride;
    for (int c = 0; c < kPanelChannels; ++c) y[c] = total[r][c] + (tile.add ? y[c] : 0.0F);
  }
}

}  // namespace

const Int8Ops kRotatedInt8Portable = {.name = "int8 rotated, plain loops",
                                      .tile_rows = kTileRows,
                                      .panel_channels = kPanelChannels,
                                      .scale_floats = 1,
                                      .span_inputs = 1024,  // 17 KB of a panel
                                      .piece_codes = 192 << 10,
                                      .layout = layout,
                                      .quantise = quantise,
                                      .pack = pack,
                                      .multiply = multiply};

}  // namespace winnow
