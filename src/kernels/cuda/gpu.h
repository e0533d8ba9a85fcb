// The device "cuda", for those who know nothing of CUDA. Builds without CUDA have it too: there it says so.
#pragma once

#include <cstdint>
#include <memory>

#include "attention/device.h"

namespace winnow {

/// Throws Error, saying what is missing, where the build has no CUDA or the machine no GPU that serves.
std::unique_ptr<Device> make_cuda_device(int n_threads, ProductType products);

/// Bytes of the GPU's memory that nobody holds. Throws as make_cuda_device does.
int64_t free_gpu_bytes();

/// How the decode steps of a device were launched (kernels/cuda/step_graph.h).
struct StepCounts {
  int64_t launches = 0;  // of all steps
  int64_t replayed = 0;  // those of them that a graph made
  int64_t changed = 0;   // those of them whose node was set anew
  int64_t graphs = 0;    // made
};
/// Of a device that make_cuda_device made.
StepCounts step_counts(const Device& device);

}  // namespace winnow
