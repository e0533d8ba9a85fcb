// Rotated int8 with AVX-512 VNNI: vpdpbusd adds four products into 32 bits, so codes have all of 8 bits.
//
// Sums of 6 rows x 32 channels: 12 vectors hide vpdpbusd's latency, and the 12 of float32 totals stay in registers
// too, so that the end of a block (convert, scale, add) costs 4 % of a product and spills nothing.
//
// Zen 5 at 4.2 GHz, one core: two vpdpbusd a cycle are 1075 GOP/s. This reaches 990 where all lies in the first-level
// cache, 920 to 960 over a whole product.
//
//   activations: codes [n_in / block, 6, block] u8
//   a panel's entry for a block of inputs: codes [block / 4, 32, 4] s8, what sums start from [32] i32, scales [32] f32
#define WINNOW_VECTOR_BYTES 64
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's own "undefined" vectors
#endif
#include <immintrin.h>

#include "kernels/cpu/int8_ops.h"

namespace winnow {
namespace {

#include "kernels/cpu/rotated_int8_inl.h"

constexpr int kTileRows = 6;
constexpr int kPanelChannels = 32;
constexpr int kVectorBytes = 64;
constexpr int kStepBytes = 2 * kVectorBytes;

Int8Layout layout(Type /*type*/, int64_t n_in) {
  const int block = rotated_block(n_in);
  return {block, static_cast<size_t>(block / 4 + 2) * kStepBytes, 0};
}

void quantise(const Int8Row& row) {
  alignas(64) uint32_t words[kMaxBlock / 4];
  const auto block = static_cast<size_t>(row.group);
  uint8_t* codes = row.codes + static_cast<size_t>(row.row) * block;
  float* scales = row.scales + row.row;
  for (int64_t begin = 0; begin < row.n; begin += row.group, codes += kTileRows * block, scales += kTileRows) {
    *scales = quantise_block(row.x + begin, row.group, words);
    __builtin_memcpy(codes, words, block);
  }
}

/// Words of 16 x 16: v[i][k] becomes v[k][i].
inline void transpose(__m512i* v) {
  __m512i t[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // Quarter q of v[4 * i + k] now is column 4 * q + k of rows 4 * i to 4 * i + 3.
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    constexpr int kEven = 0x88;
    constexpr int kOdd = 0xdd;
    const __m512i a = _mm512_shuffle_i32x4(v[k], v[4 + k], kEven);
    const __m512i b = _mm512_shuffle_i32x4(v[8 + k], v[12 + k], kEven);
    const __m512i c = _mm512_shuffle_i32x4(v[k], v[4 + k], kOdd);
    const __m512i d = _mm512_shuffle_i32x4(v[8 + k], v[12 + k], kOdd);
    v[k] = _mm512_shuffle_i32x4(a, b, kEven);
    v[4 + k] = _mm512_shuffle_i32x4(c, d, kEven);
    v[8 + k] = _mm512_shuffle_i32x4(a, b, kOdd);
    v[12 + k] = _mm512_shuffle_i32x4(c, d, kOdd);
  }
}

/// 16 channels' codes of a block, in words and transposed: what is written to their half of an entry.
struct HalfBlock {
  alignas(64) uint32_t words[kMaxBlock / 4][kLanes];
  alignas(64) float scales[kLanes];
};

inline void transpose_words(const uint32_t* from, int64_t stride, int n_steps, HalfBlock& to) {
  if (n_steps % kLanes != 0) {  // narrow weights
    for (int step = 0; step < n_steps; ++step) {
      for (int c = 0; c < kLanes; ++c) to.words[step][c] = from[c * stride + step];
    }
    return;
  }
  for (int step = 0; step < n_steps; step += kLanes) {
    __m512i v[kLanes];
#pragma GCC unroll 16
    for (int c = 0; c < kLanes; ++c) v[c] = _mm512_loadu_si512(from + c * stride + step);
    transpose(v);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) _mm512_store_si512(to.words[step + i], v[i]);
  }
}

inline void write_half(const HalfBlock& half, int n_steps, std::byte* to) {
  // What sums start from takes off what the activations' zero point adds.
  const __m512i zero_point = _mm512_set1_epi8(static_cast<char>(kZeroPoint));
  __m512i sum = _mm512_setzero_si512();
  for (int step = 0; step < n_steps; ++step, to += kStepBytes) {
    const __m512i codes = _mm512_load_si512(half.words[step]);
    sum = _mm512_dpbusd_epi32(sum, zero_point, codes);
    _mm512_storeu_si512(to, codes);
  }
  _mm512_storeu_si512(to, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
  _mm512_storeu_ps(to + kStepBytes, _mm512_load_ps(half.scales));
}

void pack(const Int8Source& from, const Int8Layout& layout, std::byte* to) {
  constexpr int kPieceWords = kMaxPiece / 4;
  alignas(64) uint32_t words[kLanes][kPieceWords];
  HalfBlock half;
  float scales[kLanes][kMaxPiece / kMinBlock];
  const int n_steps = layout.group / 4;
  const int piece = piece_values(from.type, layout.group);
  for (int64_t begin = 0; begin < from.n_in; begin += piece) {
    for (int first = 0; first < kPanelChannels; first += kLanes) {
      for (int c = 0; c < kLanes; ++c) round_piece(from, first + c, begin, layout.group, words[c], scales[c]);
      for (int i = 0; i < piece / layout.group; ++i) {
        transpose_words(words[0] + i * n_steps, kPieceWords, n_steps, half);
        for (int c = 0; c < kLanes; ++c) half.scales[c] = scales[c][i];
        write_half(half, n_steps, to + static_cast<size_t>(i) * layout.group_bytes + first * 4);
      }
    }
    to += static_cast<size_t>(piece / layout.group) * layout.group_bytes;
  }
}

inline void fetch(const std::byte* from, size_t n_bytes) {
  for (size_t i = 0; i < n_bytes; i += kVectorBytes) _mm_prefetch(from + i, _MM_HINT_T1);
}

// Left to itself the compiler gives the sums of a step new registers, and runs out of them.
#define WINNOW_KEEP_PLACE(value) __asm__("" : "+v"(value))

template <int kBlock>
void multiply_blocks(const Int8Tile& tile) {
  constexpr int kSteps = kBlock / 4;
  __m512 total[kTileRows][2];
#pragma GCC unroll 6
  for (auto& row : total) row[0] = row[1] = _mm512_setzero_ps();
  const uint8_t* a = tile.codes;
  const float* a_scale = tile.scales;
  const std::byte* w = tile.panel;
  for (int64_t g = 0; g < tile.n_groups; ++g, a += kTileRows * kBlock, a_scale += kTileRows, w += 2 * kStepBytes) {
    __m512i sum[kTileRows][2];
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r) {
      sum[r][0] = _mm512_loadu_si512(w + kSteps * kStepBytes);
      sum[r][1] = _mm512_loadu_si512(w + kSteps * kStepBytes + kVectorBytes);
      WINNOW_KEEP_PLACE(sum[r][0]);
      WINNOW_KEEP_PLACE(sum[r][1]);
    }
#pragma GCC unroll 4
    for (int step = 0; step < kSteps; ++step, w += kStepBytes) {
      const __m512i w0 = _mm512_loadu_si512(w);
      const __m512i w1 = _mm512_loadu_si512(w + kVectorBytes);
#pragma GCC unroll 6
      for (int r = 0; r < kTileRows; ++r) {
        int32_t four;
        __builtin_memcpy(&four, a + r * kBlock + step * 4, 4);
        const __m512i x = _mm512_set1_epi32(four);
        sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], x, w0);
        WINNOW_KEEP_PLACE(sum[r][0]);
        sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], x, w1);
        WINNOW_KEEP_PLACE(sum[r][1]);
      }
    }
    const __m512 scale0 = _mm512_loadu_ps(w + kStepBytes);
    const __m512 scale1 = _mm512_loadu_ps(w + kStepBytes + kVectorBytes);
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r) {
      const __m512 scale = _mm512_set1_ps(a_scale[r]);
      total[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][0]), _mm512_mul_ps(scale, scale0), total[r][0]);
      total[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][1]), _mm512_mul_ps(scale, scale1), total[r][1]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kTileRows; ++r) {
    float* y = tile.y + r * tile.stride;
    if (tile.add) {
      total[r][0] = _mm512_add_ps(total[r][0], _mm512_loadu_ps(y));
      total[r][1] = _mm512_add_ps(total[r][1], _mm512_loadu_ps(y + kLanes));
    }
    _mm512_storeu_ps(y, total[r][0]);
    _mm512_storeu_ps(y + kLanes, total[r][1]);
  }
}

void multiply(const Int8Tile& tile) {
  fetch(tile.ahead, tile.ahead_bytes);
  switch (tile.layout.group) {
    case 256:
      return multiply_blocks<256>(tile);
    case 128:
      return multiply_blocks<128>(tile);
    case 64:
      return multiply_blocks<64>(tile);
    case 32:
      return multiply_blocks<32>(tile);
    default:
      return multiply_blocks<16>(tile);
  }
}

}  // namespace

const Int8Ops kRotatedInt8Avx512 = {.name = "int8 rotated, VNNI",
                                    .tile_rows = kTileRows,
                                    .panel_channels = kPanelChannels,
                                    .scale_floats = 1,
                                    .span_inputs = 768,  // 26 KB of a panel
                                    .piece_codes = 400 << 10,
                                    .layout = layout,
                                    .quantise = quantise,
                                    .pack = pack,
                                    .multiply = multiply};

}  // namespace winnow
