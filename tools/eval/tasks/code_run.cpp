// InfiniteBench's Code.Run: what a function returns that calls another, which calls another, among many that do not
// matter. Chains of 2 to 10 calls, each adding or subtracting a small number.
#include <fmt/format.h>

#include "eval/infinite_bench.h"

namespace winnow::roster {
namespace {

constexpr int32_t kTokens = 48;

/// Function i calls a later one, or nothing; the chain from function 0 on has `n_calls` functions.
struct Program {
  std::vector<int64_t> callee;  // -1: none
  std::vector<int64_t> added;
};

Program draw_program(eval::Draw& draw, int64_t n, int64_t n_calls) {
  Program program;
  for (int64_t i = 0; i < n; ++i) {
    const bool in_chain = i < n_calls;
    const int64_t next = in_chain ? (i + 1 < n_calls ? i + 1 : -1) : (i + 1 < n ? draw.between(i + 1, n - 1) : -1);
    program.callee.push_back(next);
    program.added.push_back(draw.between(1, 20) * (draw.below(2) == 0 ? 1 : -1));
  }
  return program;
}

eval::Sample build(eval::Draw& draw, int64_t size) {
  const int64_t n_calls = draw.between(2, 10);
  const int64_t n = std::max(size, n_calls);
  const Program program = draw_program(draw, n, n_calls);
  const std::vector<int64_t> number = draw.sample(n, n);  // function i is called func_NUMBER
  std::vector<std::string> code;
  for (size_t i = 0; i < program.callee.size(); ++i) {
    const int64_t next = program.callee[i], added = program.added[i];
    const std::string base = next < 0 ? "x" : fmt::format("func_{}(x)", number[static_cast<size_t>(next)]);
    code.push_back(
        fmt::format("def func_{}(x):\n    return {} {} {}", number[i], base, added < 0 ? '-' : '+', std::abs(added)));
  }
  draw.shuffle(code);
  const int64_t argument = draw.between(1, 10);
  int64_t value = argument;
  for (int64_t i = 0; i >= 0; i = program.callee[static_cast<size_t>(i)])
    value += program.added[static_cast<size_t>(i)];
  eval::Sample sample;
  sample.context =
      fmt::format("Following is a set of Python functions. There is a function called named func_{}.\n\n{}", number[0],
                  fmt::join(code, "\n\n"));
  sample.question = fmt::format(
      "\n\nPlease give me the exact number of the return value of func_{}({}). Be concise. Your response must end with "
      "the "
      "final returned value.",
      number[0], argument);
  sample.outputs = {std::to_string(value)};
  return sample;
}

}  // namespace

const eval::TaskInfo& task_code_run() {
  static const eval::TaskInfo kInfo = {
      .name = "code_run",
      .title = "what a chain of Python functions returns",
      .source = eval::kInfiniteBench,
      .metric = "last_number",
      .n_gen = kTokens,
      .make = [](const eval::Request& request) {
        return eval::make_sized(request, {.name = "code_run", .build = build, .step = 10, .reserve = kTokens});
      }};
  return kInfo;
}

}  // namespace winnow::roster
