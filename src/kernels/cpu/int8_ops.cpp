#include "kernels/cpu/int8_ops.h"

namespace winnow {

const Int8Ops& choose_int8_ops([[maybe_unused]] const CpuFeatures& features) {
#if defined(__x86_64__)
  if (features.avx512_vnni) return kRotatedInt8Avx512;
  if (features.avx2) return kExactInt8Avx2;
#endif
  return kRotatedInt8Portable;
}

}  // namespace winnow
