// Decode over a q8_0 cache in integers: float32 would take longer for its products than memory takes for their
// factors. Queries and softmax weights are rounded to 16 bits, and the sums of products are exact; what remains of
// the rounding is some hundredth of that of the cache's own.
#pragma once

#include <cmath>

#include "kernels/cpu/attend_bf16.h"
#include "kernels/cpu/attend_rows.h"
#include "kernels/cpu/transpose.h"

namespace winnow::cpu {
namespace {

// Blocks of 32 values come in pairs, so that whole dwords hold them: 68 bytes, an f16 and 32 codes s8 twice. No dword
// has codes of both; the scales stand in the low half of the first and in the high half of the ninth dword.
constexpr int32_t kPair = 64;
constexpr int32_t kPairBytes = 68;
constexpr int32_t kPairFours = kPairBytes / 4;
constexpr int32_t kFirstFours = 9;  // dwords of a pair's first block
constexpr int32_t kMostFours = kMostDim / kPair * kPairFours;
constexpr int32_t kMostBlocks = kMostDim / 32;
constexpr int32_t kDotSlots = 2 * kLanes;  // slots on the lanes of two vectors
constexpr int kByteQueries = 6;            // whose sums fill the registers, in both products

using RowPointers = const std::byte* const*;

/// A query as 256 * high + low, whole numbers times `scale`; `start` makes good for codes that are 128 too large.
/// In memory: high s8 and low s8 in the places that a row of the cache has for its codes, zeros where that has scales;
/// start [dim / 32] s32; scale f32.
struct ByteQuery {
  static constexpr int32_t row_bytes(int32_t dim) { return dim / kPair * kPairBytes; }
  static constexpr size_t bytes(int32_t dim) {
    return static_cast<size_t>((2 * row_bytes(dim) + dim / 8 + 67) / 64 * 64);
  }
  static const int32_t* start(const std::byte* q, int32_t dim) {
    return reinterpret_cast<const int32_t*>(q + 2 * row_bytes(dim));
  }
  static float scale(const std::byte* q, int32_t dim) {
    return reinterpret_cast<const float*>(start(q, dim))[dim / 32];
  }

  static void pack(const float* q, int32_t dim, std::byte* to) {
    constexpr float kMost = 127 * 256;
    float largest = 0;
    for (int32_t d = 0; d < dim; ++d) largest = std::fmax(largest, std::fabs(q[d]));
    const float inverse = largest > 0 ? kMost / largest : 0;
    __builtin_memset(to, 0, bytes(dim));
    auto* high = reinterpret_cast<int8_t*>(to);
    int8_t* low = high + row_bytes(dim);
    auto* starts = reinterpret_cast<int32_t*>(to + 2 * row_bytes(dim));
    for (int32_t d = 0; d < dim; ++d) {
      const auto whole = static_cast<int32_t>(std::lrint(q[d] * inverse));
      const int32_t upper = (whole + 128) >> 8;
      const int32_t at = d + d / 32 * 2 + 2;
      high[at] = static_cast<int8_t>(upper);
      low[at] = static_cast<int8_t>(whole - upper * 256);
      starts[d / 32] -= 128 * whole;
    }
    reinterpret_cast<float*>(starts)[dim / 32] = largest / kMost;
  }
};

inline Ints add_bytes(Ints sum, Ints unsigned_bytes, Ints four) {
  return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(
      reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(unsigned_bytes), reinterpret_cast<__m512i>(four)));
}

inline Ints load_four(const std::byte* from) {
  int32_t four = 0;
  __builtin_memcpy(&four, from, sizeof(four));
  return reinterpret_cast<Ints>(_mm512_set1_epi32(four));
}

/// f16 of each lane's low half.
inline Floats low_halves(Ints v) {
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(v)));
}

/// 16 bytes of row[0], row[4], row[8] and row[12].
inline Floats load_four_rows(RowPointers row, int64_t offset) {
  const auto at = [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[r] + offset)); };
  __m512i v = _mm512_castsi128_si512(at(0));
  v = _mm512_inserti32x4(v, at(4), 1);
  v = _mm512_inserti32x4(v, at(8), 2);
  return _mm512_castsi512_ps(_mm512_inserti32x4(v, at(12), 3));
}

