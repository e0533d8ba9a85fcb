// What a selection computes of what it might, head by head.
#pragma once

#include <vector>

#include "methods/method.h"

namespace winnow {

/// How many slots of a kv head causal and window limits permit a row at position `limit`.
int32_t permitted_slots(const Site& site, const KvHead& kv, int32_t limit);

/// (row, slot) pairs of each query head -> [n_head]: those that causal and window limits permit, and those of them that
/// the selection names. What skip-softmax drops later is not known here.
std::vector<AttnCounts> count_selected(const Site& site, const Selection& selection);

}  // namespace winnow
