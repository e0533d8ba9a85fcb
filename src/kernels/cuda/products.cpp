#include "kernels/cuda/products.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/gemv.h"
#include "kernels/cuda/quantise.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/rows.h"

namespace winnow::cuda {
namespace {

constexpr size_t kWorkspace = size_t{32} << 20;
constexpr int64_t kFp8Align = 16;  // values of a row, and outputs, of a product of cuBLAS in e4m3
constexpr size_t kEnd = 64;        // bytes at each end of a weight that are compared

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) fail("cuda: cuBLAS: {}: {}", what, cublas().status_string(status));
}

cudaDataType_t cuda_type(Type type) {
  return type == Type::f32 ? CUDA_R_32F : CUDA_R_16BF;
}

std::vector<std::byte> ends_of(const Weight& weight) {
  const size_t bytes = static_cast<size_t>(weight.n_out) * type_bytes(weight.type, weight.n_in);
  const size_t n = std::min(kEnd, bytes);
  std::vector<std::byte> ends(weight.data, weight.data + n);
  ends.insert(ends.end(), weight.data + bytes - n, weight.data + bytes);
  return ends;
}

/// Whether `ends` are those of a weight that is as large.
bool has_ends(const Weight& weight, const std::vector<std::byte>& ends) {
  const size_t bytes = static_cast<size_t>(weight.n_out) * type_bytes(weight.type, weight.n_in);
  const size_t n = ends.size() / 2;
  return std::memcmp(ends.data(), weight.data, n) == 0 && std::memcmp(ends.data() + n, weight.data + bytes - n, n) == 0;
}

/// One row in bf16; `work` holds n_in floats.
void convert_row(const Weight& weight, int64_t row, float* work, std::byte* to) {
  const size_t row_bytes = type_bytes(weight.type, weight.n_in);
  const std::byte* from = weight.data + static_cast<size_t>(row) * row_bytes;
  if (weight.type == Type::bf16) {
    std::memcpy(to, from, row_bytes);
    return;
  }
  decode_row(weight.type, from, work, weight.n_in);
  encode_row(Type::bf16, work, to, weight.n_in);
}

/// A call without weights yet; x as `readable` gives it.
Gemv gemv_of(Mat x) {
  Gemv call;
  call.x = reinterpret_cast<const __nv_bfloat16*>(x.data);
  call.x_stride = x.stride;
  call.n_in = x.cols;
  call.n_rows = static_cast<int>(x.rows);
  return call;
}

}  // namespace

Products::Products(CudaContext& context, ProductType type) : context_(context), type_(type), lt_(cublas()) {
  check(lt_.create(&handle_), "starting");
  workspace_ = context_.memory.lend(kWorkspace);
}

Products::~Products() {
  for (const auto& [shape, plan] : plans_) {
    lt_.desc_destroy(plan.operation);
    for (const cublasLtMatrixLayout_t layout : {plan.w, plan.x, plan.y}) lt_.layout_destroy(layout);
  }
  lt_.destroy(handle_);
}

const Products::Entry* Products::find(const std::unordered_map<const std::byte*, Entry>& entries,
                                      const Weight& weight) const {
  const auto found = entries.find(weight.data);
  if (found == entries.end()) return nullptr;
  const Entry& entry = found->second;
  const bool same = entry.type == weight.type && entry.n_out == weight.n_out && entry.n_in == weight.n_in &&
                    has_ends(weight, entry.ends);
  return same ? &entry : nullptr;
}

ResidentWeight Products::resident(const Weight& weight) {
  if (const Entry* entry = find(entries_, weight)) return entry->weight;
  entries_.erase(weight.data);
  const int64_t ld = (weight.n_in + 7) / 8 * 8;
  auto memory = context_.memory.lend(static_cast<size_t>(weight.n_out * ld) * sizeof(__nv_bfloat16));
  copy_in(weight, memory.get(), ld);
  const ResidentWeight made{memory.get(), ld};
  entries_[weight.data] = {weight.type, weight.n_out, weight.n_in, ends_of(weight), made, std::move(memory)};
  return made;
}

