// What an evaluation task is: prompts made offline by published rules, what the right answers are, how one is scored.
// One file each in tools/eval/tasks, found by folder; see base/roster.h.
//
// A sample is a function of (task, length, seed, index): a run that goes on, or is repeated, meets the same prompts.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace winnow::eval {

/// One prompt. The user's turn is context + question; the model's answer is begun with the prefix.
struct Sample {
  std::string context;               // all that can be read before the question is known
  std::string question;              // begins where the text ends
  std::string answer_prefix;         // empty for tasks that have none
  std::vector<std::string> outputs;  // the references that an answer is scored against
  double depth = -1;                 // where in the text the one answer stands, in [0, 1]; negative: no one place
  std::string metric;                // empty: the task's
  int32_t n_gen = 0;                 // 0: the task's

  std::string input() const { return context + question; }
};

/// What samples are asked for.
struct Request {
  int64_t length = 0;  // tokens of the whole prompt with its answer, in the model's own tokenizer and template
  uint64_t seed = 0;
  std::function<int64_t(const Sample&)> n_tokens;  // of the prompt, template and answer prefix included
};

class Generator {
 public:
  virtual ~Generator() = default;
  /// The same for the same request and index, whatever was made before. Throws Error where nothing fits the length.
  virtual Sample sample(int64_t index) = 0;
};

enum class TaskKind {
  answer,      // generate, then score the answer
  surprise,    // score what the model foresees of the text: perplexity by position
  divergence,  // compare next-token distributions with those of dense attention along the text
};

struct TaskInfo {
  std::string_view name;
  std::string_view title;   // one line for people
  std::string_view source;  // "RULER, arXiv 2404.06654", and how ours differs
  std::string_view metric;  // a name of score.h
  int32_t n_gen = 0;        // tokens of the answer at most
  bool reserves = true;     // the answer's tokens are part of the length
  TaskKind kind = TaskKind::answer;
  std::unique_ptr<Generator> (*make)(const Request& request) = nullptr;
};

/// Throws Error that lists the known names.
const TaskInfo& find_task(std::string_view name);

}  // namespace winnow::eval

namespace winnow {

/// All tasks, one for each file of tools/eval/tasks.
std::span<const eval::TaskInfo* const> task_roster();

}  // namespace winnow
