// Products with weights that stay on the GPU, as bf16 or as e4m3 with a scale for each row, after their first use.
#pragma once

#include <cuda_bf16.h>

#include <map>
#include <span>
#include <tuple>
#include <unordered_map>

#include "attention/device.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cublas.h"

namespace winnow::cuda {

/// A weight on the GPU: [n_out, n_in], rows `ld` values apart, zeros from n_in on.
struct ResidentWeight {
  const void* data = nullptr;
  int64_t ld = 0;
  const float* scale = nullptr;  // [n_out]: e4m3, values times this; null: bf16
};

class Products {
 public:
  Products(CudaContext& context, ProductType type);
  ~Products();
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  ProductType type() const { return type_; }
  /// Whether the GPU multiplies e4m3 with a scale for each row.
  bool has_fp8();
  /// Brings a weight onto the GPU before its first product, where its form there is known: in fp8 it depends on the
  /// result's type.
  void prepare(const Weight& weight) {
    if (type_ == ProductType::own) resident(weight);
  }
  /// In bf16; decoded on the host's threads and copied where it is not on the GPU yet.
  ResidentWeight resident(const Weight& weight);
  // With ProductType::fp8, products into bf16 and multiply_add take weights in e4m3 and, where there are more than
  // kMostGemvRows rows, round each row of x to e4m3, too. Products into float (logits) stay bf16, and so do those of a
  // weight whose n_out is no multiple of 16, which cuBLAS has none for.

  /// y_i = x W_i^T + bias_i; x [rows, n_in] and the ys float or bf16, any number of rows. biases: GPU memory, one for
  /// each weight, null: none; or empty.
  void multiply(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys,
                std::span<const float* const> biases);
  /// y = act(gate x) * (up x), bf16, where that is one launch: for few rows. -> whether it was done
  bool multiply_gated(const GatedWeights& weights, Mat x, Mat y);
  /// y += x W^T; y float.
  void multiply_add(const Weight& weight, Mat x, Mat y);
  /// TFLOP/s of a large product in bf16 by cuBLAS.
  double peak_tflops();

 private:
  /// A weight's file bytes at both ends tell another tensor at an address that is used again.
  struct Entry {
    Type type;
    int64_t n_out, n_in;
    std::vector<std::byte> ends;
    ResidentWeight weight;
    std::shared_ptr<std::byte> memory;
  };
  struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
    cublasLtMatmulAlgo_t algo{};
    bool known = false;  // whether cuBLAS has such a product
  };
  struct Shape {
    int64_t n_out, n_in, rows, w_ld, x_ld, y_ld;
    Type y_type;
    bool fp8 = false;
    bool operator<(const Shape& other) const {
      const auto key = [](const Shape& s) {
        return std::tie(s.n_out, s.n_in, s.rows, s.w_ld, s.x_ld, s.y_ld, s.y_type, s.fp8);
      };
      return key(*this) < key(other);
    }
  };

  /// Rows for a product of many rows.
  struct Input {
    const void* data = nullptr;
    int64_t ld = 0;
    const float* scale = nullptr;  // [rows]: e4m3; null: bf16
  };
  /// Rows in e4m3, made where the first product asks for them.
  struct Quantised {
    std::shared_ptr<std::byte> memory;
    Input input;
  };

  /// The weight's entry, or null where there is none yet, or another tensor's.
  const Entry* find(const std::unordered_map<const std::byte*, Entry>& entries, const Weight& weight) const;
  ResidentWeight resident_fp8(const Weight& weight);
  /// As the product into y reads it.
  ResidentWeight weight_for(const Weight& weight, Type y_type, bool adds);
  Quantised quantised(Mat x);
  void copy_in(const Weight& weight, std::byte* to, int64_t ld);
  Plan make_plan(const Shape& shape, const float* w_scale, const float* x_scale);
  const Plan& plan_of(const Shape& shape, const float* w_scale, const float* x_scale);
  void set_scales(const Plan& plan, const float* w_scale, const float* x_scale);
  void many_rows(const Weight& weight, Mat x, Mat y, Quantised& x8, bool adds);
  void gemm(const ResidentWeight& w, const Shape& shape, const Input& x, void* y, bool adds = false);
  void gemv(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys,
            std::span<const float* const> biases, bool adds);
  /// x as the products read it: bf16 on 16-byte boundaries; a copy where it is not that.
  Scratch readable(Mat x);

  CudaContext& context_;
  const ProductType type_;
  const Cublas& lt_;
  cublasLtHandle_t handle_ = nullptr;
  std::shared_ptr<std::byte> workspace_;
  std::unordered_map<const std::byte*, Entry> entries_, entries_fp8_;
  std::map<Shape, Plan> plans_;
};

}  // namespace winnow::cuda
