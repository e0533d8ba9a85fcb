// winnow run: one answer, streamed.
#include <fmt/format.h>
#include <unistd.h>

#include "command.h"
#include "density_trace.h"
#include "figures.h"
#include "loaded.h"
#include "target.h"

namespace winnow::roster {
namespace {

constexpr int32_t kRecallRows = 16;  // rows of each layer whose true attention mass is computed for `recall`

struct Options {
  std::string trace;  // a folder; empty: none
  ModelOptions model;
  PromptInput input;
  GenerateOptions generate;
  bool stats = false;
};

Json to_json(const Loaded& loaded, const Policy& policy, const Generated& answer, const Figures& figures) {
  Engine& engine = *loaded.engine;
  Json line = {{"model", model_name(loaded)},
               {"method", policy.name()},
               {"device", engine.device().name()},
               {"threads", engine.device().n_threads()},
               {"answer", answer.text},
               {"finish", finish_name(answer.finish)}};
  add_figures(line, figures);
  return line;
}

void run(const Options& options) {
  const Loaded loaded = load(options.model, {.recall_rows = kRecallRows});
  Engine& engine = *loaded.engine;
  const std::vector<int32_t> prompt = read_prompt(loaded, options.input);
  require_room(loaded, static_cast<int64_t>(prompt.size()), options.generate.n_max);

  Tuner tuner(loaded, options.model);
  const Tuned tuned = tuner.tune(options.model.methods, std::ssize(prompt));
  const Policy policy(tuned.specs, engine.method_shape());
  Sequence sequence = engine.start(policy);
  const DensityTrace trace(engine, options.trace);
  engine.device().memory().reset_peak();
  Generated answer;
  {
    Watch watch(engine, "reading the prompt", static_cast<int64_t>(prompt.size()));
    GenerateHooks hooks;
    hooks.text = [&](std::string_view piece) {
      watch.clear();
      if (options.model.json) return;
      fmt::print("{}", piece);
      std::fflush(stdout);
    };
    answer = generate(engine, sequence, *loaded.tokenizer, prompt, options.generate, hooks);
  }
  trace.write(policy.name(), policy.name(), std::ssize(prompt));
  const Figures figures = measure(engine, sequence, answer);
  if (options.model.json) {
    Json line = to_json(loaded, policy, answer, figures);
    const Achieved achieved = {figures.recall, figures.density, sequence.stats().prefill_s};
    tuner.add_json(line, tuned, &achieved);
    print_json(line);
    return;
  }
  if (!answer.text.ends_with('\n')) fmt::print("\n");
  std::fflush(stdout);
  if (options.stats || isatty(STDERR_FILENO) != 0) {
    if (tuned.choice) fmt::print(stderr, "[{}]\n", tuner.sentence(tuned));
    fmt::print(stderr, "[{}: {}{}]\n", policy.name(), sentence(figures),
               answer.finish == Finish::context ? ", ended by the context" : "");
  }
}

std::function<void()> add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_model_options(app, options->model, kCtxLimit);
  add_methods(app, options->model, "attention method; several work together");
  add_prompt_options(app, options->input.files, options->input.prompt);
  app.add_option("--system", options->input.system, "system message")->type_name("TEXT");
  app.add_flag("--raw", options->input.raw, "no chat template: continue the files' and the question's text as it is");
  add_generate_options(app, options->generate);
  add_trace(app, options->trace);
  app.add_flag("--stats", options->stats, "tell the figures on standard error, not only on a terminal");
  return [options] { run(*options); };
}

}  // namespace

const CommandInfo& command_run() {
  static const CommandInfo kInfo = {
      "run", "answer once",
      "winnow run -m qwen.gguf -p \"Why is the sky blue?\"\n"
      "winnow run -m qwen.gguf -f report.txt -p \"What does section 4 promise?\" --method flexprefill\n"
      "winnow run -m qwen.gguf -f a.txt -f b.txt -p \"Compare the two.\" --method minference "
      "--method \"snapkv(budget=2048)\"\n"
      "winnow run -m base.gguf --raw -p \"Once upon a time\" -n 64 --temp 0.8 --top-p 0.95 --seed 7\n"
      "winnow run -m qwen.gguf -p \"Name three rivers.\" --json",
      add};
  return kInfo;
}

}  // namespace winnow::roster
