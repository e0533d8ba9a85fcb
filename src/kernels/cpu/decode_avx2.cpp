#include <immintrin.h>

#include "kernels/cpu/decode.h"

namespace winnow {
namespace {

#include "kernels/cpu/nibbles_avx2_inl.h"

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

void decode_q6_k(const std::byte* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; i += 256, from += kQ6Bytes) {
    const float d = load_half(from + kQ6D);
    const auto* scales = reinterpret_cast<const int8_t*>(from + kQ6Scales);
    for (int part = 0; part < 8; ++part) {
      const __m256i codes = _mm256_sub_epi8(q6_codes(from, part), _mm256_set1_epi8(32));
      write_32(codes, d * static_cast<float>(scales[2 * part]), d * static_cast<float>(scales[2 * part + 1]), 0,
               to + i + part * 32);
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

void decode_row_avx2(Type type, const std::byte* from, float* to, int64_t n) {
  switch (type) {
    case Type::f16:
      return decode_f16(from, to, n);
    case Type::q4_0:
      return decode_32<false, false>(from, to, n);
    case Type::q4_1:
      return decode_32<true, false>(from, to, n);
    case Type::q5_0:
      return decode_32<false, true>(from, to, n);
    case Type::q5_1:
      return decode_32<true, true>(from, to, n);
    case Type::q6_K:
      return decode_q6_k(from, to, n);
    default:
      return decode_row(type, from, to, n);
  }
}

}  // namespace winnow
