// The exact form of int8_ops.h: weights keep the codes of their file, activations are rounded to 8 bits with one scale
// for each 32.
//
// vpmaddubsw adds two 8-bit products into 16 bits. As many of its results as 16 bits are sure to hold are added up
// there before they are widened: eight where codes have up to 5 bits (16 products, at most 16 * 16 * 127 = 32512), four
// where they have 6 (8 * 32 * 127, the same). The unsigned form of the activations (code + 128) may pass the 16 bits,
// but only on the way: sums wrap around, and the value they start from, -128 times the sum of the lane's weights,
// brings them back. So 32 products take about 2.6 instructions; widening each pair takes 3, and does not even hold 8
// bits.
//
// A panel's entry for 32 inputs is one or two parts, each codes [4 or 8, 16, 4] s8, starts [2, 16] s16, scales [16]
// f32:
//   five bits  one part of 8 steps, then offsets [16] f32: what a weight adds to each activation
//   six bits   two parts of 4 steps: scales of 16 inputs (Q6_K)
//   ten bits   two parts of 8 steps over the same inputs: weights of 8 or more bits as 32 * high + low; plain numbers
//              are rounded to that, with one scale for 32
//
// Zen 3, one core: about 200 GOP/s; oneDNN's u8 * s8 reaches 190 there, and saturates with codes of 8 bits.
#include <immintrin.h>

#include "kernels/cpu/int8_ops.h"

