// Weights stay unsigned (0..31), as vpmaddubsw wants one factor; what their minima add is a product of eight floats for
// each 256 values.
#include <immintrin.h>

#include "kernels/cpu/row_dot.h"

namespace winnow {
namespace {

#include "kernels/cpu/round_avx2_inl.h"

constexpr int kGroup = 32;

inline __m256i load_bytes(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

struct Activations {
  const std::byte* codes;
  const float* scales;
  const float* sums;
};

inline Activations activations_of(const std::byte* row, int64_t n) {
  const auto* scales = reinterpret_cast<const float*>(row + n);
  return {row, scales, scales + n / kGroup};
}

inline float sum_lanes(__m256 v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// sum + scale * (codes of weights times codes of activations)
inline __m256 add_group(__m256i weights, const std::byte* activations, const float* scale, __m256 sum) {
  const __m256i pairs = _mm256_maddubs_epi16(weights, load_bytes(activations));
  const __m256 fours = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  return _mm256_fmadd_ps(fours, _mm256_broadcast_ss(scale), sum);
}

// The head of a Q4_K or Q5_K block: d, the minima's d, and eight scales and eight minima of six bits each. The low four
// of each stand in a byte's low six bits; the others have four bits in the last four bytes and two above those of the
// first eight.
inline void unpack_head(const std::byte* head, __m256& scales, __m256& minima) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(head));
  const __m128i low_at = _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m128i low_shift = _mm_setr_epi32(0, 0, 0, 4);
  const __m128i low_mask = _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f);
  const __m128i high_at = _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11);
  const __m128i low = _mm_and_si128(_mm_srlv_epi32(_mm_shuffle_epi8(bytes, low_at), low_shift), low_mask);
  const __m128i high = _mm_and_si128(_mm_srli_epi32(_mm_shuffle_epi8(bytes, high_at), 2), _mm_set1_epi8(0x30));
  const __m128i all = _mm_or_si128(low, high);
  const __m128 both = _mm_cvtph_ps(bytes);
  scales = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(all)), _mm256_broadcastss_ps(both));
  minima = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(all, all))),
                         _mm256_broadcastss_ps(_mm_movehdup_ps(both)));
}

// Q4_K: d, minimum's d, scales [12], nibbles [128]; Q5_K has fifth bits [32] before the nibbles.
template <bool kFifth>
float dot_k(const std::byte* w, const std::byte* row, int64_t n) {
  constexpr int kNibbles = kFifth ? 48 : 16;
  const Activations x = activations_of(row, n);
  const __m256i low_mask = _mm256_set1_epi8(15);
  __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  __m256 offsets = _mm256_setzero_ps();
  for (int64_t i = 0; i < n; i += 256, w += kNibbles + 128) {
    __m256 scales;
    __m256 minima;
    unpack_head(w, scales, minima);
    alignas(32) float both[8];
    _mm256_store_ps(both, _mm256_mul_ps(scales, _mm256_loadu_ps(x.scales + i / kGroup)));
    offsets = _mm256_fmadd_ps(minima, _mm256_loadu_ps(x.sums + i / kGroup), offsets);
    __m256i fifth = _mm256_setzero_si256();
    if constexpr (kFifth) fifth = load_bytes(w + 16);
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; ++pair) {
      const __m256i nibbles = load_bytes(w + kNibbles + pair * 32);
      __m256i first = _mm256_and_si256(nibbles, low_mask);
      __m256i second = _mm256_and_si256(_mm256_srli_epi16(nibbles, 4), low_mask);
      if constexpr (kFifth) {
        const __m256i one = _mm256_set1_epi8(1);
        first = _mm256_or_si256(first, _mm256_slli_epi16(_mm256_and_si256(fifth, one), 4));
        second = _mm256_or_si256(second, _mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(fifth, 1), one), 4));
        fifth = _mm256_srli_epi16(fifth, 2);
      }
      const std::byte* codes = x.codes + i + pair * 64;
      sums[0] = add_group(first, codes, both + 2 * pair, sums[0]);
      sums[1] = add_group(second, codes + kGroup, both + 2 * pair + 1, sums[1]);
    }
  }
  return sum_lanes(_mm256_sub_ps(_mm256_add_ps(sums[0], sums[1]), offsets));
}

template <bool kFifth>
void dot_rows(const WeightRows& weights, const std::byte* activations, float* y) {
  for (int r = 0; r < weights.n_rows; ++r) {
    y[r] = dot_k<kFifth>(weights.data + static_cast<size_t>(r) * weights.row_bytes, activations, weights.n_in);
  }
}

}  // namespace

void round_row_avx2(const float* x, std::byte* to, int64_t n) {
  auto* scales = reinterpret_cast<float*>(to + n);
  float* sums = scales + n / kGroup;
  for (int64_t i = 0; i < n; i += kGroup) {
    const Rounded group = round_group(x + i);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), group.codes);
    scales[i / kGroup] = group.scale;
    sums[i / kGroup] = group.scale * static_cast<float>(group.sum);
  }
}

RowDots row_dots_avx2(Type type) {
  if (type == Type::q4_K) return dot_rows<false>;
  if (type == Type::q5_K) return dot_rows<true>;
  return nullptr;
}

}  // namespace winnow
