// winnow perplexity: how well the model foresees a text. Windows, BOS and the scored half are those of
// llama-perplexity, so that the two compare: windows of n_ctx tokens side by side, the first half of each only read,
// and BOS in place of a window's first token where the model starts its prompts with one.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "command.h"
#include "distributions.h"
#include "files.h"
#include "loaded.h"
#include "output.h"
#include "signals.h"
#include "target.h"

namespace winnow::roster {
namespace {

struct Options {
  ModelOptions model;
  std::string file;
  int n_windows = 0;
};

/// Sum of the surprises over the second half of one window.
double score_window(Engine& engine, const Policy& policy, std::span<const int32_t> window) {
  const auto n_ctx = static_cast<int64_t>(window.size());
  const int64_t first = n_ctx / 2;
  Sequence sequence = engine.start(policy);
  std::vector<double> scores(static_cast<size_t>(n_ctx - first), 0.0);
  std::vector<float> host;
  const auto score = [&](int64_t first_row, Mat logits) {
    host.resize(static_cast<size_t>(logits.rows * logits.cols));
    engine.device().download(host.data(), logits);
    engine.device().for_each(logits.rows, [&](int64_t row, int) {
      const int64_t next = first + first_row + row + 1;
      if (next >= n_ctx) return;  // the last row foresees a token of the next window
      const std::span<const float> values(host.data() + row * logits.cols, static_cast<size_t>(logits.cols));
      scores[static_cast<size_t>(first_row + row)] = surprise(values, window[static_cast<size_t>(next)]);
    });
  };
  engine.prefill(sequence, window, static_cast<int32_t>(n_ctx - first), score);
  double sum = 0;
  for (const double value : scores) sum += value;
  return sum;
}

std::vector<int32_t> read_tokens(const Loaded& loaded, const Options& options) {
  std::string text = read_text(options.file);
  if (text.ends_with('\n')) text.pop_back();
  std::vector<int32_t> tokens = loaded.tokenizer->encode(text, false);
  if (loaded.tokenizer->add_bos()) tokens.insert(tokens.begin(), loaded.tokenizer->bos());
  const auto n_ctx = static_cast<size_t>(options.model.n_ctx);
  if (tokens.size() < 2 * n_ctx) {
    fail("{}: the text has {} tokens; windows of {} need at least {} (a smaller --ctx needs less)", options.file,
         human_count(std::ssize(tokens)), n_ctx, human_count(static_cast<int64_t>(2 * n_ctx)));
  }
  return tokens;
}

void run(const Options& options) {
  const Loaded loaded = load(options.model);
  Engine& engine = *loaded.engine;
  std::vector<int32_t> tokens = read_tokens(loaded, options);
  const int64_t n_ctx = options.model.n_ctx;
  require_room(loaded, n_ctx - 1, 1);
  Tuner tuner(loaded, options.model);
  const Tuned tuned = tuner.tune(options.model.methods, n_ctx);
  const Policy policy(tuned.specs, engine.method_shape());
  int64_t n_windows = std::ssize(tokens) / n_ctx;
  if (options.n_windows > 0) n_windows = std::min<int64_t>(n_windows, options.n_windows);

  double sum = 0;
  {
    Watch watch(engine, "scoring", n_windows * n_ctx);
    for (int64_t w = 0; w < n_windows; ++w) {
      check_signal();
      watch.begin(w * n_ctx, n_ctx);
      const std::span<int32_t> window(tokens.data() + w * n_ctx, static_cast<size_t>(n_ctx));
      if (loaded.tokenizer->add_bos()) window[0] = loaded.tokenizer->bos();
      sum += score_window(engine, policy, window);
    }
  }
  const int64_t n_scored = n_windows * (n_ctx - n_ctx / 2 - 1);
  const double nll = sum / static_cast<double>(n_scored);
  if (options.model.json) {
    Json line = {
        {"model", model_name(loaded)}, {"method", policy.name()}, {"ctx", n_ctx}, {"ppl", std::exp(nll)}, {"nll", nll},
        {"n_tokens", n_scored}};
    tuner.add_json(line, tuned, nullptr);
    print_json(line);
    return;
  }
  fmt::print("perplexity {:.4f}  (mean surprise {:.5f} nats over {} tokens in {} windows of {}; {})\n", std::exp(nll),
             nll, human_count(n_scored), n_windows, n_ctx, policy.name());
  if (tuned.choice) fmt::print("{}\n", tuner.sentence(tuned));
}

std::function<void()> add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->model.n_ctx = 512;
  add_model_options(app, options->model, "tokens of a window, of which the second half is scored (default 512)");
  add_methods(app, options->model, "attention method; several work together");
  app.add_option("-f,--file", options->file, "the text; - is standard input")->type_name("FILE")->required();
  app.add_option("--windows", options->n_windows, "score only the first N windows (default: all)")
      ->check(whole_between(1, std::numeric_limits<int>::max()))
      ->type_name("N");
  return [options] {
    if (options->model.n_ctx < 4) fail("--ctx {}: a window needs at least 4 tokens", options->model.n_ctx);
    run(*options);
  };
}

}  // namespace

const CommandInfo& command_perplexity() {
  static const CommandInfo kInfo = {
      "perplexity", "how well the model foresees a text, as llama-perplexity counts it",
      "winnow perplexity -m qwen.gguf -f book.txt --ctx 2048\n"
      "winnow perplexity -m qwen.gguf -f book.txt --ctx 8192 --windows 4 --method \"flexprefill(min_len=0)\" --json",
      add};
  return kInfo;
}

}  // namespace winnow::roster
