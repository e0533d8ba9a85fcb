// Engines over tiny random models, and what tests of whole runs share.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "random_weights.h"
#include "tiny_gguf.h"

namespace winnow {

struct TinyEngine {
  std::vector<std::byte> bytes;  // the engine's weights point into them
  std::unique_ptr<Engine> engine;

  explicit TinyEngine(const std::string& architecture, const EngineOptions& options = {},
                      const std::string& device = "cpu", int n_threads = 2, const TinyOptions& tiny = {})
      : bytes(tiny_gguf(architecture, tiny)) {
    engine = std::make_unique<Engine>(load_model(Gguf::parse("tiny", bytes.data(), bytes.size())),
                                      make_device(device, n_threads), options);
  }
  Engine* operator->() const { return engine.get(); }
  /// A method that needs trained weights gets random ones.
  Sequence start(std::vector<std::string> specs = {}) const {
    for (std::string& spec : specs) spec = with_weights(spec, engine->method_shape());
    return engine->start(Policy(specs, engine->method_shape()));
  }
};

inline std::vector<int32_t> random_tokens(int64_t n, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < n; ++i) tokens.push_back(static_cast<int32_t>(random() % 256));
  return tokens;
}

/// Greatest difference, as a share of the spread (standard deviation) of `want`.
inline double relative_distance(const std::vector<float>& got, const std::vector<float>& want) {
  EXPECT_EQ(got.size(), want.size());
  double sum = 0, squares = 0, worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    sum += want[i];
    squares += static_cast<double>(want[i]) * want[i];
    const double difference = std::abs(static_cast<double>(got[i]) - want[i]);
    worst = std::isnan(difference) ? HUGE_VAL : std::max(worst, difference);
  }
  const double n = static_cast<double>(want.size());
  return worst / std::sqrt(std::max(squares / n - (sum / n) * (sum / n), 1e-30));
}

}  // namespace winnow
