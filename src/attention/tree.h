// Keys found by a tree search (HiP, arXiv 2406.09827): the keys are cut into as many chunks as shall be left, each
// chunk is halved, the key block in the middle of each half is scored, the better half of the halves is kept, and so on
// until chunks are single key blocks.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "attention/lists.h"
#include "attention/ops.h"

namespace winnow {

/// Scores of keys for the rows that search, of one query head.
class TreeScores {
 public:
  virtual ~TreeScores() = default;
  /// From now on these rows search: those of a block that are scored. [at most kTreeBlock, n_head, head_dim]
  virtual void begin(const HeadsView& rows) = 0;
  /// best[i] = the largest product of any of them with the key of slots[i], times any positive number.
  virtual void score(std::span<const int32_t> slots, std::vector<float>& best) = 0;
};

/// select_tree by the scores that `make` makes for a query head, on the thread that searches.
Selection select_tree_by(Ops& ops, const TreeArgs& args,
                         const std::function<std::unique_ptr<TreeScores>(int32_t head)>& make);

}  // namespace winnow
