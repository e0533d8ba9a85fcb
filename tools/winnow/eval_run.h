// What `winnow eval` does with one prompt and one method: read, answer, score; or read and look at the logits.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "eval/results.h"
#include "eval/task.h"
#include "loaded.h"

namespace winnow {

/// A task as it is run: one of the roster, or a file of the user's.
struct EvalTask {
  std::string name, metric;
  int32_t n_gen = 0;
  bool reserves = true;
  eval::TaskKind kind = eval::TaskKind::answer;
  std::vector<int64_t> lengths;  // 0: prompts as long as they are
  int64_t first = 0, end = 0;    // indices of the samples
  std::function<std::unique_ptr<eval::Generator>(const eval::Request&)> make;
};

/// How samples become prompts.
class PromptMaker {
 public:
  /// `raw`: no chat template. `later`: the question is cut off, to be read after the context.
  PromptMaker(const Loaded& loaded, bool raw, bool later);
  struct Prompt {
    std::string text;
    std::vector<int32_t> tokens;
    size_t n_context = 0;  // of the tokens: those that are read before the question; 0: all are read at once
  };
  /// In the model's template, with the answer begun.
  Prompt prompt(const eval::Sample& sample) const;
  /// The sample's text alone, cut to `length` tokens. Throws Error where it has fewer.
  Prompt plain(const eval::Sample& sample, int64_t length) const;
  int64_t n_tokens(const eval::Sample& sample) const;

 private:
  std::string text(const eval::Sample& sample) const;
  const Loaded& loaded_;
  bool later_;
  std::unique_ptr<ChatTemplate> chat_;  // null: raw
};

/// Positions are told in this many equal parts of the text, of which divergence looks at so many rows each.
inline constexpr int64_t kEvalParts = 16, kEvalPartRows = 8;

/// One prompt under one method after another. Dense logits are kept for those that come after.
class EvalRun {
 public:
  EvalRun(const Loaded& loaded, const EvalTask& task, const eval::Sample& sample, const PromptMaker::Prompt& prompt)
      : loaded_(loaded), task_(task), sample_(sample), prompt_(prompt) {}

  /// The result's line less its key. `watch` shows the progress; the tokens before this prompt are `n_done`.
  eval::Json run(const Policy& policy, Watch& watch, int64_t n_done);

 private:
  eval::Json answer(Sequence& sequence);
  eval::Json surprise(Sequence& sequence);
  eval::Json divergence(Sequence& sequence);
  std::vector<std::vector<float>> probe(Sequence& sequence);

  const Loaded& loaded_;
  const EvalTask& task_;
  const eval::Sample& sample_;
  const PromptMaker::Prompt& prompt_;
  std::vector<std::vector<float>> dense_;  // logits under dense attention at the rows that divergence looks at
};

}  // namespace winnow
