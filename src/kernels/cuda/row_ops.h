// The ops of layers on matrices in GPU memory, float or bf16 in any mix. Vectors of parameters are on the GPU too.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "attention/device.h"

namespace winnow::cuda {

/// to = scale * from, row by row; `rows` (on the GPU) names from's rows, null: the same ones.
void copy_rows(Mat from, const int32_t* rows, float scale, Mat to, cudaStream_t stream);
void rms_norm(Mat x, const float* weight, float eps, Mat y, cudaStream_t stream);
void rms_norm_heads(HeadsView x, const float* weight, float eps, cudaStream_t stream);
/// args.frequency and `position` [x.n_rows] are GPU memory.
void rope(HeadsView x, const RopeArgs& args, const int32_t* position, cudaStream_t stream);
void gated(Mat gate, Mat up, Gate kind, Mat y, cudaStream_t stream);
void add(Mat x, Mat y, cudaStream_t stream);
void add_bias(Mat x, const float* bias, cudaStream_t stream);
void scale_softcap(Mat x, float softcap, cudaStream_t stream);

}  // namespace winnow::cuda
