// Key blocks that hold a logit which matters (SALE, arXiv 2505.24179, section 3), by estimates of all logits.
#pragma once

#include "attention/ops.h"

namespace winnow {

/// A smaller OutstandingArgs::tau keeps everything.
inline constexpr double kNoTau = 1e-5;

/// Lists of args' rows, by estimates of these rows or of more rows among which they are.
Selection outstanding_blocks(Ops& ops, const OutstandingArgs& args, const LowBitScores& scores);

}  // namespace winnow
