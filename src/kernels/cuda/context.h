// What the parts of the CUDA device share.
#pragma once

#include <cuda_runtime.h>

#include "base/threads.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/stream.h"
#include "kernels/cuda/transfers.h"

namespace winnow::cuda {

struct CudaContext {
  Stream stream;
  DeviceMemory& memory;
  Transfers& transfers;
  ThreadPool& pool;  // host threads
  int n_sm = 1;      // multiprocessors
  int capability = 80;
};

}  // namespace winnow::cuda
