// Keys found by a tree search (HiP, arXiv 2406.09827): the keys are cut into as many chunks as shall be left, each
// chunk is halved, the key block in the middle of each half is scored, the better half of the halves is kept, and so on
// until chunks are single key blocks.
#pragma once

#include <vector>

#include "attention/lists.h"
#include "attention/ops.h"

namespace winnow {

/// Slots [begin, end) of a window.
struct TreeWindow {
  int32_t begin = 0, end = 0;
};
/// Sinks and what was found as columns, the window as blocks from its begin on; ends the list.
void push_found(const TreeArgs& args, const std::vector<int32_t>& found, const TreeWindow& window, HeadLists& lists);

}  // namespace winnow
