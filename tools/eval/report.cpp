#include "eval/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "eval/stats.h"
#include "eval/task.h"

namespace winnow::eval {
namespace {

constexpr std::string_view kStyle = R"(
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1180px;padding:0 1rem;color:#1a1a1a;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #ccc}
table{border-collapse:collapse;margin:.8rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;border-bottom:1px solid #e3e3e3;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}caption{text-align:left;font-weight:600;padding:.3rem 0}
small{color:#666}.scroll{overflow-x:auto}.plots{display:flex;flex-wrap:wrap;gap:1.2rem}
svg{max-width:100%;height:auto;background:#fff}svg text{font:12px system-ui,sans-serif}svg .title{font-weight:600}
svg .grid{stroke:#e3e3e3;fill:none}svg .front{stroke:#888;stroke-dasharray:4 3;fill:none;stroke-width:1.5}
)";

void add_new(std::vector<std::string>& names, const std::string& name) {
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

std::string length_name(int64_t length) {
  return length == 0 ? "as long as they are" : fmt::format("{} tokens", length);
}

std::string row_of(const std::vector<std::string>& cells, const char* tag = "td") {
  std::string html = "<tr>";
  for (const std::string& cell : cells) html += fmt::format("<{0}>{1}</{0}>", tag, cell);
  return html + "</tr>\n";
}

std::string table_of(const std::string& caption, const std::vector<std::vector<std::string>>& rows) {
  std::string html = "<div class=\"scroll\"><table><caption>" + escaped(caption) + "</caption>\n";
  for (size_t i = 0; i < rows.size(); ++i) html += row_of(rows[i], i == 0 ? "th" : "td");
  return html + "</table></div>\n";
}

std::string percent(const Interval& share) {
  if (share.n == 0) return "-";
  return fmt::format("{:.1f} <small>{:.0f}&ndash;{:.0f}</small>", share.mean * 100, share.low * 100, share.high * 100);
}

std::string or_dash(const std::vector<double>& values, const std::function<std::string(double)>& shown) {
  return values.empty() ? "-" : shown(mean_interval(values).mean);
}

std::string scores_table(const ResultSet& results, int64_t length) {
  std::vector<std::vector<std::string>> rows = {{"method"}};
  std::vector<std::string> tasks;
  for (const std::string& task : results.tasks()) {
    const auto any = [&](const std::string& method) { return !results.scores(method, task, length).empty(); };
    if (std::any_of(results.methods().begin(), results.methods().end(), any)) tasks.push_back(task);
  }
  for (const std::string& task : tasks) rows[0].push_back(escaped(task));
  rows[0].insert(rows[0].end(), {"mean", "samples"});
  for (const std::string& method : results.methods()) {
    std::vector<std::string> row = {escaped(method)};
    std::vector<std::vector<double>> strata;
    for (const std::string& task : tasks) {
      strata.push_back(results.scores(method, task, length));
      row.push_back(percent(share_interval(strata.back())));
    }
    // A mean over other tasks than the neighbours' would not compare.
    const bool whole = std::none_of(strata.begin(), strata.end(), [](const auto& scores) { return scores.empty(); });
    const Interval mean = share_interval_of_means(strata);
    row.push_back(whole ? percent(mean) : "-");
    row.push_back(std::to_string(mean.n));
    rows.push_back(std::move(row));
  }
  return table_of("Score in percent with its 95 % interval, " + length_name(length), rows);
}

std::string costs_table(const ResultSet& results, int64_t length) {
  std::vector<std::vector<std::string>> rows = {{"method", "first token", "speed-up over dense", "density", "recall",
                                                 "estimated mass", "selecting", "KV cache", "peak memory",
                                                 "no answer"}};
  const auto share = [](double value) { return fmt::format("{:.1f} %", value * 100); };
  const auto megabytes = [](double value) { return fmt::format("{:.1f} MB", value / 1e6); };
  for (const std::string& method : results.methods()) {
    const ResultSet::Filter here = [&](const Json& line) {
      return line["method"] == method && line["length"] == length && line.contains("score");
    };
    const auto of = [&](const char* field) { return results.values(field, here); };
    if (of("score").empty()) continue;
    const double speed_up = results.speed_up(method, length);
    const auto silent = std::count_if(results.lines().begin(), results.lines().end(), [&](const Json& line) {
      return here(line) && line.value("answer", std::string()).find_first_not_of(" \t\r\n") == std::string::npos;
    });
    rows.push_back({escaped(method), or_dash(of("ttft_s"), [](double s) { return fmt::format("{:.3g} s", s); }),
                    std::isnan(speed_up) ? "-" : fmt::format("{:.2f}x", speed_up), or_dash(of("density"), share),
                    or_dash(of("recall"), share), or_dash(of("estimated_mass"), share),
                    or_dash(of("select_share"), share), or_dash(of("kv_bytes"), megabytes),
                    or_dash(of("peak_bytes"), megabytes), std::to_string(silent)});
  }
  return table_of("What it costs, " + length_name(length) + ", means over the samples", rows);
}

/// Perplexity and divergence: one row for each method, task and length.
std::string logits_table(const ResultSet& results) {
  std::vector<std::vector<std::string>> rows = {{"method", "task", "length", "samples", "perplexity",
                                                 "KL to dense, nats", "same first choice as dense", "density"}};
  std::set<std::pair<std::string, int64_t>> cells;
  for (const Json& line : results.lines()) {
    if (!line.contains("score")) cells.emplace(line["task"], line["length"]);
  }
  for (const auto& cell : cells) {
    for (const std::string& method : results.methods()) {
      const auto of = [&](const char* field) {
        return results.values(field, [&](const Json& line) {
          return line["method"] == method && line["task"] == cell.first && line["length"] == cell.second;
        });
      };
      rows.push_back({escaped(method), escaped(cell.first), std::to_string(cell.second),
                      std::to_string(of("density").size()),
                      or_dash(of("nll"), [](double nll) { return fmt::format("{:.4f}", std::exp(nll)); }),
                      or_dash(of("kl"), [](double kl) { return fmt::format("{:.5f}", kl); }),
                      or_dash(of("agreement"), [](double share) { return fmt::format("{:.1f} %", share * 100); }),
                      or_dash(of("density"), [](double share) { return fmt::format("{:.1f} %", share * 100); })});
    }
  }
  return cells.empty() ? "" : "<h2>What the model foresees</h2>\n" + table_of("Means over the samples", rows);
}

std::string tasks_list(const ResultSet& results) {
  std::string html = "<ul>\n";
  for (const std::string& name : results.tasks()) {
    const auto all = task_roster();
    const auto found = std::find_if(all.begin(), all.end(), [&](const TaskInfo* task) { return task->name == name; });
    html += fmt::format(
        "<li><b>{}</b>: {}</li>\n", escaped(name),
        found == all.end() ? "the user's own" : escaped(fmt::format("{} ({})", (*found)->title, (*found)->source)));
  }
  return html + "</ul>\n";
}

}  // namespace

ResultSet::ResultSet(std::vector<Json> lines) : lines_(std::move(lines)) {
  for (const Json& line : lines_) {
    if (line["method"] == "dense") add_new(methods_, "dense");
  }
  for (const Json& line : lines_) {
    add_new(methods_, line["method"]);
    if (!line.contains("score")) continue;
    add_new(tasks_, line["task"]);
    lengths_.insert(line["length"].get<int64_t>());
  }
}

std::vector<double> ResultSet::values(const char* field, const Filter& filter) const {
  std::vector<double> found;
  for (const Json& line : lines_) {
    const auto value = line.find(field);
    if (value != line.end() && value->is_number() && filter(line)) found.push_back(value->get<double>());
  }
  return found;
}

std::vector<double> ResultSet::scores(const std::string& method, const std::string& task, int64_t length) const {
  return values("score", [&](const Json& line) {
    return line["method"] == method && line["task"] == task && line["length"] == length;
  });
}

double ResultSet::speed_up(const std::string& method, int64_t length) const {
  std::map<std::pair<std::string, int64_t>, double> dense;
  for (const Json& line : lines_) {
    if (line["method"] == "dense" && line["length"] == length && line.contains("ttft_s")) {
      dense[{line["task"], line["index"]}] = line["ttft_s"].get<double>();
    }
  }
  double sum = 0;
  int64_t n = 0;
  for (const Json& line : lines_) {
    if (line["method"] != method || line["length"] != length || !line.contains("ttft_s")) continue;
    const auto before = dense.find({line["task"], line["index"]});
    if (before == dense.end()) continue;
    sum += std::log(before->second / line["ttft_s"].get<double>());
    ++n;
  }
  return n == 0 ? NAN : std::exp(sum / static_cast<double>(n));
}

std::string report_page(const Json& run, const ResultSet& results, const std::vector<Json>& traces) {
  std::string facts;
  for (const auto& [name, value] : run.items()) {
    facts += fmt::format("{}{} {}", facts.empty() ? "" : " &middot; ", escaped(name),
                         escaped(value.is_string() ? value.get<std::string>() : value.dump()));
  }
  std::string html = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width\"><title>winnow report</title><style>{}</style></head><body>\n<h1>winnow: {} under "
      "{} attention methods</h1>\n<p>{}</p>\n",
      kStyle, escaped(run.value("model", std::string("a model"))), results.methods().size(), facts);
  if (!results.tasks().empty()) {
    html += "<h2>Scores</h2>\n" + tasks_list(results);
    for (const int64_t length : results.lengths()) html += scores_table(results, length);
    html += "<h2>Costs</h2>\n";
    for (const int64_t length : results.lengths()) html += costs_table(results, length);
  }
  html += logits_table(results);
  html += "<h2>Plots</h2>\n<div class=\"plots\">\n" + report_plots(results) + "</div>\n";
  if (!traces.empty())
    html += "<h2>Density of each layer and head</h2>\n<div class=\"plots\">\n" + report_traces(traces) + "</div>\n";
  html +=
      "<p><small>Intervals: Wilson's, of 95 %. A speed-up is the geometric mean of the times to the first token, "
      "prompt by "
      "prompt. Density: computed share of what attention may compute. Recall: share of the true attention mass that "
      "was "
      "kept, on a few rows of each layer. Selecting: share of the prefill that decides what to compute.</small></p>\n";
  return html + "</body></html>\n";
}

}  // namespace winnow::eval
