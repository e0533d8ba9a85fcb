// winnow: runs language models on long inputs and computes only the attention that matters.
//
//   #include <winnow/winnow.h>
//   #include <iostream>
//
//   int main() {
//     winnow::Session session("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", {.methods = {"flexprefill(gamma=0.9)"}});
//     session.generate({.prompt = "Why is the sky blue?"}, [](std::string_view piece) { std::cout << piece <<
//     std::flush; });
//   }
//
// Whatever a caller can get wrong throws std::runtime_error with one sentence that says what and what is allowed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace winnow {

struct SessionOptions {
  std::vector<std::string> methods;  // "name" or "name(key=value, ...)", working together; none: dense attention
  std::string kv = "f16";            // how keys and values are stored: f16, bf16, q8_0 or fp8
  std::string device = "cpu";
  std::string products = "own";  // what the device multiplies in; fp8: faster, less exact, a Hopper GPU's
  int threads = 0;               // 0: one for each core
  int n_ctx = 0;                 // longest prompt with answer, in tokens; 0: the model's own limit
};

struct Request {
  std::string prompt;
  std::string system = {};              // system message; empty: the template's own
  bool raw = false;                     // continue `prompt` as it is, without the model's chat template
  int n_max = 256;                      // tokens of the answer
  std::vector<std::string> stops = {};  // texts that end the answer; they are not part of it
  double temperature = 0;               // 0: always the likeliest token
  int top_k = 0;                        // 0: off
  double top_p = 1, min_p = 0;          // 1 and 0: off
  double repeat_penalty = 1;            // 1: off
  uint64_t seed = 0;
};

struct Answer {
  std::string text;                            // UTF-8
  std::string finish;                          // "end", "stop", "length" or "context"
  int64_t n_reused = 0;                        // tokens of the prompt that the cache still held
  int64_t n_prompt = 0, n_gen = 0;             // tokens read, tokens answered
  double ttft_s = 0;                           // from the call to the first token
  double prefill_tok_s = 0, decode_tok_s = 0;  // 0 where there was nothing to measure
  double density = 1;                          // computed share of the prompt's attention
  int64_t kv_bytes = 0, peak_bytes = 0;        // peak: all but the mapped weights
};

/// A model with one cache. Prompts that begin like the one before (a conversation, another question about the same
/// text) read only what is new.
class Session {
 public:
  explicit Session(const std::string& model_path, const SessionOptions& options = {});
  ~Session();
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;

  /// Answers. `on_text`, where given, gets the answer piece by piece, in whole UTF-8 characters.
  Answer generate(const Request& request, const std::function<void(std::string_view)>& on_text = nullptr);
  /// Stops a running `generate`, which then throws; may be called from any thread or a signal handler.
  void cancel();

  int n_ctx() const;
  /// Ids of a text, without special tokens and BOS.
  std::vector<int32_t> tokenize(std::string_view text) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace winnow
