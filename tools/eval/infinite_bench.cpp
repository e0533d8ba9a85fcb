#include "eval/infinite_bench.h"

#include "base/error.h"

namespace winnow::eval {
namespace {

constexpr std::string_view kNoise =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n";
constexpr int64_t kPlaces = 58;  // 5,220 lines in steps of 90: places 0, 1/58, ..., 1 of the text

std::string with_key(std::string_view fact, const std::string& key) {
  std::string text(fact);
  for (size_t at = 0; (at = text.find("{key}", at)) != std::string::npos; at += key.size()) text.replace(at, 5, key);
  return text;
}

Sample build(const HiddenFact& task, Draw& draw, int64_t n_lines) {
  Sample sample;
  const std::string key = task.draw_key(draw);
  const int64_t place = draw.between(0, kPlaces);
  const int64_t before = n_lines * place / kPlaces;
  sample.context = fmt::format("{}\n\n", task.instruction);
  for (int64_t i = 0; i < before; ++i) sample.context += kNoise;
  sample.context += with_key(task.fact, key);
  for (int64_t i = before; i < n_lines; ++i) sample.context += kNoise;
  sample.question = fmt::format("\n\n{}\n\n", task.question);
  sample.answer_prefix = task.answer_prefix;
  sample.outputs = {key};
  sample.depth = static_cast<double>(place) / static_cast<double>(kPlaces);
  return sample;
}

}  // namespace

std::unique_ptr<Generator> make_hidden_fact(const Request& request, const HiddenFact& task) {
  return make_sized(request, {.name = task.name,
                              .build = [task](Draw& draw, int64_t size) { return build(task, draw, size); },
                              .step = 4,
                              .reserve = task.n_gen});
}

}  // namespace winnow::eval
