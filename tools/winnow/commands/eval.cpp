// winnow eval: tasks at several lengths under dense attention and under each method, one JSON line a sample. What is
// finished is kept; the same command, or one that asks for more, goes on from there.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "base/error.h"
#include "command.h"
#include "density_trace.h"
#include "eval/results.h"
#include "eval_plan.h"
#include "files.h"
#include "output.h"
#include "signals.h"

namespace winnow::roster {
namespace {

using eval::Json;
using eval::Key;

constexpr int32_t kRecallRows = 16;  // rows of each layer whose true attention mass is computed for `recall`

/// A task at one length.
struct Cell {
  const EvalTask& task;
  int64_t length;
  std::unique_ptr<eval::Generator> generator;
};

class Evaluation {
 public:
  Evaluation(const EvalOptions& options, const Loaded& loaded)
      : options_(options),
        loaded_(loaded),
        maker_(loaded, options.raw, options.later),
        tuner_(loaded, options.model),
        contestants_(eval_contestants(options, *loaded.engine, tuner_)),
        tasks_(eval_tasks(options, loaded, maker_)),
        trace_(*loaded.engine, options.trace) {}

  /// Writes each cell's prompts to DIR/TASK-LENGTH.jsonl as RULER does; "prompt" is the text that models read here.
  void write_prompts() const {
    for (const EvalTask& task : tasks_) {
      if (task.kind != eval::TaskKind::answer) fail("--prompts: task {} has no questions to write", task.name);
      for (const int64_t length : task.lengths) write_prompts(open(task, length));
    }
  }

  void run() {
    for (Json& line : eval::read_samples(samples_path())) keep(std::move(line));
    eval::SampleFile file(samples_path());
    for (const EvalTask& task : tasks_) {
      for (const int64_t length : task.lengths) tune(task, length);
    }
    Watch watch(*loaded_.engine, "evaluating", tokens_left());
    try {
      warm_up(watch);
      for (const EvalTask& task : tasks_) {
        for (const int64_t length : task.lengths) run_cell(open(task, length), file, watch);
      }
    } catch (const Cancelled&) {
      watch.clear();
      if (!options_.model.json) {
        fmt::print("{} samples are in {}; the same command goes on after them\n", lines_.size(), options_.out);
      }
      throw;
    }
    watch.clear();
    if (!options_.model.json) print_summary();
  }

 private:
  std::string samples_path() const { return options_.out + "/samples.jsonl"; }

  void keep(Json line) {
    Key key = eval::key_of(line);
    lines_.insert_or_assign(std::move(key), std::move(line));
  }

  bool missing(const EvalTask& task, int64_t length, int64_t index, const EvalContestant& contestant) const {
    return !lines_.contains({task.name, length, index, contestant.name});
  }

  /// Sets the contestants' knobs for prompts of `length`; for those of a user's file, as long as its first one.
  void tune(const EvalTask& task, int64_t length) {
    if (tuned_.contains(length)) return;
    int64_t n_tokens = length;
    if (tuner_.wanted() && length == 0) n_tokens = maker_.n_tokens(open(task, 0).generator->sample(0));
    std::vector<Tuned>& tuned = tuned_[length];
    for (const EvalContestant& contestant : contestants_) {
      const bool dense = contestant.specs.empty();
      tuned.push_back(dense ? Tuned() : tuner_.tune(contestant.specs, n_tokens));
    }
  }

  /// Once through every layer, so that the file's pages and the products' code are there before anything is timed.
  void warm_up(Watch& watch) const {
    if (tokens_left() == 0) return;
    std::vector<int32_t> tokens =
        prompt_tokens(*loaded_.tokenizer, "The first words of a text that nobody will score. ");
    tokens.resize(static_cast<size_t>(std::min<int64_t>(std::ssize(tokens), loaded_.engine->n_ctx())));
    watch.begin(0, 0);
    Sequence sequence = loaded_.engine->start(Policy());
    loaded_.engine->prefill(sequence, tokens);
  }

  int64_t tokens_left() const {
    int64_t n = 0;
    for (const EvalTask& task : tasks_) {
      for (const int64_t length : task.lengths) {
        for (int64_t index = task.first; index < task.end; ++index) {
          for (const EvalContestant& contestant : contestants_)
            n += missing(task, length, index, contestant) ? std::max<int64_t>(length, 1) : 0;
        }
      }
    }
    return n;
  }

