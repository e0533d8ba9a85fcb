#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "selected.h"

namespace winnow {
namespace {

using test::computed;
using test::make_method;
using test::ref_ops;
using test::select;
using test::SiteFixture;
using test::SiteShape;
using ::testing::HasSubstr;

// The specification's algorithm in plain loops.

struct QueryBlock {
  std::vector<int> blocks, columns;
  bool operator==(const QueryBlock&) const = default;
};

// The index merge, step for step as it is written down, for query block [a, a + block).
QueryBlock merge_index(const std::set<int>& verticals, const std::set<int>& slashes, int a, int block) {
  QueryBlock out;
  const int b = a + block;
  std::vector<int> v(verticals.begin(), verticals.end()), s;
  for (auto it = slashes.rbegin(); it != slashes.rend(); ++it) {
    if (*it < b) s.push_back(*it);
  }
  size_t iv = 0, is = 1;
  int end = std::max(b - s[0], block), start = end - block;
  const auto flush = [&] {
    for (int slot = start; slot < end; slot += block) out.blocks.push_back(slot);
  };
  while (true) {
    for (; iv < v.size() && v[iv] < end; ++iv) {
      if (v[iv] < start) out.columns.push_back(v[iv]);
    }
    if (is == s.size()) break;
    const int e = std::max(b - s[is++], block);
    if (e > end + block) {
      flush();
      start = e - block;
      end = e;
    } else if (e > end) {
      end += block;
    }
  }
  flush();
  return out;
}

struct Estimate {
  std::vector<double> vertical, slash;
};

// probe [n_probe][n_keys]; probe row t stands at n_keys - n_probe + t.
Estimate estimate(const std::vector<std::vector<double>>& probe) {
  const size_t n = probe[0].size();
  Estimate e{std::vector<double>(n), std::vector<double>(n)};
  for (size_t t = 0; t < probe.size(); ++t) {
    const size_t position = n - probe.size() + t;
    for (size_t j = 0; j < n; ++j) e.vertical[j] += probe[t][j];
    for (size_t j = 0; j <= position; ++j) e.slash[position - j] += probe[t][j];
  }
  return e;
}

std::set<int> best(std::vector<double> scores, int k, int n_forced) {
  std::fill_n(scores.begin(), std::min<std::ptrdiff_t>(n_forced, std::ssize(scores)), INFINITY);
  std::vector<int> index(scores.size());
  for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int>(i);
  std::stable_sort(index.begin(), index.end(),
                   [&](int a, int b) { return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)]; });
  return {index.begin(), index.begin() + std::min<std::ptrdiff_t>(k, std::ssize(index))};
}

QueryBlock query_block(const Selection& selection, int32_t head, int32_t block) {
  QueryBlock out;
  const auto list = static_cast<size_t>(selection.list(head, block));
  for (int32_t i = selection.block_ptr[list]; i < selection.block_ptr[list + 1]; ++i) {
    out.blocks.push_back(selection.block_begin[static_cast<size_t>(i)]);
  }
  for (int32_t i = selection.column_ptr[list]; i < selection.column_ptr[list + 1]; ++i) {
    out.columns.push_back(selection.column[static_cast<size_t>(i)]);
  }
  return out;
}

std::string sizes(int v, int s) {
  return fmt::format("minference(v_size={}, s_size={})", v, s);
}

// A file in the test's temporary folder, gone at the end.
class TempFile {
 public:
  explicit TempFile(const std::string& text) {
    static int count = 0;
    path_ = fmt::format("{}winnow_minference_{}_{}.json", ::testing::TempDir(), ::getpid(), ++count);
    std::ofstream(path_) << text;
  }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  ~TempFile() { std::filesystem::remove(path_); }
  std::string spec() const { return "minference(calibration=" + path_ + ")"; }

 private:
  std::string path_;
};

std::string calibration(const SiteFixture& fixture, int n_tokens, const std::string& heads) {
  const SiteShape& shape = fixture.shape();
  return fmt::format(
      R"({{"method": "minference", "model": {{"n_layer": 1, "n_head": {}, "n_head_kv": {}, "head_dim": {}}}, )"
      R"("n_tokens": {}, "layers": [[{}]]}})",
      shape.n_head, shape.n_head_kv, shape.head_dim, n_tokens, heads);
}

