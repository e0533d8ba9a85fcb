// The rotated form of int8_ops.h: rotation and rounding in the vectors of vec_inl.h. Included inside an anonymous
// namespace.
//
// A panel's entry for a block of inputs: for each window of 16 inputs codes [4, 16, 4] s8 and, for each channel, the
// i32 that its sum starts from; then scales [16] f32. The rotation's factor 1 / block is in the activations' scales.

#include "kernels/cpu/vec_inl.h"

constexpr int kMaxBlock = 128;
constexpr int kWindowInputs = 16;
constexpr int kWindowCodes = kPanelChannels * kWindowInputs;
constexpr int kWindowBytes = kWindowCodes + kPanelChannels * 4;

/// The largest power of two up to kMaxBlock that divides n_in is the block; none where a window does not divide it.
inline Int8Layout rotated_layout(Type /*type*/, int64_t n_in) {
  for (int block = kMaxBlock; block >= kWindowInputs; block /= 2) {
    if (n_in % block != 0) continue;
    const auto n_windows = static_cast<size_t>(block / kWindowInputs);
    return {block, n_windows * kWindowBytes + kPanelChannels * sizeof(float), 0};
  }
  return {};
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

/// Rounds n values (a multiple of 16) to codes + zero in [zero - kLevels, zero + kLevels], one a byte, four a word.
/// Which four is free, as a product's inputs may be added in any order: those that lie in the same lane of four vectors
/// need no shuffle. -> the scale of a code
inline float round_block(const float* x, int n, int zero, uint32_t* words) {
  const float largest = largest_size(x, n);
  const float inverse = largest > 0 ? static_cast<float>(kLevels) / largest : 0.0F;
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
  return largest / static_cast<float>(kLevels);
}

/// Int8Ops::quantise for tiles of kTileRows rows.
template <int kTileRows>
void quantise_row(const float* x, int64_t n, int block, uint8_t* codes, float* scales) {
  alignas(64) float turned[kMaxBlock];
  alignas(64) uint32_t words[kMaxBlock / 4];
  for (int64_t begin = 0; begin < n; begin += block) {
    __builtin_memcpy(turned, x + begin, static_cast<size_t>(block) * sizeof(float));
    rotate_block(turned, block);
    *scales = round_block(turned, block, kZeroPoint, words) / static_cast<float>(block);
    scales += kTileRows;
    for (int i = 0; i < block / 4; ++i) {
      __builtin_memcpy(codes, words + i, 4);
      codes += kTileRows * 4;
    }
  }
}

/// One block of 16 channels, w [16, block] (overwritten); `finish` writes the starts of a window behind its codes.
template <typename Finish>
inline void pack_block(float* w, int64_t stride, int block, std::byte* to, Finish finish) {
  const int n_windows = block / kWindowInputs;
  float scales[kPanelChannels];
  alignas(64) uint32_t words[kMaxBlock / 4];
  for (int channel = 0; channel < kPanelChannels; ++channel) {
    float* values = w + channel * stride;
    rotate_block(values, block);
    scales[channel] = round_block(values, block, 0, words);
    for (int window = 0; window < n_windows; ++window) {
      std::byte* codes = to + window * kWindowBytes + channel * 4;
      for (int step = 0; step < 4; ++step) {
        __builtin_memcpy(codes + step * kPanelChannels * 4, words + window * 4 + step, 4);
      }
    }
  }
  for (int window = 0; window < n_windows; ++window) finish(to + window * kWindowBytes);
  __builtin_memcpy(to + n_windows * kWindowBytes, scales, sizeof(scales));
}

/// Int8Ops::pack, in pieces that hold whole blocks of the rotation and of the file's type.
template <typename Finish>
inline void pack_panel(const Int8Source& from, const Int8Layout& layout, std::byte* to, Finish finish) {
  constexpr int kMaxPiece = 256;  // the largest block of a file's types; all are powers of two
  alignas(64) float work[kPanelChannels * kMaxPiece];
  const TypeInfo& type = type_info(from.type);
  const int piece = layout.group > type.block_values ? layout.group : type.block_values;
  for (int64_t begin = 0; begin < from.n_in; begin += piece) {
    const auto offset = static_cast<size_t>(begin / type.block_values * type.block_bytes);
    for (int channel = 0; channel < kPanelChannels; ++channel) {
      float* values = work + channel * piece;
      if (channel < from.n_channels) {
        from.decode(from.type, from.rows + static_cast<size_t>(channel) * from.row_bytes + offset, values, piece);
      } else {
        __builtin_memset(values, 0, static_cast<size_t>(piece) * sizeof(float));
      }
    }
    for (int part = 0; part < piece; part += layout.group, to += layout.group_bytes) {
      pack_block(work + part, piece, layout.group, to, finish);
    }
  }
}
