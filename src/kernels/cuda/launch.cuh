// Launches that may begin before the kernel in front of them ends (programmatic dependent launch): a decode step is
// some 500 short kernels, and what one of them does first does not depend on the others.
//
// A kernel that is launched so lets the next kernel start at once, does what needs nothing of the kernels in front of
// it, then waits, and only then reads and writes what others write and read. So several kernels stand on the
// multiprocessors one behind another, as far as there is room, and what a product asks for beforehand keeps the memory
// busy while small kernels work. To wait for the kernel in front is to wait for all of them, because it has waited
// itself. Before waiting a kernel may read what copies have brought, but nothing that kernels have written.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/check.h"
#include "kernels/cuda/stream.h"

namespace winnow::cuda {

/// Waits for all that the kernels before this one wrote.
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
  start_next_kernel();
  wait_for_last_kernel();
}

struct Launch {
  dim3 grid, threads;
  size_t shared = 0;  // bytes
  Stream stream = {};
  const char* what = "";  // for messages
};

/// kernel<<<...>>>(args...), or held back in a decode step (step_graph.h); it must wait_for_last_kernel.
template <typename... Parameters, typename... Args>
void launch_early(const Launch& launch, void (*kernel)(Parameters...), const Args&... args) {
  const auto send = [&](const Parameters&... values) {
    const Argument arguments[] = {{&values, sizeof(values)}...};
    launch.stream.launch(
        {reinterpret_cast<const void*>(kernel), launch.grid, launch.threads, launch.shared, launch.what}, arguments);
  };
  send(static_cast<const Parameters&>(args)...);
}

}  // namespace winnow::cuda