namespace winnow {
namespace {

#include "kernels/cpu/nibbles_avx2_inl.h"
#include "kernels/cpu/round_avx2_inl.h"

constexpr int kPanelChannels = 16;
constexpr int kTileRows = 6;  // 6 rows x 2 vectors of sums, two of weights, one of activations, one product: 16
constexpr int kSums = kTileRows * 2;
constexpr int kGroup = 32;
constexpr int kStepBytes = kPanelChannels * 4;
constexpr int kVectorBytes = kPanelChannels * 4;  // scales, offsets or starts of a panel's channels

enum Kind : int { kFiveBits, kSixBits, kTenBits };

constexpr size_t part_bytes(int n_steps) {
  return static_cast<size_t>(n_steps) * kStepBytes + 2 * kVectorBytes;
}

Int8Layout layout(Type type, int64_t n_in) {
  if (n_in % kGroup != 0) return {};
  switch (type) {
    case Type::q4_0:
    case Type::q4_1:
    case Type::q5_0:
    case Type::q5_1:
    case Type::q4_K:
    case Type::q5_K:
      return {kGroup, part_bytes(8) + kVectorBytes, kFiveBits};
    case Type::q6_K:
      return {kGroup, 2 * part_bytes(4), kSixBits};
    default:
      return {kGroup, 2 * part_bytes(8), kTenBits};
  }
}

// 32 weights: value = scale * code + offset. With six bits, `scale` holds for the first 16, `other` for the rest.
struct Group {
  __m256i codes;
  float scale = 0, other = 0, offset = 0;
};

// The scale and the minimum of a Q4_K or Q5_K block's eight groups, six bits each.
inline void unpack_scale(const uint8_t* from, int group, int& scale, int& minimum) {
  if (group < 4) {
    scale = from[group] & 63;
    minimum = from[group + 4] & 63;
  } else {
    scale = (from[group + 4] & 15) | (from[group - 4] >> 6 << 4);
    minimum = from[group + 4] >> 4 | (from[group] >> 6 << 4);
  }
}

// Q4_K: d, minimum's d, scales [12], nibbles [128]; Q5_K has fifth bits [32] before the nibbles.
template <bool kFifth>
inline Group read_k(const std::byte* row, int64_t group) {
  constexpr int kZero = kFifth ? 16 : 8;
  constexpr int kNibbles = kFifth ? 48 : 16;
  const std::byte* block = row + group / 8 * (kNibbles + 128);
  const int part = static_cast<int>(group % 8);
  int scale = 0;
  int minimum = 0;
  unpack_scale(reinterpret_cast<const uint8_t*>(block + 4), part, scale, minimum);
  Group g;
  const __m256i both = load_bytes(block + kNibbles + part / 2 * 32);
  g.codes = _mm256_and_si256(part % 2 == 0 ? both : _mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
  if constexpr (kFifth) {
    const __m256i high = _mm256_srl_epi16(load_bytes(block + 16), _mm_cvtsi32_si128(part));
    g.codes = _mm256_or_si256(g.codes, _mm256_slli_epi16(_mm256_and_si256(high, _mm256_set1_epi8(1)), 4));
  }
  g.codes = _mm256_sub_epi8(g.codes, _mm256_set1_epi8(kZero));
  g.scale = load_half(block) * static_cast<float>(scale);
  g.offset = kZero * g.scale - load_half(block + 2) * static_cast<float>(minimum);
  return g;
}

// The types of 32 values a block: scale, perhaps an offset, perhaps fifth bits, nibbles.
template <bool kOffset, bool kFifth>
inline Group read_32(const std::byte* row, int64_t group) {
  constexpr int kZero = kFifth ? 16 : 8;
  constexpr int kHead = kOffset ? 4 : 2;
  const std::byte* block = row + group * (kHead + (kFifth ? 4 : 0) + 16);
  Group g;
  g.scale = load_half(block);
  if constexpr (kOffset) g.offset = load_half(block + 2) + kZero * g.scale;
  g.codes = split_nibbles(block + kHead + (kFifth ? 4 : 0));
  if constexpr (kFifth) g.codes = _mm256_or_si256(g.codes, fifth_bits(block + kHead));
  g.codes = _mm256_sub_epi8(g.codes, _mm256_set1_epi8(kZero));
  return g;
}

inline Group read_q6_k(const std::byte* row, int64_t group) {
  const std::byte* block = row + group / 8 * kQ6Bytes;
  const int part = static_cast<int>(group % 8);
  const auto* scales = reinterpret_cast<const int8_t*>(block + kQ6Scales) + 2 * part;
  const float d = load_half(block + kQ6D);
  Group g;
  g.codes = _mm256_sub_epi8(q6_codes(block, part), _mm256_set1_epi8(32));
  g.scale = d * static_cast<float>(scales[0]);
  g.other = d * static_cast<float>(scales[1]);
  return g;
}

inline Group read_group(Type type, const std::byte* row, int64_t group) {
  switch (type) {
    case Type::q4_0:
      return read_32<false, false>(row, group);
    case Type::q4_1:
      return read_32<true, false>(row, group);
    case Type::q5_0:
      return read_32<false, true>(row, group);
    case Type::q5_1:
      return read_32<true, true>(row, group);
    case Type::q4_K:
      return read_k<false>(row, group);
    case Type::q5_K:
      return read_k<true>(row, group);
    default:
      return read_q6_k(row, group);
  }
}

// One channel's 32 codes into a part that begins at `to`, four inputs a step.
inline void scatter_codes(__m256i codes, int first_step, int n_steps, std::byte* to) {
  alignas(32) int32_t words[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(words), codes);
  for (int step = 0; step < n_steps; ++step) {
    __builtin_memcpy(to + static_cast<ptrdiff_t>(step) * kStepBytes, words + first_step + step, 4);
  }
}

inline void store_float(std::byte* to, int index, float value) {
  __builtin_memcpy(to + static_cast<ptrdiff_t>(index) * 4, &value, sizeof(value));
}

// What the lanes of a finished part start from.
inline void write_starts(std::byte* part, int n_steps) {
  constexpr int kLogZero = 7;
  static_assert(1 << kLogZero == kZeroPoint);
  const __m256i ones = _mm256_set1_epi8(1);
  for (int half = 0; half < kStepBytes; half += 32) {
    __m256i sum = _mm256_setzero_si256();
    for (int step = 0; step < n_steps; ++step) {
      sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(ones, load_bytes(part + step * kStepBytes + half)));
    }
    const __m256i start = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(sum, kLogZero));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(part + n_steps * kStepBytes + half), start);
  }
}

void pack_file_codes(const Int8Source& from, const Int8Layout& layout, std::byte* to) {
  const bool six = layout.kind == kSixBits;
  const int n_steps = six ? 4 : 8;
  std::byte* const second = to + part_bytes(4);
  for (int64_t group = 0; group < from.n_in / kGroup; ++group) {
    std::byte* entry = to + static_cast<size_t>(group) * layout.group_bytes;
    std::byte* other = second + static_cast<size_t>(group) * layout.group_bytes;
    std::byte* scales = entry + n_steps * kStepBytes + kVectorBytes;
    for (int channel = 0; channel < kPanelChannels; ++channel) {
      Group g{_mm256_setzero_si256()};
      if (channel < from.n_channels) {
        g = read_group(from.type, from.rows + static_cast<size_t>(channel) * from.row_bytes, group);
      }
      scatter_codes(g.codes, 0, n_steps, entry + channel * 4);
      store_float(scales, channel, g.scale);
      if (six) {
        scatter_codes(g.codes, 4, 4, other + channel * 4);
        store_float(other + 4 * kStepBytes + kVectorBytes, channel, g.other);
      } else {
        store_float(scales + kVectorBytes, channel, g.offset);
      }
    }
    write_starts(entry, n_steps);
    if (six) write_starts(other, n_steps);
  }
}

