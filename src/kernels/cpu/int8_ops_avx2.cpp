// Rotated int8 without VNNI. vpmaddubsw adds two 8-bit products into 16 bits; four of its results are added up there
// before they are widened, which is 2.5 instructions for 32 products where widening each takes 3.
//
// Codes of 7 bits make that exact: a window's 16-bit lane holds eight products of signed codes, at most 8 * 63 * 63 =
// 31752. The unsigned form (code + 64) passes the 16 bits, but only on the way: sums wrap around, and the start value,
// -64 times the sum of the lane's weights, brings them back. vpmaddubsw itself adds two products, at most 2 * 127 * 63,
// and so never saturates.
//
// Zen 3, one core: 200 GOP/s of about 230 that these instructions allow; oneDNN's u8 * s8 reaches 190 there, and its
// pairs saturate with 8-bit codes.
#define WINNOW_VECTOR_BYTES 32
#include <immintrin.h>

#include "kernels/cpu/int8_ops.h"

namespace winnow {
namespace {

#include "kernels/cpu/int8_inl.h"

constexpr int kTileRows = 6;  // 6 rows x 2 vectors of sums, two of weights, one of activations, one product: 16
constexpr int kLevels = 63;
constexpr int kShift = 6;  // the zero point is 1 << kShift

// Compilers like to add the four products of a window in another order, which needs 30 registers more than there are.
#define WINNOW_KEEP_ORDER(value) __asm__("" : "+x"(value))

inline __m256i load_bytes(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

void pack(float* w, int64_t stride, int block, std::byte* to) {
  pack_block<kLevels>(w, stride, block, to, [](std::byte* window, int n_codes) {
    const __m256i ones = _mm256_set1_epi8(1);
    for (int half = 0; half < 64; half += 32) {
      __m256i sum = _mm256_setzero_si256();
      for (int step = 0; step < 4; ++step) {
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(ones, load_bytes(window + step * 64 + half)));
      }
      const __m256i start = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(sum, kShift));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(window + n_codes + half), start);
    }
  });
}

// One window: 16 inputs of 6 rows and 16 channels, added to sums [6, 2] in 32 bits.
inline void multiply_window(const uint8_t* a, const std::byte* w, __m256i* sums) {
  __m256i lane[kTileRows][2];
#pragma GCC unroll 6
  for (int r = 0; r < kTileRows; ++r) {
    lane[r][0] = load_bytes(w + 256);
    lane[r][1] = load_bytes(w + 288);
    WINNOW_KEEP_ORDER(lane[r][0]);
    WINNOW_KEEP_ORDER(lane[r][1]);
  }
#pragma GCC unroll 4
  for (int step = 0; step < 4; ++step) {
    const __m256i w0 = load_bytes(w + step * 64);
    const __m256i w1 = load_bytes(w + step * 64 + 32);
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r) {
      int32_t four;
      __builtin_memcpy(&four, a + (step * kTileRows + r) * 4, 4);
      const __m256i x = _mm256_set1_epi32(four);
      lane[r][0] = _mm256_add_epi16(lane[r][0], _mm256_maddubs_epi16(x, w0));
      WINNOW_KEEP_ORDER(lane[r][0]);
      lane[r][1] = _mm256_add_epi16(lane[r][1], _mm256_maddubs_epi16(x, w1));
      WINNOW_KEEP_ORDER(lane[r][1]);
    }
  }
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 6
  for (int r = 0; r < kTileRows; ++r) {
    for (int half = 0; half < 2; ++half) {
      __m256i& sum = sums[r * 2 + half];
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(lane[r][half], ones));
    }
  }
  __asm__ volatile("" ::: "memory");  // sums stay in memory: all registers belong to the lanes
}

void multiply(const Int8Tile& tile) {
  constexpr int kSums = kTileRows * 2;
  constexpr int kWindowBytes = kPanelChannels * kWindowInputs + 64;
  __m256 total[kSums] = {};
  for (int i = 0; tile.add && i < kSums; ++i) total[i] = _mm256_loadu_ps(tile.y + i / 2 * tile.stride + i % 2 * 8);
  const uint8_t* a = tile.codes;
  const float* a_scale = tile.scales;
  const std::byte* w = tile.panel;
  const int n_windows = tile.block / kWindowInputs;
  for (int64_t b = 0; b < tile.n_blocks; ++b) {
    __m256i sums[kSums] = {};
    for (int window = 0; window < n_windows; ++window) {
      multiply_window(a, w, sums);
      a += static_cast<ptrdiff_t>(kTileRows) * kWindowInputs;
      w += kWindowBytes;
    }
    const __m256 scale0 = _mm256_loadu_ps(reinterpret_cast<const float*>(w));
    const __m256 scale1 = _mm256_loadu_ps(reinterpret_cast<const float*>(w) + 8);
    w += kPanelChannels * sizeof(float);
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r) {
      const __m256 scale = _mm256_set1_ps(a_scale[r]);
      __m256& t0 = total[2 * r];
      __m256& t1 = total[2 * r + 1];
      t0 = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[2 * r]), scale0), scale, t0);
      t1 = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[2 * r + 1]), scale1), scale, t1);
    }
    a_scale += kTileRows;
  }
  for (int r = 0; r < kTileRows; ++r) {
    _mm256_storeu_ps(tile.y + r * tile.stride, total[2 * r]);
    _mm256_storeu_ps(tile.y + r * tile.stride + 8, total[2 * r + 1]);
  }
}

}  // namespace

const Int8Ops kInt8OpsAvx2 = {"int8 of 7 bits", kTileRows, quantise_row<kTileRows, kLevels>, pack, multiply};

}  // namespace winnow
