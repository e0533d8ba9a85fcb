// How much of the true attention a selection kept, measured on a few rows.
#pragma once

#include <cstdint>

#include "methods/method.h"

namespace winnow {

/// Attention mass that lies in selected slots, summed over (row, query head) pairs; each pair's own lies in [0, 1].
/// A row that does not attend keeps nothing.
struct Recall {
  double sum = 0;
  int64_t n = 0;
};

/// Measures on `n_rows` rows, spread evenly over the site and ending with its last one (all rows where it has fewer).
/// Costs two attention rows and n_rows * n_slots floats of memory for each head in work.
Recall sample_recall(const Site& site, const Selection& selection, int32_t n_rows);

}  // namespace winnow