ResidentWeight Products::resident_fp8(const Weight& weight) {
  if (const Entry* entry = find(entries_fp8_, weight)) return entry->weight;
  entries_fp8_.erase(weight.data);
  const int64_t ld = (weight.n_in + 7) / 8 * 8;
  const auto in_bf16 = context_.memory.lend(static_cast<size_t>(weight.n_out * ld) * sizeof(__nv_bfloat16));
  copy_in(weight, in_bf16.get(), ld);
  Quantised made = quantised({reinterpret_cast<float*>(in_bf16.get()), weight.n_out, weight.n_in, ld, Type::bf16});
  // Products of few rows read weights before their turn comes (see launch.cuh): they must be there.
  cuda::check(cudaStreamSynchronize(context_.stream), "waiting for weights");
  const ResidentWeight resident{made.input.data, made.input.ld, made.input.scale};
  entries_fp8_[weight.data] = {weight.type,     weight.n_out, weight.n_in,
                               ends_of(weight), resident,     std::move(made.memory)};
  return resident;
}

ResidentWeight Products::weight_for(const Weight& weight, Type y_type, bool adds) {
  const bool of_layer = y_type == Type::bf16 || adds;
  const bool is_fp8 = type_ == ProductType::fp8 && of_layer && weight.n_out % kFp8Align == 0;
  return is_fp8 ? resident_fp8(weight) : resident(weight);
}

Products::Quantised Products::quantised(Mat x) {
  const int64_t ld = (x.cols + kFp8Align - 1) / kFp8Align * kFp8Align;
  const size_t scale_bytes = (static_cast<size_t>(x.rows) * sizeof(float) + 255) / 256 * 256;
  auto memory = context_.memory.lend(scale_bytes + static_cast<size_t>(x.rows * ld));
  auto* scale = reinterpret_cast<float*>(memory.get());
  auto* data = reinterpret_cast<uint8_t*>(memory.get() + scale_bytes);
  quantise_rows(x, data, ld, scale, context_.stream);
  return {std::move(memory), {data, ld, scale}};
}

void Products::copy_in(const Weight& weight, std::byte* to, int64_t ld) {
  const size_t row_bytes = static_cast<size_t>(ld) * sizeof(__nv_bfloat16);
  if (row_bytes > Transfers::kPiece) fail("cuda: {}: rows of {} values are too long", weight.name, weight.n_in);
  const auto at_once = static_cast<int64_t>(Transfers::kPiece / row_bytes);
  std::vector<std::vector<float>> work(static_cast<size_t>(context_.pool.size()));
  for (int64_t begin = 0; begin < weight.n_out; begin += at_once) {
    const int64_t n = std::min(at_once, weight.n_out - begin);
    std::byte* staged = context_.transfers.stage(static_cast<size_t>(n) * row_bytes);
    const int64_t share = (n + context_.pool.size() - 1) / context_.pool.size();
    context_.pool.parallel_for((n + share - 1) / share, [&](int64_t part, int thread) {
      std::vector<float>& values = work[static_cast<size_t>(thread)];
      values.resize(static_cast<size_t>(weight.n_in));
      for (int64_t r = part * share; r < std::min(n, (part + 1) * share); ++r) {
        std::byte* row = staged + static_cast<size_t>(r) * row_bytes;
        convert_row(weight, begin + r, values.data(), row);
        std::memset(row + weight.n_in * 2, 0, row_bytes - static_cast<size_t>(weight.n_in) * 2);
      }
    });
    context_.transfers.upload_staged(to + static_cast<size_t>(begin) * row_bytes, staged,
                                     static_cast<size_t>(n) * row_bytes);
  }
}

Scratch Products::readable(Mat x) {
  const bool aligned = reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride % 8 == 0;
  if (x.type == Type::bf16 && aligned) return {x, nullptr};
  const int64_t stride = (x.cols + 7) / 8 * 8;
  auto memory = context_.memory.lend(static_cast<size_t>(x.rows * stride) * sizeof(__nv_bfloat16));
  const Mat view{reinterpret_cast<float*>(memory.get()), x.rows, x.cols, stride, Type::bf16};
  copy_rows(x, nullptr, 1, view, context_.stream);
  return {view, std::move(memory)};
}

void Products::many_rows(const Weight& weight, Mat x, Mat y, Quantised& x8, bool adds) {
  const ResidentWeight w = weight_for(weight, y.type, adds);
  if (w.scale == nullptr) {
    gemm(w, {weight.n_out, x.cols, x.rows, w.ld, x.stride, y.stride, y.type}, {x.data, x.stride}, y.data, adds);
    return;
  }
  if (x8.memory == nullptr) x8 = quantised(x);
  const Input& in = x8.input;
  gemm(w, {weight.n_out, in.ld, x.rows, w.ld, in.ld, y.stride, y.type, true}, in, y.data, adds);
}

