// Sets of tokens that a pruner leaves: which slots of a cache they are, and how rows move when the set changes.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "attention/types.h"

namespace winnow {

/// The lists of all heads and of all `n_rows` rows: the slots of `head` at these ascending positions, which it holds.
Selection select_positions(const KvHead& head, std::span<const int32_t> position, int64_t n_rows);

/// Those of the ascending `wanted` that are neither in `head`'s slots nor in the ascending `rows`.
std::vector<int32_t> missing_positions(std::span<const int32_t> wanted, const KvHead& head,
                                       std::span<const int32_t> rows);

/// Slots that plain attention computes for one row at `position`.
inline int64_t dense_slots(int32_t position, int32_t window) {
  return window > 0 ? std::min<int64_t>(window, position + 1) : position + 1;
}

}  // namespace winnow
