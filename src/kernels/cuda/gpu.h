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

}  // namespace winnow
