#include "eval_plan.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "base/error.h"
#include "eval/draw.h"
#include "eval/prose.h"
#include "eval/user_task.h"
#include "files.h"
#include "output.h"

namespace winnow {
namespace {

using eval::Request;
using eval::Sample;

EvalTask user_task(const EvalOptions& options, const std::string& path, const Loaded& loaded,
                   const PromptMaker& maker) {
  std::vector<Sample> samples = eval::parse_user_task(path, read_text(path));
  if (std::ssize(samples) > options.first + options.n_samples) {
    samples.resize(static_cast<size_t>(options.first + options.n_samples));
  }
  const int64_t n_ctx = loaded.engine->n_ctx();
  for (size_t i = 0; i < samples.size(); ++i) {
    const int64_t n = maker.n_tokens(samples[i]) + samples[i].n_gen;
    if (n > n_ctx) {
      fail("{}: sample {} needs {} tokens with its answer, and the context holds {}", path, i + 1, human_count(n),
           human_count(n_ctx));
    }
  }
  EvalTask task;
  task.name = std::filesystem::path(path).stem().string();
  task.metric = "all";
  task.lengths = {0};
  task.first = options.first;
  task.end = std::ssize(samples);
  task.make = [samples](const Request&) { return eval::make_user_task(samples); };
  return task;
}

EvalTask known_task(const EvalOptions& options, const std::string& name, int64_t n_ctx) {
  const eval::TaskInfo& info = eval::find_task(name);
  EvalTask task;
  task.name = info.name;
  task.metric = info.metric;
  task.n_gen = info.n_gen;
  task.reserves = info.reserves;
  task.kind = info.kind;
  task.first = options.first;
  task.end = options.first + options.n_samples;
  task.make = info.make;
  if (info.kind != eval::TaskKind::answer && !options.text.empty()) {
    task.make = [path = options.text, text = read_text(options.text)](const Request& request) {
      return eval::make_prose_from(path, text, request);
    };
  }
  const std::set<int64_t> lengths(options.lengths.begin(), options.lengths.end());
  for (const int64_t length : lengths) {
    const int64_t need = length + (info.reserves ? 0 : info.n_gen);
    if (need > n_ctx) {
      fail("task {} at length {} needs {} tokens, and the context holds {}", name, length, human_count(need),
           human_count(n_ctx));
    }
    task.lengths.push_back(length);
  }
  return task;
}

}  // namespace

std::vector<EvalContestant> eval_contestants(const EvalOptions& options, const Engine& engine, const Tuner& tuner) {
  const std::string dense = Policy().name();
  std::vector<EvalContestant> contestants = {{dense, {}}};
  std::set<std::string> seen = {dense};
  for (const std::string& text : options.model.methods) {
    const std::vector<std::string> specs = split_methods(text);
    std::string name = Policy(specs, engine.method_shape()).name();
    if (name != dense) name += tuner.suffix();
    if (seen.insert(name).second) contestants.push_back({name, specs});
  }
  return contestants;
}

std::vector<EvalTask> eval_tasks(const EvalOptions& options, const Loaded& loaded, const PromptMaker& maker) {
  std::vector<EvalTask> tasks;
  std::set<std::string> seen;
  for (const std::string& name : options.tasks) {
    tasks.push_back(name.ends_with(".jsonl") ? user_task(options, name, loaded, maker)
                                             : known_task(options, name, loaded.engine->n_ctx()));
    if (!seen.insert(tasks.back().name).second) fail("--task names {} twice", tasks.back().name);
  }
  return tasks;
}

void open_run(const EvalOptions& options, const Loaded& loaded) {
  Engine& engine = *loaded.engine;
  const eval::Json now = {{"model", model_name(loaded)},
                          {"model_hash", file_fingerprint(options.model.path)},
                          {"kv", options.model.kv},
                          {"device", engine.device().name()},
                          {"threads", engine.device().n_threads()},
                          {"template", options.raw ? "none" : "chat"},
                          {"question", options.later ? "after the context" : "with the context"},
                          {"seed", options.seed}};
  std::error_code error;
  std::filesystem::create_directories(options.out, error);
  if (!std::filesystem::is_directory(options.out)) {
    fail("--out {}: the folder cannot be made: {}", options.out, error ? error.message() : "a file is in its place");
  }
  const std::string path = options.out + "/run.json";
  if (!std::filesystem::exists(path)) {
    PendingFile file(path);
    const std::string text = now.dump(2) + "\n";
    file.write(text.data(), text.size());
    file.commit();
    return;
  }
  const eval::Json before = eval::Json::parse(read_text(path), nullptr, false);
  if (!before.is_object()) fail("{}: this is no result of winnow eval; give another --out", path);
  for (const auto& [name, value] : now.items()) {
    if (!before.contains(name) || before[name] != value) {
      fail("{} holds a run with {} {}, and this one has {}; give another --out", options.out, name,
           before.contains(name) ? before[name].dump() : "unknown", value.dump());
    }
  }
}

}  // namespace winnow
