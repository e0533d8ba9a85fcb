#include "attention/device.h"

#include <array>

#include "base/error.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cuda/gpu.h"
#include "kernels/ref/ref_device.h"

namespace winnow {

size_t kv_block_bytes(Type type, int32_t head_dim) {
  return kBlockSlots * type_bytes(type, head_dim);
}

void Device::feed_forward(const GatedWeights& weights, Mat x, Mat y) {
  const Scratch gated = activations(x.rows, weights.gate->n_out);
  const Scratch up = activations(x.rows, weights.up->n_out);
  linear_many(std::array{weights.gate, weights.up}, x, std::array<Mat, 2>{gated, up});
  this->gated(gated, up, weights.act, gated);
  linear(*weights.down, gated, y);
}

ProductType product_type(std::string_view name) {
  if (name == "own") return ProductType::own;
  if (name == "fp8") return ProductType::fp8;
  fail("products is '{}'; it must be own or fp8", name);
}

std::unique_ptr<Device> make_device(std::string_view name, int n_threads, ProductType products) {
  if (n_threads < 0) fail("threads is {}; it must be at least 1, or 0 for all cores", n_threads);
  if (products == ProductType::fp8 && (name == "cpu" || name == "ref")) {
    fail("device {} has no fp8 products; only cuda on a GPU of compute capability 9.0 has", name);
  }
  if (name == "cpu") return std::make_unique<CpuDevice>(n_threads, chosen_features());
  if (name == "ref") return std::make_unique<RefDevice>(n_threads);
  if (name == "cuda") return make_cuda_device(n_threads, products);
  fail("there is no device '{}'; it must be cpu, cuda or ref", name);
}

}  // namespace winnow
