// e4m3 in registers, by shifts, which every GPU has: the bits of exponent and mantissa, read as f16, are the number
// times 2^-8, subnormals included. The codes of NaN, which no finite value is stored as, read as 480 with their sign.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace winnow::cuda {

inline constexpr float kFp8Unit = 256;  // what the halves below are to be multiplied by

/// Two codes, in the high bytes of the halves of `codes`, as a pair of f16 times 2^-8. Low bytes are ignored.
__device__ __forceinline__ uint32_t fp8_high_bytes(uint32_t codes) {
  return (codes & 0x80008000U) | ((codes & 0x7f007f00U) >> 1);
}

/// Codes 0 and 1 (kPair 0), or 2 and 3, of four neighbours as such a pair.
template <int kPair>
__device__ __forceinline__ uint32_t fp8_pair(uint32_t codes) {
  return fp8_high_bytes(__byte_perm(codes, 0, kPair == 0 ? 0x1404 : 0x3424));
}

/// Two neighbouring codes as floats.
__device__ __forceinline__ float2 fp8_floats(uint32_t codes) {
  const uint32_t pair = fp8_pair<0>(codes);
  const float2 x = __half22float2(*reinterpret_cast<const __half2*>(&pair));
  return {x.x * kFp8Unit, x.y * kFp8Unit};
}

}  // namespace winnow::cuda
