// Vertical and slash lines that are drawn instead of estimated, for timing: the same lines anywhere.
#pragma once

#include <span>

#include "attention/lines.h"
#include "attention/problem.h"

namespace winnow {

/// The lines of one head over n_slots slots: `verticals` columns, the first 30 of the sequence among them, and
/// `slashes` distances in `runs` runs of adjacent ones, about, the first of which begins at 0. Real heads' diagonals
/// come in such clusters. bench/minference_peer.py draws by the same rule; the numbers have to stay what they are.
Lines draw_lines(const Problem& problem, int32_t head, int32_t n_slots);

/// Lists that cover drawn lines for rows with these limits, as methods lay theirs.
Selection lay_drawn_lines(const Problem& problem, const KvHead& kv, std::span<const int32_t> limit);

}  // namespace winnow
