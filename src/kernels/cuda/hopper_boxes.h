// Descriptions of matrices for Hopper's copy engine.
#pragma once

#include <cudaTypedefs.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/check.h"

namespace winnow::cuda::hopper {

struct MatrixSize {
  int64_t rows, cols;  // cols: a multiple of 64
};
struct BoxSize {
  int32_t rows, parts;  // parts of 64 columns
};

/// Boxes [parts, rows, 64] of a contiguous bf16 matrix, swizzled; rows behind the last one are 0.
inline CUtensorMap row_boxes(const __nv_bfloat16* data, MatrixSize matrix, BoxSize of) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found),
        "cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess) check(cudaErrorSymbolNotFound, "cuTensorMapEncodeTiled");
  const auto cols = static_cast<cuuint64_t>(matrix.cols);
  const cuuint64_t size[3] = {64, static_cast<cuuint64_t>(matrix.rows), cols / 64};
  const cuuint64_t stride[2] = {cols * 2, 128};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(of.rows), static_cast<cuuint32_t>(of.parts)};
  const cuuint32_t step[3] = {1, 1, 1};
  CUtensorMap map{};
  const CUresult result = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry)(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<__nv_bfloat16*>(data), size, stride, box, step,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) check(cudaErrorInvalidValue, "cuTensorMapEncodeTiled");
  return map;
}

}  // namespace winnow::cuda::hopper
