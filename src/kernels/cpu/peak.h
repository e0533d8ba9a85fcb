// What this processor's matrix products reach: the yardstick of the attention kernels.
#pragma once

#include "kernels/cpu/context.h"

namespace winnow::cpu {

/// GFLOP/s of oneDNN's product of 1024 x 1024 matrices, one on each thread of the pool, in the number format that
/// attention computes in on this processor. Takes about a second.
double matmul_peak_gflops(CpuContext& context);

}  // namespace winnow::cpu
