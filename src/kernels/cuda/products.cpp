#include "kernels/cuda/products.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/gemv.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/rows.h"

namespace winnow::cuda {
namespace {

constexpr size_t kWorkspace = size_t{32} << 20;
constexpr size_t kEnd = 64;  // bytes at each end of a weight that are compared

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

}  // namespace

Products::Products(CudaContext& context) : context_(context), lt_(cublas()) {
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

ResidentWeight Products::resident(const Weight& weight) {
  const auto found = entries_.find(weight.data);
  std::vector<std::byte> ends = ends_of(weight);
  if (found != entries_.end()) {
    const Entry& entry = found->second;
    if (entry.type == weight.type && entry.n_out == weight.n_out && entry.n_in == weight.n_in && entry.ends == ends) {
      return entry.weight;
    }
    entries_.erase(found);
  }
  const int64_t ld = (weight.n_in + 7) / 8 * 8;
  auto memory = context_.memory.lend(static_cast<size_t>(weight.n_out * ld) * sizeof(__nv_bfloat16));
  auto* data = reinterpret_cast<__nv_bfloat16*>(memory.get());
  copy_in(weight, data, ld);
  entries_[weight.data] = {weight.type, weight.n_out, weight.n_in, std::move(ends), {data, ld}, std::move(memory)};
  return {data, ld};
}

void Products::copy_in(const Weight& weight, __nv_bfloat16* to, int64_t ld) {
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
    context_.transfers.upload_staged(to + begin * ld, staged, static_cast<size_t>(n) * row_bytes);
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

void Products::multiply(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys) {
  if (x.rows == 0) return;
  const Scratch read = readable(x);
  x = read;
  if (x.rows <= kMostGemvRows) {
    gemv(weights, x, ys, false);
    return;
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    const ResidentWeight w = resident(*weights[i]);
    gemm(w, {weights[i]->n_out, x.cols, x.rows, w.ld, x.stride, ys[i].stride, ys[i].type}, x.data, ys[i].data);
  }
}

void Products::multiply_add(const Weight& weight, Mat x, Mat y) {
  if (x.rows == 0) return;
  WINNOW_ASSERT(y.type == Type::f32);
  const Scratch read = readable(x);
  x = read;
  if (x.rows <= kMostGemvRows) {
    const Weight* const weights[] = {&weight};
    gemv(weights, x, {&y, 1}, true);
    return;
  }
  const ResidentWeight w = resident(weight);
  gemm(w, {weight.n_out, x.cols, x.rows, w.ld, x.stride, y.stride, y.type}, x.data, y.data, true);
}

void Products::scores(const ResidentWeight& b, int64_t n_b, Mat a, Mat y) {
  gemm(b, {n_b, a.cols, a.rows, b.ld, a.stride, y.stride, y.type}, a.data, y.data);
}

void Products::gemv(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys, bool adds) {
  for (size_t begin = 0; begin < weights.size(); begin += kMostGemvWeights) {
    Gemv call;
    call.x = reinterpret_cast<const __nv_bfloat16*>(x.data);
    call.x_stride = x.stride;
    call.n_in = x.cols;
    call.n_rows = static_cast<int>(x.rows);
    for (size_t i = begin; i < std::min(weights.size(), begin + kMostGemvWeights); ++i) {
      const ResidentWeight w = resident(*weights[i]);
      call.part[call.n_parts++] = {w.data, w.ld, weights[i]->n_out, ys[i].data, ys[i].stride, ys[i].type, adds};
    }
    multiply_few_rows(call, context_.n_sm, context_.stream);
  }
}

Products::Plan Products::make_plan(const Shape& shape) {
  // cuBLAS thinks in columns: y^T [n_out, rows] = W [n_in, n_out]^T x^T [n_in, rows].
  Plan plan;
  check(lt_.desc_create(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
  const cublasOperation_t transposed = CUBLAS_OP_T;
  check(lt_.desc_set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)),
        "describing a product");
  const auto layout = [this](cublasLtMatrixLayout_t* made, Type type, int64_t rows, int64_t cols, int64_t ld) {
    check(lt_.layout_create(made, cuda_type(type), static_cast<uint64_t>(rows), static_cast<uint64_t>(cols), ld),
          "describing a matrix");
  };
  layout(&plan.w, Type::bf16, shape.n_in, shape.n_out, shape.w_ld);
  layout(&plan.x, Type::bf16, shape.n_in, shape.rows, shape.x_ld);
  layout(&plan.y, shape.y_type, shape.n_out, shape.rows, shape.y_ld);
  cublasLtMatmulPreference_t preference = nullptr;
  check(lt_.preference_create(&preference), "choosing a product");
  check(lt_.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspace, sizeof(kWorkspace)),
        "choosing a product");
  cublasLtMatmulHeuristicResult_t result{};
  int n_found = 0;
  const cublasStatus_t status =
      lt_.get_heuristic(handle_, plan.operation, plan.w, plan.x, plan.y, plan.y, preference, 1, &result, &n_found);
  lt_.preference_destroy(preference);
  check(status, "choosing a product");
  if (n_found == 0) {
    fail("cuda: cuBLAS knows no product of [{}, {}] with [{}, {}]", shape.rows, shape.n_in, shape.n_out, shape.n_in);
  }
  plan.algo = result.algo;
  return plan;
}

void Products::gemm(const ResidentWeight& w, const Shape& shape, const void* x, void* y, bool adds) {
  auto found = plans_.find(shape);
  if (found == plans_.end()) found = plans_.emplace(shape, make_plan(shape)).first;
  const Plan& plan = found->second;
  const float one = 1, before = adds ? 1 : 0;
  check(lt_.matmul(handle_, plan.operation, &one, w.data, plan.w, x, plan.x, &before, y, plan.y, y, plan.y, &plan.algo,
                   workspace_.get(), kWorkspace, context_.stream),
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
  const ResidentWeight w{reinterpret_cast<const __nv_bfloat16*>(a.get()), kSize};
  const Shape shape{kSize, kSize, kSize, kSize, kSize, kSize, Type::bf16};
  cudaEvent_t begin = nullptr, end = nullptr;
  cuda::check(cudaEventCreate(&begin), "creating an event");
  cuda::check(cudaEventCreate(&end), "creating an event");
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    cuda::check(cudaEventRecord(begin, context_.stream), "recording an event");
    for (int i = 0; i < kRepetitions; ++i) gemm(w, shape, b.get(), c.get());
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
