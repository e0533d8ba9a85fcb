#include "eval/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "eval/stats.h"

namespace winnow::eval {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(Stats, WilsonsInterval) {
  // By hand, z = 1.96: 8 of 10 gives 0.490 to 0.943; 10 of 10 ends at 1 and begins at 1 / (1 + z^2 / 10).
  const Interval most = share_interval({1, 1, 1, 1, 1, 1, 1, 1, 0, 0});
  EXPECT_DOUBLE_EQ(most.mean, 0.8);
  EXPECT_NEAR(most.low, 0.490, 0.001);
  EXPECT_NEAR(most.high, 0.943, 0.001);
  const Interval all = share_interval(std::vector<double>(10, 1.0));
  EXPECT_NEAR(all.low, 10 / (10 + 3.8415), 1e-4);
  EXPECT_NEAR(all.high, 1, 1e-9);
  EXPECT_EQ(share_interval({}).n, 0);
}

TEST(Stats, MeansOfValuesAndOfMeans) {
  const Interval values = mean_interval({1, 2, 3, 4});
  EXPECT_DOUBLE_EQ(values.mean, 2.5);
  EXPECT_NEAR(values.high - values.mean, 1.96 * std::sqrt(5.0 / 3 / 4), 1e-3);
  EXPECT_EQ(mean_interval({7}).low, 7);
  const Interval both = share_interval_of_means({{1, 1, 1}, {0}});  // tasks count alike, however many samples they have
  EXPECT_DOUBLE_EQ(both.mean, 0.5);
  EXPECT_EQ(both.n, 4);
  EXPECT_LT(both.low, 0.5);
  EXPECT_GT(both.high, 0.5);
}

TEST(Stats, ParetoFront) {
  EXPECT_EQ(pareto_front({1, 2, 3, 2.5}, {0.9, 0.8, 0.5, 0.4}), (std::vector<size_t>{0, 1, 2}));
  EXPECT_EQ(pareto_front({2, 1}, {1, 1}), (std::vector<size_t>{0}));
  EXPECT_EQ(pareto_front({1, 1}, {1, 1}), (std::vector<size_t>{0, 1}));
}

TEST(Plot, EscapesWhatItShows) {
  const Axes axes{.title = "a < b", .x = "x", .y = "y"};
  const std::string svg = line_chart(axes, {{"<script>", {{1, 2}, {3, 4}}}});
  EXPECT_THAT(svg, HasSubstr("a &lt; b"));
  EXPECT_THAT(svg, Not(HasSubstr("<script")));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(line_chart(axes, {{"one", {{5, 5}}}}), Not(HasSubstr("nan")));  // a range of nothing
  EXPECT_THAT(line_chart({.title = "", .x = "", .y = "", .log_x = true}, {{"one", {{4096, 5}}}}), HasSubstr(">4K<"));
  EXPECT_THAT(scatter_chart(axes, {{"one", {{1, 2}}}, {"two", {{2, 1}}}}, {0, 1}), HasSubstr("class=\"front\""));
}

TEST(Plot, HeatMapTellsWhatIsMissing) {
  const std::string svg = heat_map(
      {.title = "t", .x = "x", .y = "y", .columns = {"4096"}, .rows = {"0 %", "10 %"}, .values = {{1.0}, {NAN}}});
  EXPECT_THAT(svg, HasSubstr("y 0 %, x 4096: 100.0 %"));
  EXPECT_THAT(svg, HasSubstr("y 10 %, x 4096: nothing measured"));
}

Json answer(const std::string& method, int64_t length, int64_t index, double score, double ttft) {
  return {{"task", "niah_single_1"},
          {"length", length},
          {"index", index},
          {"method", method},
          {"n_prompt", length},
          {"depth", 0.5},
          {"answer", "x"},
          {"score", score},
          {"ttft_s", ttft},
          {"density", method == "dense" ? 1.0 : 0.25},
          {"recall", nullptr},
          {"select_share", 0.02},
          {"kv_bytes", 1000000},
          {"peak_bytes", 2000000},
          {"estimated_mass", method == "dense" ? Json() : Json(0.375)}};
}

TEST(Report, SpeedUpIsPaired) {
  const ResultSet results({answer("fast", 4096, 0, 1, 1), answer("dense", 4096, 0, 1, 2),
                           answer("dense", 4096, 1, 1, 8), answer("fast", 4096, 1, 0, 1),
                           answer("fast", 4096, 2, 0, 1)});
  EXPECT_EQ(results.methods(), (std::vector<std::string>{"dense", "fast"}));
  EXPECT_DOUBLE_EQ(results.speed_up("fast", 4096), 4);  // sqrt(2 * 8); the prompt without a dense time does not count
  EXPECT_DOUBLE_EQ(results.speed_up("dense", 4096), 1);
  EXPECT_TRUE(std::isnan(results.speed_up("fast", 8192)));
  EXPECT_EQ(results.scores("fast", "niah_single_1", 4096), (std::vector<double>{1, 0, 0}));
  EXPECT_TRUE(results.values("recall", [](const Json&) { return true; }).empty());
}

TEST(Report, ThePageHasTablesAndPlotsAndNoLinks) {
  std::vector<Json> lines;
  for (const int64_t length : {4096, 8192}) {
    for (int64_t i = 0; i < 4; ++i) {
      lines.push_back(answer("dense", length, i, 1, 4));
      lines.push_back(answer("a<b", length, i, i == 0 ? 0 : 1, 1));
    }
  }
  lines.push_back({{"task", "divergence"},
                   {"length", 4096},
                   {"index", 0},
                   {"method", "a<b"},
                   {"density", 0.5},
                   {"kl", 0.125},
                   {"agreement", 0.75},
                   {"kl_by_part", {0.1, 0.15}},
                   {"agreement_by_part", {0.5, 1.0}}});
  lines.push_back({{"task", "perplexity"},
                   {"length", 4096},
                   {"index", 0},
                   {"method", "dense"},
                   {"density", 1.0},
                   {"nll", 2.0},
                   {"nll_by_part", {3.0, 1.0}}});
  const std::vector<Json> traces = {{{"method", "a<b"}, {"n_prompt", 4096}, {"density", {{0.5, 1.0}, {nullptr, 0.1}}}}};
  const std::string page = report_page({{"model", "Tiny"}, {"seed", 42}}, ResultSet(lines), traces);
  for (const char* part :
       {"Tiny under 2 attention methods", "seed 42", "100.0 <small>51", "75.0 <small>30", "4.00x", "25.0 %", "37.5 %",
        "Score over length", "Score over speed-up at 8192 tokens", "a&lt;b: needles found", "Density: computed share",
        "KL to dense by position", "Surprise by position", "0.12500", "7.3891", "layer 1, head 1: 10.0 %", "</html>"}) {
    EXPECT_THAT(page, HasSubstr(part));
  }
  for (const char* part : {"a<b", "http", "<script", "nan"}) EXPECT_THAT(page, Not(HasSubstr(part)));
  EXPECT_THAT(report_page(Json::object(), ResultSet({}), {}), HasSubstr("</html>"));
}

}  // namespace
}  // namespace winnow::eval
