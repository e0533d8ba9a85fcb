// The kernels of attention/low_bit.h for this processor.
#pragma once

#include <vector>

#include "attention/low_bit.h"
#include "kernels/cpu/cpu_features.h"

namespace winnow::cpu {

#if defined(__x86_64__)
extern const LowBitKernel kLowBitAvx512;  // with VNNI; head sizes that are multiples of 64
extern const LowBitKernel kLowBitAvx2;
#endif

/// Those that a processor with `features` can run, the best first.
inline std::vector<const LowBitKernel*> low_bit_kernels([[maybe_unused]] const CpuFeatures& features) {
  std::vector<const LowBitKernel*> kernels;
#if defined(__x86_64__)
  if (features.avx512_vnni) kernels.push_back(&kLowBitAvx512);
  if (features.avx2) kernels.push_back(&kLowBitAvx2);
#endif
  kernels.push_back(&kLowBitPortable);
  return kernels;
}

}  // namespace winnow::cpu