// One channel's 32 values as codes of ten bits. -> their scale
inline float read_ten_bits(const Int8Source& from, int channel, int64_t group, int32_t* codes) {
  const TypeInfo& type = type_info(from.type);
  const auto offset = static_cast<size_t>(group * kGroup / type.block_values * type.block_bytes);
  const std::byte* block = from.rows + static_cast<size_t>(channel) * from.row_bytes + offset;
  if (from.type == Type::q8_0) {
    for (int i = 0; i < kGroup; ++i) codes[i] = static_cast<int8_t>(block[2 + i]);
    return load_half(block);
  }
  constexpr float kMost = 511;  // 32 * 16 - 1
  float values[kGroup];
  from.decode(from.type, block, values, kGroup);
  float largest = 0;
  for (const float v : values) largest = __builtin_fmaxf(largest, __builtin_fabsf(v));
  const float inverse = largest > 0 ? kMost / largest : 0.0F;
  for (int i = 0; i < kGroup; ++i) codes[i] = static_cast<int32_t>(__builtin_rintf(values[i] * inverse));
  return largest / kMost;
}

void pack_ten_bits(const Int8Source& from, const Int8Layout& layout, std::byte* to) {
  constexpr int kLogHigh = 5;  // of one unit of the high part; both parts lie in [-16, 16]
  constexpr int kHigh = 1 << kLogHigh;
  int32_t codes[kGroup];
  int8_t parts[2][kGroup];
  for (int64_t group = 0; group < from.n_in / kGroup; ++group) {
    std::byte* entry = to + static_cast<size_t>(group) * layout.group_bytes;
    std::byte* other = entry + part_bytes(8);
    for (int channel = 0; channel < kPanelChannels; ++channel) {
      float scale = 0;
      for (int32_t& code : codes) code = 0;
      if (channel < from.n_channels) scale = read_ten_bits(from, channel, group, codes);
      for (int i = 0; i < kGroup; ++i) {
        const int high = (codes[i] + kHigh / 2) >> kLogHigh;
        parts[0][i] = static_cast<int8_t>(high);
        parts[1][i] = static_cast<int8_t>(codes[i] - kHigh * high);
      }
      scatter_codes(load_bytes(parts[0]), 0, 8, entry + channel * 4);
      scatter_codes(load_bytes(parts[1]), 0, 8, other + channel * 4);
      store_float(entry + 8 * kStepBytes + kVectorBytes, channel, scale * kHigh);
      store_float(other + 8 * kStepBytes + kVectorBytes, channel, scale);
    }
    write_starts(entry, 8);
    write_starts(other, 8);
  }
}

void pack(const Int8Source& from, const Int8Layout& layout, std::byte* to) {
  if (layout.kind == kTenBits) {
    pack_ten_bits(from, layout, to);
  } else {
    pack_file_codes(from, layout, to);
  }
}

// Scales of a group: [2, kTileRows], the step between codes and the sum of the rounded values.
void quantise(const Int8Row& row) {
  uint8_t* codes = row.codes + row.row * 4;
  float* scales = row.scales + row.row;
  for (int64_t i = 0; i < row.n; i += kGroup) {
    const Rounded group = round_group(row.x + i);
    alignas(32) uint32_t words[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), _mm256_xor_si256(group.codes, _mm256_set1_epi8(-128)));
    for (const uint32_t word : words) {
      __builtin_memcpy(codes, &word, sizeof(word));
      codes += kTileRows * 4;
    }
    scales[0] = group.scale;
    scales[kTileRows] = group.scale * static_cast<float>(group.sum);
    scales += 2 * kTileRows;
  }
}

// Compilers like to add the products in another order, which needs far more registers than there are.
#define WINNOW_KEEP_ORDER(value) __asm__("" : "+x"(value))

