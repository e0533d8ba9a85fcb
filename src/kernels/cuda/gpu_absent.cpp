// Stands in for the CUDA device in builds without CUDA.
#include "base/error.h"
#include "kernels/cuda/gpu.h"

namespace winnow {
namespace {

[[noreturn]] void refuse() {
  fail(
      "device cuda: winnow was built without CUDA; \"make cuda build\" adds it where nvcc of CUDA 12 or later is on "
      "the "
      "path");
}

}  // namespace

std::unique_ptr<Device> make_cuda_device(int /*n_threads*/, ProductType /*products*/) {
  refuse();
}

int64_t free_gpu_bytes() {
  refuse();
}

StepCounts step_counts(const Device& /*device*/) {
  refuse();
}

}  // namespace winnow
