// Plots as inline SVG: no script, no outside file.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace winnow::eval {

/// Text that is safe inside HTML and SVG.
std::string escaped(std::string_view text);

struct Point {
  double x = 0, y = 0;
  std::optional<double> low{}, high{};  // of y
  std::string label{};                  // shown where the pointer rests
};

struct Series {
  std::string name;
  std::vector<Point> points;
};

struct Axes {
  std::string title, x, y;
  bool log_x = false;                       // a factor of two is one step
  std::optional<double> y_low{}, y_high{};  // else from the points
};

/// One line for each series, its points with their intervals, a legend.
std::string line_chart(const Axes& axes, const std::vector<Series>& series);

/// One point for each series, named beside it, and a line through `front` (indices of series).
std::string scatter_chart(const Axes& axes, const std::vector<Series>& series, const std::vector<size_t>& front);

struct HeatMap {
  std::string title, x, y;
  std::vector<std::string> columns, rows;   // their names
  std::vector<std::vector<double>> values;  // [row][column] in [0, 1]; NaN: nothing there
  bool numbers = true;                      // written into the cells, in percent
};
std::string heat_map(const HeatMap& map);

}  // namespace winnow::eval
