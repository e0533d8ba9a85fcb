// Products with weights that stay on the GPU as bf16 after their first use.
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

/// A weight on the GPU: [n_out, n_in] in bf16, rows `ld` values apart, zeros from n_in on.
struct ResidentWeight {
  const __nv_bfloat16* data = nullptr;
  int64_t ld = 0;
};

class Products {
 public:
  explicit Products(CudaContext& context);
  ~Products();
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  /// Decoded on the host's threads and copied where it is not on the GPU yet.
  ResidentWeight resident(const Weight& weight);
  /// y_i = x W_i^T; x [rows, n_in] and the ys float or bf16, any number of rows.
  void multiply(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys);
  /// y += x W^T; y float.
  void multiply_add(const Weight& weight, Mat x, Mat y);
  /// y = a b^T of any rows in bf16, which begin at 16-byte boundaries: a [n_a, n_in], b [n_b, n_in], y [n_a, n_b]
  /// float.
  void scores(const ResidentWeight& b, int64_t n_b, Mat a, Mat y);
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
  };
  struct Shape {
    int64_t n_out, n_in, rows, w_ld, x_ld, y_ld;
    Type y_type;
    bool operator<(const Shape& other) const {
      const auto key = [](const Shape& s) {
        return std::tie(s.n_out, s.n_in, s.rows, s.w_ld, s.x_ld, s.y_ld, s.y_type);
      };
      return key(*this) < key(other);
    }
  };

  void copy_in(const Weight& weight, __nv_bfloat16* to, int64_t ld);
  Plan make_plan(const Shape& shape);
  void gemm(const ResidentWeight& w, const Shape& shape, const void* x, void* y, bool adds = false);
  void gemv(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys, bool adds);
  /// x as the products read it: bf16 on 16-byte boundaries; a copy where it is not that.
  Scratch readable(Mat x);

  CudaContext& context_;
  const Cublas& lt_;
  cublasLtHandle_t handle_ = nullptr;
  std::shared_ptr<std::byte> workspace_;
  std::unordered_map<const std::byte*, Entry> entries_;
  std::map<Shape, Plan> plans_;
};

}  // namespace winnow::cuda
