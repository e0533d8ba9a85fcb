#include "kernels/cuda/check.h"

#include "base/error.h"

namespace winnow::cuda {

void fail_cuda(cudaError_t status, const char* what) {
  fail("cuda: {}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

}  // namespace winnow::cuda
