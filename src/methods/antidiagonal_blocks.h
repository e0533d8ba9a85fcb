// Blocks that hold a share of the attention as antidiagonals estimate it: what XAttention (arXiv 2503.16428) selects,
// and Flux Attention in one of its modes.
#pragma once

#include "methods/method.h"

namespace winnow {

struct AntidiagonalBlocks {
  double threshold = 0.9;  // share of the estimated mass
  int32_t stride = 16;     // a divisor of the block
  int32_t block = 128;     // rows and slots: 64 or 128
};

/// For every head and block of rows: the first block of slots, the rows' own, and the heaviest others until together
/// they reach `threshold` of the estimated mass; ties take the lower block.
Selection antidiagonal_blocks(const Site& site, const AntidiagonalBlocks& settings);

}  // namespace winnow
