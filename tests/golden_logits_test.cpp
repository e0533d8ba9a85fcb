// The engine's logits against those of an independent implementation (scripts/golden-logits), over every architecture:
// tiny models on `ref` and `cpu`, real ones on `cpu`, and a few tokens of a real one on `ref`.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "engine/engine.h"
#include "tiny_cases.h"

namespace winnow {

// for GoogleTest's messages
static void PrintTo(const TinyCase& one, std::ostream* out) {
  *out << one.name;
}

namespace {

namespace fs = std::filesystem;

// ref sums in double and passes float32 from op to op. Measured: at most 1.2e-6.
constexpr double kRefBound = 1e-5;
// Products of many rows in rotated int8, of few rows with activations in 8 bits (kernels/cpu): noise by choice, bounded
// here so that an error shows, since any wrong norm, bias, angle or window moves logits by about a spread.
// Measured: 0.02 to 0.15 on tiny models, whose rows are too short for rounding to average out, 0.05 to 0.06 on real
// ones.
constexpr double kTinyCpuBound = 0.2, kRealCpuBound = 0.1;

nlohmann::json golden(const std::string& name) {
  std::ifstream file(std::string(WINNOW_TEST_DATA) + "/golden/" + name + ".json");
  EXPECT_TRUE(file) << name;
  return nlohmann::json::parse(file);
}

/// Logits of the last n_rows tokens. -> [n_rows][n_vocab]
std::vector<std::vector<float>> logits_of(Engine& engine, const std::vector<int32_t>& tokens, size_t n_rows) {
  std::vector<std::vector<float>> rows(n_rows);
  Sequence sequence = engine.start(Policy());
  engine.prefill(sequence, tokens, static_cast<int32_t>(n_rows), [&](int64_t first, Mat piece) {
    for (int64_t r = 0; r < piece.rows; ++r) {
      std::vector<float>& row = rows[static_cast<size_t>(first + r)];
      row.resize(static_cast<size_t>(piece.cols));
      engine.device().download(row.data(), piece.slice(r, 1));
    }
  });
  return rows;
}

/// Standard deviation.
double spread(const std::vector<double>& values) {
  double mean = 0, square = 0;
  for (const double value : values) mean += value / static_cast<double>(values.size());
  for (const double value : values) square += (value - mean) * (value - mean) / static_cast<double>(values.size());
  return std::sqrt(square);
}

/// How far a computed row is from its golden record: the spread of the differences (a shift of all logits alike changes
/// no probability), in units of the record's own spread, so that one bound means the same for every model.
double distance(const std::vector<float>& row, const nlohmann::json& record) {
  const auto fixed = record["fixed"].get<std::vector<double>>();
  std::vector<double> differences;
  for (size_t i = 0; i < fixed.size(); ++i) differences.push_back(row[i * row.size() / fixed.size()] - fixed[i]);
  for (const auto& [id, logit] : record["top"].get<std::vector<std::pair<size_t, double>>>()) {
    differences.push_back(row[id] - logit);
  }
  return spread(differences) / spread(fixed);
}

/// Distance of the worst row; prints it.
double compare(const std::string& name, std::shared_ptr<const Gguf> file, std::string_view device,
               const EngineOptions& options) {
  const nlohmann::json record = golden(name);
  Engine engine(load_model(std::move(file)), make_device(device, 0), options);
  const auto tokens = record["tokens"].get<std::vector<int32_t>>();
  const auto rows = logits_of(engine, tokens, record["rows"].size());
  double worst = 0;
  for (size_t r = 0; r < rows.size(); ++r) {
    EXPECT_EQ(rows[r].size(), static_cast<size_t>(engine.model().shape().n_vocab));
    worst = std::max(worst, distance(rows[r], record["rows"][r]));
  }
  std::cout << name << " on " << device << ": " << worst << " spreads from golden\n";
  return worst;
}

class TinyGolden : public ::testing::TestWithParam<TinyCase> {
 protected:
  double worst(std::string_view device, const EngineOptions& options) {
    const std::vector<std::byte> bytes = tiny_gguf(GetParam().architecture, GetParam().options);
    return compare(GetParam().name, Gguf::parse(GetParam().name, bytes.data(), bytes.size()), device, options);
  }
};

TEST_P(TinyGolden, Ref) {
  EXPECT_LT(worst("ref", {.kv_type = Type::f32}), kRefBound);
}

TEST_P(TinyGolden, RefInChunks) {
  EXPECT_LT(worst("ref", {.kv_type = Type::f32, .schedule = Schedule::chunk_major, .chunk = 7}), kRefBound);
}

TEST_P(TinyGolden, Cpu) {
  EXPECT_LT(worst("cpu", {}), kTinyCpuBound);
}

TEST_P(TinyGolden, CpuInChunksOfFewRows) {
  EXPECT_LT(worst("cpu", {.schedule = Schedule::chunk_major, .chunk = 7}), kTinyCpuBound);
}

std::string test_name(const ::testing::TestParamInfo<TinyCase>& test) {
  std::string name = test.param.name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Models, TinyGolden, ::testing::ValuesIn(tiny_cases()), test_name);

class RealGolden : public ::testing::TestWithParam<std::string> {};

/// Where scripts/pull puts models.
fs::path models_folder() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  const fs::path folder =
      cache != nullptr && *cache != 0 ? fs::path(cache) : fs::path(home == nullptr ? "" : home) / ".cache";
  return folder / "winnow" / "models";
}

/// The file, or null where it is not here.
std::shared_ptr<const Gguf> real_model(const std::string& name) {
  const fs::path path = models_folder() / golden(name)["model"].get<std::string>();
  return fs::exists(path) ? Gguf::open(path) : nullptr;
}

TEST_P(RealGolden, Cpu) {
  const auto file = real_model(GetParam());
  if (file == nullptr) GTEST_SKIP() << "the model is not here; scripts/pull fetches it";
  EXPECT_LT(compare(GetParam(), file, "cpu", {}), kRealCpuBound);
}

TEST(RealGoldenOnRef, AFewTokens) {
  const auto file = real_model("smollm2-135m-short");
  if (file == nullptr) GTEST_SKIP() << "the model is not here; scripts/pull smollm2-135m fetches it";
  EXPECT_LT(compare("smollm2-135m-short", file, "ref", {.kv_type = Type::f32}), kRefBound);
}

INSTANTIATE_TEST_SUITE_P(Models, RealGolden,
                         ::testing::Values("smollm2-135m", "qwen2.5-coder-0.5b", "gemma3-270m", "gemma3-270m-window"),
                         [](const auto& test) {
                           std::string name = test.param;
                           for (char& c : name) {
                             if (c == '-' || c == '.') c = '_';
                           }
                           return name;
                         });

}  // namespace
}  // namespace winnow
