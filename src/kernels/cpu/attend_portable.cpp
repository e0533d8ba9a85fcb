// Attention in float32 for portable.
#include "kernels/cpu/attend_rows.h"

namespace winnow::cpu {

constinit const AttendKernel kAttendPortable =
    make_kernel<MathF32>("portable", [](const CpuFeatures& /*features*/) { return true; });

}  // namespace winnow::cpu
