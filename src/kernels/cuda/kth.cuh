// The border of a choice by number: a warp finds the k-th largest of some keys by digits of their bits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace winnow::cuda {

constexpr int kKthDigits = 256;

/// Orders as x does.
__device__ inline uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000U;
}

/// The warp finds the k-th largest key. -> that key; k becomes how many of its equals are taken. 1 <= k <= n;
/// counts: kKthDigits of the warp's own
template <typename Keys>
__device__ uint32_t kth_key(const Keys& keys, int64_t& k, int32_t* counts) {
  constexpr int kDigitBits = 8, kLaneDigits = kKthDigits / 32;
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  uint32_t prefix = 0;
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int32_t i = lane; i < kKthDigits; i += 32) counts[i] = 0;
    __syncwarp();
    for (int32_t c = lane; c < keys.n; c += 32) {
      const uint32_t key = keys(c);
      if (shift + kDigitBits < 32 && key >> (shift + kDigitBits) != prefix) continue;
      atomicAdd(&counts[key >> shift & (kKthDigits - 1)], 1);
    }
    __syncwarp();
    // From the largest digit down: neighbouring ones to a lane.
    const int32_t highest = kKthDigits - 1 - lane * kLaneDigits;
    int32_t own = 0;
    for (int32_t i = 0; i < kLaneDigits; ++i) own += counts[highest - i];
    int32_t before = own;
    for (int step = 1; step < 32; step *= 2) {
      const int32_t lower = __shfl_up_sync(~0U, before, step);
      if (lane >= step) before += lower;
    }
    before -= own;
    const uint32_t holders = __ballot_sync(~0U, before < k && before + own >= k);
    const int holder = __ffs(static_cast<int>(holders)) - 1;
    int32_t digit = highest;
    if (lane == holder) {
      while (before + counts[digit] < k) before += counts[digit--];
    }
    prefix = prefix << kDigitBits | static_cast<uint32_t>(__shfl_sync(~0U, digit, holder));
    k -= __shfl_sync(~0U, before, holder);
    __syncwarp();
  }
  return prefix;
}

}  // namespace winnow::cuda
