// winnow compare: one prompt under dense attention and under each method, and how far they part.
//
// The next-token distributions are compared along the dense answer: its tokens are fed to every method, so that all
// stand before the same choice at each step.
#include <fmt/format.h>

#include "command.h"
#include "density_trace.h"
#include "distributions.h"
#include "figures.h"
#include "loaded.h"
#include "signals.h"
#include "target.h"

namespace winnow::roster {
namespace {

constexpr int32_t kRecallRows = 32;  // rows of each layer whose true attention mass is computed for `recall`

struct Options {
  std::string trace;  // a folder; empty: none
  ModelOptions model;
  PromptInput input;
  GenerateOptions generate;
};

/// [n_steps][n_vocab]: what the dense run saw before each token of its answer.
using Steps = std::vector<std::vector<float>>;

struct Contest {
  const Loaded& loaded;
  const Options& options;
  std::vector<int32_t> prompt;
  Steps dense_steps;
  std::vector<int32_t> dense_answer;
  DensityTrace trace{*loaded.engine, options.trace};
};

struct Result {
  std::string method;
  Tuned tuned;
  Generated answer;
  Figures figures;
  double agreement = 1, kl = 0;
};

/// Feeds the dense answer to `sequence`, which has read the prompt and saw `first` at its end.
void follow_dense(const Contest& contest, Sequence& sequence, std::vector<float> logits, Result& result) {
  Engine& engine = *contest.loaded.engine;
  const size_t n_steps = contest.dense_steps.size();
  size_t same = 0;
  double kl = 0;
  for (size_t step = 0; step < n_steps; ++step) {
    if (step > 0) logits = engine.decode(sequence, contest.dense_answer[step - 1]);
    const std::vector<float>& dense = contest.dense_steps[step];
    same += best_token(dense) == best_token(logits) ? 1 : 0;
    kl += kl_divergence(dense, logits);
  }
  result.agreement = static_cast<double>(same) / static_cast<double>(n_steps);
  result.kl = kl / static_cast<double>(n_steps);
}

Result run_method(Contest& contest, const Tuned& tuned, bool dense) {
  Engine& engine = *contest.loaded.engine;
  const Policy policy(tuned.specs, engine.method_shape());
  Sequence sequence = engine.start(policy);
  std::unique_ptr<Sequence> second;  // the prompt as read, for the dense answer's tokens
  std::vector<float> first;
  Result result;
  result.method = policy.name();
  result.tuned = tuned;
  engine.device().memory().reset_peak();
  contest.trace.clear();
  const Watch watch(engine, policy.name() + ": reading", static_cast<int64_t>(contest.prompt.size()));
  GenerateHooks hooks;
  hooks.logits = [&](std::span<const float> logits) {
    if (dense) {
      contest.dense_steps.emplace_back(logits.begin(), logits.end());
    } else if (!second) {
      second = std::make_unique<Sequence>(sequence.fork());
      first.assign(logits.begin(), logits.end());
    }
  };
  result.answer =
      generate(engine, sequence, *contest.loaded.tokenizer, contest.prompt, contest.options.generate, hooks);
  contest.trace.write(policy.name(), policy.name(), std::ssize(contest.prompt));
  result.figures = measure(engine, sequence, result.answer);
  if (dense) {
    contest.dense_answer = result.answer.tokens;
  } else {
    follow_dense(contest, *second, std::move(first), result);
  }
  return result;
}

void print_result(const Contest& contest, const Tuner& tuner, const Result& result) {
  const Figures& figures = result.figures;
  Json line = {{"model", model_name(contest.loaded)}, {"method", result.method}, {"answer", result.answer.text}};
  add_figures(line, figures);
  line["agreement"] = result.agreement;
  line["kl"] = result.kl;
  const Achieved achieved = {figures.recall, figures.density,
                             static_cast<double>(figures.n_prompt) / figures.prefill_tok_s};
  tuner.add_json(line, result.tuned, &achieved);
  print_json(line);
}

void print_results(const Contest& contest, const Tuner& tuner, const std::vector<Result>& results) {
  Table table({"method", "first token", "read tok/s", "write tok/s", "density", "recall", "estimated", "selecting",
               "KV", "peak", "agreement", "KL"});
  for (const Result& result : results) {
    const Figures& figures = result.figures;
    table.add({result.method, human_seconds(figures.ttft_s), human_rate(figures.prefill_tok_s),
               human_rate(figures.decode_tok_s), human_share(figures.density), human_share(figures.recall),
               human_share(figures.estimated_mass), human_share(figures.select_share),
               human_bytes(static_cast<double>(figures.kv_bytes)), human_bytes(static_cast<double>(figures.peak_bytes)),
               human_share(result.agreement), fmt::format("{:.4f}", result.kl)});
  }
  fmt::print("{} on a prompt of {} tokens\n\n", model_name(contest.loaded), human_count(std::ssize(contest.prompt)));
  for (const Result& result : results) fmt::print("{}:\n{}\n\n", result.method, result.answer.text);
  fmt::print("{}", table.text());
  for (const Result& result : results) {
    if (result.tuned.choice) fmt::print("\n{}: {}\n", result.method, tuner.sentence(result.tuned));
  }
}

void run(const Options& options) {
  const Loaded loaded = load(options.model, {.recall_rows = kRecallRows});
  const MethodShape shape = loaded.engine->method_shape();
  std::vector<std::vector<std::string>> contestants;
  for (const std::string& text : options.model.methods) {
    contestants.push_back(split_methods(text));
    const Policy checked(contestants.back(), shape);  // before anything is read
  }
  Contest contest{loaded, options, read_prompt(loaded, options.input), {}, {}};
  const int64_t steps_bytes = int64_t{4} * options.generate.n_max * loaded.engine->model().shape().n_vocab;
  require_room(loaded, std::ssize(contest.prompt), options.generate.n_max, steps_bytes);

  Tuner tuner(loaded, options.model);
  std::vector<Tuned> field(1);  // dense first
  for (const auto& specs : contestants) field.push_back(tuner.tune(specs, std::ssize(contest.prompt)));
  std::vector<Result> results;
  for (const Tuned& tuned : field) {
    results.push_back(run_method(contest, tuned, results.empty()));
    if (options.model.json) print_result(contest, tuner, results.back());
  }
  if (!options.model.json) print_results(contest, tuner, results);
}

std::function<void()> add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->generate.n_max = 128;
  add_model_options(app, options->model, kCtxLimit);
  add_methods(app, options->model, "one contestant beside dense (\"A + B\": two that work together); repeatable");
  add_prompt_options(app, options->input.files, options->input.prompt);
  app.add_option("--system", options->input.system, "system message")->type_name("TEXT");
  app.add_flag("--raw", options->input.raw, "no chat template");
  add_trace(app, options->trace);
  app.add_option("-n", options->generate.n_max, "longest answer in tokens (default 128); always the likeliest token")
      ->check(whole_between(1, 1 << 20))
      ->type_name("N");
  return [options] { run(*options); };
}

}  // namespace

const CommandInfo& command_compare() {
  static const CommandInfo kInfo = {
      "compare", "dense attention beside each method on the same prompt",
      "winnow compare -m qwen.gguf -f report.txt -p \"Who signed it?\" --method flexprefill --method minference\n"
      "winnow compare -m qwen.gguf -f report.txt -p \"Who signed it?\" --method \"flexprefill + snapkv(budget=1024)\"\n"
      "winnow compare -m qwen.gguf -f report.txt -p \"Who signed it?\" --method \"flexprefill(gamma=0.95)\" --json",
      add};
  return kInfo;
}

}  // namespace winnow::roster
