// The engine's logits against those of an independent implementation (scripts/golden-logits), over every architecture:
// tiny models on `ref` and `cpu`, real ones on `cpu`. Distances are in units of the row's own spread (standard
// deviation of the recorded vocabulary entries), so that one bound means the same for every model.
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
namespace {

namespace fs = std::filesystem;

// ref sums in double and passes float32 from op to op; the golden file has 7 digits. `cpu` in float32 products stays
// within the same order; what it does to real models' quantised products is the policy of kernels/cpu, bounded here so
// that an error in it shows.
constexpr double kRefBound = 1e-4;
constexpr double kCpuBound = 0.25;

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

double spread(const std::vector<double>& values) {
  double mean = 0, square = 0;
  for (const double value : values) mean += value / static_cast<double>(values.size());
  for (const double value : values) square += (value - mean) * (value - mean) / static_cast<double>(values.size());
  return std::sqrt(square);
}

/// Largest distance between a computed row and its golden record, in spreads.
double distance(const std::vector<float>& row, const nlohmann::json& record) {
  const auto fixed = record["fixed"].get<std::vector<double>>();
  double worst = 0;
  for (size_t i = 0; i < fixed.size(); ++i) {
    worst = std::max(worst, std::abs(row[i * row.size() / fixed.size()] - fixed[i]));
  }
  for (const auto& [id, logit] : record["top"].get<std::vector<std::pair<size_t, double>>>()) {
    worst = std::max(worst, std::abs(row[id] - logit));
  }
  return worst / spread(fixed);
}

/// Largest distance over all rows; prints it.
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
  std::cout << name << " on " << device << ": largest distance " << worst << " spreads\n";
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
  EXPECT_LT(worst("cpu", {}), kCpuBound);
}

std::string test_name(const ::testing::TestParamInfo<TinyCase>& test) {
  std::string name = test.param.name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Models, TinyGolden, ::testing::ValuesIn(tiny_cases()), test_name);

class RealGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(RealGolden, Cpu) {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  const fs::path folder =
      cache != nullptr && *cache != 0 ? fs::path(cache) : fs::path(home == nullptr ? "" : home) / ".cache";
  const fs::path path = folder / "winnow" / "models" / golden(GetParam())["model"].get<std::string>();
  if (!fs::exists(path)) GTEST_SKIP() << path.filename() << " is not here; scripts/pull fetches it";
  EXPECT_LT(compare(GetParam(), Gguf::open(path), "cpu", {}), kCpuBound);
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
