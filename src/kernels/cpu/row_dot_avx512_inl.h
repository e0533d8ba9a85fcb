// What the dot products of row_dot.h have in common in AVX-512. Four rows of weights at a time share the activations'
// loads. Weights stay unsigned, as vpdpbusd wants one factor. Reading is all that should cost time: the next four rows,
// which lie right behind these, are fetched meanwhile. Included inside an anonymous namespace.

constexpr int kGroup = 32;

/// Addresses of the rows; the last one stands in for those that are missing.
struct Rows {
  explicit Rows(const WeightRows& weights) {
    for (int r = 0; r < kDotRows; ++r) {
      at[r] = weights.data + static_cast<size_t>(r < weights.n_rows ? r : weights.n_rows - 1) * weights.row_bytes;
    }
  }
  const std::byte* operator[](int r) const { return at[r]; }
  void advance(int64_t bytes) {
    for (const std::byte*& row : at) row += bytes;
  }
  const std::byte* at[kDotRows];
};

struct Activations {
  const std::byte* codes;
  const float* scales;
  const float* sums;
};

inline Activations activations_of(const std::byte* row, int64_t n) {
  const auto* scales = reinterpret_cast<const float*>(row + n);
  return {row, scales, scales + n / kGroup};
}

inline __m512i load_bytes(const std::byte* from) {
  return _mm512_loadu_si512(from);
}

/// Asks for as much of the next four rows as step `i` reads of these, `bytes` of each.
inline void prefetch_next(const WeightRows& weights, int64_t i, int64_t bytes) {
  const std::byte* next = weights.data + kDotRows * (static_cast<int64_t>(weights.row_bytes) + i * bytes);
  for (int64_t at = 0; at < kDotRows * bytes; at += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(next + at), _MM_HINT_T0);
  }
}

/// The four sums over the lanes.
inline __m128 sum_lanes(const __m256 (&v)[4]) {
  const __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  return _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1));
}

inline __m256 fold(__m512 v) {
  return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

/// sum + scale * (codes of weights times codes of activations, from `start` on)
inline __m512 add_products(__m512 sum, __m512i weights, __m512i codes, __m512i start, __m512 scale) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(start, weights, codes)), scale, sum);
}