  Cell open(const EvalTask& task, int64_t length) const {
    eval::Request request{.length = length, .seed = static_cast<uint64_t>(options_.seed), .n_tokens = {}};
    request.n_tokens = [this, &task](const eval::Sample& sample) {
      check_signal();
      if (task.kind == eval::TaskKind::answer) return maker_.n_tokens(sample);
      return static_cast<int64_t>(loaded_.tokenizer->encode(sample.input(), false).size());
    };
    return {task, length, task.make(request)};
  }

  void run_cell(const Cell& cell, eval::SampleFile& file, Watch& watch) {
    const EvalTask& task = cell.task;
    for (int64_t index = task.first; index < task.end; ++index) {
      std::vector<size_t> todo;
      for (size_t i = 0; i < contestants_.size(); ++i) {
        if (missing(task, cell.length, index, contestants_[i])) todo.push_back(i);
      }
      if (todo.empty()) continue;
      const eval::Sample sample = cell.generator->sample(index);
      const PromptMaker::Prompt prompt =
          task.kind == eval::TaskKind::answer ? maker_.prompt(sample) : maker_.plain(sample, cell.length);
      require_room(loaded_, std::ssize(prompt.tokens) - 1, task.n_gen + 1);
      EvalRun run(loaded_, task, sample, prompt);
      for (const size_t i : todo) {
        check_signal();
        const std::string& name = contestants_[i].name;
        const Tuned& tuned = tuned_.at(cell.length)[i];
        Json line = {{"task", task.name}, {"length", cell.length}, {"index", index}, {"method", name}};
        trace_.clear();
        line.update(run.run(Policy(tuned.specs, loaded_.engine->method_shape()), watch, n_done_));
        tuner_.add_json(line, tuned, nullptr);
        require_same_prompt(line);
        file.add(line);
        // One map for each task, length and method is enough: that of the first sample.
        if (index == 0 && task.kind == eval::TaskKind::answer) {
          trace_.write(fmt::format("{} {} {}", task.name, cell.length, name), name, std::ssize(prompt.tokens));
        }
        n_done_ += std::max<int64_t>(cell.length, 1);
        if (options_.model.json) print_json(line);
        keep(std::move(line));
      }
    }
  }

  /// Lines of one sample must be about one prompt: another program's version may make another.
  void require_same_prompt(const Json& line) const {
    for (const EvalContestant& contestant : contestants_) {
      Key key = eval::key_of(line);
      key.method = contestant.name;
      const auto other = lines_.find(key);
      if (other == lines_.end() || other->second["prompt_hash"] == line["prompt_hash"]) continue;
      fail("{}: sample {} of {} at {} was another prompt when {} answered it; give another --out", options_.out,
           key.index, key.task, key.length, key.method);
    }
  }

  void write_prompts(const Cell& cell) const {
    PendingFile file(fmt::format("{}/{}-{}.jsonl", options_.out, cell.task.name, cell.length));
    for (int64_t index = cell.task.first; index < cell.task.end; ++index) {
      check_signal();
      const eval::Sample sample = cell.generator->sample(index);
      const Json line = {{"index", index},
                         {"input", sample.input()},
                         {"outputs", sample.outputs},
                         {"length", maker_.n_tokens(sample) + (cell.task.reserves ? cell.task.n_gen : 0)},
                         {"answer_prefix", sample.answer_prefix},
                         {"prompt", maker_.prompt(sample).text},
                         {"metric", sample.metric.empty() ? cell.task.metric : sample.metric},
                         {"n_gen", sample.n_gen > 0 ? sample.n_gen : cell.task.n_gen}};
      const std::string text = line.dump() + "\n";
      file.write(text.data(), text.size());
    }
    file.commit();
  }