/// 32 bytes of row[0] and row[4].
inline Floats load_two_rows(RowPointers row, int64_t offset) {
  const auto at = [&](int r) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row[r] + offset)); };
  return _mm512_castsi512_ps(_mm512_inserti64x4(_mm512_castsi256_si512(at(0)), at(4), 1));
}

/// Up to kDotSlots rows, turned: the dwords of a row one below the other, each with 128 added to its bytes.
struct TurnedRows {
  alignas(64) Ints fours[kMostFours][2];

  void fill(RowPointers row, int32_t bytes, RowFetch& fetch) {
    for (int half = 0; half < 2; ++half, row += kLanes) {
      int32_t at = 0;
      for (; at + 32 <= bytes; at += 32) {
        fetch.step();
        turn_32(row, at, half);
      }
      for (; at < bytes; at += 16) turn_16(row, smaller(at, bytes - 16), half);
    }
  }
  /// How often `fill` steps.
  static constexpr int32_t n_steps(int32_t bytes) { return 2 * (bytes / 32); }

  Floats first_scale(int32_t pair, int half) const { return low_halves(without_128(fours[pair * kPairFours][half])); }
  Floats second_scale(int32_t pair, int half) const {
    const Ints v = without_128(fours[pair * kPairFours + kFirstFours - 1][half]);
    return low_halves(reinterpret_cast<Ints>(_mm512_srli_epi32(reinterpret_cast<__m512i>(v), 16)));
  }

 private:
  static Ints without_128(Ints v) { return v ^ broadcast(static_cast<int32_t>(0x80808080)); }

  void put(int32_t four, int half, Floats v) {
    Ints bits;
    __builtin_memcpy(&bits, &v, sizeof(bits));
    fours[four][half] = without_128(bits);
  }

  void turn_16(RowPointers row, int32_t at, int half) {
    Floats part[4];
    WINNOW_UNROLL
    for (int i = 0; i < 4; ++i) part[i] = load_four_rows(row + i, at);
    transpose(part);
    WINNOW_UNROLL
    for (int i = 0; i < 4; ++i) put(at / 4 + i, half, part[i]);
  }

  void turn_32(RowPointers row, int32_t at, int half) {
    constexpr std::make_integer_sequence<int, kLanes> kEach;
    Floats first[4];
    Floats second[4];
    WINNOW_UNROLL
    for (int i = 0; i < 4; ++i) {
      first[i] = load_two_rows(row + i, at);
      second[i] = load_two_rows(row + 8 + i, at);
    }
    transpose(first);
    transpose(second);
    WINNOW_UNROLL
    for (int i = 0; i < 4; ++i) {
      put(at / 4 + i, half, pick_groups<0, 2, 4, 6>(first[i], second[i], kEach));
      put(at / 4 + 4 + i, half, pick_groups<1, 3, 5, 7>(first[i], second[i], kEach));
    }
  }
};

/// Sums of one block: its dwords [begin, end).
template <int kSize>
inline void dot_block(const TurnedRows& rows, int32_t begin, int32_t end, const std::byte* q, int32_t dim,
                      const int32_t* start, Floats (&sum)[kSize][2], RowFetch& fetch) {
  const auto bytes = static_cast<int64_t>(ByteQuery::bytes(dim));
  const int32_t row_bytes = ByteQuery::row_bytes(dim);
  Ints high[kSize][2] = {};
  Ints low[kSize][2];
  WINNOW_UNROLL
  for (int i = 0; i < kSize; ++i) low[i][0] = low[i][1] = broadcast(start[i * bytes / 4]);
  for (int32_t four = begin; four < end; ++four) {
    fetch.step();
    const Ints k[2] = {rows.fours[four][0], rows.fours[four][1]};
    WINNOW_UNROLL
    for (int i = 0; i < kSize; ++i) {
      const Ints upper = load_four(q + i * bytes + 4 * four);
      const Ints lower = load_four(q + i * bytes + row_bytes + 4 * four);
      for (int v = 0; v < 2; ++v) high[i][v] = add_bytes(high[i][v], k[v], upper);
      for (int v = 0; v < 2; ++v) low[i][v] = add_bytes(low[i][v], k[v], lower);
    }
  }
  WINNOW_UNROLL
  for (int i = 0; i < kSize; ++i) {
    for (int v = 0; v < 2; ++v) sum[i][v] = __builtin_convertvector((high[i][v] << 8) + low[i][v], Floats);
  }
}

