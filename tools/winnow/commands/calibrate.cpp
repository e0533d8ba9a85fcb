// winnow calibrate: a method watches the model read a text and writes down what it learnt of the heads.
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "command.h"
#include "files.h"
#include "loaded.h"
#include "output.h"

namespace winnow::roster {
namespace {

struct Options {
  ModelOptions model;
  std::string file, out;
};

std::string calibratable() {
  std::string names;
  for (const MethodInfo* method : method_roster()) {
    if (method->calibrate != nullptr) names += fmt::format("{}{}", names.empty() ? "" : ", ", method->name);
  }
  return names;
}

void run(const Options& options) {
  if (options.model.methods.size() != 1) throw CLI::ValidationError("--method", "give exactly one method");
  const Spec spec = parse_spec(options.model.methods.front());
  const MethodInfo& method = find_method(spec.name);
  if (method.calibrate == nullptr) fail("{} has nothing to calibrate; these have: {}", method.name, calibratable());
  const Params params = resolve(spec, method.params, method.texts);
  const Loaded loaded = load(options.model);
  Engine& engine = *loaded.engine;
  std::vector<int32_t> tokens = read_prompt(loaded, {{options.file}, "", "", true});
  if (options.model.n_ctx > 0) tokens.resize(std::min(tokens.size(), static_cast<size_t>(options.model.n_ctx)));
  const int64_t n_tokens = std::ssize(tokens);
  require_room(loaded, n_tokens - 1, 1);

  PendingFile out(options.out);
  const auto calibration = method.calibrate(params, engine.method_shape());
  {
    const Watch watch(engine, "watching", n_tokens);
    engine.calibrate(tokens, *calibration);
  }
  std::string text = calibration->result();
  if (!text.ends_with('\n')) text += '\n';
  out.write(text.data(), text.size());
  out.commit();
  if (options.model.json) {
    print_json({{"file", options.out}, {"method", method.name}, {"n_tokens", n_tokens}});
  } else {
    fmt::print("{}: {} on {} tokens of {}\n", options.out, method.name, human_count(n_tokens), options.file);
  }
}

std::function<void()> add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_model_options(app, options->model, "read only the text's first N tokens (default: the whole text)");
  app.add_option("--method", options->model.methods, "the method that learns")
      ->allow_extra_args(false)
      ->type_name("\"NAME(KEY=VALUE, ...)\"")
      ->required();
  app.add_option("-f,--file", options->file, "a long text of the kind that will be read")
      ->type_name("FILE")
      ->required();
  app.add_option("-o,--out", options->out, "the calibration file to write")->type_name("OUT.json")->required();
  return [options] { run(*options); };
}

}  // namespace

const CommandInfo& command_calibrate() {
  static const CommandInfo kInfo = {
      "calibrate", "let a method learn the model's heads from a text",
      "winnow calibrate -m qwen.gguf --method minference -f book.txt -c 8192 -o heads.json\n"
      "winnow run -m qwen.gguf -f report.txt -p \"Who signed it?\" --method \"minference(calibration=heads.json)\"",
      add};
  return kInfo;
}

}  // namespace winnow::roster
