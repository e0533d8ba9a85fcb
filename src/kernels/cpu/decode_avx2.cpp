#include <immintrin.h>

#include "kernels/cpu/decode.h"

namespace winnow {
namespace {

inline float load_half(const std::byte* from) {
  uint16_t bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return _cvtsh_ss(bits);
}

// 32 codes to floats: codes[i] * scale + offset, with a scale for each half.
inline void write_32(__m256i codes, float first_scale, float second_scale, float offset, float* to) {
  alignas(32) int8_t bytes[32];
  _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), codes);
  const __m256 add = _mm256_set1_ps(offset);
  for (int i = 0; i < 32; i += 8) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + i));
    const __m256 values = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight));
    const __m256 scale = _mm256_set1_ps(i < 16 ? first_scale : second_scale);
    _mm256_storeu_ps(to + i, _mm256_fmadd_ps(values, scale, add));
  }
}

// 16 bytes of two 4-bit codes each: the low halves are values 0..15, the high ones 16..31.
inline __m256i split_nibbles(const std::byte* from) {
  const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m256i spread = _mm256_inserti128_si256(_mm256_castsi128_si256(both), _mm_srli_epi16(both, 4), 1);
  return _mm256_and_si256(spread, _mm256_set1_epi8(15));
}

// 16 in each byte whose bit of the 32 at `from` is set: the fifth bit of a code.
inline __m256i fifth_bits(const std::byte* from) {
  int32_t bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ULL));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), byte_of);
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit_of), bit_of);
  return _mm256_and_si256(set, _mm256_set1_epi8(16));
}

// The types of 32 values a block: scale d, perhaps an offset m, perhaps fifth bits, nibbles.
template <bool kOffset, bool kFifth>
void decode_32(const std::byte* from, float* to, int64_t n) {
  constexpr float kZero = kFifth ? 16 : 8;
  for (int64_t i = 0; i < n; i += 32) {
    const float d = load_half(from);
    const float offset = kOffset ? load_half(from + 2) : -kZero * d;
    from += kOffset ? 4 : 2;
    __m256i high = _mm256_setzero_si256();
    if constexpr (kFifth) {
      high = fifth_bits(from);
      from += 4;
    }
    write_32(_mm256_or_si256(split_nibbles(from), high), d, d, offset, to + i);
    from += 16;
  }
}

// 256 values a block: low four bits [128], high two bits [64], scales of 16 values [16], scale of all.
void decode_q6_k(const std::byte* from, float* to, int64_t n) {
  constexpr int kScales = 192;
  constexpr int kD = 208;
  constexpr int kBlockBytes = 210;
  const __m256i low_mask = _mm256_set1_epi8(15);
  const __m256i high_mask = _mm256_set1_epi8(0x30);
  for (int64_t i = 0; i < n; i += 256, from += kBlockBytes) {
    const float d = load_half(from + kD);
    const auto* scales = reinterpret_cast<const int8_t*>(from + kScales);
    for (int half = 0; half < 2; ++half) {
      const __m256i low0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + half * 64));
      const __m256i low1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + half * 64 + 32));
      const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 128 + half * 32));
      const __m256i lows[4] = {low0, low1, _mm256_srli_epi16(low0, 4), _mm256_srli_epi16(low1, 4)};
      const __m256i highs[4] = {_mm256_slli_epi16(high, 4), _mm256_slli_epi16(high, 2), high,
                                _mm256_srli_epi16(high, 2)};
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part) {
        const __m256i code =
            _mm256_or_si256(_mm256_and_si256(lows[part], low_mask), _mm256_and_si256(highs[part], high_mask));
        const int8_t* scale = scales + half * 8 + part * 2;
        write_32(_mm256_sub_epi8(code, _mm256_set1_epi8(32)), d * static_cast<float>(scale[0]),
                 d * static_cast<float>(scale[1]), 0, to + i + half * 128 + part * 32);
      }
    }
  }
}

void decode_f16(const std::byte* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * 2));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(eight));
  }
  for (; i < n; ++i) to[i] = load_half(from + i * 2);
}

}  // namespace

RowDecoder decoder_avx2(Type type) {
  switch (type) {
    case Type::f16:
      return decode_f16;
    case Type::q4_0:
      return decode_32<false, false>;
    case Type::q4_1:
      return decode_32<true, false>;
    case Type::q5_0:
      return decode_32<false, true>;
    case Type::q5_1:
      return decode_32<true, true>;
    case Type::q6_K:
      return decode_q6_k;
    default:
      return nullptr;
  }
}

}  // namespace winnow
