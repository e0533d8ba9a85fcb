// Rotary positions: the angle that every pair of a head's values turns by per position, with the scalings that stretch
// a model's context.
#pragma once

#include <vector>

#include "attention/device.h"
#include "model/model_file.h"

namespace winnow {

enum class RopePairs {
  neighbours,  // (2i, 2i + 1): llama, whose converter permutes the weights so
  halves,      // (i, i + n_rot / 2): GPT-NeoX and most since
};

struct Rope {
  int32_t head_dim = 0;
  int32_t n_rot = 0;
  RopePairs pairs = RopePairs::halves;
  float magnitude = 1;
  std::vector<float> frequency;  // [n_rot / 2]

  RopeArgs args() const { return {head_dim, n_rot, pairs == RopePairs::halves, magnitude, frequency.data()}; }
};

/// Frequencies base^(-2i / n_rot) under the scaling that the file asks for:
///   none;
///   linear    every frequency divided by rope.scaling.factor;
///   llama3    divided by the tensor rope_freqs.weight, made by the converter (short waves 1, long waves the factor);
///   yarn      (Peng et al., arXiv 2309.00071) short waves as they are, long ones divided by the factor, a ramp
///             between, and queries and keys a little larger.
/// Throws Error where the scaling is another one or its facts are out of range.
Rope load_rope(ModelFile& file, RopePairs pairs);
/// The same with a base of its own and no scaling.
Rope unscaled_rope(const ModelFile& file, RopePairs pairs, double base);

}  // namespace winnow
