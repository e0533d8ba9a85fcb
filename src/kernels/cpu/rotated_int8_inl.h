// The rotated form of int8_ops.h: rotation and rounding in the vectors of vec_inl.h. Included inside an anonymous
// namespace. The rotation's factor 1 / block is in the activations' scales.

#include "kernels/cpu/vec_inl.h"

// What ends a block is half as dear where it is twice as long; short vectors would not hold it in their registers.
constexpr int kMaxBlock = WINNOW_VECTOR_BYTES == 64 ? 256 : 128;
constexpr int kMinBlock = 16;
constexpr int kMaxPiece = 256;  // values: the largest block of a file's types; all are powers of two

/// The largest power of two up to kMaxBlock that divides n_in; 0 where kMinBlock does not divide it.
inline int rotated_block(int64_t n_in) {
  for (int block = kMaxBlock; block >= kMinBlock; block /= 2) {
    if (n_in % block == 0) return block;
  }
  return 0;
}

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

/// Hadamard transform of the values in v, without the factor 1 / sqrt(n).
template <int kVecs>
inline void rotate(Vec* v) {
#pragma GCC unroll 32
  for (int i = 0; i < kVecs; ++i) {
    Vec t = v[i];
    t = butterfly<1>(t);
    t = butterfly<2>(t);
    if constexpr (kLanes > 4) t = butterfly<4>(t);
    if constexpr (kLanes > 8) t = butterfly<8>(t);
    v[i] = t;
  }
#pragma GCC unroll 5
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
}

inline IntVec bits_of(Vec v) {
  IntVec bits;
  __builtin_memcpy(&bits, &v, sizeof(bits));
  return bits;
}

inline IntVec larger(IntVec a, IntVec b) {
  return a > b ? a : b;
}

template <int kBit>
inline IntVec largest_of_pairs(IntVec v) {
  Vec lanes;
  __builtin_memcpy(&lanes, &v, sizeof(v));
  return larger(v, bits_of(swap_lanes<kBit>(lanes)));
}

/// The largest size among the values in v.
template <int kVecs>
inline float largest_size(const Vec* v) {
  IntVec most[2] = {};  // positive floats order as their bits do
#pragma GCC unroll 32
  for (int i = 0; i < kVecs; ++i) most[i % 2] = larger(bits_of(v[i]) & 0x7fffffff, most[i % 2]);
  IntVec all = larger(most[0], most[1]);
  all = largest_of_pairs<1>(largest_of_pairs<2>(all));
  if constexpr (kLanes > 4) all = largest_of_pairs<4>(all);
  if constexpr (kLanes > 8) all = largest_of_pairs<8>(all);
  float result;
  __builtin_memcpy(&result, &all, sizeof(result));
  return result;
}

/// Turns kBlock values and rounds them to codes + zero in [zero - kLevels, zero + kLevels], one a byte, four a word.
/// Which four is free, as a product's inputs may be added in any order: those that lie in the same lane of four vectors
/// need no shuffle. -> the scale of a code
template <int kBlock>
inline float turn_and_round(const float* x, int zero, uint32_t* words) {
  constexpr int kVecs = kBlock / kLanes;
  Vec v[kVecs];
#pragma GCC unroll 32
  for (int i = 0; i < kVecs; ++i) v[i] = load(x + i * kLanes);
  rotate<kVecs>(v);
  const float largest = largest_size<kVecs>(v);
  const float inverse = largest > 0 ? static_cast<float>(kLevels) / largest : 0.0F;
  // Adding 1.5 * 2^23 rounds to nearest even and leaves the whole number in the low bits.
  const float round = 12582912.0F + static_cast<float>(zero);
  const auto code = [&](int i) { return bits_of(v[i] * inverse + round) & 0xff; };
  if constexpr (kVecs % 4 == 0) {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; i += 4) {
      const IntVec word = (code(i) | code(i + 1) << 8) | (code(i + 2) << 16 | code(i + 3) << 24);
      __builtin_memcpy(words + i / 4 * kLanes, &word, sizeof(word));
    }
  } else {  // blocks shorter than four vectors
    for (int i = 0; i < kBlock / 4; ++i) words[i] = 0;
    for (int i = 0; i < kVecs; ++i) {
      const IntVec codes = code(i);
      for (int k = 0; k < kLanes; ++k) words[(i * kLanes + k) / 4] |= static_cast<uint32_t>(codes[k]) << (k % 4 * 8);
    }
  }
  return largest / static_cast<float>(kLevels);
}

inline float turn_and_round(const float* x, int block, int zero, uint32_t* words) {
  if (block == kMaxBlock) return turn_and_round<kMaxBlock>(x, zero, words);
  switch (block) {
    case 128:
      return turn_and_round<128>(x, zero, words);
    case 64:
      return turn_and_round<64>(x, zero, words);
    case 32:
      return turn_and_round<32>(x, zero, words);
    default:
      return turn_and_round<16>(x, zero, words);
  }
}

/// Turns and rounds a block of activations. -> the scale of a code
inline float quantise_block(const float* x, int block, uint32_t* words) {
  return turn_and_round(x, block, kZeroPoint, words) / static_cast<float>(block);
}

/// What packing reads at once: whole blocks of the rotation and of the file's type.
inline int piece_values(Type type, int block) {
  const auto file_block = static_cast<int>(type_info(type).block_values);
  return block > file_block ? block : file_block;
}

/// Decodes, turns and rounds a channel's piece from input `begin` on; zeros where the panel has no such channel.
inline void round_piece(const Int8Source& from, int channel, int64_t begin, int block, uint32_t* words, float* scales) {
  alignas(64) float values[kMaxPiece];
  const TypeInfo& type = type_info(from.type);
  const int piece = piece_values(from.type, block);
  if (channel < from.n_channels) {
    const auto offset = static_cast<size_t>(begin / type.block_values * type.block_bytes);
    from.decode(from.type, from.rows + static_cast<size_t>(channel) * from.row_bytes + offset, values, piece);
  } else {
    __builtin_memset(values, 0, static_cast<size_t>(piece) * sizeof(float));
  }
  for (int part = 0; part < piece; part += block) {
    scales[part / block] = turn_and_round(values + part, block, 0, words + part / 4);
  }
}
