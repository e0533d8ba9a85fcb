// The vote itself is the kernels', and its worked example is tested beside them. Here: the rule over whole sites in
// plain formulas, what is promised of it, and the calibration.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "methods/pieces.h"
#include "site_fixture.h"

namespace winnow {
namespace {

using test::make_method;
using test::ref_ops;
using test::SiteFixture;
using test::SiteShape;
using ::testing::HasSubstr;

// A site whose key tiles lie far apart: each is scaled by a factor of its own between 0 and 2.
SiteFixture spread_site(const SiteShape& shape, uint32_t seed) {
  SiteFixture fixture(shape, seed);
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> factor(0, 2);
  for (int32_t kv = 0; kv < shape.n_head_kv; ++kv) {
    for (int32_t tile = 0; tile * 64 < shape.n_k; ++tile) {
      const float f = factor(random);
      for (int32_t slot = tile * 64; slot < std::min(shape.n_k, tile * 64 + 64); ++slot) {
        for (int32_t d = 0; d < shape.head_dim; ++d) fixture.key(kv, slot)[d] *= f;
      }
    }
  }
  fixture.store();
  return fixture;
}

struct Result {
  std::vector<float> o;
  AttnCounts counts;
};

Result attend(SiteFixture& fixture, double lambda) {
  const auto n_head = static_cast<size_t>(fixture.shape().n_head);
  const std::vector<float> skip(n_head, lambda > 0 ? static_cast<float>(std::log(lambda)) : -INFINITY);
  Result result;
  result.o = attend_site(fixture.site(ref_ops()), nullptr, skip.data(), &result.counts);
  return result;
}

// The rule as the specification states it for tests: a tile stays if in any row its maximum is within ln(lambda) of the
// largest maximum so far, skipped tiles included. -> kept [n_tile] of query block `block`
std::vector<bool> kept_tiles(SiteFixture& fixture, int32_t head, int32_t block, double lambda) {
  const int32_t n_q = fixture.shape().n_q, n_k = fixture.shape().n_k;
  std::vector<bool> kept(static_cast<size_t>((n_k + 63) / 64));
  for (int32_t row = block * 64; row < std::min(n_q, block * 64 + 64); ++row) {
    const std::vector<double> p = fixture.probabilities(row, head);
    double highest = 0;
    for (int32_t tile = 0; tile * 64 <= fixture.limit(row); ++tile) {
      const auto begin = p.begin() + tile * 64, end = p.begin() + std::min(n_k, tile * 64 + 64);
      const double here = *std::max_element(begin, end);
      highest = std::max(highest, here);
      if (tile == 0 || here > lambda * highest) kept[static_cast<size_t>(tile)] = true;
    }
  }
  return kept;
}

const SiteShape kShapes[] = {{.n_q = 300, .n_k = 300, .head_dim = 8, .contrast = 2},
                             {.n_q = 100, .n_k = 400, .head_dim = 8, .contrast = 3},
                             {.n_q = 64, .n_k = 700, .n_head = 4, .n_head_kv = 2, .head_dim = 8, .contrast = 2}};

// Calls work(row, head, kept tiles) for every row and head.
template <typename Work>
void for_rows(SiteFixture& fixture, double lambda, const Work& work) {
  for (int32_t head = 0; head < fixture.shape().n_head; ++head) {
    for (int32_t row = 0; row < fixture.shape().n_q; row += 64) {
      const std::vector<bool> kept = kept_tiles(fixture, head, row / 64, lambda);
      for (int32_t r = row; r < std::min(fixture.shape().n_q, row + 64); ++r) work(r, head, kept);
    }
  }
}

TEST(BlasstRule, DropsExactlyTheTilesThatTheFormulaDrops) {
  int64_t n_dropped = 0;
  for (const SiteShape& shape : kShapes) {
    SiteFixture fixture = spread_site(shape, 61);
    for (const double lambda : {1e-3, 0.02, 0.2}) {
      const Result result = attend(fixture, lambda);
      AttnCounts expected;
      for_rows(fixture, lambda, [&](int32_t row, int32_t head, const std::vector<bool>& kept) {
        const std::vector<double> p = fixture.probabilities(row, head);
        std::vector<double> o(static_cast<size_t>(shape.head_dim));
        double mass = 0;
        for (int32_t slot = 0; slot <= fixture.limit(row); ++slot) {
          ++expected.permitted;
          if (!kept[static_cast<size_t>(slot / 64)]) continue;
          ++expected.computed;
          mass += p[static_cast<size_t>(slot)];
          const float* value = fixture.value(fixture.kv_of(head), slot);
          for (size_t d = 0; d < o.size(); ++d) o[d] += p[static_cast<size_t>(slot)] * double{value[d]};
        }
        for (size_t d = 0; d < o.size(); ++d) {
          const auto i = static_cast<size_t>((row * shape.n_head + head) * shape.head_dim) + d;
          ASSERT_NEAR(result.o[i], o[d] / mass, 1e-5) << shape.text() << ' ' << lambda;
        }
      });
      EXPECT_EQ(result.counts.computed, expected.computed);
      EXPECT_EQ(result.counts.permitted, expected.permitted);
      n_dropped += expected.permitted - expected.computed;
    }
  }
  EXPECT_GT(n_dropped, 100'000);  // a threshold that drops nothing proves nothing
}

TEST(BlasstRule, OffOrTinyDropsNothing) {
  for (const SiteShape& shape : kShapes) {
    SiteFixture fixture(shape, 62);
    const std::vector<float> dense = attend_site(fixture.site(ref_ops()), nullptr, nullptr, nullptr);
    EXPECT_EQ(attend(fixture, 0).o, dense);
    EXPECT_EQ(attend(fixture, 1e-30).o, dense);
    EXPECT_EQ(attend(fixture, 1e-30).counts.density(), 1.0);
  }
}

TEST(BlasstRule, DropsMoreWithAHigherLambdaWithinTheErrorBound) {
  for (const SiteShape& shape : kShapes) {
    SiteFixture fixture = spread_site(shape, 63);
    float largest = 0;
    for (int32_t kv = 0; kv < shape.n_head_kv; ++kv) {
      for (int32_t slot = 0; slot < shape.n_k; ++slot) {
        float square = 0;
        for (int32_t d = 0; d < shape.head_dim; ++d) square += std::pow(fixture.value(kv, slot)[d], 2.0F);
        largest = std::max(largest, std::sqrt(square));
      }
    }
    const Result dense = attend(fixture, 0);
    int64_t before = dense.counts.computed;
    for (const double lambda : {1e-5, 1e-4, 1e-3, 0.02, 0.3, 0.99}) {
      const Result result = attend(fixture, lambda);
      EXPECT_LE(result.counts.computed, before) << lambda;
      before = result.counts.computed;
      for_rows(fixture, lambda, [&](int32_t row, int32_t head, const std::vector<bool>& kept) {
        const auto n_skipped = static_cast<double>(64 * std::count(kept.begin(), kept.end(), false));
        double error = 0, norm = 0;
        for (int32_t d = 0; d < shape.head_dim; ++d) {
          const auto i = static_cast<size_t>((row * shape.n_head + head) * shape.head_dim + d);
          error += std::pow(double{result.o[i]} - double{dense.o[i]}, 2);
          norm += double{result.o[i]} * double{result.o[i]};
        }
        ASSERT_LE(std::sqrt(error), 2 * n_skipped * lambda * double{largest} + 1e-6) << shape.text() << ' ' << lambda;
        ASSERT_GT(norm, 0) << "a row without any kept tile";
      });
    }
  }
}

class TempFile {
 public:
  explicit TempFile(const std::string& text) {
    static int count = 0;
    path_ = fmt::format("{}winnow_blasst_{}_{}.json", ::testing::TempDir(), ::getpid(), ++count);
    std::ofstream(path_) << text;
  }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  ~TempFile() { std::filesystem::remove(path_); }
  std::string spec(const std::string& more = "") const { return "blasst(calibration=" + path_ + more + ")"; }

 private:
  std::string path_;
};

constexpr MethodShape kShape = {.n_layer = 2, .n_head = 4, .n_head_kv = 2, .head_dim = 16};
constexpr std::string_view kQwen30b =
    R"({"method": "blasst", "model": {"n_layer": 2, "n_head": 4, "n_head_kv": 2, "head_dim": 16},
        "prefill": {"a": 7.92, "b": 8.62}, "decode": {"a": 0.120, "b": 9.86}})";

TEST(Blasst, FactorsAreWhatTheUserGives) {
  const Method method = make_method("blasst(prefill=587.18, decode=16.52)", kShape);
  EXPECT_EQ(method.skip.prefill, 587.18);
  EXPECT_EQ(method.skip.decode, 16.52);
  EXPECT_EQ(method.selector, nullptr);
  EXPECT_EQ(method.compressor, nullptr);
  EXPECT_EQ(make_method("blasst(prefill=0)", kShape).skip.prefill, 0);
}

TEST(Blasst, ACalibrationFileTurnsASparsityIntoFactors) {
  const TempFile file{std::string(kQwen30b)};
  // The published factors of the model whose fit this is.
  const std::tuple<double, double, double> published[] = {{.1, 18.76, .32},      {.3, 104.97, 2.30},
                                                          {.5, 587.18, 16.52},   {.7, 3293.04, 118.62},
                                                          {.8, 7799.91, 317.99}, {.9, 18471.56, 852.20}};
  for (const auto& [sparsity, prefill, decode] : published) {
    const Method method =
        make_method(file.spec(fmt::format(", prefill_sparsity={}, decode_sparsity={}", sparsity, sparsity)), kShape);
    EXPECT_NEAR(method.skip.prefill / prefill, 1, 0.02);
    EXPECT_NEAR(method.skip.decode / decode, 1, 0.02);
  }
  EXPECT_EQ(make_method(file.spec(", prefill_sparsity=0"), kShape).skip.prefill, 0);
}

TEST(Blasst, RefusesWhatDoesNotFitTogether) {
  const auto error_of = [](const std::string& spec) {
    try {
      make_method(spec, kShape);
      return std::string("no error");
    } catch (const Error& error) {
      return std::string(error.what());
    }
  };
  const TempFile file{std::string(kQwen30b)};
  EXPECT_EQ(error_of(file.spec()), "no error");
  EXPECT_THAT(error_of(file.spec(", prefill=3")), HasSubstr("cannot be given beside"));
  EXPECT_THAT(error_of("blasst(prefill_sparsity=0.4)"), HasSubstr("needs a calibration file"));
  std::string text(kQwen30b);
  const TempFile steep(text.replace(text.find("8.62"), 4, "80.0"));
  EXPECT_THAT(error_of(steep.spec()), HasSubstr("is no fit"));
}

// Queries that all look one way, and tiles of keys that lie that way to differing degrees: tiles fall below a falling
// threshold one by one, and all rows of a block agree on them.
SiteFixture tiered_site(const SiteShape& shape, uint32_t seed) {
  SiteFixture fixture(shape, seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> noise(0, 0.1F);
  std::uniform_real_distribution<float> height(0, 12);
  for (int32_t row = 0; row < shape.n_q; ++row) {
    for (int32_t i = 0; i < shape.n_head * shape.head_dim; ++i) fixture.query(row, 0)[i] = 1 + noise(random);
  }
  for (int32_t kv = 0; kv < shape.n_head_kv; ++kv) {
    for (int32_t tile = 0; tile * 64 < shape.n_k; ++tile) {
      const float f = height(random) / std::sqrt(static_cast<float>(shape.head_dim));
      for (int32_t slot = tile * 64; slot < std::min(shape.n_k, tile * 64 + 64); ++slot) {
        for (int32_t d = 0; d < shape.head_dim; ++d) fixture.key(kv, slot)[d] = f + noise(random);
      }
    }
  }
  fixture.store();
  return fixture;
}

TEST(BlasstCalibration, FitsTheMeasuredPointsAndReachesTheSparsityAskedFor) {
  constexpr MethodShape kSmall = {.n_layer = 1, .n_head = 2, .n_head_kv = 2, .head_dim = 4};
  const SiteShape shape = {.n_q = 1024, .n_k = 1024, .n_head = 2, .n_head_kv = 2, .head_dim = 4};
  std::vector<SiteFixture> prompts;
  for (const uint32_t seed : {64U, 65U, 66U}) prompts.push_back(tiered_site(shape, seed));
  const auto fitting = find_method("blasst").calibrate({}, kSmall);
  for (SiteFixture& prompt : prompts) {
    prompt.store();  // it moved
    fitting->observe(prompt.site(ref_ops()));
  }
  const std::string text = fitting->result();
  EXPECT_EQ(text.find("{\"method\":\"blasst\",\"model\":"), 0U);
  const nlohmann::json file = nlohmann::json::parse(text);
  for (const char* phase : {"prefill", "decode"}) {
    const nlohmann::json& fit = file[phase];
    EXPECT_GE(fit["points"].size(), 10U);
    EXPECT_GE(fit["least"].get<double>(), 0.1);
    EXPECT_LE(fit["most"].get<double>(), 0.9);
    // No other a and b in reach leave less of the points unexplained.
    const auto residual = [&](double log_a, double b) {
      double sum = 0;
      for (const auto& point : fit["points"]) {
        const double factor = point[1].get<double>() * point[0].get<double>();
        sum += std::pow(std::log(factor) - log_a - b * point[2].get<double>(), 2);
      }
      return sum;
    };
    EXPECT_LT(fit["b"].get<double>(), 20) << "the steepest fit there is";
    const double log_a = std::log(fit["a"].get<double>()), b = fit["b"].get<double>();
    for (const auto& [da, db] : {std::pair{.01, .0}, {-.01, .0}, {.0, .01}, {.0, -.01}, {.01, -.01}, {-.01, .01}}) {
      EXPECT_LE(residual(log_a, b), residual(log_a + da, b + db)) << phase;
    }
  }
  const TempFile saved(text);
  for (const double sparsity : {0.25, 0.5}) {
    const Method method = make_method(saved.spec(fmt::format(", prefill_sparsity={}", sparsity)), kSmall);
    AttnCounts counts;
    for (SiteFixture& prompt : prompts) {
      const AttnCounts one = attend(prompt, method.skip.prefill / 1024).counts;
      counts.permitted += one.permitted;
      counts.computed += one.computed;
    }
    EXPECT_NEAR(1 - counts.density(), sparsity, 0.12);
  }
}

TEST(BlasstCalibration, SaysWhereTheMeasurementsAreTooFew) {
  const auto fitting = find_method("blasst").calibrate({}, kShape);
  EXPECT_THROW(fitting->result(), Error);
}

}  // namespace
}  // namespace winnow
