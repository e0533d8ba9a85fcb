// Dot products of blocks of 256 weights: Q4_K, Q5_K, Q6_K.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC's own "undefined" vectors
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include "kernels/cpu/row_dot.h"

namespace winnow {
namespace {

#include "kernels/cpu/row_dot_avx512_inl.h"

constexpr int kBlock = 256;

// The heads of four Q4_K or Q5_K blocks: d, the minima's d, and eight scales and eight minima of six bits each. The low
// four of each stand in a byte's low six bits; the others have four bits in the last four bytes and two above those of
// the first eight. Rows 0 and 1 share the first vector of each, rows 2 and 3 the second.
struct Heads {
  __m512 scale[2];
  __m512 minimum[2];
};

inline __m512i four_times(__m128i v) {
  return _mm512_broadcast_i32x4(v);
}

inline Heads unpack_heads(const Rows& w) {
  const auto load = [&w](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(w[r])); };
  __m512i bytes = _mm512_castsi128_si512(load(0));
  bytes = _mm512_inserti32x4(bytes, load(1), 1);
  bytes = _mm512_inserti32x4(bytes, load(2), 2);
  bytes = _mm512_inserti32x4(bytes, load(3), 3);
  const __m512i low_at = four_times(_mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
  const __m512i low_shift = four_times(_mm_setr_epi32(0, 0, 0, 4));
  const __m512i low_mask = four_times(_mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
  const __m512i high_at = four_times(_mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
  const __m512i low = _mm512_and_si512(_mm512_srlv_epi32(_mm512_shuffle_epi8(bytes, low_at), low_shift), low_mask);
  const __m512i high = _mm512_srli_epi32(_mm512_shuffle_epi8(bytes, high_at), 2);
  const __m512i all = _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(0x30), 0xf8);  // low | (high & mask)
  const __m512i sorted = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), all);
  const __m512i row = _mm512_set_epi64(0x0018001800180018, 0x0018001800180018, 0x0010001000100010, 0x0010001000100010,
                                       0x0008000800080008, 0x0008000800080008, 0, 0);  // 8 words each of 0, 8, 16, 24
  const __m512i d = _mm512_permutexvar_epi16(row, bytes);
  const __m512i d_min = _mm512_permutexvar_epi16(_mm512_add_epi16(row, _mm512_set1_epi16(1)), bytes);
  const auto times = [](__m128i six_bits, __m256i halves) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(six_bits)), _mm512_cvtph_ps(halves));
  };
  return {{times(_mm512_castsi512_si128(sorted), _mm512_castsi512_si256(d)),
           times(_mm512_extracti32x4_epi32(sorted, 1), _mm512_extracti64x4_epi64(d, 1))},
          {times(_mm512_extracti32x4_epi32(sorted, 2), _mm512_castsi512_si256(d_min)),
           times(_mm512_extracti32x4_epi32(sorted, 3), _mm512_extracti64x4_epi64(d_min, 1))}};
}

/// Lanes 0 to 7 `first`, the others `second`.
inline __m512i halves(int first, int second) {
  return _mm512_inserti64x4(_mm512_set1_epi32(first), _mm256_set1_epi32(second), 1);
}

// Q4_K: d, minimum's d, scales [12], nibbles [128]; Q5_K has fifth bits [32] before the nibbles. 64 bytes of nibbles
// hold the groups 0 and 2 of four below, 1 and 3 above.
template <bool kFifth>
void dot_k(const WeightRows& weights, const std::byte* row, float* y) {
  constexpr int kNibbles = kFifth ? 48 : 16;
  const Activations x = activations_of(row, weights.n_in);
  const __m512i low_mask = _mm512_set1_epi8(15);
  Rows w(weights);
  __m512 sum[kDotRows] = {};
  __m512 offset[2] = {};
  for (int64_t i = 0; i < weights.n_in; i += kBlock) {
    prefetch_next(weights, i / kBlock, kNibbles + 128);
    Heads heads = unpack_heads(w);
    const __m512 sums = _mm512_broadcast_f32x8(_mm256_loadu_ps(x.sums + i / kGroup));
    const __m512 scales = _mm512_broadcast_f32x8(_mm256_loadu_ps(x.scales + i / kGroup));
    for (int pair = 0; pair < 2; ++pair) {
      offset[pair] = _mm512_fmadd_ps(heads.minimum[pair], sums, offset[pair]);
      heads.scale[pair] = _mm512_mul_ps(heads.scale[pair], scales);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512i x0 = load_bytes(x.codes + i + half * 128);
      const __m512i x1 = load_bytes(x.codes + i + half * 128 + 64);
      const __m512i even = _mm512_shuffle_i64x2(x0, x1, 0x44);
      const __m512i odd = _mm512_shuffle_i64x2(x0, x1, 0xee);
#pragma GCC unroll 4
      for (int r = 0; r < kDotRows; ++r) {
        const __m512i nibbles = load_bytes(w[r] + kNibbles + half * 64);
        __m512i first = _mm512_and_si512(nibbles, low_mask);
        __m512i second = _mm512_and_si512(_mm512_srli_epi16(nibbles, 4), low_mask);
        if constexpr (kFifth) {
          const __m512i fifth = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w[r] + 16)));
          const __m512i bit = _mm512_set1_epi8(16);
          // Group g's bit, g of the byte, is turned to where 16 stands; 0xf8: a | (b & c).
          const auto turned = [&](int g) {
            return _mm512_rolv_epi64(
                fifth, _mm512_inserti64x4(_mm512_set1_epi64((68 - g) % 64), _mm256_set1_epi64x((66 - g) % 64), 1));
          };
          first = _mm512_ternarylogic_epi32(first, turned(4 * half), bit, 0xf8);
          second = _mm512_ternarylogic_epi32(second, turned(4 * half + 1), bit, 0xf8);
        }
        const int at = r % 2 * 8 + half * 4;
        const __m512 scale = heads.scale[r / 2];
        sum[r] = add_products(sum[r], first, even, __m512i{}, _mm512_permutexvar_ps(halves(at, at + 2), scale));
        sum[r] = add_products(sum[r], second, odd, __m512i{}, _mm512_permutexvar_ps(halves(at + 1, at + 3), scale));
      }
    }
    w.advance(kNibbles + 128);
  }
  const __m256 total[kDotRows] = {_mm256_sub_ps(fold(sum[0]), _mm512_castps512_ps256(offset[0])),
                                  _mm256_sub_ps(fold(sum[1]), _mm512_extractf32x8_ps(offset[0], 1)),
                                  _mm256_sub_ps(fold(sum[2]), _mm512_castps512_ps256(offset[1])),
                                  _mm256_sub_ps(fold(sum[3]), _mm512_extractf32x8_ps(offset[1], 1))};
  _mm_storeu_ps(y, sum_lanes(total));
}

