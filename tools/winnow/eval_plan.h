// What `winnow eval` is asked for, checked before hours are spent on it.
#pragma once

#include <string>
#include <vector>

#include "eval_run.h"
#include "options.h"
#include "target.h"

namespace winnow {

struct EvalOptions {
  ModelOptions model;
  std::vector<std::string> tasks;
  std::vector<int64_t> lengths = {4096};
  int64_t first = 0;  // index of the first sample
  int64_t n_samples = 20;
  int64_t seed = 42;
  std::string out;
  std::string trace;     // a folder; empty: none
  std::string text;      // a file for tasks that look at logits; empty: their own
  bool raw = false;      // no chat template
  bool later = false;    // the question is read after the context
  bool prompts = false;  // write the prompts, answer none
};

/// Methods that work together, and the name that the results have for them.
struct EvalContestant {
  std::string name;
  std::vector<std::string> specs;
};

/// Dense attention first, then each contestant once. Throws Error where a method is malformed or unknown.
std::vector<EvalContestant> eval_contestants(const EvalOptions& options, const Engine& engine, const Tuner& tuner);

/// Throws Error where a task is unknown, a file is broken, or a length goes beyond the context.
std::vector<EvalTask> eval_tasks(const EvalOptions& options, const Loaded& loaded, const PromptMaker& maker);

/// Makes DIR and its run.json, or checks that the run there is this one: model, seed, template, device. Throws Error
/// that names what differs.
void open_run(const EvalOptions& options, const Loaded& loaded);

}  // namespace winnow
