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

inline void store(int32_t* to, Ints v) {
  __builtin_memcpy(to, &v, sizeof(v));
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
      Ints block[kLanes];  // a row's pairs
      for (int32_t i = 0; i < kLanes; ++i) {
        block[i] = Ints{};
        if (lane + i >= n_rows) continue;
        const float* at = q + (lane + i) * stride + d;
        const Floats first = load_some(at, dim - d) * factor;
        const Floats last = load_some(at + kLanes, dim - d - kLanes) * factor;
        block[i] = reinterpret_cast<Ints>(_mm512_cvtne2ps_pbh(last, first));
      }
      transpose(block);
      for (int32_t i = 0; i < smaller(kLanes, (padded - d) / 2); ++i) store(to + (d / 2 + i) * kPanel + lane, block[i]);
    }
  }
}

/// P^T in pairs of slots, for the slots [first, first + 2 * n_pairs) of a grid on which p's slot i is `row` + i; those
/// outside [from, to) of p are 0.
inline void pack_weight_pairs(const float* p, int32_t row, int32_t from, int32_t to, int32_t first, int32_t n_pairs,
                              int32_t* packed) {
  const auto weight = [&](int32_t slot, int32_t lane) {
    const int32_t i = slot - row;
    return i >= from && i < to ? cpu::load(p + i * kPanel + lane) : Floats{};
  };
  for (int32_t pair = 0; pair < n_pairs; ++pair) {
    for (int32_t lane = 0; lane < kPanel; lane += kLanes) {
      const int32_t slot = first + 2 * pair;
      store(packed + pair * kPanel + lane, pair_bf16(weight(slot, lane), weight(slot + 1, lane)));
    }
  }
}

/// One row of the cache as bf16 [padded], zeros behind head_dim. `row` null: all zeros.
template <typename Codec>
inline void unpack_row_bf16(const std::byte* row, int32_t head_dim, int32_t padded, uint16_t* to) {
  alignas(64) float values[16];
  for (int32_t d = 0; d < padded; d += 16) {
    Floats v{};
    if (row != nullptr && d + 16 <= head_dim) {
      v = Codec::load(row, d);
    } else if (row != nullptr && d < head_dim) {
      for (float& x : values) x = 0;
      unpack_row<Codec>(row + Codec::row_bytes(d), head_dim - d, values);
      v = cpu::load(values);
    }
    const auto half = _mm512_cvtneps_pbh(v);
    const int32_t n = smaller(16, padded - d);
    __builtin_memcpy(to + d, &half, static_cast<size_t>(n) * 2);
  }
}

}  // namespace
}  // namespace winnow::cpu
