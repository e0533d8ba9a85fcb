// Where a bound stands among ascending values.
#pragma once

#include <cstdint>

namespace winnow::cuda {

/// How many of `n` ascending values are below `bound`.
template <typename Bound>
__device__ inline int32_t count_below(const int32_t* values, int32_t n, Bound bound) {
  int32_t begin = 0;
  while (begin < n) {
    const int32_t middle = begin + (n - begin) / 2;
    if (values[middle] < bound) {
      begin = middle + 1;
    } else {
      n = middle;
    }
  }
  return begin;
}

}  // namespace winnow::cuda