inline float half_at(const std::byte* from) {
  uint16_t bits = 0;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return _cvtsh_ss(bits);
}

// Q6_K: low nibbles [128], high bits [64], scales of 16 values s8 [16], d. 64 bytes of nibbles hold 64 values below and
// the next 64 above; 32 bytes of high bits hold those of 128 values, two bits for each 32. Values are codes less 32.
void dot_q6(const WeightRows& weights, const std::byte* row, float* y) {
  constexpr int kBytes = 210;
  const Activations x = activations_of(row, weights.n_in);
  const __m512i low_mask = _mm512_set1_epi8(15);
  const __m512i high_mask = _mm512_set1_epi8(0x30);
  const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  Rows w(weights);
  __m512 sum[kDotRows] = {};
  for (int64_t i = 0; i < weights.n_in; i += kBlock) {
    prefetch_next(weights, i / kBlock, kBytes);
    const __m512 x_scales =
        _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(x.scales + i / kGroup)));
    __m512 scale[kDotRows];
#pragma GCC unroll 4
    for (int r = 0; r < kDotRows; ++r) {
      const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w[r] + 192));
      scale[r] = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), x_scales),
                               _mm512_set1_ps(half_at(w[r] + 208)));
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512i x0 = load_bytes(x.codes + i + half * 128);
      const __m512i x1 = load_bytes(x.codes + i + half * 128 + 64);
      // What 32 too much in each weight gives, in the lanes where it arises.
      const __m512i start0 = _mm512_sub_epi32(__m512i{}, _mm512_dpbusd_epi32(__m512i{}, _mm512_set1_epi8(32), x0));
      const __m512i start1 = _mm512_sub_epi32(__m512i{}, _mm512_dpbusd_epi32(__m512i{}, _mm512_set1_epi8(32), x1));
#pragma GCC unroll 4
      for (int r = 0; r < kDotRows; ++r) {
        const __m512i nibbles = load_bytes(w[r] + half * 64);
        const __m512i high =
            _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w[r] + 128 + half * 32)));
        const __m512i high0 = _mm512_rolv_epi64(high, _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2));
        const __m512i high1 = _mm512_rolv_epi64(high, _mm512_setr_epi64(0, 0, 0, 0, 62, 62, 62, 62));
        const __m512i low0 = _mm512_and_si512(nibbles, low_mask);
        const __m512i low1 = _mm512_and_si512(_mm512_srli_epi16(nibbles, 4), low_mask);
        const __m512i first = _mm512_ternarylogic_epi32(low0, high0, high_mask, 0xf8);  // low | (high & mask)
        const __m512i second = _mm512_ternarylogic_epi32(low1, high1, high_mask, 0xf8);
        const int at = half * 8;
        const auto four = [&](int from) {
          return _mm512_permutexvar_ps(
              _mm512_setr_epi32(from, from, from, from, from + 1, from + 1, from + 1, from + 1, from + 2, from + 2,
                                from + 2, from + 2, from + 3, from + 3, from + 3, from + 3),
              scale[r]);
        };
        sum[r] = add_products(sum[r], first, x0, start0, four(at));
        sum[r] = add_products(sum[r], second, x1, start1, four(at + 4));
      }
    }
    w.advance(kBytes);
  }
  const __m256 total[kDotRows] = {fold(sum[0]), fold(sum[1]), fold(sum[2]), fold(sum[3])};
  _mm_storeu_ps(y, sum_lanes(total));
}

}  // namespace

RowDots row_dots_avx512(Type type) {
  if (type == Type::q4_K) return dot_k<false>;
  if (type == Type::q5_K) return dot_k<true>;
  if (type == Type::q6_K) return dot_q6;
  return row_dots_small_avx512(type);
}

}  // namespace winnow
