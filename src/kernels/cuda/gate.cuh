// The activations of feed-forward parts.
#pragma once

#include "attention/device.h"

namespace winnow::cuda {

template <Gate kind>
__device__ inline float activate(float x) {
  if constexpr (kind == Gate::silu) return x / (1 + expf(-x));
  constexpr float kRoot = 0.7978845608F;  // sqrt(2 / pi)
  return 0.5F * x * (1 + tanhf(kRoot * (x + 0.044715F * x * x * x)));
}

}  // namespace winnow::cuda
