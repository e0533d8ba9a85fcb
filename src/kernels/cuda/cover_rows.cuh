// What rows of a select_cover call see.
#pragma once

#include "kernels/cuda/cover.h"

namespace winnow::cuda {
namespace {

__device__ inline int32_t slots_seen(const CoverCall& call, int32_t head, int64_t row) {
  return call.visible[head / call.group * call.n_rows + row].y;
}

/// Key blocks that some row of query block b sees.
__device__ inline int32_t blocks_seen(const CoverCall& call, int32_t head, int32_t b) {
  const int64_t last = min((static_cast<int64_t>(b) + 1) * call.block, call.n_rows) - 1;
  return (slots_seen(call, head, last) - 1) / call.block + 1;
}

}  // namespace
}  // namespace winnow::cuda
