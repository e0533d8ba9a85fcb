// Vertical and slash lines: what a probe's attention puts on each key column and on each distance, and the lists of
// blocks and columns that cover a choice of them (MInference, arXiv 2407.02490, section 3).
#pragma once

#include <span>
#include <vector>

#include "attention/lists.h"
#include "attention/ops.h"

namespace winnow {

/// A probe's probabilities, summed over its rows, of one head.
struct LineMass {
  std::vector<float> vertical;  // [n_keys] by slot
  std::vector<float> slash;     // [n_keys] by distance in slots; 0: the row itself
};

/// Slots count up to the last that the probe's last row sees. `probabilities`: those of score_window, which it asks
/// for.
LineMass line_mass(Ops& ops, const ProbeArgs& probe, int32_t head, std::vector<float>& probabilities);

struct Lines {
  std::vector<int32_t> verticals;  // ascending
  std::vector<int32_t> slashes;    // distances, descending
};

/// The heaviest lines, the first columns and the shortest distances among them whatever they weigh.
Lines choose_lines(const LineMass& mass, const LineBudget& budget);

/// The share of the probe's probabilities that lies on one of the lines at least.
double share_of_lines(const ProbeArgs& probe, int32_t head, std::span<const float> probabilities, const Lines& lines);

/// Pushes what covers `lines` for one query block of kLineBlock rows, whose first row takes slot `own` and which sees
/// slots below n_seen: diagonals become intervals of kLineBlock slots, merged where they touch; columns outside of them
/// stay single.
void push_lines(const Lines& lines, int32_t own, int32_t n_seen, HeadLists& lists);

}  // namespace winnow
