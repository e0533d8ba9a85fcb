// Blocks that cover a share of attention's mass (FlexPrefill, arXiv 2502.20766, section 3): every head takes as many
// as its own attention needs, in one of two patterns.
#pragma once

#include <span>
#include <vector>

#include "attention/lists.h"
#include "attention/ops.h"

namespace winnow {

/// A head that sees at most so many slots takes all of them.
inline int64_t cover_all_slots(int32_t block, int32_t least) {
  return std::max<int64_t>(2 * int64_t{block}, int64_t{least} * block);
}

/// The lists of one head. The probe's exact attention shows which key blocks and which distances, in blocks, hold its
/// mass: as many of each are taken as single slots would be needed to cover args.share of it, divided by the block's
/// size. Where the attention of mean queries to pooled keys lies nearer than args.distance (square root of the
/// Jensen-Shannon divergence) to the exact one, the pooled map of all blocks is trusted instead: its best blocks are
/// taken while their sum stays within args.share. pooled_keys: pool_keys of the head's kv head.
HeadLists cover_blocks(Ops& ops, const CoverArgs& args, int32_t head, std::vector<float>& pooled_keys);

}  // namespace winnow
