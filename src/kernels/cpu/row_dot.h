// Dot products of a row of the file's quantised blocks with a row of activations in 8 bits: for the types that ggml
// multiplies with one scale for 256 activations. One for each 32 costs no more time and keeps small values apart from
// outliers (Gemma 3 270M in prefill: mean KL to float32 0.0032 against 0.0076).
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

using RowDot = float (*)(const std::byte* weights, const std::byte* activations, int64_t n);

/// Of q4_K or q5_K; null for others. Only where the processor is x86-64.
RowDot row_dot_avx2(Type type);
/// Rounds a row of activations for such a product.
void round_row_avx2(const float* x, std::byte* to, int64_t n);

/// The best there is on these instruction sets; null: ggml's.
inline RowDot choose_row_dot([[maybe_unused]] Type type, [[maybe_unused]] const CpuFeatures& features) {
#if defined(__x86_64__)
  if (features.avx2) return row_dot_avx2(type);
#endif
  return nullptr;
}

using RowRounding = void (*)(const float* x, std::byte* to, int64_t n);

/// What goes with choose_row_dot; null where that has nothing.
inline RowRounding choose_row_rounding([[maybe_unused]] const CpuFeatures& features) {
#if defined(__x86_64__)
  if (features.avx2) return round_row_avx2;
#endif
  return nullptr;
}

}  // namespace winnow
