// Rotated int8 in plain loops, which compilers turn into whatever vectors they may use.
#define WINNOW_VECTOR_BYTES 16
#include "kernels/cpu/int8_ops.h"

namespace winnow {
namespace {

#include "kernels/cpu/rotated_int8_inl.h"

constexpr int kTileRows = 4;

void pack(const Int8Source& from, const Int8Layout& layout, std::byte* to) {
  // Nothing is started from: the zero point is taken off the activations' codes as they are read.
  pack_panel(from, layout, to, [](std::byte* /*window*/) {});
}

void multiply(const Int8Tile& tile) {
  float total[kTileRows][kPanelChannels] = {};
  for (int r = 0; tile.add && r < kTileRows; ++r)
    __builtin_memcpy(total[r], tile.y + r * tile.stride, sizeof(total[r]));
  const uint8_t* a = tile.codes;
  const float* a_scale = tile.scales;
  const auto* w = reinterpret_cast<const int8_t*>(tile.panel);
  for (int64_t g = 0; g < tile.n_groups; ++g) {
    int32_t sum[kTileRows][kPanelChannels] = {};
    for (int window = 0; window < tile.layout.group / kWindowInputs; ++window) {
      for (int step = 0; step < 4; ++step, w += 4 * kPanelChannels) {
        for (int r = 0; r < kTileRows; ++r, a += 4) {
          for (int c = 0; c < kPanelChannels; ++c) {
            for (int k = 0; k < 4; ++k) sum[r][c] += (a[k] - kZeroPoint) * w[4 * c + k];
          }
        }
      }
      w += kWindowBytes - kWindowCodes;
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
  for (int r = 0; r < kTileRows; ++r) __builtin_memcpy(tile.y + r * tile.stride, total[r], sizeof(total[r]));
}

}  // namespace

const Int8Ops kRotatedInt8Portable = {"int8 rotated, plain loops", kTileRows, 1,       rotated_layout,
                                      quantise_row<kTileRows>,     pack,      multiply};

}  // namespace winnow
