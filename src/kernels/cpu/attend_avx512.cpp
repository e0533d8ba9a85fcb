// Attention in float32 for avx512.
#include "kernels/cpu/attend_rows.h"

namespace winnow::cpu {

constinit const AttendKernel kAttendAvx512 =
    make_kernel<MathF32>("avx512", [](const CpuFeatures& features) { return features.avx512; });

}  // namespace winnow::cpu
