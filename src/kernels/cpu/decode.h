// Faster ways to decode the types whose plain loops in ggml would take longer than all the rest of unpacking.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"
#include "kernels/cpu/cpu_features.h"

namespace winnow {

/// Decodes n values, a multiple of the type's block. The same values as decode_row, up to the last bit or two.
using RowDecoder = void (*)(const std::byte* from, float* to, int64_t n);

/// Of one of the types q4_0, q4_1, q5_0, q5_1, q6_K, f16; null for others. Only where the processor is x86-64.
RowDecoder decoder_avx2(Type type);

/// The best there is on these instruction sets; null: decode_row.
inline RowDecoder choose_decoder([[maybe_unused]] Type type, [[maybe_unused]] const CpuFeatures& features) {
#if defined(__x86_64__)
  if (features.avx2) return decoder_avx2(type);
#endif
  return nullptr;
}

}  // namespace winnow
