#include "kernels/cpu/int8_ops.h"

namespace winnow {

const Int8Ops& choose_int8_ops([[maybe_unused]] const CpuFeatures& features) {
#if defined(__x86_64__)
  if (features.avx512_vnni) return kInt8OpsAvx512;
  if (features.avx2) return kInt8OpsAvx2;
#endif
  return kInt8OpsPortable;
}

}  // namespace winnow