TEST(MInferenceIndex, WorkedExamples) {
  const std::set<int> v1 = {0, 3, 9}, s1 = {9, 0};
  EXPECT_EQ(merge_index(v1, s1, 0, 4), (QueryBlock{{0}, {}}));
  EXPECT_EQ(merge_index(v1, s1, 4, 4), (QueryBlock{{4}, {0, 3}}));
  EXPECT_EQ(merge_index(v1, s1, 8, 4), (QueryBlock{{0, 8}, {}}));
  EXPECT_EQ(merge_index(v1, s1, 12, 4), (QueryBlock{{3, 12}, {0, 9}}));
  const std::set<int> v2 = {0, 1, 6}, s2 = {7, 5, 1, 0};
  EXPECT_EQ(merge_index(v2, s2, 0, 4), (QueryBlock{{0}, {}}));
  EXPECT_EQ(merge_index(v2, s2, 4, 4), (QueryBlock{{0, 4}, {}}));
  EXPECT_EQ(merge_index(v2, s2, 8, 4), (QueryBlock{{1, 5, 9}, {0}}));
  EXPECT_EQ(merge_index(v2, s2, 12, 4), (QueryBlock{{5, 9, 13}, {0, 1}}));
}

TEST(MInferenceIndex, WorkedEstimation) {
  const Estimate e = estimate({{.30, 0, 0, .20, 0, 0, .10, 0, .10, .30, 0, 0},
                               {.25, 0, 0, .25, .05, 0, .05, .10, 0, .10, .20, 0},
                               {.20, .05, 0, .25, 0, .05, 0, .05, .10, 0, .10, .20}});
  const std::vector<double> vertical = {.75, .05, 0, .70, .05, .05, .15, .15, .20, .40, .30, .20};
  const std::vector<double> slash = {.70, .30, 0, .30, .10, 0, .30, .25, .25, .30, .30, .20};
  for (size_t i = 0; i < 12; ++i) {
    EXPECT_NEAR(e.vertical[i], vertical[i], 1e-9);
    EXPECT_NEAR(e.slash[i], slash[i], 1e-9);
  }
  const std::set<int> columns = best(vertical, 2, 1), distances = best(slash, 3, 1);
  EXPECT_EQ(columns, (std::set<int>{0, 3}));
  EXPECT_EQ(distances, (std::set<int>{0, 1, 3}));
  EXPECT_EQ(merge_index(columns, distances, 0, 4), (QueryBlock{{0}, {}}));
  EXPECT_EQ(merge_index(columns, distances, 4, 4), (QueryBlock{{1, 5}, {0}}));
  EXPECT_EQ(merge_index(columns, distances, 8, 4), (QueryBlock{{5, 9}, {0, 3}}));
}

TEST(MInference, VerticalSlashSelectsWhatThePlainFormulasSelect) {
  const SiteShape shapes[] = {{.n_q = 640, .n_k = 640, .n_head = 4, .n_head_kv = 2},
                              {.n_q = 700, .n_k = 700, .contrast = 4},
                              {.n_q = 200, .n_k = 777},  // after a prefix
                              {.n_q = 33, .n_k = 500}};  // fewer rows than the probe
  for (const SiteShape& shape : shapes) {
    SiteFixture fixture(shape, 41);
    for (const auto& [v, s] : {std::pair{16, 64}, {100, 100}, {60, 300}, {300, 120}}) {
      const Selection selection = select(sizes(v, s), fixture);
      for (int32_t head = 0; head < shape.n_head; ++head) {
        std::vector<std::vector<double>> probe;
        const int32_t n_probe = std::min(64, shape.n_q);
        for (int32_t t = shape.n_q - n_probe; t < shape.n_q; ++t) probe.push_back(fixture.probabilities(t, head));
        const Estimate e = estimate(probe);
        const std::set<int> columns = best(e.vertical, std::max(v, 30), 30),
                            slashes = best(e.slash, std::max(s, 50), 100);
        for (int32_t b = 0; b < selection.n_block_q; ++b) {
          const int32_t a = shape.n_k - shape.n_q + b * 64;
          QueryBlock expected = merge_index(columns, slashes, a, 64);
          while (expected.blocks.back() >= shape.n_k) expected.blocks.pop_back();  // wholly past the last slot
          ASSERT_EQ(query_block(selection, head, b), expected) << shape.text() << ' ' << v << ' ' << s << ' ' << b;
        }
        for (int32_t row = 0; row < shape.n_q; row += 7) {
          const std::vector<bool> mask = computed(selection, fixture, row, head);
          const int32_t own = fixture.limit(row);
          for (int32_t j = 0; j <= own; ++j) {
            const bool wanted = columns.contains(j) || slashes.contains(own - j);
            ASSERT_TRUE(mask[static_cast<size_t>(j)] || !wanted) << row << ' ' << j;
          }
        }
      }
    }
  }
}

TEST(MInference, AlwaysSeesTheFirst30TheLast100AndItself) {
  SiteFixture fixture({.n_q = 900, .n_k = 900, .n_head = 4, .n_head_kv = 2}, 42);
  const Selection selection = select(sizes(1, 100), fixture);
  for (int32_t row = 0; row < 900; ++row) {
    const std::vector<bool> mask = computed(selection, fixture, row, 3);
    for (int32_t j = 0; j <= row; ++j) ASSERT_TRUE(mask[static_cast<size_t>(j)] || (j >= 30 && row - j >= 100));
  }
}