template <int kSize>
inline void dot_turned(const TurnedRows& rows, int32_t dim, const std::byte* q, float* logits, int64_t stride,
                       RowFetch& fetch) {
  const auto bytes = static_cast<int64_t>(ByteQuery::bytes(dim));
  Floats total[kSize][2] = {};
  for (int32_t pair = 0; pair < dim / kPair; ++pair) {
    const int32_t first = pair * kPairFours;
    const int32_t* start = ByteQuery::start(q, dim) + 2 * pair;
    Floats sum[kSize][2];
    dot_block(rows, first, first + kFirstFours, q, dim, start, sum, fetch);
    for (int v = 0; v < 2; ++v) {
      const Floats scale = rows.first_scale(pair, v);
      for (int i = 0; i < kSize; ++i) total[i][v] += sum[i][v] * scale;
    }
    dot_block(rows, first + kFirstFours, first + kPairFours, q, dim, start + 1, sum, fetch);
    for (int v = 0; v < 2; ++v) {
      const Floats scale = rows.second_scale(pair, v);
      for (int i = 0; i < kSize; ++i) total[i][v] += sum[i][v] * scale;
    }
  }
  for (int i = 0; i < kSize; ++i) {
    const float scale = ByteQuery::scale(q + i * bytes, dim);
    for (int v = 0; v < 2; ++v) store(logits + i * stride + v * kLanes, total[i][v] * scale);
  }
}

inline void dot_bytes(const RowTile& rows, int32_t dim, const std::byte* q, int32_t n_q, float* logits,
                      int64_t stride) {
  const int32_t row_bytes = ByteQuery::row_bytes(dim);
  TurnedRows turned;
  const int64_t n_steps =
      int64_t{(rows.n + kDotSlots - 1) / kDotSlots} * (row_bytes / 4 + TurnedRows::n_steps(row_bytes));
  RowFetch fetch(rows, row_bytes, n_steps);
  RowFetch none({rows.row, nullptr, rows.n}, row_bytes, n_steps);
  for (int32_t begin = 0; begin < rows.n; begin += kDotSlots) {
    const int32_t n = smaller(kDotSlots, rows.n - begin);
    const std::byte* repeated[kDotSlots];  // the last row stands in for those that are missing
    for (int32_t i = 0; n < kDotSlots && i < kDotSlots; ++i) repeated[i] = rows.row[begin + smaller(i, n - 1)];
    turned.fill(n < kDotSlots ? repeated : rows.row + begin, row_bytes, fetch);
    each_piece<kByteQueries>(n_q, [&](int32_t first, auto size) {
      constexpr int kSize = decltype(size)::value;
      const std::byte* queries = q + first * static_cast<int64_t>(ByteQuery::bytes(dim));
      float* out = logits + first * stride + begin;
      if (n == kDotSlots) return dot_turned<kSize>(turned, dim, queries, out, stride, first == 0 ? fetch : none);
      alignas(64) float all[kSize][kDotSlots];
      dot_turned<kSize>(turned, dim, queries, all[0], kDotSlots, first == 0 ? fetch : none);
      for (int i = 0; i < kSize; ++i) {
        for (int32_t j = 0; j < n; ++j) out[i * stride + j] = all[i][j];
      }
    });
  }
}

inline Floats size_of(Floats v) {
  return max(v, -v);
}