void Products::multiply(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys,
                        std::span<const float* const> biases) {
  if (x.rows == 0) return;
  const Scratch read = readable(x);
  x = read;
  if (x.rows <= kMostGemvRows) {
    gemv(weights, x, ys, biases, false);
    return;
  }
  Quantised x8;
  for (size_t i = 0; i < weights.size(); ++i) many_rows(*weights[i], x, ys[i], x8, false);
  for (size_t i = 0; i < biases.size(); ++i) {
    if (biases[i] != nullptr) add_bias(ys[i], biases[i], context_.stream);
  }
}

bool Products::multiply_gated(const GatedWeights& weights, Mat x, Mat y) {
  if (x.rows == 0 || x.rows > kMostGemvRows) return false;
  const ResidentWeight gate = weight_for(*weights.gate, y.type, false), up = weight_for(*weights.up, y.type, false);
  const Scratch read = readable(x);
  x = read;
  Gemv call = gemv_of(x);
  call.gate = weights.act;
  call.is_gated = true;
  for (const ResidentWeight& w : {gate, up}) {
    call.part[call.n_parts++] = {.w = w.data,
                                 .scale = w.scale,
                                 .ld = w.ld,
                                 .n_out = weights.gate->n_out,
                                 .y = y.data,
                                 .y_stride = y.stride,
                                 .y_type = y.type};
  }
  multiply_few_rows(call, context_.n_sm, context_.stream);
  return true;
}

void Products::multiply_add(const Weight& weight, Mat x, Mat y) {
  if (x.rows == 0) return;
  WINNOW_ASSERT(y.type == Type::f32);
  const Scratch read = readable(x);
  x = read;
  if (x.rows <= kMostGemvRows) {
    const Weight* const weights[] = {&weight};
    gemv(weights, x, {&y, 1}, {}, true);
    return;
  }
  Quantised x8;
  many_rows(weight, x, y, x8, true);
}

void Products::gemv(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys,
                    std::span<const float* const> biases, bool adds) {
  Gemv call = gemv_of(x);
  const auto launch = [&] {
    if (call.n_parts > 0) multiply_few_rows(call, context_.n_sm, context_.stream);
    call.n_parts = 0;
  };
  for (size_t i = 0; i < weights.size(); ++i) {
    const ResidentWeight w = weight_for(*weights[i], ys[i].type, adds);
    const bool alike = call.n_parts == 0 || (call.part[0].scale == nullptr) == (w.scale == nullptr);
    if (call.n_parts == kMostGemvWeights || !alike) launch();
    call.part[call.n_parts++] = {.w = w.data,
                                 .scale = w.scale,
                                 .bias = biases.empty() ? nullptr : biases[i],
                                 .ld = w.ld,
                                 .n_out = weights[i]->n_out,
                                 .y = ys[i].data,
                                 .y_stride = ys[i].stride,
                                 .y_type = ys[i].type,
                                 .adds = adds};
  }
  launch();
}

void Products::set_scales(const Plan& plan, const float* w_scale, const float* x_scale) {
  check(lt_.desc_set(plan.operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &w_scale, sizeof(w_scale)),
        "setting scales");
  check(lt_.desc_set(plan.operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &x_scale, sizeof(x_scale)),
        "setting scales");
}