TEST(MInference, AllColumnsOrAllDistancesAreDense) {
  SiteFixture fixture({.n_q = 700, .n_k = 700}, 43);
  EXPECT_TRUE(select(sizes(1, 700), fixture).everything());
  EXPECT_TRUE(select(sizes(700, 1), fixture).everything());
  EXPECT_FALSE(select(sizes(699, 64), fixture).everything());
  SiteFixture decode({.n_q = 1, .n_k = 700}, 43);
  EXPECT_TRUE(select(sizes(30, 50), decode).everything());
}

TEST(MInference, WithoutSizesTheyFollowTheLength) {
  SiteFixture fixture({.n_q = 900, .n_k = 900}, 44);
  const Selection by_length = select("minference", fixture), given = select(sizes(128, 256), fixture);
  EXPECT_EQ(by_length.block_begin, given.block_begin);
  EXPECT_EQ(by_length.column, given.column);
  const Selection halves = select("minference(v_size=256, s_size=512, ratio=0.5)", fixture);
  EXPECT_EQ(halves.block_begin, given.block_begin);
}

TEST(MInference, AShapeHeadsComputeFirstTokensAndWindow) {
  SiteFixture fixture({.n_q = 400, .n_k = 500, .n_head = 2, .n_head_kv = 2}, 45);
  const TempFile file(calibration(fixture, 500, R"(["a_shape", 70, 90], ["a_shape", 4, 200])"));
  const Selection selection = select(file.spec(), fixture);
  for (int32_t row = 0; row < 400; ++row) {
    for (const auto& [head, first, window] : {std::tuple{0, 70, 90}, {1, 4, 200}}) {
      const std::vector<bool> mask = computed(selection, fixture, row, head);
      const int32_t own = fixture.limit(row), own_first = fixture.limit(row / 64 * 64);
      const int32_t cover = std::max(0, own_first - window + 1) / 64 * 64;
      for (int32_t j = 0; j <= own; ++j) {
        ASSERT_EQ(mask[static_cast<size_t>(j)], j < first || j >= cover) << row << ' ' << head << ' ' << j;
        ASSERT_TRUE(mask[static_cast<size_t>(j)] || (j >= first && own - j >= window));
      }
    }
  }
}

TEST(MInference, BlockSparseHeadsTakeTheBestBlocksOfMeanQueriesAndKeys) {
  SiteFixture fixture({.n_q = 500, .n_k = 500, .n_head = 2, .n_head_kv = 1, .head_dim = 8}, 46);
  const TempFile file(calibration(fixture, 500, R"(["block_sparse", 3, 0], ["block_sparse", 8, 0])"));
  const Selection selection = select(file.spec(), fixture);
  const auto mean = [&](auto at, int32_t begin) {
    std::vector<double> sum(8);
    const int32_t end = std::min(begin + 64, 500);
    for (int32_t i = begin; i < end; ++i) {
      for (size_t d = 0; d < 8; ++d) sum[d] += at(i)[d] / static_cast<double>(end - begin);
    }
    return sum;
  };
  for (int32_t b = 0; b < 8; ++b) {
    const std::vector<double> q = mean([&](int32_t row) { return fixture.query(row, 0); }, b * 64);
    std::vector<double> scores;
    for (int32_t c = 0; c <= b; ++c) {
      const std::vector<double> k = mean([&](int32_t slot) { return fixture.key(0, slot); }, c * 64);
      scores.push_back(0);
      for (size_t d = 0; d < 8; ++d) scores.back() += q[d] * k[d];
    }
    scores.back() = INFINITY;
    std::vector<int> expected;
    for (const int c : best(scores, 3, 1)) expected.push_back(c * 64);
    EXPECT_EQ(query_block(selection, 0, b), (QueryBlock{expected, {}})) << b;
    EXPECT_EQ(query_block(selection, 1, b).blocks.size(), static_cast<size_t>(b) + 1);
  }
}

TEST(MInference, CalibratedSizesShrinkWithThePrompt) {
  SiteFixture fixture({.n_q = 600, .n_k = 600, .n_head = 1, .n_head_kv = 1}, 47);
  const TempFile file(calibration(fixture, 1200, R"(["vertical_slash", 200, 400])"));
  const Selection half = select(file.spec(), fixture), given = select(sizes(100, 200), fixture);
  EXPECT_EQ(half.block_begin, given.block_begin);
  EXPECT_EQ(half.column, given.column);
}