/// A tile's rows and their blocks' scales. The last row stands in for those that are missing, with scales of 0.
struct TileRows {
  RowPointers row;
  const std::byte* repeated[kTileSlots];
  alignas(64) float scale[kMostBlocks][kTileSlots];
  float largest_scale;

  TileRows(const RowTile& rows, int32_t dim) {
    const bool whole = rows.n == kTileSlots;
    for (int32_t j = 0; !whole && j < kTileSlots; ++j) repeated[j] = rows.row[smaller(j, rows.n - 1)];
    row = whole ? rows.row : repeated;
    Floats most{};
    for (int32_t pair = 0; pair < dim / kPair; ++pair) {
      for (int32_t j = 0; j < kTileSlots; j += kLanes) {
        const Floats first = low_halves(fours_of(row + j, pair * kPairBytes));
        const Ints ninth = fours_of(row + j, pair * kPairBytes + 32);
        const Floats second =
            low_halves(reinterpret_cast<Ints>(_mm512_srli_epi32(reinterpret_cast<__m512i>(ninth), 16)));
        most = max(most, max(size_of(first), size_of(second)));
        store(scale[2 * pair] + j, first);
        store(scale[2 * pair + 1] + j, second);
      }
    }
    largest_scale = max_lanes(most);
    for (int32_t b = 0; b < dim / 32; ++b) {
      for (int32_t j = rows.n; j < kTileSlots; ++j) scale[b][j] = 0;
    }
  }
  TileRows(const TileRows&) = delete;
  TileRows& operator=(const TileRows&) = delete;

 private:
  /// The dword at `offset` of each of 16 rows.
  static Ints fours_of(RowPointers from, int64_t offset) {
    Floats part[4];
    WINNOW_UNROLL
    for (int i = 0; i < 4; ++i) part[i] = load_four_rows(from + i, offset);
    transpose(part);
    Ints bits;
    __builtin_memcpy(&bits, &part[0], sizeof(bits));
    return bits;
  }
};

/// Softmax weights of one block, p times the scales, in 16 bits: pairs of neighbouring slots, the first in the low
/// half. p times a scale times `inverse` fits.
inline void pack_weights(const float* p, const float* scale, float inverse, int32_t* pairs) {
  WINNOW_UNROLL
  for (int32_t j = 0; j < kTileSlots; j += 2 * kLanes) {
    const auto whole = [&](int32_t at) { return _mm512_cvtps_epi32(load(p + at) * inverse * load(scale + at)); };
    // Packing works inside groups of four lanes: those of the two vectors take turns.
    const __m512i mixed = _mm512_packs_epi32(whole(j), whole(j + kLanes));
    const __m512i sorted = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), mixed);
    _mm512_storeu_si512(pairs + j / 2, sorted);
  }
}

/// o_i += step_i * sum over n slots, a multiple of four, of the codes of block `b`.
template <int kSize>
inline void mix_block(RowPointers row, int32_t n, int32_t b, const int32_t (&pairs)[kSize][kTileSlots / 2],
                      const float (&step)[kSize], float* o, int32_t dim, RowFetch& fetch) {
  const int64_t offset = int64_t{34} * b + 2;
  __m512i sum[kSize][2] = {};
  const auto codes = [&](int32_t j) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row[j] + offset)));
  };
  for (int32_t j = 0; j < n; j += 4) {
    __m512i two[2][2];  // codes of two slots side by side: of the first and the last four in each group of eight
    WINNOW_UNROLL
    for (int k = 0; k < 2; ++k) {
      const __m512i first = codes(j + 2 * k);
      const __m512i second = codes(j + 2 * k + 1);
      two[k][0] = _mm512_unpacklo_epi16(first, second);
      two[k][1] = _mm512_unpackhi_epi16(first, second);
    }
    fetch.step();
    WINNOW_UNROLL
    for (int i = 0; i < kSize; ++i) {
      WINNOW_UNROLL
      for (int k = 0; k < 2; ++k) {
        const __m512i weights = _mm512_set1_epi32(pairs[i][j / 2 + k]);
        sum[i][0] = _mm512_dpwssd_epi32(sum[i][0], two[k][0], weights);
        sum[i][1] = _mm512_dpwssd_epi32(sum[i][1], two[k][1], weights);
      }
    }
  }
  constexpr std::make_integer_sequence<int, kLanes> kEach;
  WINNOW_UNROLL
  for (int i = 0; i < kSize; ++i) {
    const Floats low = _mm512_cvtepi32_ps(sum[i][0]);
    const Floats high = _mm512_cvtepi32_ps(sum[i][1]);
    float* to = o + int64_t{i} * dim;
    store(to, load(to) + pick_groups<0, 4, 1, 5>(low, high, kEach) * step[i]);
    store(to + kLanes, load(to + kLanes) + pick_groups<2, 6, 3, 7>(low, high, kEach) * step[i]);
  }
}

