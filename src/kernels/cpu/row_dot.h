// Dot products of rows of the file's quantised blocks with a row of activations in 8 bits: for the types that ggml
// multiplies with one scale for 256 activations, and for those where it computes longer than memory takes. One scale
// for each 32 costs no more time and keeps small values apart from outliers (Gemma 3 270M in prefill: mean KL to
// float32 0.0032 against 0.0076).
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"
#include "kernels/cpu/cpu_features.h"

namespace winnow {

/// Activations of a row: codes [n] s8, scales [n / 32] f32, sums of the rounded values [n / 32] f32. n: a multiple
/// of 32.
constexpr size_t rounded_row_bytes(int64_t n) {
  return static_cast<size_t>(n + n / 32 * 8);
}

/// Rows that a product takes at a time.
inline constexpr int kDotRows = 4;

/// Up to kDotRows rows of a weight, one behind the other. More rows may lie behind them; no harm is done if none do.
struct WeightRows {
  const std::byte* data;
  size_t row_bytes;
  int n_rows;
  int64_t n_in;
};

/// y[r] = row r times the activations. May write all of y [kDotRows], whatever n_rows is.
using RowDots = void (*)(const WeightRows& weights, const std::byte* activations, float* y);

/// Of q4_K and q5_K; null for others. Only where the processor is x86-64.
RowDots row_dots_avx2(Type type);
/// Of all quantised types, where there are avx512 and avx512_vnni.
RowDots row_dots_avx512(Type type);
/// Those among them that have 32 weights in a block.
RowDots row_dots_small_avx512(Type type);
/// Rounds a row of activations for such a product.
void round_row_avx2(const float* x, std::byte* to, int64_t n);

/// The best there is on these instruction sets; null: ggml's.
inline RowDots choose_row_dots([[maybe_unused]] Type type, [[maybe_unused]] const CpuFeatures& features) {
#if defined(__x86_64__)
  if (features.avx512_vnni) return row_dots_avx512(type);
  if (features.avx2) return row_dots_avx2(type);
#endif
  return nullptr;
}

using RowRounding = void (*)(const float* x, std::byte* to, int64_t n);

/// What goes with choose_row_dots; null where that has nothing.
inline RowRounding choose_row_rounding([[maybe_unused]] const CpuFeatures& features) {
#if defined(__x86_64__)
  if (features.avx2) return round_row_avx2;
#endif
  return nullptr;
}

}  // namespace winnow
