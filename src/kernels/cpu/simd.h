// Vectors of the instruction set that the including file is compiled for: GCC's and clang's vector types, a handful of
// operations on them, and loads from every storage type of the cache.
//
// Everything here has internal linkage, because several files of one program include it with different flags.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#if defined(__AVX2__) || defined(__AVX512F__)
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC's own "undefined" vectors
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__clang__)
#define WINNOW_UNROLL _Pragma("unroll")
#else
#define WINNOW_UNROLL _Pragma("GCC unroll 32")
#endif

namespace winnow::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// Vector registers that a micro-kernel may fill.
#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));

inline Floats load(const float* from) {
  Floats v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

inline Ints load(const int32_t* from) {
  Ints v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

inline void store(float* to, Floats v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

inline void store(int32_t* to, Ints v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

inline Floats broadcast(float x) {
  return x - Floats{};  // x + 0 would turn -0 into 0, and so costs an addition
}

inline Ints broadcast(int32_t x) {
  return x - Ints{};
}

inline Floats max(Floats a, Floats b) {
  return a > b ? a : b;
}

inline Floats min(Floats a, Floats b) {
  return a < b ? a : b;
}

/// where ? a : b, lane by lane; `where` is 0 or -1.
inline Floats select(Ints where, Floats a, Floats b) {
  return where ? a : b;
}

template <int... I>
inline Floats first_pairs(Floats a, Floats b, std::integer_sequence<int, I...> /*lanes*/) {
  // Per group of four lanes: a0 b0 a1 b1.
  return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / 2 + I % 2 * kLanes)...);
}

template <int... I>
inline Floats last_pairs(Floats a, Floats b, std::integer_sequence<int, I...> /*lanes*/) {
  // Per group of four lanes: a2 b2 a3 b3.
  return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / 2 + I % 2 * kLanes + 2)...);
}

template <int... I>
inline Floats first_halves(Floats a, Floats b, std::integer_sequence<int, I...> /*lanes*/) {
  // Per group of four lanes: a0 a1 b0 b1.
  return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 2 + I % 4 / 2 * kLanes)...);
}

template <int... I>
inline Floats last_halves(Floats a, Floats b, std::integer_sequence<int, I...> /*lanes*/) {
  // Per group of four lanes: a2 a3 b2 b3.
  return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 2 + I % 4 / 2 * kLanes + 2)...);
}

using Float4 = float __attribute__((vector_size(16)));

/// Sum over the groups of four lanes.
inline Float4 fold_groups(Floats v) {
  Float4 group[kLanes / 4];
  __builtin_memcpy(group, &v, sizeof(v));
  Float4 sum = group[0];
  WINNOW_UNROLL
  for (int i = 1; i < kLanes / 4; ++i) sum += group[i];
  return sum;
}

/// In each group of four lanes the sums over that group of a, b, c and d.
inline Floats sum_in_groups(Floats a, Floats b, Floats c, Floats d) {
  constexpr std::make_integer_sequence<int, kLanes> kEach;
  const Floats ab = first_pairs(a, b, kEach) + last_pairs(a, b, kEach);
  const Floats cd = first_pairs(c, d, kEach) + last_pairs(c, d, kEach);
  return first_halves(ab, cd, kEach) + last_halves(ab, cd, kEach);
}

#if defined(__AVX512F__)
/// Four groups of four lanes: 0 to 3 are those of a, 4 to 7 those of b.
template <int kA, int kB, int kC, int kD, int... I>
inline Floats pick_groups(Floats a, Floats b, std::integer_sequence<int, I...> /*lanes*/) {
  constexpr int kGroup[4] = {kA, kB, kC, kD};
  return __builtin_shufflevector(a, b, (kGroup[I / 4] * 4 + I % 4)...);
}
#endif

