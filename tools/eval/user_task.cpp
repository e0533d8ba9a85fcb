#include "eval/user_task.h"

#include "base/error.h"
#include "eval/results.h"
#include "eval/score.h"

namespace winnow::eval {
namespace {

constexpr int32_t kTokens = 64;
constexpr int32_t kMostTokens = 1 << 20;

/// Where a sentence about a line begins: "tasks.jsonl, line 3".
struct Place {
  const std::string& path;
  size_t number;
  std::string text() const { return fmt::format("{}, line {}", path, number); }
};

std::string text_of(const Json& line, const char* name, const Place& place) {
  if (!line.contains(name)) return {};
  if (!line[name].is_string()) fail("{}: \"{}\" must be a text", place.text(), name);
  return line[name].get<std::string>();
}

std::vector<std::string> outputs_of(const Json& line, const Place& place) {
  std::vector<std::string> outputs;
  const Json given = line.contains("outputs") ? line["outputs"] : Json::array();
  for (const Json& output : given.is_array() ? given : Json::array({given})) {
    if (!output.is_string()) fail("{}: \"outputs\" must be a text or a list of texts", place.text());
    outputs.push_back(output.get<std::string>());
  }
  if (outputs.empty()) fail("{}: \"outputs\" is missing or empty; it holds the right answers", place.text());
  return outputs;
}

Sample sample_of(const Json& line, const Place& place) {
  if (!line.is_object()) fail("{}: this is no JSON object", place.text());
  for (const auto& [name, value] : line.items()) {
    if (name != "input" && name != "question" && name != "answer_prefix" && name != "outputs" && name != "metric" &&
        name != "n_gen") {
      fail("{}: \"{}\" is not known; a line has input, outputs, metric, answer_prefix, question, n_gen", place.text(),
           name);
    }
  }
  Sample sample;
  sample.context = text_of(line, "input", place);
  sample.question = text_of(line, "question", place);
  sample.answer_prefix = text_of(line, "answer_prefix", place);
  sample.outputs = outputs_of(line, place);
  sample.metric = line.contains("metric") ? text_of(line, "metric", place) : "all";
  sample.n_gen = kTokens;
  if (sample.input().empty()) fail("{}: \"input\" is missing or empty; it holds the prompt", place.text());
  try {
    find_metric(sample.metric);
  } catch (const Error& error) {
    fail("{}: {}", place.text(), error.what());
  }
  if (line.contains("n_gen")) {
    const Json& n = line["n_gen"];
    if (!n.is_number_integer() || n.get<int64_t>() < 1 || n.get<int64_t>() > kMostTokens) {
      fail("{}: \"n_gen\" is {}; it must be a whole number from 1 to {}", place.text(), n.dump(), kMostTokens);
    }
    sample.n_gen = n.get<int32_t>();
  }
  return sample;
}

class UserTask : public Generator {
 public:
  explicit UserTask(std::vector<Sample> samples) : samples_(std::move(samples)) {}
  Sample sample(int64_t index) override { return samples_.at(static_cast<size_t>(index)); }

 private:
  std::vector<Sample> samples_;
};

}  // namespace

std::vector<Sample> parse_user_task(const std::string& path, const std::string& text) {
  std::vector<Sample> samples;
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    samples.push_back(sample_of(Json::parse(line, nullptr, false), {path, number}));
  }
  if (samples.empty()) fail("{}: the file has no samples; it needs one JSON object a line", path);
  return samples;
}

std::unique_ptr<Generator> make_user_task(std::vector<Sample> samples) {
  return std::make_unique<UserTask>(std::move(samples));
}

}  // namespace winnow::eval
