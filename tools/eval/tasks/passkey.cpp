// InfiniteBench's Retrieve.PassKey: five digits in a text of equal lines.
#include "eval/infinite_bench.h"

namespace winnow::roster {
namespace {

constexpr eval::HiddenFact kTask = {
    .name = "passkey",
    .instruction =
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz "
        "you about the important information there.",
    .fact = "The pass key is {key}. Remember it. {key} is the pass key.\n",
    .question = "What is the pass key?",
    .answer_prefix = "The pass key is",
    .draw_key = [](eval::Draw& draw) { return draw.letters("0123456789", 5); },
    .n_gen = 16};

}  // namespace

const eval::TaskInfo& task_passkey() {
  static const eval::TaskInfo kInfo = {
      .name = kTask.name,
      .title = "a key of five digits in a text of equal lines",
      .source = eval::kInfiniteBench,
      .metric = "first_number",
      .n_gen = kTask.n_gen,
      .make = [](const eval::Request& request) { return eval::make_hidden_fact(request, kTask); }};
  return kInfo;
}

}  // namespace winnow::roster
