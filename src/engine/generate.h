// From a prompt's text to an answer's text: what the program and the installed header share.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "text/sampler.h"
#include "text/tokenizer.h"

namespace winnow {

struct GenerateOptions {
  SamplerOptions sampler;
  int32_t n_max = 256;             // tokens of the answer
  std::vector<std::string> stops;  // texts that end it; they are not part of it
};

enum class Finish { end, stop, length, context };  // the model's own end, a stop text, n_max, no room in the context
std::string_view finish_name(Finish finish);

struct Generated {
  std::string text;             // whole UTF-8 characters
  std::vector<int32_t> tokens;  // without the token that ended it
  Finish finish = Finish::length;
  double ttft_s = 0;  // from the call to the first token, less what was measured on the way (RunStats::measure_s)
};

/// What somebody may watch while an answer grows. Either may be empty.
struct GenerateHooks {
  std::function<void(std::string_view)> text;          // the next piece, whole UTF-8 characters
  std::function<void(std::span<const float>)> logits;  // [n_vocab] before each token is chosen
};

/// Ids of a prompt: special tokens' texts become those tokens, and BOS goes in front where the model asks for it and
/// the text does not bring it.
std::vector<int32_t> prompt_tokens(const Tokenizer& tokenizer, std::string_view text);

/// Truncates `sequence` to the longest beginning that it shares with `tokens`, leaving at least one of them to read.
/// -> that beginning's length.
int32_t keep_common_prefix(Sequence& sequence, std::span<const int32_t> tokens);

/// Reads `prompt` after what `sequence` holds and answers. Throws as Engine::prefill and decode do; the pieces handed
/// to the hook before a Cancelled are the answer so far.
Generated generate(Engine& engine, Sequence& sequence, const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                   const GenerateOptions& options, const GenerateHooks& hooks = {});

}  // namespace winnow
