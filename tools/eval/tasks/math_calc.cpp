// InfiniteBench's Math.Calc: the running values of a long sum. Its answers are as long as its prompts; here the first
// kValues of them are asked for, so that an answer costs the same at every length. Values stay at 0 or above, because
// the published score does not read signs.
#include <fmt/format.h>

#include "eval/infinite_bench.h"

namespace winnow::roster {
namespace {

constexpr int32_t kTokens = 256;
constexpr size_t kValues = 48;

eval::Sample build(eval::Draw& draw, int64_t n_terms) {
  eval::Sample sample;
  int64_t value = draw.between(0, 99);
  std::string sum = std::to_string(value);
  sample.outputs = {sum};
  for (int64_t i = 1; i < n_terms; ++i) {
    const bool minus = value > 0 && draw.below(2) == 0;
    const int64_t term = minus ? draw.between(0, std::min<int64_t>(value, 99)) : draw.between(0, 99);
    value += minus ? -term : term;
    sum += fmt::format(" {} {}", minus ? '-' : '+', term);
    if (sample.outputs.size() < kValues) sample.outputs.push_back(std::to_string(value));
  }
  sample.context = fmt::format(
      "Let us calculate the intermediate values of an expression.\n\nExpression: 1 + 3 + 4\nValues: [1, 4, "
      "8]\n\nExpression: "
      "8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]\n\nExpression: {}",
      sum);
  sample.question = "\nValues:";
  return sample;
}

}  // namespace

const eval::TaskInfo& task_math_calc() {
  static const eval::TaskInfo kInfo = {
      .name = "math_calc",
      .title = "the first running values of a long sum",
      .source = "InfiniteBench, arXiv 2402.13718; the first 48 values, made to the length asked for",
      .metric = "run",
      .n_gen = kTokens,
      .make = [](const eval::Request& request) {
        return eval::make_sized(request, {.name = "math_calc", .build = build, .step = 8, .reserve = kTokens});
      }};
  return kInfo;
}

}  // namespace winnow::roster
