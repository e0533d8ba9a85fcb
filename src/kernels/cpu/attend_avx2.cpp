// Attention in float32 for avx2.
#include "kernels/cpu/attend_rows.h"

namespace winnow::cpu {

constinit const AttendKernel kAttendAvx2 =
    make_kernel<MathF32>("avx2", [](const CpuFeatures& features) { return features.avx2; });

}  // namespace winnow::cpu
