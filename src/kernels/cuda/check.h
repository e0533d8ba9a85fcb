// What a CUDA call answered, as an Error where it is not success. No fmt in here: nvcc cannot read its headers.
#pragma once

#include <cuda_runtime.h>

namespace winnow::cuda {

/// Throws Error that names `what` and CUDA's own words.
[[noreturn]] void fail_cuda(cudaError_t status, const char* what);

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail_cuda(status, what);
}

}  // namespace winnow::cuda
