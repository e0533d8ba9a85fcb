// Rotated int8 with AVX-512 VNNI: vpdpbusd adds four products into 32 bits, so codes have all of 8 bits.
// One vector holds the 16 channels of a panel; 24 rows of sums hide its latency.
#define WINNOW_VECTOR_BYTES 64
#include <immintrin.h>

#include "kernels/cpu/int8_ops.h"

namespace winnow {
namespace {

#include "kernels/cpu/int8_inl.h"

constexpr int kTileRows = 24;
constexpr int kLevels = 127;

void pack(float* w, int64_t stride, int block, std::byte* to) {
  pack_block<kLevels>(w, stride, block, to, [](std::byte* window, int n_codes) {
    const __m512i zero_point = _mm512_set1_epi8(static_cast<char>(kLevels + 1));
    __m512i sum = _mm512_setzero_si512();
    for (int step = 0; step < 4; ++step) {
      sum = _mm512_dpbusd_epi32(sum, zero_point, _mm512_loadu_si512(window + step * 64));
    }
    _mm512_storeu_si512(window + n_codes, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
  });
}

void multiply(const Int8Tile& tile) {
  constexpr int kWindowBytes = kPanelChannels * kWindowInputs + 64;
  __m512 total[kTileRows] = {};
  for (int r = 0; tile.add && r < kTileRows; ++r) total[r] = _mm512_loadu_ps(tile.y + r * tile.stride);
  const uint8_t* a = tile.codes;
  const float* a_scale = tile.scales;
  const std::byte* w = tile.panel;
  const int n_windows = tile.block / kWindowInputs;
  for (int64_t b = 0; b < tile.n_blocks; ++b) {
    __m512i start = _mm512_setzero_si512();
    for (int window = 0; window < n_windows; ++window) {
      start = _mm512_add_epi32(start, _mm512_loadu_si512(w + window * kWindowBytes + 256));
    }
    __m512i sums[kTileRows];
#pragma GCC unroll 24
    for (int r = 0; r < kTileRows; ++r) sums[r] = start;
    for (int window = 0; window < n_windows; ++window, w += kWindowBytes) {
#pragma GCC unroll 4
      for (int step = 0; step < 4; ++step, a += kTileRows * 4) {
        const __m512i weights = _mm512_loadu_si512(w + step * 64);
#pragma GCC unroll 24
        for (int r = 0; r < kTileRows; ++r) {
          int32_t four;
          __builtin_memcpy(&four, a + r * 4, 4);
          sums[r] = _mm512_dpbusd_epi32(sums[r], _mm512_set1_epi32(four), weights);
        }
      }
    }
    const __m512 scale = _mm512_loadu_ps(w);
    w += kPanelChannels * sizeof(float);
#pragma GCC unroll 24
    for (int r = 0; r < kTileRows; ++r) {
      const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(a_scale[r]));
      total[r] = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(0xffff, sums[r]), both, total[r]);
    }
    a_scale += kTileRows;
  }
  for (int r = 0; r < kTileRows; ++r) _mm512_storeu_ps(tile.y + r * tile.stride, total[r]);
}

}  // namespace

const Int8Ops kInt8OpsAvx512 = {"int8", kTileRows, quantise_row<kTileRows, kLevels>, pack, multiply};

}  // namespace winnow
