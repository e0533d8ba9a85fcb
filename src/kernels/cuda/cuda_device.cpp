#include "kernels/cuda/cuda_device.h"

#include <fmt/format.h>

#include <cstdlib>

#include "base/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/store_kv.h"
#include "kernels/rows.h"

namespace winnow {
namespace cuda {
namespace {

constexpr int kLeastCapability = 80;

cudaDeviceProp find_gpu() {
  int n = 0;
  const cudaError_t status = cudaGetDeviceCount(&n);
  if (status == cudaErrorInsufficientDriver) {
    fail("device cuda: the NVIDIA driver is missing or older than CUDA {}.{}, which winnow was built with",
         CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  }
  if (status != cudaSuccess || n == 0) {
    fail("device cuda: no NVIDIA GPU was found ({})", n == 0 ? "there is none" : cudaGetErrorString(status));
  }
  check(cudaSetDevice(0), "choosing the GPU");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "asking for the GPU's properties");
  if (properties.major * 10 + properties.minor < kLeastCapability) {
    fail("device cuda: {} has compute capability {}.{}; at least 8.0 is needed", properties.name, properties.major,
         properties.minor);
  }
  return properties;
}

/// WINNOW_CUDA_KERNELS=portable keeps Hopper's own kernels from being chosen, to compare with.
bool choose_hopper(const cudaDeviceProp& properties) {
  const char* wish = std::getenv("WINNOW_CUDA_KERNELS");
  const std::string_view text = wish == nullptr ? "" : wish;
  if (!text.empty() && text != "portable" && text != "hopper") {
    fail("WINNOW_CUDA_KERNELS is \"{}\"; it must be portable or hopper", text);
  }
  const bool able = properties.major == 9 && properties.minor == 0;
  if (text == "hopper" && !able) fail("WINNOW_CUDA_KERNELS is hopper; {} is none", properties.name);
  return able && text != "portable";
}

}  // namespace

CudaDevice::CudaDevice(int n_threads, ProductType products)
    : properties_(find_gpu()),
      stream_(launcher_),
      pool_(n_threads),
      gpu_memory_(&memory_, stream_),
      transfers_(stream_),
      context_{stream_,
               gpu_memory_,
               transfers_,
               pool_,
               properties_.multiProcessorCount,
               properties_.major * 10 + properties_.minor},
      tables_(context_),
      parameters_(context_),
      kv_tables_(context_, tables_),
      counters_(context_),
      products_(context_, products),
      hopper_(choose_hopper(properties_)) {
  if (products == ProductType::fp8 && !products_.has_fp8()) {
    fail("device cuda: {} (compute capability {}.{}) has no fp8 products with a scale for each row; 9.0 has",
         properties_.name, properties_.major, properties_.minor);
  }
}

CudaDevice::~CudaDevice() {
  cudaStreamSynchronize(launcher_.stream());
}

std::string CudaDevice::description() const {
  return fmt::format(
      "cuda: {} (compute capability {}.{}, {} multiprocessors, {} GB), {} threads of the host; weights "
      "in {}, products by cuBLAS, attention by {} kernels",
      properties_.name, properties_.major, properties_.minor, properties_.multiProcessorCount,
      properties_.totalGlobalMem >> 30, n_threads(), products_.type() == ProductType::fp8 ? "fp8" : "bf16",
      hopper_ ? "Hopper's (wgmma)" : "portable");
}

double CudaDevice::peak_gflops() {
  const auto lock = begin();
  return 1e3 * products_.peak_tflops();
}

Scratch CudaDevice::matrix(int64_t rows, int64_t cols, Type type) {
  constexpr int64_t kAligned = 64;  // values: rows begin where wide accesses may
  const int64_t stride = (cols + kAligned - 1) / kAligned * kAligned;
  std::shared_ptr<std::byte> bytes = gpu_memory_.lend(static_cast<size_t>(rows * stride) * (type == Type::f32 ? 4 : 2));
  const Mat view{reinterpret_cast<float*>(bytes.get()), rows, cols, stride, type};
  return {view, std::move(bytes)};
}

void CudaDevice::upload(Mat to, const float* from) {
  const auto lock = begin();
  const size_t bytes = static_cast<size_t>(to.rows * to.cols) * sizeof(float);
  if (to.type == Type::f32 && to.stride == to.cols) {
    transfers_.upload(to.data, from, bytes);
    return;
  }
  const auto dense = gpu_memory_.lend(bytes);
  transfers_.upload(dense.get(), from, bytes);
  copy_rows({reinterpret_cast<float*>(dense.get()), to.rows, to.cols, to.cols}, nullptr, 1, to, stream_);
}

void CudaDevice::download(float* to, Mat from) {
  const auto lock = begin();
  const size_t bytes = static_cast<size_t>(from.rows * from.cols) * sizeof(float);
  if (from.type == Type::f32 && (from.stride == from.cols || from.rows == 1)) {
    transfers_.download(to, from.data, bytes);
    return;
  }
  const auto dense = gpu_memory_.lend(bytes);
  copy_rows(from, nullptr, 1, {reinterpret_cast<float*>(dense.get()), from.rows, from.cols, from.cols}, stream_);
  transfers_.download(to, dense.get(), bytes);
}

void CudaDevice::copy_bytes(std::span<const BytesCopy> copies) {
  if (copies.empty()) return;
  const auto lock = begin();
  staged_ = {};
  copy_all(context_, copies);
}

void CudaDevice::upload_bytes(std::byte* to, const std::byte* from, size_t bytes) {
  const auto lock = begin();
  staged_ = {};
  transfers_.upload(to, from, bytes);
}

void CudaDevice::sync() {
  const auto lock = begin();
  counters_.fold();
  check(cudaStreamSynchronize(stream_), "waiting for the GPU");
}

void CudaDevice::begin_step() {
  const auto lock = begin();
  launcher_.begin_step();
  tables_.begin_step();
}

void CudaDevice::end_step() {
  const std::lock_guard lock(mutex_);
  launcher_.end_step();
  tables_.end_step();
}

std::unique_ptr<Unpacked> CudaDevice::unpack(std::span<const Weight* const> weights) {
  const auto lock = begin();
  for (const Weight* weight : weights) products_.prepare(*weight);
  return std::make_unique<Unpacked>();  // they stay
}

void CudaDevice::linear(const Weight& weight, Mat x, Mat y, const float* bias) {
  const Weight* const weights[] = {&weight};
  linear_many(weights, x, {&y, 1}, {&bias, 1});
}

void CudaDevice::linear_many(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys,
                             std::span<const float* const> biases) {
  const auto lock = begin();
  std::vector<const float*> uploaded;
  for (size_t i = 0; i < biases.size(); ++i) {
    uploaded.push_back(biases[i] == nullptr ? nullptr : parameters_.get(biases[i], weights[i]->n_out));
  }
  products_.multiply(weights, x, ys, uploaded);
}

void CudaDevice::linear_add(const Weight& weight, Mat h, Mat x) {
  const auto lock = begin();
  products_.multiply_add(weight, h, x);
}

void CudaDevice::feed_forward_add(const GatedWeights& weights, Mat h, Mat x) {
  const auto lock = begin();
  const Scratch gate = activations(h.rows, weights.gate->n_out);
  if (products_.multiply_gated(weights, h, gate)) {
    linear_add(*weights.down, gate, x);
    return;
  }
  const Scratch up = activations(h.rows, weights.up->n_out);
  const Weight* const both[] = {weights.gate, weights.up};
  const Mat ys[] = {gate, up};
  linear_many(both, h, ys, {});
  gated(gate, up, weights.act, gate);
  linear_add(*weights.down, gate, x);
}

void CudaDevice::embed(const Weight& table, std::span<const int32_t> tokens, float scale, Mat x) {
  const auto lock = begin();
  const ResidentWeight resident = products_.resident(table);
  auto* data = static_cast<float*>(const_cast<void*>(resident.data));  // Mat has no form for constants
  copy_rows({data, table.n_out, table.n_in, resident.ld, Type::bf16}, on_gpu(tokens), scale, x, stream_);
}

void CudaDevice::rms_norm(Mat x, const float* weight, float eps, Mat y) {
  const auto lock = begin();
  cuda::rms_norm(x, parameters_.get(weight, x.cols), eps, y, stream_);
}

void CudaDevice::rms_norm_heads(HeadsView x, const float* weight, float eps) {
  const auto lock = begin();
  cuda::rms_norm_heads(x, parameters_.get(weight, x.head_dim), eps, stream_);
}

void CudaDevice::rope_both(HeadsView q, HeadsView k, const RopeArgs& args, std::span<const int32_t> position) {
  const auto lock = begin();
  RopeArgs on_device = args;
  on_device.frequency = parameters_.get(args.frequency, args.n_rot / 2);
  cuda::rope(q, k, on_device, on_gpu(position), stream_);
}

void CudaDevice::gated(Mat gate, Mat up, Gate kind, Mat y) {
  const auto lock = begin();
  cuda::gated(gate, up, kind, y, stream_);
}

void CudaDevice::add(Mat x, Mat y) {
  const auto lock = begin();
  cuda::add(x, y, stream_);
}

void CudaDevice::add_bias(Mat x, const float* bias) {
  const auto lock = begin();
  cuda::add_bias(x, parameters_.get(bias, x.cols), stream_);
}

void CudaDevice::scale_softcap(Mat x, float softcap) {
  const auto lock = begin();
  cuda::scale_softcap(x, softcap, stream_);
}

void CudaDevice::gather_rows(Mat from, std::span<const int32_t> rows, Mat to) {
  const auto lock = begin();
  to.rows = static_cast<int64_t>(rows.size());
  copy_rows(from, on_gpu(rows), 1, to, stream_);
}

void CudaDevice::store_kv(HeadsView k, HeadsView v, Type k_type, Type v_type, std::span<const KvTarget> target) {
  if (k.head_dim % 8 != 0) fail("device cuda: heads of {} values; their size must be a multiple of 8", k.head_dim);
  const auto lock = begin();
  staged_ = {};
  std::vector<int32_t> first_slot;
  for (const KvTarget& head : target) first_slot.push_back(head.first_slot);
  const DeviceBlocks blocks = kv_tables_.of(target);
  const int32_t* first = on_gpu(first_slot);
  store_rows({k, k_type, blocks.k, blocks.first_block, first}, {v, v_type, blocks.v, blocks.first_block, first},
             stream_);
}

void CudaDevice::load_slot(const std::byte* block, Type type, int32_t head_dim, int32_t slot, float* values) {
  const auto lock = begin();
  staged_ = {};
  std::vector<std::byte> row(type_bytes(type, head_dim));
  transfers_.download(row.data(), block + static_cast<size_t>(slot) * row.size(), row.size());
  decode_row(type, row.data(), values, head_dim);
}

void CudaDevice::store_slot(std::byte* block, Type type, int32_t head_dim, int32_t slot, const float* values) {
  const auto lock = begin();
  staged_ = {};
  std::vector<std::byte> row(type_bytes(type, head_dim));
  encode_row_plain(type, values, row.data(), head_dim);
  transfers_.upload(block + static_cast<size_t>(slot) * row.size(), row.data(), row.size());
}

}  // namespace cuda

std::unique_ptr<Device> make_cuda_device(int n_threads, ProductType products) {
  return std::make_unique<cuda::CudaDevice>(n_threads, products);
}

StepCounts step_counts(const Device& device) {
  return dynamic_cast<const cuda::CudaDevice&>(device).step_counts();
}

int64_t free_gpu_bytes() {
  cuda::find_gpu();
  size_t free = 0, total = 0;
  cuda::check(cudaMemGetInfo(&free, &total), "asking for free memory");
  return static_cast<int64_t>(free);
}

}  // namespace winnow
