// Blocks that a trained gate finds worth it (SeerAttention, arXiv 2410.13276).
#pragma once

#include <cstdint>

namespace winnow {

/// Blocks of a row of `n` that a share `ratio` of the triangle below the diagonal leaves; 0 with ratio 1: the threshold
/// decides.
int64_t gate_count(double ratio, int64_t n);

}  // namespace winnow
