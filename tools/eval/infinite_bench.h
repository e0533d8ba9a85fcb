// What InfiniteBench's synthetic tasks share (OpenBMB/InfiniteBench, arXiv 2402.13718:
// data/construct_synthetic_dataset.py, src/prompt.py). Its data has fixed sizes (5,220 lines at 128K, ...); here a
// prompt is as large as its length allows, and what is asked for is drawn for each sample instead of enumerated.
#pragma once

#include "eval/sized.h"

namespace winnow::eval {

inline constexpr std::string_view kInfiniteBench =
    "InfiniteBench, arXiv 2402.13718; made to the length asked for, places drawn at random";

/// A text of equal lines with one that says `fact`; `fact` holds "{key}" where the key goes.
struct HiddenFact {
  std::string_view name, instruction, fact, question, answer_prefix;
  std::string (*draw_key)(Draw& draw) = nullptr;
  int32_t n_gen = 0;
};
std::unique_ptr<Generator> make_hidden_fact(const Request& request, const HiddenFact& task);

}  // namespace winnow::eval