/// sums[i] = fold_groups(v[i]), for kCount vectors.
template <int kCount>
inline void fold_groups(const Floats (&v)[kCount], Float4 (&sums)[kCount]) {
#if defined(__AVX512F__)
  constexpr std::make_integer_sequence<int, kLanes> kEach;
  // Four vectors of four groups at a time, as a square that is turned while it is added up.
  WINNOW_UNROLL
  for (int i = 0; i < kCount; i += 4) {
    const auto at = [&](int k) { return v[i + k < kCount ? i + k : kCount - 1]; };
    const Floats low = pick_groups<0, 1, 4, 5>(at(0), at(1), kEach) + pick_groups<2, 3, 6, 7>(at(0), at(1), kEach);
    const Floats high = pick_groups<0, 1, 4, 5>(at(2), at(3), kEach) + pick_groups<2, 3, 6, 7>(at(2), at(3), kEach);
    const Floats all = pick_groups<0, 2, 4, 6>(low, high, kEach) + pick_groups<1, 3, 5, 7>(low, high, kEach);
    __builtin_memcpy(sums + i, &all, sizeof(Float4) * (kCount - i < 4 ? kCount - i : 4));
  }
#else
  for (int i = 0; i < kCount; ++i) sums[i] = fold_groups(v[i]);
#endif
}

inline float sum_lanes(Floats v) {
  const Float4 four = fold_groups(v);
  return (four[0] + four[1]) + (four[2] + four[3]);
}

inline float max_lanes(Floats v) {
  Float4 group[kLanes / 4];
  __builtin_memcpy(group, &v, sizeof(v));
  Float4 largest = group[0];
  WINNOW_UNROLL
  for (int i = 1; i < kLanes / 4; ++i) largest = group[i] > largest ? group[i] : largest;
  const float first = largest[0] > largest[1] ? largest[0] : largest[1];
  const float last = largest[2] > largest[3] ? largest[2] : largest[3];
  return first > last ? first : last;
}

/// 2^x for x <= 1, relative error below 2e-7; exactly 0 for x <= -127, negative infinity included.
inline Floats exp2_below(Floats x) {
  // Adding 1.5 * 2^23 leaves round(x) in the low bits. At the clamp the fraction is 0, the polynomial exactly 1, and
  // taking 127 from its exponent gives exactly 0.
  constexpr float kRound = 12582912.0F;
  x = max(x, broadcast(-127.0F));
  const Floats shifted = x + kRound;
  const Floats f = x - (shifted - kRound);  // in [-0.5, 0.5]
  // Minimax polynomial of 2^f on that interval with the constant term fixed at 1.
  Floats p = broadcast(1.32647273e-3F);
  p = p * f + 9.67151299e-3F;
  p = p * f + 5.55073358e-2F;
  p = p * f + 2.40222424e-1F;
  p = p * f + 6.93147004e-1F;
  p = p * f + 1.0F;
  Ints bits;
  Ints power;
  __builtin_memcpy(&bits, &p, sizeof(bits));
  __builtin_memcpy(&power, &shifted, sizeof(power));
  bits += power << 23;
  Floats result;
  __builtin_memcpy(&result, &bits, sizeof(result));
  return result;
}

/// log2(x) for ordinary numbers x > 0, absolute error below 3e-7 beside that of the result's rounding.
inline Floats log2_of(Floats x) {
  constexpr int32_t kHalfRoot = 0x3f3504f3;  // sqrt(1/2): the mantissa is to lie in [sqrt(1/2), sqrt(2)]
  Ints bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  const Ints power = (bits - kHalfRoot) >> 23;
  bits -= power << 23;
  Floats m;
  __builtin_memcpy(&m, &bits, sizeof(m));
  // log2(m) = 2 / ln(2) * (t + t^3 / 3 + t^5 / 5 + ...) with t = (m - 1) / (m + 1), at most 0.172.
  const Floats t = (m - 1.0F) / (m + 1.0F);
  const Floats square = t * t;
  Floats p = broadcast(4.12198583e-1F);
  p = p * square + 5.77078016e-1F;
  p = p * square + 9.61796694e-1F;
  p = p * square + 2.88539008F;
  return __builtin_convertvector(power, Floats) + p * t;
}

/// tanh(x), absolute error below 3e-7.
inline Floats tanh(Floats x) {
  constexpr float kTwoLog2E = 2.8853901F;
  const Floats e = exp2_below((x < 0 ? x : -x) * kTwoLog2E);  // exp(-2 |x|)
  const Floats t = (1.0F - e) / (1.0F + e);
  return x < 0 ? -t : t;
}

// Storage types of the cache. row_bytes(head_dim) bytes make a row; load(row, d) gives values d ... d + kLanes - 1,
// where d is a multiple of kLanes.

struct CodecF32 {
  static constexpr int64_t row_bytes(int32_t head_dim) { return int64_t{4} * head_dim; }
  static Floats load(const std::byte* row, int32_t d) { return cpu::load(reinterpret_cast<const float*>(row) + d); }
};

