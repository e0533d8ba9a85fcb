// Rotated int8 in plain loops, which compilers turn into whatever vectors they may use.
#define WINNOW_VECTOR_BYTES 16
#include "kernels/cpu/int8_ops.h"

namespace winnow {
namespace {

#include "kernels/cpu/int8_inl.h"

constexpr int kTileRows = 4;
constexpr int kLevels = 127;
constexpr int kZero = kLevels + 1;

void pack(float* w, int64_t stride, int block, std::byte* to) {
  // Nothing is started from: the zero point is taken off the activations' codes as they are read.
  pack_block<kLevels>(w, stride, block, to, [](std::byte* /*window*/, int /*n_codes*/) {});
}

void multiply(const Int8Tile& tile) {
  float total[kTileRows][kPanelChannels] = {};
  for (int r = 0; tile.add && r < kTileRows; ++r)
    __builtin_memcpy(total[r], tile.y + r * tile.stride, sizeof(total[r]));
  const uint8_t* a = tile.codes;
  const float* a_scale = tile.scales;
  const auto* w = reinterpret_cast<const int8_t*>(tile.panel);
  for (int64_t b = 0; b < tile.n_blocks; ++b) {
    int32_t sum[kTileRows][kPanelChannels] = {};
    for (int window = 0; window < tile.block / kWindowInputs; ++window) {
      for (int step = 0; step < 4; ++step, w += 4 * kPanelChannels) {
        for (int r = 0; r < kTileRows; ++r, a += 4) {
          for (int c = 0; c < kPanelChannels; ++c) {
            for (int k = 0; k < 4; ++k) sum[r][c] += (a[k] - kZero) * w[4 * c + k];
          }
        }
      }
      w += 64;
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

const Int8Ops kInt8OpsPortable = {"plain int8", kTileRows, quantise_row<kTileRows, kLevels>, pack, multiply};

}  // namespace winnow
