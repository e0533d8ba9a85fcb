// The layers' ops on one row of float32, compiled once for each instruction set. A table of them is chosen when a
// device is made, so that inner loops ask nothing.
#pragma once

#include <cstdint>

#include "kernels/cpu/cpu_features.h"

namespace winnow {

/// y = act(x) * up; y may be x. [n]
using GateOp = void(const float* x, const float* up, int64_t n, float* y);

struct RowOps {
  /// y = x / sqrt(mean(x^2) + eps) * weight; y may be x. [n]
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* y);
  GateOp* silu_gated;  // act(x) = x * sigmoid(x)
  GateOp* gelu_gated;  // gelu by its tanh form
  /// x += y. [n]
  void (*add)(float* x, const float* y, int64_t n);
  /// x *= factor. [n]
  void (*scale)(float* x, float factor, int64_t n);
  /// x = cap * tanh(x / cap). [n]
  void (*softcap)(float* x, float cap, int64_t n);
  /// Turns the pairs (a[i], b[i]) by cosine[i] and sine[i]. [n]
  void (*turn)(float* a, float* b, const float* cosine, const float* sine, int64_t n);
};

extern const RowOps kRowOpsPortable;
extern const RowOps kRowOpsAvx2;    // only where the processor is x86-64; the same below
extern const RowOps kRowOpsAvx512;  // NEON needs none of its own: the portable vectors of 16 bytes are NEON there

const RowOps& choose_row_ops(const CpuFeatures& features);

}  // namespace winnow
