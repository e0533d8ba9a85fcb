// Important slots (ZipVL, arXiv 2410.08584): as many as it takes to hold a share of attention's mass.
#pragma once

#include <vector>

#include "attention/ops.h"

namespace winnow {

/// What probe rows spend on each slot in sum, and how many of them see it.
struct SlotMass {
  std::vector<float> sum;     // [n_slots]
  std::vector<int32_t> seen;  // [n_slots]
  double total = 0;           // the sum of all, one for each row
};

/// The important slots, ascending: as many as hold `share` of the mass, those first that the rows which see them value
/// most, of equal ones the lower; the `first` ones and the last one in any case.
std::vector<int32_t> important_slots(const SlotMass& mass, double share, int64_t first);

/// Sums of rounded numbers: what is within rounding of a share has reached it.
inline constexpr double kShareReached = 1 - 1e-6;

}  // namespace winnow
