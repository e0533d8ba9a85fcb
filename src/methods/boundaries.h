// Boundaries between chunks of keys where what later tokens look at changes, as DHSA's trained predictor sees them
// (arXiv 2510.24606, its first generation): a small network looks at the keys on either side of every gap.
#pragma once

#include <span>
#include <vector>

#include "methods/method.h"
#include "methods/weights_file.h"

namespace winnow {

/// Tokens on either side of a gap that the predictor looks at.
inline constexpr int32_t kBoundaryWindow = 4;
/// What a gap gets that has fewer on one side.
inline constexpr float kNoBoundary = -100;

/// What the predictor's file must hold. One predictor serves all layers.
std::vector<WeightTensor> boundary_weights(const MethodShape& shape);

/// The logit of a boundary after each slot. Keys of all kv heads beside one another, C values, are the tokens; the
/// 2 * kBoundaryWindow around a gap attend to each other (n_heads heads; biases everywhere; no positions), each result
/// is normalised (layer norm, 1e-5), l and r are the means of either side, and [l, r, |l - r|, l * r, cos(l, r)] goes
/// through a hidden layer of 256 (ReLU). All kv heads hold the same slots; n_heads divides C. -> [n_slots]
std::vector<float> boundary_logits(const Site& site, const WeightsFile& file, int32_t n_heads);

struct BoundaryRules {
  double least = 1.1;     // logits above it count
  int32_t apart = 8;      // two boundaries are more than so many tokens from each other
  int32_t last_rows = 0;  // > 0: tokens that end with a chunk of their own, whose boundary is there in any case
  int64_t most = 0;       // boundaries at most
};

/// The best of them, one after another, as the rules allow (greedy, ties to the earlier). -> ascending begins of chunks
/// and the end: 0, ..., logits.size()
std::vector<int32_t> pick_boundaries(std::span<const float> logits, const BoundaryRules& rules);

}  // namespace winnow
