// The ops of layers on matrices in GPU memory, float or bf16 in any mix. Vectors of parameters are on the GPU too.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "attention/device.h"
#include "kernels/cuda/stream.h"

namespace winnow::cuda {

/// to = scale * from, row by row; `rows` (on the GPU) names from's rows, null: the same ones.
void copy_rows(Mat from, const int32_t* rows, float scale, Mat to, Stream stream);
void rms_norm(Mat x, const float* weight, float eps, Mat y, Stream stream);
void rms_norm_heads(HeadsView x, const float* weight, float eps, Stream stream);
/// Of q and k, which are of the same rows and type; k may have no heads. args.frequency and `position` [q.n_rows] are
/// GPU memory.
void rope(HeadsView q, HeadsView k, const RopeArgs& args, const int32_t* position, Stream stream);
void gated(Mat gate, Mat up, Gate kind, Mat y, Stream stream);
void add(Mat x, Mat y, Stream stream);
void add_bias(Mat x, const float* bias, Stream stream);
void scale_softcap(Mat x, float softcap, Stream stream);

}  // namespace winnow::cuda
