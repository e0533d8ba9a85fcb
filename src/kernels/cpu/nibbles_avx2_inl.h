// Parts of ggml's block formats in AVX2. Included inside an anonymous namespace.

inline float load_half(const std::byte* from) {
  uint16_t bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return _cvtsh_ss(bits);
}

inline __m256i load_bytes(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

/// 16 bytes of two 4-bit codes each: the low halves are values 0..15, the high ones 16..31.
inline __m256i split_nibbles(const std::byte* from) {
  const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m256i spread = _mm256_inserti128_si256(_mm256_castsi128_si256(both), _mm_srli_epi16(both, 4), 1);
  return _mm256_and_si256(spread, _mm256_set1_epi8(15));
}

/// 16 in each byte whose bit of the 32 at `from` is set: the fifth bit of a code.
inline __m256i fifth_bits(const std::byte* from) {
  int32_t bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ULL));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), byte_of);
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit_of), bit_of);
  return _mm256_and_si256(set, _mm256_set1_epi8(16));
}

// Q6_K: 256 values a block: low four bits [128], high two bits [64], scales of 16 values [16], scale of all.
constexpr int kQ6Scales = 192;
constexpr int kQ6D = 208;
constexpr int kQ6Bytes = 210;

/// Codes 0..63 of values [32 * part, 32 * part + 32) of a Q6_K block.
inline __m256i q6_codes(const std::byte* block, int part) {
  const int half = part / 4;
  const int quarter = part % 4;
  const __m256i low = load_bytes(block + half * 64 + quarter % 2 * 32);
  const __m256i high = load_bytes(block + 128 + half * 32);
  const __m128i low_shift = _mm_cvtsi32_si128(quarter / 2 * 4);
  const __m128i high_shift = _mm_cvtsi32_si128(quarter * 2);
  const __m256i low_bits = _mm256_and_si256(_mm256_srl_epi16(low, low_shift), _mm256_set1_epi8(15));
  const __m256i high_bits = _mm256_and_si256(_mm256_srl_epi16(high, high_shift), _mm256_set1_epi8(3));
  return _mm256_or_si256(low_bits, _mm256_slli_epi16(high_bits, 4));
}
