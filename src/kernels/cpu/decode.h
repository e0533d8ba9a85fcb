// Faster ways to decode the types whose plain loops in ggml would take longer than all the rest of unpacking.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/rows.h"

namespace winnow {

/// Decodes n values, a multiple of the type's block.
using RowDecoder = void (*)(Type type, const std::byte* from, float* to, int64_t n);

/// decode_row with AVX2, for the types where that is faster: the same values up to the last bit or two.
void decode_row_avx2(Type type, const std::byte* from, float* to, int64_t n);

/// The same with AVX-512.
void decode_row_avx512(Type type, const std::byte* from, float* to, int64_t n);

/// The best there is on these instruction sets.
inline RowDecoder choose_decoder([[maybe_unused]] const CpuFeatures& features) {
#if defined(__x86_64__)
  if (features.avx512 && features.avx2) return decode_row_avx512;
  if (features.avx2) return decode_row_avx2;
#endif
  return decode_row;
}

}  // namespace winnow
