// Dot products of blocks of 32 weights, two at a time: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
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

constexpr __mmask16 kSecond = 0xff00;  // lanes of the second block

/// 16 bytes of nibbles of each block: the first 16 values below, the others above.
inline __m512i unpack_nibbles(const std::byte* first, const std::byte* second) {
  const auto load = [](const std::byte* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); };
  const __m512i twice = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(load(first)), kSecond, load(second));
  const __m512i shift = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
  return _mm512_and_si512(_mm512_srlv_epi64(twice, shift), _mm512_set1_epi8(15));
}

/// A fifth bit for each of the 32 values in front of the nibbles.
inline __m512i unpack_fives(const std::byte* first, const std::byte* second) {
  uint32_t bits[2];
  __builtin_memcpy(bits, first, 4);
  __builtin_memcpy(bits + 1, second, 4);
  const __m512i low = unpack_nibbles(first + 4, second + 4);
  const __mmask64 fifth = bits[0] | uint64_t{bits[1]} << 32;
  return _mm512_mask_add_epi8(low, fifth, low, _mm512_set1_epi8(16));
}

inline __m512i unpack_bytes(const std::byte* first, const std::byte* second) {
  const auto load = [](const std::byte* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); };
  const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(load(first)), load(second), 1);
  return _mm512_xor_si512(both, _mm512_set1_epi8(-128));
}

// A block's scale is an f16; a second one follows it where the least weight is not -kLess scales. Then come the codes.
struct Q40 {
  static constexpr int kBytes = 18;
  static constexpr int kLess = 8;
  static constexpr auto kUnpack = unpack_nibbles;
};

struct Q41 {
  static constexpr int kBytes = 20;
  static constexpr int kLess = 0;
  static constexpr auto kUnpack = unpack_nibbles;
};

struct Q50 {
  static constexpr int kBytes = 22;
  static constexpr int kLess = 16;
  static constexpr auto kUnpack = unpack_fives;
};

struct Q51 {
  static constexpr int kBytes = 24;
  static constexpr int kLess = 0;
  static constexpr auto kUnpack = unpack_fives;
};

struct Q80 {
  static constexpr int kBytes = 34;
  static constexpr int kLess = 128;
  static constexpr auto kUnpack = unpack_bytes;
};

/// The f16s in front of two blocks: lanes 0 to 7 of the first one, the others of the second; in turn where each has
/// two.
template <typename Format>
inline __m512 load_heads(const std::byte* first, const std::byte* second) {
  uint32_t bits[2] = {0, 0};
  __builtin_memcpy(bits, first, Format::kLess == 0 ? 4 : 2);
  __builtin_memcpy(bits + 1, second, Format::kLess == 0 ? 4 : 2);
  const __m128i both = _mm_cvtsi64_si128(static_cast<int64_t>(bits[0] | uint64_t{bits[1]} << 32));
  const __m128i floats = _mm_castps_si128(_mm_cvtph_ps(both));
  return _mm512_castsi512_ps(
      _mm512_permutexvar_epi32(Format::kLess == 0 ? _mm512_setr_epi32(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3)
                                                  : _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2),
                               _mm512_castsi128_si512(floats)));
}

/// Two groups of activations; `second` says whether there is another one.
struct Pair {
  __m512i codes;
  __m512i start;  // what kLess too much in each weight gives, in the lanes where it arises
  __m512 scale;
  __m512 sum;  // an eighth of it in each lane
};

template <typename Format>
inline Pair load_pair(const Activations& x, int64_t group, bool second) {
  const auto spread = [&](const float* from) {
    return _mm512_mask_mov_ps(_mm512_set1_ps(from[0]), kSecond, _mm512_set1_ps(second ? from[1] : 0));
  };
  const std::byte* codes = x.codes + group * kGroup;
  Pair pair{_mm512_maskz_loadu_epi64(second ? 0xff : 0x0f, codes), __m512i{}, spread(x.scales + group), __m512{}};
  if constexpr (Format::kLess == 0) {
    pair.sum = _mm512_mul_ps(spread(x.sums + group), _mm512_set1_ps(0.125F));
  } else {
    const __m512i less = _mm512_set1_epi8(static_cast<char>(Format::kLess));
    pair.start = _mm512_sub_epi32(__m512i{}, _mm512_dpbusd_epi32(__m512i{}, less, pair.codes));
  }
  return pair;
}

template <typename Format>
void dot_small(const WeightRows& weights, const std::byte* row, float* y) {
  constexpr int kCodes = Format::kLess == 0 ? 4 : 2;
  const Activations x = activations_of(row, weights.n_in);
  const int64_t n_groups = weights.n_in / kGroup;
  Rows w(weights);
  __m512 sum[kDotRows] = {};
  for (int64_t group = 0; group < n_groups; group += 2) {
    prefetch_next(weights, group / 2, 2 * Format::kBytes);
    const bool second = group + 1 < n_groups;
    const int64_t step = second ? Format::kBytes : 0;  // an odd block is its own partner, times 0
    const Pair pair = load_pair<Format>(x, group, second);
#pragma GCC unroll 4
    for (int r = 0; r < kDotRows; ++r) {
      __m512 scale = load_heads<Format>(w[r], w[r] + step);
      if constexpr (Format::kLess == 0) {
        sum[r] = _mm512_fmadd_ps(_mm512_movehdup_ps(scale), pair.sum, sum[r]);
        scale = _mm512_moveldup_ps(scale);
      }
      const __m512i codes = Format::kUnpack(w[r] + kCodes, w[r] + kCodes + step);
      sum[r] = add_products(sum[r], codes, pair.codes, pair.start, _mm512_mul_ps(scale, pair.scale));
    }
    w.advance(2 * Format::kBytes);
  }
  const __m256 total[kDotRows] = {fold(sum[0]), fold(sum[1]), fold(sum[2]), fold(sum[3])};
  _mm_storeu_ps(y, sum_lanes(total));
}

}  // namespace

RowDots row_dots_small_avx512(Type type) {
  switch (type) {
    case Type::q4_0:
      return dot_small<Q40>;
    case Type::q4_1:
      return dot_small<Q41>;
    case Type::q5_0:
      return dot_small<Q50>;
    case Type::q5_1:
      return dot_small<Q51>;
    case Type::q8_0:
      return dot_small<Q80>;
    default:
      return nullptr;
  }
}

}  // namespace winnow