  void print_summary() const {
    struct Sum {
      int64_t n = 0;
      double score = 0, ttft = 0, density = 0;
    };
    std::map<std::tuple<std::string, int64_t, std::string>, Sum> sums;
    for (const auto& [key, line] : lines_) {
      Sum& sum = sums[{key.task, key.length, key.method}];
      const char* figure = line.contains("score") ? "score" : line.contains("kl") ? "kl" : "nll";
      ++sum.n;
      sum.score += line[figure].get<double>();
      sum.ttft += line.value("ttft_s", static_cast<double>(line["n_prompt"]) / line["prefill_tok_s"].get<double>());
      sum.density += line["density"].get<double>();
    }
    Table table({"task", "length", "method", "samples", "score", "first token", "density"});
    for (const auto& [what, sum] : sums) {
      const auto& [task, length, method] = what;
      const auto n = static_cast<double>(sum.n);
      table.add({task, length == 0 ? "-" : human_count(length), method, human_count(sum.n),
                 fmt::format("{:.3f}", sum.score / n), human_seconds(sum.ttft / n), human_share(sum.density / n)});
    }
    fmt::print("{}\n{} samples in {}; winnow report {} draws them\n", table.text(), lines_.size(), options_.out,
               options_.out);
  }

  const EvalOptions& options_;
  const Loaded& loaded_;
  PromptMaker maker_;
  Tuner tuner_;
  std::vector<EvalContestant> contestants_;
  std::map<int64_t, std::vector<Tuned>> tuned_;  // by length, in the order of the contestants
  std::vector<EvalTask> tasks_;
  DensityTrace trace_;
  std::map<Key, Json> lines_;  // all that are finished
  int64_t n_done_ = 0;         // tokens of this run's finished samples
};

void run(const EvalOptions& options) {
  const Loaded loaded = load(options.model, {.recall_rows = kRecallRows});
  Evaluation evaluation(options, loaded);
  open_run(options, loaded);
  if (options.prompts) {
    evaluation.write_prompts();
  } else {
    evaluation.run();
  }
}

std::string task_names() {
  std::string names;
  for (const eval::TaskInfo* task : task_roster()) names += fmt::format("{}{}", names.empty() ? "" : ", ", task->name);
  return names;
}

std::function<void()> add(CLI::App& app) {
  auto options = std::make_shared<EvalOptions>();
  add_model_options(app, options->model, kCtxLimit);
  add_methods(app, options->model, "one contestant beside dense (\"A + B\": two that work together); repeatable");
  app.add_option("--task", options->tasks, "tasks, a list, of: " + task_names() + "; or files of your own, NAME.jsonl")
      ->delimiter(',')
      ->required()
      ->type_name("NAME,NAME");
  app.add_option("--length", options->lengths, "prompt with answer in tokens, a list (default 4096)")
      ->delimiter(',')
      ->check(whole_between(1, 1 << 24))
      ->type_name("N,N");
  app.add_option("--samples", options->n_samples, "samples of each task and length (default 20)")
      ->check(whole_between(1, 1 << 20))
      ->type_name("N");
  app.add_option("--first", options->first, "number of the first of them (default 0): parts of a run, side by side")
      ->check(whole_between(0, 1 << 20))
      ->type_name("I");
  app.add_option("--seed", options->seed, "of the prompts (default 42)")
      ->check(whole_between(0, std::numeric_limits<int64_t>::max()))
      ->type_name("N");
  app.add_option("--out", options->out, "folder of the results; a run that it holds goes on")
      ->type_name("DIR")
      ->required();
  app.add_option("--text", options->text, "a text for perplexity and divergence (default: winnow's own essays)")
      ->type_name("FILE");
  add_trace(app, options->trace);
  app.add_flag("--raw", options->raw, "no chat template");
  app.add_flag("--later", options->later, "read the context before the question: compressors do not see it");
  app.add_flag("--prompts", options->prompts, "only write the prompts, DIR/TASK-LENGTH.jsonl, and answer none");
  return [options] { run(*options); };
}

}  // namespace

const CommandInfo& command_eval() {
  static const CommandInfo kInfo = {
      "eval", "how well methods answer tasks at several lengths, beside dense attention",
      "winnow eval -m qwen.gguf --task niah_multikey_2,vt --length 4096,8192 --samples 20 --method flexprefill --out "
      "results\n"
      "winnow eval -m qwen.gguf --task my-questions.jsonl --method \"snapkv(budget=1024)\" --later --out results\n"
      "winnow report results",
      add};
  return kInfo;
}

}  // namespace winnow::roster
