// The core of a prompt (TCA-Attention, arXiv 2512.09238): every block of slots gives it a few of its own, the fewer the
// more concentrated the votes for them are.
#pragma once

#include <span>
#include <vector>

#include "attention/ops.h"

namespace winnow {

/// What rows spend on each slot: their votes. [n_head] of [n_slots]
using Votes = std::vector<std::vector<float>>;

/// Whole blocks of one kv head's slots from `begin` on, with the votes of its query heads for them.
struct Voted {
  int32_t begin = 0;
  std::vector<float> mass;            // [n_block * kCoreBlock]
  std::vector<double> concentration;  // [n_block] Simpson index: 1 / kCoreBlock where all slots are alike, at most 1
  double total = 0;                   // votes for all slots, these blocks' or not
};
Voted count_votes(const KvView& kv, const Votes& votes, int32_t kv_head, int32_t begin, int32_t end);

/// The budget of a block by its place among all blocks, the most concentrated ones first: a number in (0, 1).
int64_t budget_at(const CoreShares& shares, double place);

/// The core of the voted blocks, and everything before them: the heaviest slots of each block, of equal ones the lower,
/// and the first `sinks` on top. -> ascending slots
std::vector<int32_t> core_of(const Voted& voted, const CoreShares& shares, int32_t sinks);

}  // namespace winnow
