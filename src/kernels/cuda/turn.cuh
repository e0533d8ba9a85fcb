// The angle by which RoPE turns a pair of values.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace winnow::cuda {

/// Cosine and sine of position * frequency, whole turns taken away in double: positions go beyond 2^20.
__device__ inline float2 turn_of(int32_t position, float frequency, float magnitude) {
  constexpr double kTurn = 1 / 6.283185307179586476925;
  const double turns = static_cast<double>(position) * static_cast<double>(frequency) * kTurn;
  float sine, cosine;
  sincospif(static_cast<float>(2 * (turns - rint(turns))), &sine, &cosine);
  return {cosine * magnitude, sine * magnitude};
}

}  // namespace winnow::cuda