inline void mix_bytes(const RowTile& rows, int32_t dim, const float* p, int64_t stride, int32_t n_q, float* o) {
  constexpr float kMost = 32767;
  const TileRows tile(rows, dim);
  const int32_t n = round_up(rows.n, 4);
  const int64_t n_steps = int64_t{n / 4} * (dim / 32);
  RowFetch fetch(rows, ByteQuery::row_bytes(dim), n_steps);
  RowFetch none({rows.row, nullptr, rows.n}, ByteQuery::row_bytes(dim), n_steps);
  each_piece<kByteQueries>(n_q, [&](int32_t begin, auto size) {
    constexpr int kSize = decltype(size)::value;
    float inverse[kSize];
    float step[kSize];
    for (int i = 0; i < kSize; ++i) {
      Floats most{};
      for (int32_t j = 0; j < kTileSlots; j += kLanes) most = max(most, size_of(load(p + (begin + i) * stride + j)));
      const float bound = max_lanes(most) * tile.largest_scale;
      inverse[i] = bound > 0 ? kMost / bound : 0;
      step[i] = bound / kMost;
    }
    alignas(64) int32_t pairs[kSize][kTileSlots / 2];
    for (int32_t b = 0; b < dim / 32; ++b) {
      for (int i = 0; i < kSize; ++i) pack_weights(p + (begin + i) * stride, tile.scale[b], inverse[i], pairs[i]);
      mix_block<kSize>(tile.row, n, b, pairs, step, o + int64_t{begin} * dim + b * 32, dim, begin == 0 ? fetch : none);
    }
  });
}

/// FloatRows but for eight-bit caches whose heads have whole pairs of blocks.
struct VnniRows {
  static bool in_bytes(Type type, int32_t head_dim) { return type == Type::q8_0 && head_dim % kPair == 0; }

  static size_t query_bytes(Type type, int32_t head_dim) {
    return in_bytes(type, head_dim) ? ByteQuery::bytes(head_dim) : FloatRows::query_bytes(type, head_dim);
  }

  static void pack_query(const float* q, Type type, int32_t head_dim, std::byte* to) {
    in_bytes(type, head_dim) ? ByteQuery::pack(q, head_dim, to) : FloatRows::pack_query(q, type, head_dim, to);
  }

  static void dot(const RowTile& rows, Type type, int32_t head_dim, const std::byte* q, int32_t n_q, float* logits,
                  int64_t stride, std::byte* scratch) {
    if (in_bytes(type, head_dim)) {
      dot_bytes(rows, head_dim, q, n_q, logits, stride);
    } else {
      FloatRows::dot(rows, type, head_dim, q, n_q, logits, stride, scratch);
    }
  }

  static void mix(const RowTile& rows, Type type, int32_t head_dim, const float* p, int64_t stride, int32_t n_q,
                  float* o, std::byte* scratch) {
    if (in_bytes(type, head_dim)) {
      mix_bytes(rows, head_dim, p, stride, n_q, o);
    } else {
      FloatRows::mix(rows, type, head_dim, p, stride, n_q, o, scratch);
    }
  }
};

}  // namespace
}  // namespace winnow::cpu
