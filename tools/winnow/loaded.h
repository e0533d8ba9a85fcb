// A model made ready by the shared options, and the checks before it starts on a prompt.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "model/gguf.h"
#include "options.h"
#include "progress.h"
#include "text/chat.h"
#include "text/tokenizer.h"

namespace winnow {

struct Loaded {
  std::vector<std::byte> bytes;  // of a model that was made in memory; the engine's weights point into them
  std::shared_ptr<const Gguf> file;
  std::unique_ptr<Tokenizer> tokenizer;  // null for a model that was made in memory
  std::unique_ptr<Engine> engine;
};

/// Opens the model. `engine_options` takes its kv_type and n_ctx from `options`. Throws Error for all that can be
/// wrong.
Loaded load(const ModelOptions& options, EngineOptions engine_options = {});
/// The same for a GGUF file in memory that has no tokenizer; options.path only names it.
Loaded load(std::vector<std::byte> gguf, const ModelOptions& options, EngineOptions engine_options = {});

/// The model's chat template; throws Error, naming --raw, where it has none.
std::unique_ptr<ChatTemplate> chat_template(const Loaded& loaded);

/// Name for tables: the file's own, or its file name.
std::string model_name(const Loaded& loaded);

/// Throws Error where `n_prompt` tokens with `n_more` after them do not fit the context, or, by estimate, the memory
/// that is free now. `other_bytes`: what the command itself will hold.
void require_room(const Loaded& loaded, int64_t n_prompt, int64_t n_more, int64_t other_bytes = 0);

/// Files and question as one prompt for the model: the files' texts before the question, a blank line between, in the
/// chat template; where `raw`, simply one after another. Throws Error where nothing is left.
struct PromptInput {
  std::vector<std::string> files;
  std::string prompt;
  std::string system;
  bool raw = false;
};
std::vector<int32_t> read_prompt(const Loaded& loaded, const PromptInput& input);

/// While it lives, the engine's prefill of `n_tokens` shows a progress line, and Ctrl-C cancels.
class Watch {
 public:
  Watch(Engine& engine, const std::string& what, int64_t n_tokens);
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  /// What is read from now on are the tokens [done, done + n) of those n_tokens.
  void begin(int64_t done, int64_t n);
  void clear() { progress_.clear(); }

 private:
  Engine& engine_;
  Progress progress_;
  double total_;
};

}  // namespace winnow
