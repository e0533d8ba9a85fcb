#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "eval/report.h"
#include "eval/stats.h"

namespace winnow::eval {
namespace {

/// Scores of a method at a length, one list for each task; empty where a task that dense answered is missing.
std::vector<std::vector<double>> strata(const ResultSet& results, const std::string& method, int64_t length) {
  std::vector<std::vector<double>> lists;
  for (const std::string& task : results.tasks()) {
    std::vector<double> scores = results.scores(method, task, length);
    if (!scores.empty()) {
      lists.push_back(std::move(scores));
    } else if (!results.scores(results.methods().front(), task, length).empty()) {
      return {};
    }
  }
  return lists;
}

Point score_point(double x, const Interval& mean, const std::string& label) {
  return {x, mean.mean * 100, mean.low * 100, mean.high * 100, label};
}

std::string over_length(const ResultSet& results) {
  std::vector<Series> series;
  for (const std::string& method : results.methods()) {
    Series one{method, {}};
    for (const int64_t length : results.lengths()) {
      const auto lists = strata(results, method, length);
      if (lists.empty() || length == 0) continue;
      const Interval mean = share_interval_of_means(lists);
      one.points.push_back(
          score_point(static_cast<double>(length), mean,
                      fmt::format("{:.1f} at {} tokens, {} samples", mean.mean * 100, length, mean.n)));
    }
    if (!one.points.empty()) series.push_back(std::move(one));
  }
  if (series.empty()) return {};
  return line_chart(
      {.title = "Score over length, mean of the tasks", .x = "tokens", .y = "score, percent", .log_x = true}, series);
}

std::string over_speed(const ResultSet& results, int64_t length) {
  std::vector<Series> series;
  std::vector<double> speed, score;
  for (const std::string& method : results.methods()) {
    const auto lists = strata(results, method, length);
    const double speed_up = results.speed_up(method, length);
    if (lists.empty() || std::isnan(speed_up)) continue;
    const Interval mean = share_interval_of_means(lists);
    speed.push_back(speed_up);
    score.push_back(mean.mean);
    series.push_back(
        {method, {score_point(speed_up, mean, fmt::format("{:.1f} at {:.2f}x", mean.mean * 100, speed_up))}});
  }
  if (series.size() < 2) return {};
  return scatter_chart({.title = fmt::format("Score over speed-up at {} tokens, and the Pareto front", length),
                        .x = "time to first token: dense over method",
                        .y = "score, percent"},
                       series, pareto_front(speed, score));
}

/// Needle tasks: where a sample's answer stands in one place.
std::string needle_map(const ResultSet& results, const std::string& method) {
  constexpr size_t kDepths = 11;  // 0, 10, ..., 100 %
  std::map<int64_t, std::vector<std::vector<double>>> found;
  for (const Json& line : results.lines()) {
    if (line["method"] != method || !line.contains("depth") || !line.contains("score")) continue;
    auto& depths = found[line["length"].get<int64_t>()];
    depths.resize(kDepths);
    const auto at = static_cast<size_t>(std::lround(std::clamp(line["depth"].get<double>(), 0.0, 1.0) * (kDepths - 1)));
    depths[at].push_back(line["score"].get<double>());
  }
  if (found.empty()) return {};
  HeatMap map{.title = method + ": needles found",
              .x = "length in tokens",
              .y = "depth",
              .columns = {},
              .rows = {},
              .values = {}};
  for (size_t depth = 0; depth < kDepths; ++depth) {
    map.rows.push_back(fmt::format("{} %", depth * 100 / (kDepths - 1)));
    map.values.emplace_back();
    for (const auto& [length, depths] : found) {
      map.values.back().push_back(depths[depth].empty() ? NAN : mean_interval(depths[depth]).mean);
    }
  }
  for (const auto& [length, depths] : found) map.columns.push_back(std::to_string(length));
  return heat_map(map);
}

/// A field's mean over length, for all methods that are no dense attention.
std::string share_chart(const ResultSet& results, const char* field, const std::string& title) {
  std::vector<Series> series;
  for (const std::string& method : results.methods()) {
    Series one{method, {}};
    for (const int64_t length : results.lengths()) {
      const std::vector<double> values =
          results.values(field, [&](const Json& line) { return line["method"] == method && line["length"] == length; });
      if (values.empty() || length == 0 || method == "dense") continue;
      const Interval mean = mean_interval(values);
      one.points.push_back(score_point(static_cast<double>(length), mean, fmt::format("{:.2f} %", mean.mean * 100)));
    }
    if (!one.points.empty()) series.push_back(std::move(one));
  }
  if (series.empty()) return {};
  return line_chart({.title = title, .x = "tokens", .y = "percent", .log_x = true, .y_low = 0.0}, series);
}

/// A list by parts of the text, averaged over samples, at one length.
std::string by_part(const ResultSet& results, const char* field, int64_t length, const Axes& axes) {
  std::vector<Series> series;
  for (const std::string& method : results.methods()) {
    std::vector<std::vector<double>> parts;
    for (const Json& line : results.lines()) {
      if (line["method"] != method || line["length"] != length || !line.contains(field)) continue;
      parts.resize(line[field].size());
      for (size_t i = 0; i < parts.size(); ++i) parts[i].push_back(line[field][i].get<double>());
    }
    Series one{method, {}};
    for (size_t i = 0; i < parts.size(); ++i) {
      const Interval mean = mean_interval(parts[i]);
      const double position = (static_cast<double>(i) + 0.5) / static_cast<double>(parts.size());
      one.points.push_back({position * static_cast<double>(length),
                            mean.mean,
                            {},
                            {},
                            fmt::format("{:.5g} at {:.0f} % of the text", mean.mean, position * 100)});
    }
    if (!one.points.empty()) series.push_back(std::move(one));
  }
  return series.empty() ? "" : line_chart(axes, series);
}

std::set<int64_t> lengths_with(const ResultSet& results, const char* field) {
  std::set<int64_t> lengths;
  for (const Json& line : results.lines()) {
    if (line.contains(field)) lengths.insert(line["length"].get<int64_t>());
  }
  return lengths;
}

}  // namespace

std::string report_plots(const ResultSet& results) {
  std::string html = over_length(results);
  for (const int64_t length : results.lengths()) html += over_speed(results, length);
  for (const std::string& method : results.methods()) html += needle_map(results, method);
  html += share_chart(results, "density", "Density: computed share of attention");
  html += share_chart(results, "select_share", "Selecting: share of the prefill");
  for (const int64_t length : lengths_with(results, "nll_by_part")) {
    html += by_part(
        results, "nll_by_part", length,
        {.title = fmt::format("Surprise by position, {} tokens", length), .x = "position", .y = "nats a token"});
  }
  for (const int64_t length : lengths_with(results, "kl_by_part")) {
    html += by_part(results, "kl_by_part", length,
                    {.title = fmt::format("KL to dense by position, {} tokens", length), .x = "position", .y = "nats"});
    html +=
        by_part(results, "agreement_by_part", length,
                {.title = fmt::format("Same first choice as dense, {} tokens", length), .x = "position", .y = "share"});
  }
  return html;
}

std::string report_traces(const std::vector<Json>& traces) {
  std::string html;
  for (const Json& trace : traces) {
    HeatMap map{.title = fmt::format("{}, {} tokens", trace.value("method", std::string()), trace.value("n_prompt", 0)),
                .x = "head",
                .y = "layer",
                .columns = {},
                .rows = {},
                .values = {},
                .numbers = false};
    for (const Json& layer : trace.at("density")) {
      map.rows.push_back(std::to_string(map.rows.size()));
      map.values.emplace_back();
      for (const Json& head : layer) map.values.back().push_back(head.is_number() ? head.get<double>() : NAN);
    }
    const size_t n_heads = map.values.empty() ? 0 : map.values.front().size();
    for (size_t head = 0; head < n_heads; ++head) map.columns.push_back(std::to_string(head));
    if (n_heads > 0) html += heat_map(map);
  }
  return html;
}

}  // namespace winnow::eval