// One group of kRows rows, the first of them at a, a_scale and total: with two parts half the rows at a time, so that
// the lanes of both stay in registers and totals are written once.
template <Kind kKind>
inline void multiply_rows(const uint8_t* a, const float* a_scale, const std::byte* w, __m256* total) {
  constexpr int kParts = kKind == kFiveBits ? 1 : 2;
  constexpr int kRows = kTileRows / kParts;
  constexpr int kSteps = kKind == kSixBits ? 4 : 8;
  __m256i lane[kParts][kRows][2];
#pragma GCC unroll 2
  for (int part = 0; part < kParts; ++part) {
    const std::byte* codes = w + static_cast<size_t>(part) * part_bytes(kSteps);
    const uint8_t* inputs = kKind == kSixBits ? a + part * kSteps * kTileRows * 4 : a;
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        lane[part][r][half] = load_bytes(codes + kSteps * kStepBytes + 32 * half);
        WINNOW_KEEP_ORDER(lane[part][r][half]);
      }
    }
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) {
      const __m256i w0 = load_bytes(codes + step * kStepBytes);
      const __m256i w1 = load_bytes(codes + step * kStepBytes + 32);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        int32_t four;
        __builtin_memcpy(&four, inputs + (step * kTileRows + r) * 4, 4);
        const __m256i x = _mm256_set1_epi32(four);
        lane[part][r][0] = _mm256_add_epi16(lane[part][r][0], _mm256_maddubs_epi16(x, w0));
        WINNOW_KEEP_ORDER(lane[part][r][0]);
        lane[part][r][1] = _mm256_add_epi16(lane[part][r][1], _mm256_maddubs_epi16(x, w1));
        WINNOW_KEEP_ORDER(lane[part][r][1]);
      }
    }
  }
  const __m256i ones = _mm256_set1_epi16(1);
  const auto* scales = reinterpret_cast<const float*>(w + kSteps * kStepBytes + kVectorBytes);
  const auto* other = reinterpret_cast<const float*>(w + part_bytes(kSteps) + kSteps * kStepBytes + kVectorBytes);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    const __m256 scale = _mm256_broadcast_ss(a_scale + r);
    const __m256 rounded = _mm256_broadcast_ss(a_scale + kTileRows + r);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256 first = _mm256_cvtepi32_ps(_mm256_madd_epi16(lane[0][r][half], ones));
      __m256 sum = _mm256_mul_ps(first, _mm256_loadu_ps(scales + 8 * half));
      if constexpr (kParts == 2) {
        const __m256 second = _mm256_cvtepi32_ps(_mm256_madd_epi16(lane[1][r][half], ones));
        sum = _mm256_fmadd_ps(second, _mm256_loadu_ps(other + 8 * half), sum);
      }
      __m256 t = _mm256_fmadd_ps(sum, scale, total[2 * r + half]);
      if constexpr (kKind == kFiveBits) {
        t = _mm256_fmadd_ps(_mm256_loadu_ps(scales + kPanelChannels + 8 * half), rounded, t);
      }
      total[2 * r + half] = t;
    }
  }
  __asm__ volatile("" ::: "memory");  // totals stay in memory: all registers belong to the lanes
}

template <Kind kKind>
void multiply_kind(const Int8Tile& tile) {
  constexpr int kRows = kKind == kFiveBits ? kTileRows : kTileRows / 2;
  __m256 total[kSums] = {};
  const uint8_t* a = tile.codes;
  const float* scales = tile.scales;
  const std::byte* w = tile.panel;
  for (int64_t g = 0; g < tile.n_groups; ++g) {
#pragma GCC unroll 2
    for (int r = 0; r < kTileRows; r += kRows) multiply_rows<kKind>(a + r * 4, scales + r, w, total + 2 * r);
    a += kGroup * kTileRows;
    scales += 2 * kTileRows;
    w += tile.layout.group_bytes;
  }
  for (int i = 0; i < kSums; ++i) {
    float* y = tile.y + i / 2 * tile.stride + i % 2 * 8;
    _mm256_storeu_ps(y, tile.add ? _mm256_add_ps(total[i], _mm256_loadu_ps(y)) : total[i]);
  }
}

void multiply(const Int8Tile& tile) {
  switch (tile.layout.kind) {
    case kFiveBits:
      return multiply_kind<kFiveBits>(tile);
    case kSixBits:
      return multiply_kind<kSixBits>(tile);
    default:
      return multiply_kind<kTenBits>(tile);
  }
}

}  // namespace

const Int8Ops kExactInt8Avx2 = {.name = "int8, weights exact",
                                .tile_rows = kTileRows,
                                .panel_channels = kPanelChannels,
                                .scale_floats = 2,
                                .span_inputs = 1024,  // 20 KB of a panel
                                .piece_codes = 192 << 10,
                                .layout = layout,
                                .quantise = quantise,
                                .pack = pack,
                                .multiply = multiply};

}  // namespace winnow
