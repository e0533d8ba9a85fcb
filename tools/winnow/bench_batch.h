// winnow bench --batch: several prompts of unequal length, read packed and one by one.
#pragma once

#include <CLI/CLI.hpp>

#include "loaded.h"

namespace winnow {

struct BatchBench {
  int n_prompts = 0;  // 0: not asked for
  int longest = 0;    // tokens
  int n_reps = 1;
  bool json = false;
};

/// Lengths of `n` prompts, evenly spread up to `longest`: longest / n, 2 longest / n, ..., longest; at least 1 each.
std::vector<int64_t> unequal_lengths(int n, int longest);

/// Measures one policy and prints a line. `tokens` [the sum of the lengths] is cut into the prompts.
void bench_batch(const Loaded& loaded, const Policy& policy, std::span<const int32_t> tokens, const BatchBench& bench);

}  // namespace winnow
