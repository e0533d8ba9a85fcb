// RULER's variable tracking (scripts/data/synthetic/variable_tracking.py): a value goes through a chain of five names,
// hidden in lines of noise; name them all. One solved example stands before the task, its names and value drawn anew
// for each sample.
#include <fmt/format.h>

#include <algorithm>

#include "eval/sized.h"

namespace winnow::roster {
namespace {

using eval::Draw;
using eval::Request;
using eval::Sample;

constexpr std::string_view kName = "vt";
constexpr std::string_view kNoise =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
constexpr std::string_view kLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
constexpr int kHops = 4;
constexpr int32_t kTokens = 30;
constexpr int64_t kExampleTokens = 500;  // the example's length by the same rule, answer included

std::vector<std::string> draw_names(Draw& draw, size_t n_letters) {
  std::vector<std::string> names;
  while (names.size() < kHops + 1) {
    std::string name = draw.letters(kLetters, n_letters);
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(std::move(name));
  }
  return names;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

/// The chain's statements in lines of noise.
std::string hide(Draw& draw, int64_t n_lines, const std::vector<std::string>& names, const std::string& value) {
  std::vector<std::string> lines(static_cast<size_t>(n_lines), std::string(kNoise));
  std::vector<int64_t> places = draw.sample(n_lines, kHops + 1);
  std::sort(places.begin(), places.end());
  for (size_t j = 0; j < places.size(); ++j) {
    std::string statement =
        j == 0 ? fmt::format("VAR {} = {}", names[0], value) : fmt::format("VAR {} = VAR {} ", names[j], names[j - 1]);
    lines.insert(lines.begin() + places[j] + static_cast<std::ptrdiff_t>(j), std::move(statement));
  }
  std::string text = fmt::format("{}", fmt::join(lines, "\n"));
  replace_all(text, ". \n", ".\n");
  return text;
}

Sample task(Draw& draw, int64_t n_lines, size_t n_letters, const std::string& value) {
  Sample sample;
  sample.outputs = draw_names(draw, n_letters);
  sample.context = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n" +
                   hide(draw, n_lines, sample.outputs, value);
  sample.question =
      fmt::format("\nQuestion: Find all variables that are assigned the value {} in the text above.", value);
  sample.answer_prefix = fmt::format(
      " Answer: According to the chain(s) of variable assignment in the text above, {} variables are assigned the "
      "value "
      "{}, they are: ",
      kHops + 1, value);
  return sample;
}

/// The solved example for one sample.
std::string example(Draw& draw, int64_t n_lines) {
  const std::string value = std::to_string(draw.between(10000, 99998));
  const Sample solved = task(draw, n_lines, 3, value);
  return fmt::format("{}{} {}\n\n", solved.input(), solved.answer_prefix, fmt::join(solved.outputs, " "));
}

/// Lines of noise in the example: as many as fit 500 tokens, or, where a tokenizer takes more for the fewest, these.
int64_t example_size(Request request) {
  constexpr int64_t kFewest = 6;  // more lines than statements
  request.length = kExampleTokens;
  const auto build = [](Draw& draw, int64_t n) { return task(draw, n, 3, "12345"); };
  Draw draw(0);
  if (request.n_tokens(build(draw, kFewest)) + kTokens > kExampleTokens) return kFewest;
  return eval::largest_size(request, {.name = kName, .build = build, .step = kFewest, .reserve = kTokens});
}

std::unique_ptr<eval::Generator> make(const Request& request) {
  const int64_t example_lines = example_size(request);
  const auto build = [example_lines](Draw& draw, int64_t n_lines) {
    Sample sample = task(draw, n_lines, 5, std::to_string(draw.between(10000, 99998)));
    sample.context = example(draw, example_lines) + "\n\n" + sample.context;
    return sample;
  };
  return eval::make_sized(request,
                          {.name = kName, .build = build, .step = request.length < 4096 ? 5 : 10, .reserve = kTokens});
}

}  // namespace

const eval::TaskInfo& task_vt() {
  static const eval::TaskInfo kInfo = {.name = kName,
                                       .title = "the five names that a value is handed through",
                                       .source = "RULER, arXiv 2404.06654",
                                       .metric = "all",
                                       .n_gen = kTokens,
                                       .make = make};
  return kInfo;
}

}  // namespace winnow::roster
