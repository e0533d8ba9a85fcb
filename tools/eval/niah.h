// The needle family of RULER (scripts/data/synthetic/niah.py) and of RULER v2 (nemo_skills/dataset/ruler2): needles
// "One of the special magic numbers for KEY is: VALUE." among lines of noise, among needles of other keys, or in
// essays.
#pragma once

#include "eval/sized.h"

namespace winnow::eval {

enum class Haystack { noise, needles, essay };
enum class NeedleKind { numbers, words, uuids };

struct NiahShape {
  Haystack haystack = Haystack::noise;
  NeedleKind key = NeedleKind::words, value = NeedleKind::numbers;
  int n_keys = 1, n_values = 1, n_queries = 1;
  int n_digits = 7;       // of numbers
  bool version2 = false;  // RULER v2's wording and distractors; the length holds no answer
  double depth = -1;      // >= 0: where the only needle goes, instead of anywhere
};

/// A NIAH prompt of `size` lines, distractor needles or words of essay. `seed` fixes the order of needles.
Sample build_niah(const NiahShape& shape, uint64_t seed, Draw& draw, int64_t size);

/// RULER's tokens to generate for the whole family.
inline constexpr int32_t kNiahTokens = 128;

std::unique_ptr<Generator> make_niah(std::string_view name, const Request& request, const NiahShape& shape);

}  // namespace winnow::eval
