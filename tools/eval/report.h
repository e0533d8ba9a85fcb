// Results as one HTML page that needs nothing else: tables with intervals, plots as inline SVG.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "eval/plot.h"
#include "eval/results.h"

namespace winnow::eval {

/// The lines of one folder and what they are about.
class ResultSet {
 public:
  /// Lines of tasks that have "score", "nll" or "kl" (see TaskKind).
  explicit ResultSet(std::vector<Json> lines);

  const std::vector<Json>& lines() const { return lines_; }
  const std::vector<std::string>& methods() const { return methods_; }  // dense first, then as they came
  const std::vector<std::string>& tasks() const { return tasks_; }      // those that are answered, as they came
  const std::set<int64_t>& lengths() const { return lengths_; }         // of these tasks; 0: as long as they are

  using Filter = std::function<bool(const Json& line)>;
  /// Numbers of the lines that pass; lines without that field, or with null, are left out.
  std::vector<double> values(const char* field, const Filter& filter) const;
  std::vector<double> scores(const std::string& method, const std::string& task, int64_t length) const;
  /// Time to the first token under dense attention over that under `method`, prompt by prompt: geometric mean over
  /// the answered tasks at `length`. NaN where no prompt has both.
  double speed_up(const std::string& method, int64_t length) const;

 private:
  std::vector<Json> lines_;
  std::vector<std::string> methods_, tasks_;
  std::set<int64_t> lengths_;
};

/// Every plot that the results give, one after another.
std::string report_plots(const ResultSet& results);
/// One map of layers by heads for each trace (see `winnow eval --trace`).
std::string report_traces(const std::vector<Json>& traces);

/// `run`: run.json.
std::string report_page(const Json& run, const ResultSet& results, const std::vector<Json>& traces);

}  // namespace winnow::eval