TEST(MInference, RefusesCalibrationsThatDoNotFit) {
  SiteFixture fixture({.n_head = 2}, 48);
  const auto error_of = [&](const std::string& text, const std::string& more = "") {
    const TempFile file(text);
    std::string spec = file.spec();
    spec.insert(spec.size() - 1, more);
    try {
      make_method(spec, fixture.method_shape());
      return std::string("no error");
    } catch (const Error& error) {
      return std::string(error.what());
    }
  };
  const std::string good = calibration(fixture, 100, R"(["a_shape", 1, 2], ["block_sparse", 3, 0])");
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    return text.replace(text.find(from), from.size(), to);
  };
  EXPECT_EQ(error_of(good), "no error");
  EXPECT_THAT(error_of(good, ", v_size=3"), HasSubstr("cannot be given beside"));
  EXPECT_THAT(error_of("{"), HasSubstr("damaged"));
  EXPECT_THAT(error_of("[]"), HasSubstr("damaged"));
  EXPECT_THAT(error_of(with("\"minference\"", "\"blasst\"")), HasSubstr("belongs to blasst"));
  EXPECT_THAT(error_of(with("\"head_dim\": 16", "\"head_dim\": 32")), HasSubstr("size 32; this one has"));
  EXPECT_THAT(error_of(with("a_shape", "b_shape")), HasSubstr("b_shape"));
  EXPECT_THAT(error_of(with(", [\"block_sparse\", 3, 0]", "")), HasSubstr("1 heads"));
  EXPECT_THAT(error_of(with("1, 2", "1, -2")), HasSubstr("negative"));
  EXPECT_THAT(error_of(with("100", "0")), HasSubstr("n_tokens"));
  EXPECT_THROW(make_method("minference(calibration=/nonexistent/file)", fixture.method_shape()), Error);
}

TEST(MInferenceSearch, ChoosesThePatternOfLeastErrorAndTellsItTruly) {
  SiteFixture fixture({.n_q = 1024, .n_k = 1024, .n_head = 4, .n_head_kv = 2, .contrast = 3}, 49);
  const Site site = fixture.site(ref_ops());
  const MethodInfo& info = find_method("minference");
  const auto search = info.calibrate({}, fixture.method_shape());
  search->observe(site);
  const std::string text = search->result();
  const nlohmann::json file = nlohmann::json::parse(text);
  EXPECT_EQ(text.find("{\"method\":\"minference\",\"model\":"), 0U);
  EXPECT_EQ(file["n_tokens"], 1024);

  const TempFile saved(text);
  const Selection selection = select(saved.spec(), fixture);
  const std::vector<float> dense = test::attend(site, {}), sparse = test::attend(site, selection);
  for (size_t head = 0; head < 4; ++head) {
    // The sampled rows are the last of each eighth of the prompt.
    double error = 0, power = 0;
    for (size_t row = 0; row < 1024; ++row) {
      if (row % 128 < 64) continue;
      for (size_t d = 0; d < 16; ++d) {
        const size_t i = (row * 4 + head) * 16 + d;
        error += std::pow(double{sparse[i]} - double{dense[i]}, 2);
        power += std::pow(double{dense[i]}, 2);
      }
    }
    EXPECT_NEAR(file["layers"][0][head][3].get<double>(), error / power, 1e-4 + 0.01 * error / power) << head;
  }
  // Two of the heads look along a diagonal that no window holds.
  int n_vertical_slash = 0;
  for (const auto& head : file["layers"][0]) n_vertical_slash += head[0] == "vertical_slash" ? 1 : 0;
  EXPECT_GE(n_vertical_slash, 2) << text;
}

TEST(MInferenceSearch, GivesEveryCandidateTheCostOfTheAShape) {
  SiteFixture fixture({.n_q = 2048, .n_k = 2048, .n_head = 2, .n_head_kv = 1, .head_dim = 8, .contrast = 3}, 50);
  const Site site = fixture.site(ref_ops());
  const auto search = find_method("minference").calibrate({}, fixture.method_shape());
  search->observe(site);
  const TempFile saved(search->result());
  const auto cost = [&](const Selection& selection) {
    double slots = 0;
    for (int32_t head = 0; head < 2; ++head) {
      for (int32_t b = 3; b < 32; b += 4) {
        const QueryBlock block = query_block(selection, head, b);
        slots += static_cast<double>(block.blocks.size() * 64 + block.columns.size());
      }
    }
    return slots;
  };
  const double ratio = 2048.0 / 30'000;
  const std::string a_shape = fmt::format(R"(["a_shape", {:.0f}, {:.0f}])", 1024 * ratio, 4096 * ratio);
  const double found = cost(select(saved.spec(), fixture));
  const TempFile wanted(calibration(fixture, 2048, a_shape + ", " + a_shape));
  EXPECT_NEAR(found / cost(select(wanted.spec(), fixture)), 1, 0.15);
}

TEST(MInferenceSearch, WithoutAnObservationItSaysSo) {
  EXPECT_THROW(find_method("minference").calibrate({}, {1, 2, 1, 16})->result(), Error);
}

}  // namespace
}  // namespace winnow
