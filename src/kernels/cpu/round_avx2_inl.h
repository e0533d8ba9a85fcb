// Activations in 8 bits with one scale for 32, in AVX2. Included inside an anonymous namespace.

inline float largest_size(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 sign = _mm256_set1_ps(-0.0F);
  const __m256 ab = _mm256_max_ps(_mm256_andnot_ps(sign, a), _mm256_andnot_ps(sign, b));
  const __m256 cd = _mm256_max_ps(_mm256_andnot_ps(sign, c), _mm256_andnot_ps(sign, d));
  const __m256 all = _mm256_max_ps(ab, cd);
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  most = _mm_max_ss(most, _mm_movehdup_ps(most));
  return _mm_cvtss_f32(most);
}

inline int32_t sum_lanes(__m256i v) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  return _mm_cvtsi128_si32(sum);
}

/// 32 values as codes in [-127, 127], in their order.
struct Rounded {
  __m256i codes;
  float scale;
  int32_t sum;  // of the codes
};

inline Rounded round_group(const float* x) {
  constexpr float kMost = 127;
  const __m256 a = _mm256_loadu_ps(x);
  const __m256 b = _mm256_loadu_ps(x + 8);
  const __m256 c = _mm256_loadu_ps(x + 16);
  const __m256 d = _mm256_loadu_ps(x + 24);
  const float largest = largest_size(a, b, c, d);
  const __m256 inverse = _mm256_set1_ps(largest > 0 ? kMost / largest : 0.0F);
  const __m256i ia = _mm256_cvtps_epi32(_mm256_mul_ps(a, inverse));
  const __m256i ib = _mm256_cvtps_epi32(_mm256_mul_ps(b, inverse));
  const __m256i ic = _mm256_cvtps_epi32(_mm256_mul_ps(c, inverse));
  const __m256i id = _mm256_cvtps_epi32(_mm256_mul_ps(d, inverse));
  const int32_t sum = sum_lanes(_mm256_add_epi32(_mm256_add_epi32(ia, ib), _mm256_add_epi32(ic, id)));
  // Packing works inside halves of a vector: words come out as a0 b0 c0 d0 a1 b1 c1 d1.
  const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(ia, ib), _mm256_packs_epi32(ic, id));
  const __m256i codes = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  return {codes, largest / kMost, sum};
}
