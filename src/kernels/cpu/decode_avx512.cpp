// The K types that large models are stored in, decoded in vectors of 16.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's own "undefined" vectors
#endif
#include <immintrin.h>

#include "kernels/cpu/decode.h"

namespace winnow {
namespace {

#include "kernels/cpu/nibbles_avx2_inl.h"

inline __m512 to_floats(__m128i codes) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
}

/// The scales and minimums of a Q4_K block's eight groups, six bits each, times their factors.
inline void read_scales(const std::byte* block, float* scales, float* minimums) {
  constexpr uint32_t kLowFour = 0x0f0f0f0f;
  constexpr uint32_t kLowSix = 0x3f3f3f3f;
  constexpr uint32_t kHighTwo = 0x30303030;
  uint32_t words[3];
  __builtin_memcpy(words, block + 4, sizeof(words));
  const auto widen = [](uint32_t first, uint32_t second, float factor, float* to) {
    const __m128i bytes = _mm_set_epi32(0, 0, static_cast<int32_t>(second), static_cast<int32_t>(first));
    const __m256 values = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
    _mm256_storeu_ps(to, _mm256_mul_ps(values, _mm256_set1_ps(factor)));
  };
  widen(words[0] & kLowSix, (words[2] & kLowFour) | (words[0] >> 2 & kHighTwo), load_half(block), scales);
  widen(words[1] & kLowSix, (words[2] >> 4 & kLowFour) | (words[1] >> 2 & kHighTwo), load_half(block + 2), minimums);
}

void decode_q4_k(const std::byte* from, float* to, int64_t n) {
  constexpr int kNibbles = 16;
  float scales[8];
  float minimums[8];
  const __m128i low = _mm_set1_epi8(15);
  for (int64_t i = 0; i < n; i += 256, from += kNibbles + 128, to += 256) {
    read_scales(from, scales, minimums);
    for (int part = 0; part < 8; part += 2) {
      const __m512 scale0 = _mm512_set1_ps(scales[part]);
      const __m512 scale1 = _mm512_set1_ps(scales[part + 1]);
      const __m512 minimum0 = _mm512_set1_ps(minimums[part]);
      const __m512 minimum1 = _mm512_set1_ps(minimums[part + 1]);
      for (int half = 0; half < 32; half += 16) {
        const auto* at = reinterpret_cast<const __m128i*>(from + kNibbles + part * 16 + half);
        const __m128i both = _mm_loadu_si128(at);
        const __m512 first = to_floats(_mm_and_si128(both, low));
        const __m512 second = to_floats(_mm_and_si128(_mm_srli_epi16(both, 4), low));
        _mm512_storeu_ps(to + part * 32 + half, _mm512_fmsub_ps(first, scale0, minimum0));
        _mm512_storeu_ps(to + part * 32 + 32 + half, _mm512_fmsub_ps(second, scale1, minimum1));
      }
    }
  }
}

void decode_q6_k(const std::byte* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; i += 256, from += kQ6Bytes, to += 256) {
    const float d = load_half(from + kQ6D);
    const auto* scales = reinterpret_cast<const int8_t*>(from + kQ6Scales);
    for (int part = 0; part < 8; ++part) {
      const __m256i codes = _mm256_sub_epi8(q6_codes(from, part), _mm256_set1_epi8(32));
      const __m512 scale0 = _mm512_set1_ps(d * static_cast<float>(scales[2 * part]));
      const __m512 scale1 = _mm512_set1_ps(d * static_cast<float>(scales[2 * part + 1]));
      _mm512_storeu_ps(to + part * 32, _mm512_mul_ps(to_floats(_mm256_castsi256_si128(codes)), scale0));
      _mm512_storeu_ps(to + part * 32 + 16, _mm512_mul_ps(to_floats(_mm256_extracti128_si256(codes, 1)), scale1));
    }
  }
}

}  // namespace

void decode_row_avx512(Type type, const std::byte* from, float* to, int64_t n) {
  switch (type) {
    case Type::q4_K:
      return decode_q4_k(from, to, n);
    case Type::q6_K:
      return decode_q6_k(from, to, n);
    default:
      return decode_row_avx2(type, from, to, n);
  }
}

}  // namespace winnow
