// What the bf16 products of attend_tile.h share: rounding, packing of pairs. Two neighbours of the dimension that a
// product sums over share 32 bits, the first in the low half.
#pragma once

#include "kernels/cpu/attend_f32.h"

namespace winnow::cpu {
namespace {

constexpr int32_t kPairs = kTileSlots / 2;

/// Lane by lane a's bf16 in the low and b's in the high half; rounded to nearest even.
inline Ints pair_bf16(Floats a, Floats b) {
  const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));  // a's 16 numbers, then b's
  alignas(64) static constexpr uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                           21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                           11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return reinterpret_cast<Ints>(_mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), both));
}

inline int32_t round_up(int32_t n, int32_t unit) {
  return (n + unit - 1) / unit * unit;
}

/// Q^T in pairs: -> [padded / 2][kPanel], times `factor`, of a head size that is padded with zeros to `padded`, a
/// multiple of 16.
inline void pack_query_pairs(const float* q, int64_t stride, int32_t n_rows, int32_t dim, int32_t padded, float factor,
                             int32_t* to) {
  for (int32_t lane = 0; lane < kPanel; lane += kLanes) {
    for (int32_t d = 0; d < padded; d += 2 * kLanes) {
      Floats first[kLanes];
      Floats last[kLanes];
      const float* at = q + lane * stride + d;
      load_block(at, stride, n_rows - lane, dim - d, factor, first);
      load_block(at + kLanes, stride, n_rows - lane, dim - d - kLanes, factor, last);
      Ints block[kLanes];  // a row's pairs
      WINNOW_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        block[i] = reinterpret_cast<Ints>(_mm512_cvtne2ps_pbh(last[i], first[i]));
      }
      transpose(block);
      int32_t* out = to + d / 2 * kPanel + lane;
      WINNOW_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        if (i < (padded - d) / 2) store(out + i * kPanel, block[i]);
      }
    }
  }
}

/// P^T in pairs of rows of V, from row `first` on; rows that are none of `keys` get weight 0.
inline void pack_weight_pairs(const float* p, const Keys& keys, int32_t first, int32_t n_pairs, int32_t* packed) {
  const auto weight = [&](int32_t row, int32_t lane) {
    const int32_t i = row - keys.row;
    return i >= keys.from && i < keys.to ? cpu::load(p + i * kPanel + lane) : Floats{};
  };
  for (int32_t pair = 0; pair < n_pairs; ++pair) {
    for (int32_t lane = 0; lane < kPanel; lane += kLanes) {
      const int32_t row = first + 2 * pair;
      store(packed + pair * kPanel + lane, pair_bf16(weight(row, lane), weight(row + 1, lane)));
    }
  }
}

/// One row of the cache as bf16 [padded], zeros behind head_dim. `row` null: all zeros.
template <typename Codec>
inline void unpack_row_bf16(const std::byte* row, int32_t head_dim, int32_t padded, uint16_t* to) {
  const auto half = [](Floats v) { return _mm512_cvtneps_pbh(v); };
  int32_t d = 0;
  for (; row != nullptr && d + kLanes <= head_dim; d += kLanes) {
    const auto values = half(Codec::load(row, d));
    __builtin_memcpy(to + d, &values, sizeof(values));
  }
  for (; d < padded; d += kLanes) {
    const auto values = half(row == nullptr ? Floats{} : load_tail<Codec>(row, d, head_dim));
    __builtin_memcpy(to + d, &values, size_t{2} * static_cast<size_t>(smaller(kLanes, padded - d)));
  }
}

}  // namespace
}  // namespace winnow::cpu
