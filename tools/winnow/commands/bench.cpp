// winnow bench: how fast a model, or a shape with random weights, reads and writes at several lengths and depths.
// `bench attend` times one attention call.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <random>

#include "base/error.h"
#include "bench_attend.h"
#include "bench_batch.h"
#include "command.h"
#include "figures.h"
#include "files.h"
#include "loaded.h"
#include "model/synthetic.h"
#include "output.h"
#include "signals.h"
#include "target.h"

namespace winnow::roster {
namespace {

constexpr int32_t kRecallRows = 4;  // rows of each layer whose true attention mass is computed for `recall`

struct Options {
  ModelOptions model;
  std::vector<int> prompts = {512, 2048};
  std::vector<int> depths = {0};
  int n_gen = 32;
  int n_reps = 3;
  int n_batch = 0;  // > 0: measure batches of so many prompts instead
  std::string file;
  std::string shape;  // with random weights; empty: a model file
  int n_layers = 0;   // of the shape; 0: all
  bool random_weights = false;
};

// Sentences to draw from, so that ids are those of text: attention over random ids looks like no document's.
constexpr std::string_view kSentences[] = {
    "The ferry to the island leaves at seven in the morning and comes back before dusk. ",
    "She kept the ledger in a green book, one page for every ship that entered the harbour. ",
    "In the second year the council voted to rebuild the bridge with stone instead of timber. ",
    "A function that returns nothing is called for what it changes, and so it must say what that is. ",
    "Copper wire was cheaper than silver and nearly as good, which settled the question. ",
    "Nobody remembers who planted the walnut trees along the road, but everybody eats the nuts. ",
    "The committee measured rainfall at forty stations, in millimetres, every day for eleven years. ",
    "If the valve sticks, close the main tap first, then loosen the four screws of the lid. ",
    "Their grandmother told the story differently each winter, and each time it was true. ",
    "Prices rose by 3.5 percent in March, 2.1 percent in April, and fell slightly in May. ",
    "The telescope's mirror, 42 centimetres wide, was ground by hand in the cellar. ",
    "When the train stopped between stations, the passengers opened the windows and listened. ",
    "A map is not wrong because it leaves things out; it is wrong when it puts them elsewhere. ",
    "He wrote to the editor twice, on the 4th and the 19th, and received two different answers. ",
    "The recipe asks for two eggs, a cup of flour, a pinch of salt and more patience than time. ",
    "for (int i = 0; i < n; ++i) total += price[i] * count[i];\n",
};

SyntheticShape shape_of(const Options& options) {
  const std::span<const SyntheticShape> shapes = synthetic_shapes();
  const auto found = std::find_if(shapes.begin(), shapes.end(), [&](const auto& s) { return s.name == options.shape; });
  WINNOW_ASSERT(found != shapes.end());
  return *found;
}

/// What a shape is called: its name, and how many of its layers are measured if not all.
std::string shape_name(const Options& options) {
  if (options.n_layers == 0) return options.shape;
  return fmt::format("{}, {} of {} layers", options.shape, options.n_layers, shape_of(options).n_layer);
}

Loaded load_shape_or_file(const Options& options) {
  if (options.shape.empty()) return load(options.model, {.recall_rows = kRecallRows});
  SyntheticShape shape = shape_of(options);
  if (options.n_layers > shape.n_layer) {
    fail("--layers {}: {} has {} layers", options.n_layers, options.shape, shape.n_layer);
  }
  const std::string name = shape_name(options);
  shape.name = name;
  if (options.n_layers > 0) shape.n_layer = options.n_layers;
  ModelOptions model = options.model;
  model.path = name;
  return load(synthetic_gguf(shape), model, {.recall_rows = kRecallRows});
}

/// `n` ids of running text, the same on every call.
std::vector<int32_t> make_tokens(const Loaded& loaded, const Options& options, int64_t n) {
  if (!options.shape.empty()) return synthetic_tokens(n);
  std::vector<int32_t> tokens;
  if (!options.file.empty()) {
    tokens = loaded.tokenizer->encode(read_text(options.file), false);
    if (std::ssize(tokens) < n) {
      fail("{}: the text has {} tokens; this bench needs {}", options.file, human_count(std::ssize(tokens)),
           human_count(n));
    }
  }
  std::mt19937_64 random(1);
  while (std::ssize(tokens) < n) {
    const std::vector<int32_t> more = loaded.tokenizer->encode(kSentences[random() % std::size(kSentences)], false);
    tokens.insert(tokens.end(), more.begin(), more.end());
  }
  tokens.resize(static_cast<size_t>(n));
  return tokens;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

struct Row {
  int n_prompt = 0, depth = 0;
  double prefill_tok_s = 0, decode_tok_s = NAN, ttft_s = 0, density = 1, recall = 1, estimated_mass = 1,
         select_share = 0, decode_select_share = 0;
  int64_t kv_bytes = 0, peak_bytes = 0;
};

/// One method on one model. A depth is read once; each measurement goes on from a fork of it.
class Bench {
 public:
  Bench(const Loaded& loaded, const Options& options, const Policy& policy, std::span<const int32_t> tokens)
      : engine_(*loaded.engine), options_(options), policy_(policy), tokens_(tokens) {}

  std::vector<Row> at_depth(int depth, std::span<const int> prompts) {
    Sequence base = engine_.start(policy_);
    if (depth > 0) {
      const Watch watch(engine_, fmt::format("{}: filling {} tokens", policy_.name(), depth), depth);
      engine_.prefill(base, tokens_.first(static_cast<size_t>(depth)));
    }
    double decode_select_share = 0;
    const double decode_tok_s = options_.n_gen > 0 ? decode(base, decode_select_share) : NAN;
    std::vector<Row> rows;
    for (const int n_prompt : prompts) {
      rows.push_back(prefill(base, n_prompt));
      rows.back().decode_tok_s = decode_tok_s;
      rows.back().decode_select_share = decode_select_share;
    }
    return rows;
  }

 private:
  double decode(const Sequence& base, double& select_share) {
    std::vector<double> rates;
    const Watch watch(engine_, "", 1);
    for (int rep = 0; rep < options_.n_reps; ++rep) {
      Sequence sequence = base.fork();
      for (int i = 0; i < options_.n_gen; ++i) {
        check_signal();
        engine_.decode(sequence, tokens_[static_cast<size_t>(sequence.n_tokens())]);
      }
      rates.push_back(options_.n_gen / sequence.stats().decode_s);
      select_share = sequence.stats().decode_select_share();
    }
    return median(rates);
  }

  Row prefill(const Sequence& base, int n_prompt) {
    Row row;
    row.n_prompt = n_prompt;
    row.depth = base.n_tokens();
    std::vector<double> seconds, select;
    for (int rep = 0; rep < options_.n_reps; ++rep) {
      Sequence sequence = base.fork();
      engine_.device().memory().reset_peak();
      const Watch watch(engine_, fmt::format("{}: {} tokens at depth {}", policy_.name(), n_prompt, row.depth),
                        n_prompt);
      const auto start = std::chrono::steady_clock::now();
      engine_.prefill(sequence, tokens_.subspan(static_cast<size_t>(row.depth), static_cast<size_t>(n_prompt)));
      seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() -
                        sequence.stats().measure_s);
      select.push_back(sequence.stats().select_share());
      row.density = sequence.stats().counts.density();
      row.recall = sampled_recall(sequence.stats());
      row.estimated_mass = estimated_mass(sequence.stats());
      row.kv_bytes = static_cast<int64_t>(sequence.bytes());
      row.peak_bytes = std::max(row.peak_bytes, engine_.device().memory().peak());
    }
    row.ttft_s = median(seconds);
    row.prefill_tok_s = n_prompt / row.ttft_s;
    row.select_share = median(select);
    return row;
  }

  Engine& engine_;
  const Options& options_;
  const Policy& policy_;
  std::span<const int32_t> tokens_;
};

Json to_json(const Loaded& loaded, const Options& options, const Policy& policy, const Row& row) {
  return {{"model", model_name(loaded)},
          {"method", policy.name()},
          {"device", loaded.engine->device().name()},
          {"threads", loaded.engine->device().n_threads()},
          {"n_prompt", row.n_prompt},
          {"n_gen", options.n_gen},
          {"depth", row.depth},
          {"prefill_tok_s", row.prefill_tok_s},
          {"decode_tok_s", row.decode_tok_s},
          {"ttft_s", row.ttft_s},
          {"density", row.density},
          {"recall", row.recall},
          {"estimated_mass", row.estimated_mass},
          {"select_share", row.select_share},
          {"decode_select_share", row.decode_select_share},
          {"kv_bytes", row.kv_bytes},
          {"peak_bytes", row.peak_bytes}};
}

void add_row(Table& table, const Policy& policy, const Row& row) {
  table.add({policy.name(), human_count(row.depth), human_count(row.n_prompt), human_rate(row.prefill_tok_s),
             human_rate(row.decode_tok_s), human_seconds(row.ttft_s), human_share(row.density), human_share(row.recall),
             human_share(row.estimated_mass), human_share(row.select_share),
             human_bytes(static_cast<double>(row.kv_bytes)), human_bytes(static_cast<double>(row.peak_bytes))});
}

using Contestants = std::vector<std::vector<std::string>>;  // methods that work together

void run_batches(const Loaded& loaded, const Options& options, const Contestants& contestants) {
  const ModelShape& shape = loaded.engine->model().shape();
  const Type type = loaded.engine->options().kv_type;
  const auto token_bytes = static_cast<int64_t>(type_bytes(type, shape.head_dim)) * 2 * shape.n_layer * shape.n_head_kv;
  for (const int longest : options.prompts) {
    const std::vector<int64_t> lengths = unequal_lengths(options.n_batch, longest);
    const int64_t n_tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    require_room(loaded, longest - 1, 1, (n_tokens - longest) * token_bytes);
    const std::vector<int32_t> tokens = make_tokens(loaded, options, n_tokens);
    for (const std::vector<std::string>& specs : contestants) {
      const Policy policy(specs, loaded.engine->method_shape());
      bench_batch(loaded, policy, tokens, {options.n_batch, longest, options.n_reps, options.model.json});
    }
  }
}

/// Each contestant at each depth, a row for each length. A target's knob depends on the length: with one, each length
/// has a policy, and a filled cache, of its own.
void run_lengths(const Loaded& loaded, const Options& options, Tuner& tuner, const Contestants& contestants,
                 std::span<const int32_t> tokens) {
  Engine& engine = *loaded.engine;
  Table table({"method", "depth", "prompt", "read tok/s", "write tok/s", "first token", "density", "recall",
               "estimated", "selecting", "KV", "peak"});
  std::string targets;
  const std::span<const int> prompts = options.prompts;
  const size_t step = tuner.wanted() ? 1 : prompts.size();
  for (const std::vector<std::string>& specs : contestants) {
    for (const int depth : options.depths) {
      for (size_t first = 0; first < prompts.size(); first += step) {
        const Tuned tuned = tuner.tune(specs, int64_t{depth} + prompts[first]);
        const Policy policy(tuned.specs, engine.method_shape());
        if (tuned.choice) targets += fmt::format("\n{}: {}", policy.name(), tuner.sentence(tuned));
        Bench bench(loaded, options, policy, tokens);
        for (const Row& row : bench.at_depth(depth, prompts.subspan(first, step))) {
          add_row(table, policy, row);
          if (!options.model.json) continue;
          Json line = to_json(loaded, options, policy, row);
          const Achieved achieved = {row.recall, row.density, row.ttft_s};
          tuner.add_json(line, tuned, &achieved);
          print_json(line);
        }
      }
    }
  }
  if (options.model.json) return;
  fmt::print("{}, device {} with {} threads, medians of {}\n\n{}{}", model_name(loaded), engine.device().name(),
             engine.device().n_threads(), options.n_reps, table.text(), targets.empty() ? "" : targets + "\n");
}

void run(const Options& options) {
  const Loaded loaded = load_shape_or_file(options);
  Engine& engine = *loaded.engine;
  Contestants contestants;
  for (const std::string& text : options.model.methods) {
    contestants.push_back(split_methods(text));
    const Policy checked(contestants.back(), engine.method_shape());
  }
  ModelOptions named = options.model;
  if (!options.shape.empty()) named.path = shape_name(options);
  Tuner tuner(loaded, named);
  if (contestants.empty()) contestants.emplace_back();
  const int64_t longest =
      *std::max_element(options.depths.begin(), options.depths.end()) +
      int64_t{std::max(*std::max_element(options.prompts.begin(), options.prompts.end()), options.n_gen)};
  require_room(loaded, longest - 1, 1);
  const std::vector<int32_t> tokens = make_tokens(loaded, options, longest);
  {
    // Once through every layer, so that the file's pages and the products' code are there.
    Sequence warm = engine.start(Policy());
    const Watch watch(engine, "warming up", 1);
    engine.prefill(warm, std::span(tokens).first(std::min<size_t>(tokens.size(), 64)));
  }
  if (options.n_batch > 0) {
    if (tuner.wanted())
      fail("--batch reads prompts of many lengths, and a target sets a method for one; leave one out");
    run_batches(loaded, options, contestants);
  } else {
    run_lengths(loaded, options, tuner, contestants, tokens);
  }
}

void add_shape(CLI::App& app, Options& options) {
  std::vector<std::string> names;
  for (const SyntheticShape& shape : synthetic_shapes()) names.emplace_back(shape.name);
  const std::string meaning = fmt::format("instead of -m, a model's shape: {}", fmt::join(names, ", "));
  CLI::Option* shape = app.add_option("--shape", options.shape, meaning + "; with --random-weights")
                           ->check(CLI::IsMember(names).description(""))
                           ->type_name("NAME");
  CLI::Option* random = app.add_flag("--random-weights", options.random_weights,
                                     "fill the shape with random weights and planted attention; its vocabulary is "
                                     "4,096 tokens, so logits cost less than the model's own");
  shape->needs(random)->excludes("--model")->excludes("--file");
  random->needs(shape);
  app.add_option(
         "--layers", options.n_layers,
         "only so many of the shape's layers, for prompts that all of them would read for too long (default: all)")
      ->check(whole_between(1, 1024))
      ->needs(shape)
      ->type_name("N");
}

std::function<void()> add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_model_options(app, options->model, kCtxLimit);
  app.get_option("--model")->required(false);  // bench attend needs none
  add_methods(app, options->model, "measure this instead of dense (\"A + B\": two together); repeatable");
  app.add_option("--prompt", options->prompts, "tokens to read, a list (default 512,2048)")
      ->delimiter(',')
      ->check(whole_between(1, 1 << 24))
      ->type_name("N,N");
  app.add_option("--gen", options->n_gen, "tokens to write at each depth (default 32)")
      ->check(whole_between(0, 1 << 24))
      ->type_name("N");
  app.add_option("--depth", options->depths, "tokens in the cache before, a list (default 0)")
      ->delimiter(',')
      ->check(whole_between(0, 1 << 24))
      ->type_name("N,N");
  app.add_option("--reps", options->n_reps, "measurements of each, whose median counts (default 3)")
      ->check(whole_between(1, 1000))
      ->type_name("N");
  app.add_option("--batch", options->n_batch,
                 "read so many prompts, evenly spread up to the length of --prompt, packed and one by one")
      ->check(whole_between(1, 4096))
      ->excludes("--gen")
      ->excludes("--depth")
      ->type_name("N");
  app.add_option("-f,--file", options->file, "take the tokens from this text (default: sentences of our own)")
      ->type_name("FILE");
  add_shape(app, *options);
  const auto attend = add_bench_attend(app);
  return [options, attend] {
    if (attend->command->parsed()) {
      attend->run();
      return;
    }
    if (options->model.path.empty() && options->shape.empty()) throw CLI::RequiredError("--model");
    run(*options);
  };
}

}  // namespace

const CommandInfo& command_bench() {
  static const CommandInfo kInfo = {
      "bench", "how fast a model reads and writes",
      "winnow bench -m qwen.gguf --prompt 512,2048,8192 --gen 32 --depth 0,8192\n"
      "winnow bench -m qwen.gguf --prompt 32768 --gen 0 --method dense --method flexprefill --reps 3 --json\n"
      "winnow bench -m qwen.gguf --batch 16 --prompt 64,256\n"
      "winnow bench --shape llama-3-8b --random-weights --prompt 32768 --gen 0 --method dense --method flexprefill\n"
      "winnow bench attend \"prefill rows=8192 heads=12 kv=2 dim=128 density=0.1\"",
      add};
  return kInfo;
}

}  // namespace winnow::roster
