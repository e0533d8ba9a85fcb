// Transposes of kLanes x kLanes 32-bit values, and loads and stores of parts of them.
#pragma once

#include "kernels/cpu/simd.h"

namespace winnow::cpu {
namespace {

/// One of the two vectors that two rows of a matrix become when the blocks of kHalf x kHalf values off the diagonal
/// change places: the first one's halves, or the last one's.
template <bool kLast, int kHalf, typename Vector, int... I>
inline Vector swap_blocks(Vector a, Vector b, std::integer_sequence<int, I...> /*lanes*/) {
  constexpr int kFrom = kLast ? kHalf : 0;
  return __builtin_shufflevector(a, b, ((I & kHalf) == 0 ? I + kFrom : I - kHalf + kFrom + kLanes)...);
}

/// Transposes a matrix of kRows x kRows 32-bit values, in blocks of growing size: one such matrix in each group of
/// kRows lanes.
template <int kHalf = 1, typename Vector, int kRows>
inline void transpose(Vector (&row)[kRows]) {
  if constexpr (kHalf < kRows) {
    constexpr std::make_integer_sequence<int, kLanes> kEach;
    WINNOW_UNROLL
    for (int i = 0; i < kRows; ++i) {
      if ((i & kHalf) != 0) continue;
      const Vector first = row[i];
      const Vector second = row[i + kHalf];
      row[i] = swap_blocks<false, kHalf>(first, second, kEach);
      row[i + kHalf] = swap_blocks<true, kHalf>(first, second, kEach);
    }
    transpose<2 * kHalf>(row);
  }
}

/// Lane i holds the largest value of row[i].
template <int kHalf = 1, int kRows>
inline Floats max_across(const Floats (&row)[kRows]) {
  constexpr std::make_integer_sequence<int, kLanes> kEach;
  Floats half[kRows / 2];
  WINNOW_UNROLL
  for (int i = 0; i < kRows / 2; ++i) {
    half[i] = max(swap_blocks<false, kHalf>(row[2 * i], row[2 * i + 1], kEach),
                  swap_blocks<true, kHalf>(row[2 * i], row[2 * i + 1], kEach));
  }
  if constexpr (kRows == 2) {
    return half[0];
  } else {
    return max_across<2 * kHalf>(half);
  }
}

/// The first n values of a vector, zeros behind them.
template <typename T>
inline auto load_some(const T* from, int32_t n) {
  decltype(load(from)) v{};
  if (n >= kLanes) return load(from);
  if (n > 0) __builtin_memcpy(&v, from, sizeof(T) * static_cast<size_t>(n));
  return v;
}

template <typename T, typename Vector>
inline void store_some(T* to, Vector v, int32_t n) {
  if (n >= kLanes) {
    __builtin_memcpy(to, &v, sizeof(v));
  } else {
    __builtin_memcpy(to, &v, sizeof(T) * static_cast<size_t>(n));
  }
}

/// Up to kLanes rows of up to kLanes values, times `factor`, as a matrix that zeros complete.
inline void load_block(const float* from, int64_t stride, int32_t n_rows, int32_t n_columns, float factor,
                       Floats (&block)[kLanes]) {
  if (n_rows >= kLanes && n_columns >= kLanes) {
    WINNOW_UNROLL
    for (int i = 0; i < kLanes; ++i) block[i] = load(from + i * stride) * factor;
    return;
  }
  for (int32_t i = 0; i < kLanes; ++i) {
    block[i] = i < n_rows ? load_some(from + i * stride, n_columns) * factor : Floats{};
  }
}

}  // namespace
}  // namespace winnow::cpu
