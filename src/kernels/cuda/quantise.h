// Rows in eight-bit floats (e4m3: three bits of mantissa, largest 448), each with its own scale.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "attention/device.h"
#include "kernels/cuda/stream.h"

namespace winnow::cuda {

/// to[r][c] = x[r][c] / scale[r], rounded to the nearest e4m3, scale[r] being the row's largest magnitude / 448; a row
/// of zeros has scale 0. Rows of `to` stand `ld` bytes apart, ld a multiple of 16 and at least x.cols, with zeros from
/// x.cols on.
void quantise_rows(Mat x, uint8_t* to, int64_t ld, float* scale, Stream stream);

}  // namespace winnow::cuda
