#include "kernels/cpu/row_ops.h"

namespace winnow {

const RowOps& choose_row_ops([[maybe_unused]] const CpuFeatures& features) {
#if defined(__x86_64__)
  if (features.avx512) return kRowOpsAvx512;
  if (features.avx2) return kRowOpsAvx2;
#endif
  return kRowOpsPortable;
}

}  // namespace winnow
