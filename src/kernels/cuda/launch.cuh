// Launches that may begin before the kernel in front of them ends (programmatic dependent launch): a decode step is
// some 500 short kernels, and what one of them does first does not depend on the others.
//
// A kernel that is launched so first does what needs nothing of the kernel in front of it, then waits, then lets the
// next kernel start, and only then reads and writes what others write and read. Since each waits before it lets the
// next one start, a running kernel overlaps with the one in front of it only: what was written earlier may be read
// before waiting.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/check.h"

namespace winnow::cuda {

/// Waits for all that the kernel before this one wrote.
__device__ __forceinline__ void wait_for_last_kernel() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

/// Lets the kernel that is launched to follow this one start.
__device__ __forceinline__ void start_next_kernel() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

__device__ __forceinline__ void take_turn() {
  wait_for_last_kernel();
  start_next_kernel();
}

struct Launch {
  dim3 grid, threads;
  size_t shared = 0;  // bytes
  cudaStream_t stream = nullptr;
  const char* what = "";  // for messages
};

/// Whether the GPU runs the code that waits: that for 9.0. Later GPUs run that for 8.0, which does not.
inline bool starts_early() {
  static const bool kStartsEarly = [] {
    int device = 0, major = 0;
    check(cudaGetDevice(&device), "asking for the GPU");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the GPU");
    return major == 9;
  }();
  return kStartsEarly;
}

/// kernel<<<...>>>(args...); it must wait_for_last_kernel.
template <typename... Parameters, typename... Args>
void launch_early(const Launch& launch, void (*kernel)(Parameters...), const Args&... args) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = launch.grid;
  config.blockDim = launch.threads;
  config.dynamicSmemBytes = launch.shared;
  config.stream = launch.stream;
  config.attrs = &early;
  config.numAttrs = starts_early() ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...), launch.what);
}

}  // namespace winnow::cuda
