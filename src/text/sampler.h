// From logits to the next token.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace winnow {

struct SamplerOptions {
  double temperature = 0;     // 0: greedy
  int32_t top_k = 0;          // 0: off
  double top_p = 1;           // 1: off
  double min_p = 0;           // 0: off; share of the best token's probability
  double repeat_penalty = 1;  // 1: off
  int32_t repeat_last = 64;   // tokens that the penalty looks back on
  uint64_t seed = 0;
};

class Sampler {
 public:
  /// Throws Error where a value is out of range, naming it and what is allowed.
  explicit Sampler(const SamplerOptions& options);
  /// Penalty, then temperature 0: the best (lower id on a tie); else top-k, top-p, min-p, temperature, draw.
  int32_t sample(std::span<const float> logits, std::span<const int32_t> recent);

 private:
  SamplerOptions options_;
  std::mt19937_64 random_;
};

/// Watches a growing text for stop strings, holding back what may be the start of one.
class StopStrings {
 public:
  /// Throws Error where one is empty.
  explicit StopStrings(std::vector<std::string> stops);
  /// The part of the text that may be shown now; nothing once a stop string has come.
  std::string push(const std::string& text);
  bool stopped() const { return stopped_; }
  /// What was held back, where no stop string came.
  std::string finish();

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace winnow
