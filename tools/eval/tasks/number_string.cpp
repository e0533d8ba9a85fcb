// InfiniteBench's Retrieve.Number: ten digits, five of them drawn and five put beside an equal one.
#include "eval/infinite_bench.h"

namespace winnow::roster {
namespace {

std::string draw_digits(eval::Draw& draw) {
  std::string digits = draw.letters("0123456789", 5);
  for (int k = 0; k < 5; ++k) {
    const size_t at = draw.below(digits.size());
    digits.insert(digits.begin() + static_cast<std::ptrdiff_t>(at), digits[at]);
  }
  return digits;
}

constexpr eval::HiddenFact kTask = {
    .name = "number_string",
    .instruction =
        "There is an important info hidden inside a lot of irrelevant text. Find it. I will quiz you about the "
        "important information there.",
    .fact = "The sequence of digits is {key}. Remember it. {key} is the sequence of digits.\n",
    .question = "What is the sequence of digits?",
    .answer_prefix = "The sequence of digits is",
    .draw_key = draw_digits,
    .n_gen = 20};

}  // namespace

const eval::TaskInfo& task_number_string() {
  static const eval::TaskInfo kInfo = {
      .name = kTask.name,
      .title = "ten digits with repeats in a text of equal lines",
      .source = eval::kInfiniteBench,
      .metric = "first_number",
      .n_gen = kTask.n_gen,
      .make = [](const eval::Request& request) { return eval::make_hidden_fact(request, kTask); }};
  return kInfo;
}

}  // namespace winnow::roster
