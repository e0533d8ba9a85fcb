// Rotation and rounding for int8_ops.h, in the vectors of vec_inl.h. Included inside an anonymous namespace.

#include "kernels/cpu/vec_inl.h"

/// The lanes of v, each in the place of the lane whose number differs in the bit `kBit`.
template <int kBit>
inline Vec swap_lanes(Vec v) {
#if WINNOW_VECTOR_BYTES == 16
  return __builtin_shufflevector(v, v, 0 ^ kBit, 1 ^ kBit, 2 ^ kBit, 3 ^ kBit);
#elif WINNOW_VECTOR_BYTES == 32
  return __builtin_shufflevector(v, v, 0 ^ kBit, 1 ^ kBit, 2 ^ kBit, 3 ^ kBit, 4 ^ kBit, 5 ^ kBit, 6 ^ kBit, 7 ^ kBit);
#else
  return __builtin_shufflevector(v, v, 0 ^ kBit, 1 ^ kBit, 2 ^ kBit, 3 ^ kBit, 4 ^ kBit, 5 ^ kBit, 6 ^ kBit, 7 ^ kBit,
                                 8 ^ kBit, 9 ^ kBit, 10 ^ kBit, 11 ^ kBit, 12 ^ kBit, 13 ^ kBit, 14 ^ kBit, 15 ^ kBit);
#endif
}

/// +1 where the lane's number lacks the bit, else -1.
template <int kBit>
inline Vec lane_signs() {
  Vec signs;
  for (int i = 0; i < kLanes; ++i) signs[i] = (i & kBit) == 0 ? 1.0F : -1.0F;
  return signs;
}

/// One step of the transform inside a vector: (a, b) -> (a + b, a - b) for lanes that differ in the bit.
template <int kBit>
inline Vec butterfly(Vec v) {
  return v * lane_signs<kBit>() + swap_lanes<kBit>(v);
}

/// Hadamard transform of kBlock values in place, without the factor 1 / sqrt(kBlock).
template <int kBlock>
inline void rotate(float* x) {
  constexpr int kVecs = kBlock / kLanes;
  Vec v[kVecs];
  for (int i = 0; i < kVecs; ++i) {
    Vec t = load(x + i * kLanes);
    t = butterfly<1>(t);
    t = butterfly<2>(t);
    if constexpr (kLanes > 4) t = butterfly<4>(t);
    if constexpr (kLanes > 8) t = butterfly<8>(t);
    v[i] = t;
  }
#pragma GCC unroll 4
  for (int step = 1; step < kVecs; step *= 2) {
#pragma GCC unroll 32
    for (int i = 0; i < kVecs; ++i) {
      if ((i & step) != 0) continue;
      const Vec a = v[i];
      const Vec b = v[i + step];
      v[i] = a + b;
      v[i + step] = a - b;
    }
  }
  for (int i = 0; i < kVecs; ++i) store(x + i * kLanes, v[i]);
}

inline void rotate_block(float* x, int block) {
  switch (block) {
    case 128:
      return rotate<128>(x);
    case 64:
      return rotate<64>(x);
    case 32:
      return rotate<32>(x);
    default:
      return rotate<16>(x);
  }
}

/// The largest size among n values (a multiple of 16).
inline float largest_size(const float* x, int n) {
  IntVec most{};  // positive floats order as their bits do
  for (int i = 0; i < n; i += kLanes) {
    IntVec bits;
    __builtin_memcpy(&bits, x + i, sizeof(bits));
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  int32_t largest = 0;
  for (int i = 0; i < kLanes; ++i) largest = most[i] > largest ? most[i] : largest;
  float result;
  __builtin_memcpy(&result, &largest, sizeof(result));
  return result;
}

/// Rounds n values (a multiple of 16) to codes + zero in [zero - levels, zero + levels], one a byte, four a word.
/// Which four is free, as a product's inputs may be added in any order: those that lie in the same lane of four vectors
/// need no shuffle. -> the scale of a code
inline float round_block(const float* x, int n, int levels, int zero, uint32_t* words) {
  const float largest = largest_size(x, n);
  const float inverse = largest > 0 ? static_cast<float>(levels) / largest : 0.0F;
  // Adding 1.5 * 2^23 rounds to nearest even and leaves the whole number in the low bits.
  const float round = 12582912.0F + static_cast<float>(zero);
  const auto code = [&](int at) {
    const Vec shifted = load(x + at) * inverse + round;
    IntVec bits;
    __builtin_memcpy(&bits, &shifted, sizeof(bits));
    return bits & 0xff;
  };
  if (n % (4 * kLanes) == 0) {
    for (int i = 0; i < n; i += 4 * kLanes) {
      const IntVec word = (code(i) | code(i + kLanes) << 8) | (code(i + 2 * kLanes) << 16 | code(i + 3 * kLanes) << 24);
      __builtin_memcpy(words + i / 4, &word, sizeof(word));
    }
  } else {  // blocks shorter than four vectors
    for (int i = 0; i < n / 4; ++i) words[i] = 0;
    for (int i = 0; i < n; i += kLanes) {
      const IntVec codes = code(i);
      for (int k = 0; k < kLanes; ++k) words[(i + k) / 4] |= static_cast<uint32_t>(codes[k]) << ((i + k) % 4 * 8);
    }
  }
  return largest / static_cast<float>(levels);
}

/// Int8Ops::quantise for tiles of kTileRows rows.
template <int kTileRows, int kLevels>
void quantise_row(const float* x, int64_t n, int block, uint8_t* codes, float* scales) {
  alignas(64) float turned[kMaxBlock];
  alignas(64) uint32_t words[kMaxBlock / 4];
  for (int64_t begin = 0; begin < n; begin += block) {
    __builtin_memcpy(turned, x + begin, static_cast<size_t>(block) * sizeof(float));
    rotate_block(turned, block);
    *scales = round_block(turned, block, kLevels, kLevels + 1, words) / static_cast<float>(block);
    scales += kTileRows;
    for (int i = 0; i < block / 4; ++i) {
      __builtin_memcpy(codes, words + i, 4);
      codes += kTileRows * 4;
    }
  }
}

/// The part of Int8Ops::pack that is the same everywhere; `finish` writes the starts of a window behind its codes.
template <int kLevels, typename Finish>
inline void pack_block(float* w, int64_t stride, int block, std::byte* to, Finish finish) {
  constexpr int kWindowCodes = kPanelChannels * kWindowInputs;
  constexpr int kWindowBytes = kWindowCodes + 64;
  const int n_windows = block / kWindowInputs;
  float scales[kPanelChannels];
  alignas(64) uint32_t words[kMaxBlock / 4];
  for (int channel = 0; channel < kPanelChannels; ++channel) {
    float* values = w + channel * stride;
    rotate_block(values, block);
    scales[channel] = round_block(values, block, kLevels, 0, words);
    for (int window = 0; window < n_windows; ++window) {
      std::byte* codes = to + window * kWindowBytes + channel * 4;
      for (int step = 0; step < 4; ++step) {
        __builtin_memcpy(codes + step * kPanelChannels * 4, words + window * 4 + step, 4);
      }
    }
  }
  for (int window = 0; window < n_windows; ++window) finish(to + window * kWindowBytes, kWindowCodes);
  __builtin_memcpy(to + n_windows * kWindowBytes, scales, sizeof(scales));
}
