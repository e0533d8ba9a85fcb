// Rotated int8 with AVX-512 VNNI: vpdpbusd adds four products into 32 bits, so codes have all of 8 bits.
// One vector holds the 16 channels of a panel; 24 rows of sums hide its latency.
#define WINNOW_VECTOR_BYTES 64
#include <immintrin.h>

#include "kernels/cpu/int8_ops.h"

namespace winnow {
namespace {

#include "kernels/cpu/rotated_int8_inl.h"

constexpr int kTileRows = 24;

void pack(const Int8Source& from, const Int8Layout& layout, std::byte* to) {
  pack_panel(from, layout, to, [](std::byte* window) {
    const __m512i zero_point = _mm512_set1_epi8(static_cast<char>(kZeroPoint));
    __m512i sum = _mm512_setzero_si512();
    for (int step = 0; step < 4; ++step) {
      sum = _mm512_dpbusd_epi32(sum, zero_point, _mm512_loadu_si512(window + step * 64));
    }
    _mm512_storeu_si512(window + kWindowCodes, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
  });
}

void multiply(const Int8Tile& tile) {
  Vec total[kTileRows] = {};
  for (int r = 0; tile.add && r < kTileRows; ++r) total[r] = load(tile.y + r * tile.stride);
  const uint8_t* a = tile.codes;
  const float* a_scale = tile.scales;
  const std::byte* w = tile.panel;
  const int n_windows = tile.layout.group / kWindowInputs;
  for (int64_t g = 0; g < tile.n_groups; ++g) {
    __m512i start = _mm512_setzero_si512();
    for (int window = 0; window < n_windows; ++window) {
      start = _mm512_add_epi32(start, _mm512_loadu_si512(w + window * kWindowBytes + kWindowCodes));
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
    const Vec scale = load(reinterpret_cast<const float*>(w));
    w += kPanelChannels * sizeof(float);
#pragma GCC unroll 24
    for (int r = 0; r < kTileRows; ++r) {
      IntVec sum;
      __builtin_memcpy(&sum, &sums[r], sizeof(sum));
      total[r] += __builtin_convertvector(sum, Vec) * (scale * a_scale[r]);
    }
    a_scale += kTileRows;
  }
  for (int r = 0; r < kTileRows; ++r) store(tile.y + r * tile.stride, total[r]);
}

}  // namespace

const Int8Ops kRotatedInt8Avx512 = {"int8 rotated, VNNI",    kTileRows, 1,       rotated_layout,
                                    quantise_row<kTileRows>, pack,      multiply};

}  // namespace winnow
