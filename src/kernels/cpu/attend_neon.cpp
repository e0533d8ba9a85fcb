// Attention in float32 for neon.
#include "kernels/cpu/attend_rows.h"

namespace winnow::cpu {

constinit const AttendKernel kAttendNeon =
    make_kernel<MathF32>("neon", [](const CpuFeatures& features) { return features.neon; });

}  // namespace winnow::cpu
