// Products of few rows (decode, short prompts): the file's quantised blocks are read as they are, by row_dot.h's dot
// products or ggml's, so that a step costs what it takes to stream the weights through the cores once.
#pragma once

#include <span>

#include "attention/device.h"
#include "kernels/cpu/context.h"
#include "kernels/scratch_pool.h"

namespace winnow {

/// ys[i] = x W_i^T. All weights read the same x [rows, n_in]; it is converted once for each type of activation that
/// they want. One pass over the pool for all of them. bias [n_out] of the only weight, or null.
void multiply_few_rows(CpuContext& context, ScratchPool& scratch, std::span<const Weight* const> weights, Mat x,
                       std::span<const Mat> ys, const float* bias);

}  // namespace winnow
