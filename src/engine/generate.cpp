#include "engine/generate.h"

#include <algorithm>
#include <chrono>

namespace winnow {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Tokens to shown text: whole characters, nothing of a stop text.
class TextOut {
 public:
  TextOut(const Tokenizer& tokenizer, const GenerateOptions& options, const GenerateHooks& hooks)
      : tokenizer_(tokenizer), stops_(options.stops), hooks_(hooks) {}

  void push(int32_t token) { show(stops_.push(characters_.push(tokenizer_.decode(token, false)))); }
  bool stopped() const { return stops_.stopped(); }
  void finish() {
    if (stopped()) return;
    show(stops_.push(characters_.finish()));
    if (!stopped()) show(stops_.finish());
  }
  std::string take() { return std::move(text_); }

 private:
  void show(const std::string& piece) {
    if (piece.empty()) return;
    text_ += piece;
    if (hooks_.text) hooks_.text(piece);
  }

  const Tokenizer& tokenizer_;
  Utf8Stream characters_;
  StopStrings stops_;
  const GenerateHooks& hooks_;
  std::string text_;
};

}  // namespace

std::string_view finish_name(Finish finish) {
  switch (finish) {
    case Finish::end:
      return "end";
    case Finish::stop:
      return "stop";
    case Finish::length:
      return "length";
    case Finish::context:
      break;
  }
  return "context";
}

std::vector<int32_t> prompt_tokens(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> tokens = tokenizer.encode(text, true);
  if (tokenizer.add_bos() && (tokens.empty() || tokens.front() != tokenizer.bos())) {
    tokens.insert(tokens.begin(), tokenizer.bos());
  }
  return tokens;
}

int32_t keep_common_prefix(Sequence& sequence, std::span<const int32_t> tokens) {
  const std::span<const int32_t> held = sequence.tokens();
  const size_t most = std::min(held.size(), tokens.empty() ? 0 : tokens.size() - 1);
  const auto differ = std::mismatch(held.begin(), held.begin() + static_cast<std::ptrdiff_t>(most), tokens.begin());
  const auto common = static_cast<int32_t>(differ.first - held.begin());
  if (common < sequence.n_tokens()) sequence.truncate(common);
  return common;
}

Generated generate(Engine& engine, Sequence& sequence, const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                   const GenerateOptions& options, const GenerateHooks& hooks) {
  const auto start = std::chrono::steady_clock::now();
  Sampler sampler(options.sampler);
  TextOut out(tokenizer, options, hooks);
  Generated answer;
  const double measured = sequence.stats().measure_s;
  std::vector<float> logits = engine.prefill(sequence, prompt);
  while (true) {
    if (hooks.logits) hooks.logits(logits);
    const int32_t token = sampler.sample(logits, sequence.tokens());
    if (answer.tokens.empty()) answer.ttft_s = seconds_since(start) - (sequence.stats().measure_s - measured);
    if (tokenizer.is_end(token)) {
      answer.finish = Finish::end;
      break;
    }
    answer.tokens.push_back(token);
    out.push(token);
    if (out.stopped()) {
      answer.finish = Finish::stop;
      break;
    }
    if (static_cast<int32_t>(answer.tokens.size()) >= options.n_max) break;
    if (sequence.n_tokens() >= engine.n_ctx()) {
      answer.finish = Finish::context;
      break;
    }
    logits = engine.decode(sequence, token);
  }
  out.finish();
  answer.text = out.take();
  return answer;
}

}  // namespace winnow