Products::Plan Products::make_plan(const Shape& shape, const float* w_scale, const float* x_scale) {
  // cuBLAS thinks in columns: y^T [n_out, rows] = W [n_in, n_out]^T x^T [n_in, rows].
  Plan plan;
  check(lt_.desc_create(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
  const auto set = [&](cublasLtMatmulDescAttributes_t what, int32_t value) {
    check(lt_.desc_set(plan.operation, what, &value, sizeof(value)), "describing a product");
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (shape.fp8) {
    set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    set_scales(plan, w_scale, x_scale);
  }
  const auto layout = [this](cublasLtMatrixLayout_t* made, cudaDataType_t type, int64_t rows, int64_t cols,
                             int64_t ld) {
    check(lt_.layout_create(made, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols), ld),
          "describing a matrix");
  };
  const cudaDataType_t in_type = shape.fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
  layout(&plan.w, in_type, shape.n_in, shape.n_out, shape.w_ld);
  layout(&plan.x, in_type, shape.n_in, shape.rows, shape.x_ld);
  layout(&plan.y, cuda_type(shape.y_type), shape.n_out, shape.rows, shape.y_ld);
  cublasLtMatmulPreference_t preference = nullptr;
  check(lt_.preference_create(&preference), "choosing a product");
  check(lt_.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspace, sizeof(kWorkspace)),
        "choosing a product");
  cublasLtMatmulHeuristicResult_t result{};
  int n_found = 0;
  const cublasStatus_t status =
      lt_.get_heuristic(handle_, plan.operation, plan.w, plan.x, plan.y, plan.y, preference, 1, &result, &n_found);
  lt_.preference_destroy(preference);
  plan.known = status == CUBLAS_STATUS_SUCCESS && n_found > 0;
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) check(status, "choosing a product");
  plan.algo = result.algo;
  return plan;
}

const Products::Plan& Products::plan_of(const Shape& shape, const float* w_scale, const float* x_scale) {
  auto found = plans_.find(shape);
  if (found == plans_.end()) found = plans_.emplace(shape, make_plan(shape, w_scale, x_scale)).first;
  return found->second;
}

bool Products::has_fp8() {
  constexpr int64_t kSize = 256;
  const auto* scales = reinterpret_cast<const float*>(workspace_.get());  // not read
  return context_.capability >= 89 &&
         plan_of({kSize, kSize, kSize, kSize, kSize, kSize, Type::bf16, true}, scales, scales).known;
}

void Products::gemm(const ResidentWeight& w, const Shape& shape, const Input& x, void* y, bool adds) {
  const Plan& plan = plan_of(shape, w.scale, x.scale);
  if (!plan.known) {
    fail("cuda: cuBLAS knows no product of [{}, {}] with [{}, {}]{}", shape.rows, shape.n_in, shape.n_out, shape.n_in,
         shape.fp8 ? " in fp8" : "");
  }
  if (shape.fp8) set_scales(plan, w.scale, x.scale);
  const float one = 1, before = adds ? 1 : 0;
  check(lt_.matmul(handle_, plan.operation, &one, w.data, plan.w, x.data, plan.x, &before, y, plan.y, y, plan.y,
                   &plan.algo, workspace_.get(), kWorkspace, context_.stream),
        "a product");
}

double Products::peak_tflops() {
  constexpr int64_t kSize = 8192;
  constexpr int kRepetitions = 20, kRounds = 10;
  const size_t bytes = static_cast<size_t>(kSize * kSize) * sizeof(__nv_bfloat16);
  const auto a = context_.memory.lend(bytes), b = context_.memory.lend(bytes), c = context_.memory.lend(bytes);
  // Numbers near 1 with random low bits: zeros would run faster than real data.
  std::vector<uint16_t> values(1U << 20);
  uint32_t state = 1;
  for (uint16_t& value : values) {
    state = state * 1664525U + 1013904223U;
    value = static_cast<uint16_t>(((state >> 16) & 0x807fU) | 0x3f00U);
  }
  for (std::byte* to : {a.get(), b.get()}) {
    for (size_t begin = 0; begin < bytes; begin += values.size() * 2) {
      context_.transfers.upload(to + begin, values.data(), values.size() * 2);
    }
  }
  const ResidentWeight w{a.get(), kSize};
  const Shape shape{kSize, kSize, kSize, kSize, kSize, kSize, Type::bf16};
  cudaEvent_t begin = nullptr, end = nullptr;
  cuda::check(cudaEventCreate(&begin), "creating an event");
  cuda::check(cudaEventCreate(&end), "creating an event");
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    cuda::check(cudaEventRecord(begin, context_.stream), "recording an event");
    for (int i = 0; i < kRepetitions; ++i) gemm(w, shape, {b.get(), kSize}, c.get());
    cuda::check(cudaEventRecord(end, context_.stream), "recording an event");
    cuda::check(cudaEventSynchronize(end), "waiting for a product");
    float ms = 0;
    cuda::check(cudaEventElapsedTime(&ms, begin, end), "timing a product");
    best = std::max(best, 2e-9 * kSize * kSize * kSize * kRepetitions / static_cast<double>(ms));
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return best;
}

}  // namespace winnow::cuda