inline Ints load_u16(const uint16_t* from) {
#if defined(__AVX512F__)
  return reinterpret_cast<Ints>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__AVX2__)
  return reinterpret_cast<Ints>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  Ints v;
  WINNOW_UNROLL
  for (int i = 0; i < kLanes; ++i) v[i] = from[i];
  return v;
#endif
}

struct CodecBf16 {
  static constexpr int64_t row_bytes(int32_t head_dim) { return int64_t{2} * head_dim; }
  static Floats load(const std::byte* row, int32_t d) {
    const Ints bits = load_u16(reinterpret_cast<const uint16_t*>(row) + d) << 16;
    Floats v;
    __builtin_memcpy(&v, &bits, sizeof(v));
    return v;
  }
};

inline Floats load_f16(const uint16_t* from) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__ARM_NEON)
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
#else
  // The exponent's and the mantissa's bits, read as a float, are the number times 2^-112, subnormals included.
  const Ints half = load_u16(from);
  const Ints magnitude = (half & 0x7fff) << 13;
  Floats v;
  __builtin_memcpy(&v, &magnitude, sizeof(v));
  v *= 0x1p112F;
  Ints bits;
  __builtin_memcpy(&bits, &v, sizeof(bits));
  bits |= (half & 0x8000) << 16;
  __builtin_memcpy(&v, &bits, sizeof(v));
  return v;
#endif
}

struct CodecF16 {
  static constexpr int64_t row_bytes(int32_t head_dim) { return int64_t{2} * head_dim; }
  static Floats load(const std::byte* row, int32_t d) { return load_f16(reinterpret_cast<const uint16_t*>(row) + d); }
};

/// e4m3. Its exponent's and its mantissa's bits, read as f16, are the number times 2^-8, subnormals included; the codes
/// of NaN, which no finite value is stored as, read as 480 with their sign.
struct CodecFp8 {
  static constexpr int64_t row_bytes(int32_t head_dim) { return head_dim; }
  static Floats load(const std::byte* row, int32_t d) {
    const std::byte* from = row + d;
#if defined(__AVX512F__)
    // Sign-extended and moved by 7 the sign is bit 15, and its copy in bit 14 is in the exponent's way.
    const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    const __m256i half = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
    const Floats v = _mm512_cvtph_ps(half);
#elif defined(__AVX2__)
    const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    const __m128i half = _mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(static_cast<int16_t>(0xbf80)));
    const Floats v = _mm256_cvtph_ps(half);
#else
    uint16_t half[kLanes];
    WINNOW_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      const auto code = static_cast<uint32_t>(from[i]);
      half[i] = static_cast<uint16_t>((code & 0x80U) << 8 | (code & 0x7fU) << 7);
    }
    const Floats v = load_f16(half);
#endif
    return v * 256.0F;
  }
};

inline float scalar_f16(const std::byte* from) {
  uint16_t bits = 0;
  __builtin_memcpy(&bits, from, 2);
#if defined(__AVX2__) || defined(__AVX512F__)
  return _cvtsh_ss(bits);
#else
  uint16_t four[4] = {bits, 0, 0, 0};
  return load_f16(four)[0];
#endif
}

inline Floats load_i8(const int8_t* from) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  Ints v;
  WINNOW_UNROLL
  for (int i = 0; i < kLanes; ++i) v[i] = from[i];
  return __builtin_convertvector(v, Floats);
#endif
}

/// Blocks of 32 values: an f16 scale, then 32 signed bytes.
struct CodecQ8 {
  static constexpr int64_t row_bytes(int32_t head_dim) { return int64_t{34} * (head_dim / 32); }
  static Floats load(const std::byte* row, int32_t d) {
    const std::byte* block = row + int64_t{34} * (d / 32);
    return load_i8(reinterpret_cast<const int8_t*>(block) + 2 + d % 32) * scalar_f16(block);
  }
};

/// The same without the scale.
struct CodecQ8Raw {
  static constexpr int64_t row_bytes(int32_t head_dim) { return CodecQ8::row_bytes(head_dim); }
  static Floats load(const std::byte* row, int32_t d) {
    return load_i8(reinterpret_cast<const int8_t*>(row) + int64_t{34} * (d / 32) + 2 + d % 32);
  }
};

}  // namespace
}  // namespace winnow::cpu
