#include "eval/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace winnow::eval {
namespace {

constexpr double kWidth = 560, kHeight = 320, kLeft = 62, kRight = 16, kTop = 34, kBottom = 48;
constexpr double kLegendLine = 17;
// Colours that differ for all kinds of colour vision (after Okabe and Ito), then repeated with dashes.
constexpr std::array<const char*, 8> kColours = {"#000000", "#0072b2", "#d55e00", "#009e73",
                                                 "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00"};

const char* colour(size_t i) {
  return kColours[i % kColours.size()];
}

const char* dash(size_t i) {
  return i < kColours.size() ? "none" : i < 2 * kColours.size() ? "6 3" : "2 3";
}

std::string number(double value) {
  const double size = std::abs(value);
  if (size >= 1024 && std::fmod(value, 1024) == 0) return fmt::format("{:g}K", value / 1024);
  return size != 0 && size < 0.01 ? fmt::format("{:.1e}", value) : fmt::format("{:.4g}", value);
}

/// One axis: values from `low` to `high` lie from `begin` to `end` in the picture.
struct Scale {
  double low = 0, high = 1, begin = 0, end = 1;
  bool log = false;

  double at(double value) const {
    const double share = log ? std::log(value / low) / std::log(high / low) : (value - low) / (high - low);
    return begin + share * (end - begin);
  }

  std::vector<double> ticks() const {
    std::vector<double> values;
    if (log) {
      const double step = std::max(1.0, std::ceil(std::log2(high / low) / 8));
      for (double value = std::exp2(std::ceil(std::log2(low) - 1e-9)); value <= high * 1.0001;
           value *= std::exp2(step)) {
        values.push_back(value);
      }
      return values;
    }
    const double rough = (high - low) / 5, power = std::pow(10, std::floor(std::log10(rough)));
    const double digit = rough / power;
    const double step = power * (digit < 1.5 ? 1 : digit < 3 ? 2 : digit < 7 ? 5 : 10);
    for (double k = std::ceil(low / step - 1e-9); k * step <= high + step * 1e-6; ++k) values.push_back(k * step);
    return values;
  }
};

struct Frame {
  Scale x, y;
};

void stretch(double value, double& low, double& high) {
  low = std::min(low, value);
  high = std::max(high, value);
}

Frame frame_of(const Axes& axes, const std::vector<Series>& series) {
  double x_low = HUGE_VAL, x_high = -HUGE_VAL, y_low = HUGE_VAL, y_high = -HUGE_VAL;
  for (const Series& one : series) {
    for (const Point& point : one.points) {
      stretch(point.x, x_low, x_high);
      stretch(point.low.value_or(point.y), y_low, y_high);
      stretch(point.high.value_or(point.y), y_low, y_high);
    }
  }
  const auto widen = [](double& low, double& high, bool log) {
    if (high <= low) {
      const double gap = log ? 2 : std::max(std::abs(low) * 0.1, 0.1);
      low = log ? low / gap : low - gap;
      high = log ? high * gap : high + gap;
    } else {
      const double margin = log ? std::pow(high / low, 0.04) : (high - low) * 0.06;
      low = log ? low / margin : low - margin;
      high = log ? high * margin : high + margin;
    }
  };
  widen(x_low, x_high, axes.log_x);
  widen(y_low, y_high, false);
  return {{x_low, x_high, kLeft, kWidth - kRight, axes.log_x},
          {axes.y_low.value_or(y_low), axes.y_high.value_or(y_high), kHeight - kBottom, kTop, false}};
}

std::string text_at(double x, double y, const char* anchor, const std::string& text, const char* more = "") {
  return fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="{}"{}>{}</text>)", x, y, anchor, more, escaped(text));
}

/// Along the left side, from bottom to top.
std::string turned_text(double y, const std::string& text) {
  return text_at(14, y, "middle", text, fmt::format(" transform=\"rotate(-90 14 {:.1f})\"", y).c_str());
}

std::string opening(double width, double height, const std::string& title) {
  return fmt::format(
             R"(<svg viewBox="0 0 {0:.0f} {1:.0f}" width="{0:.0f}" height="{1:.0f}" role="img"><title>{2}</title>)",
             width, height, escaped(title)) +
         text_at(width / 2, 18, "middle", title, R"( class="title")");
}

std::string draw_axes(const Axes& axes, const Frame& frame) {
  std::string svg;
  for (const double tick : frame.x.ticks()) {
    const double x = frame.x.at(tick);
    svg += fmt::format(R"(<path class="grid" d="M{0:.1f} {1:.1f}V{2:.1f}"/>)", x, kTop, kHeight - kBottom);
    svg += text_at(x, kHeight - kBottom + 16, "middle", number(tick));
  }
  for (const double tick : frame.y.ticks()) {
    const double y = frame.y.at(tick);
    svg += fmt::format(R"(<path class="grid" d="M{0:.1f} {1:.1f}H{2:.1f}"/>)", kLeft, y, kWidth - kRight);
    svg += text_at(kLeft - 6, y + 4, "end", number(tick));
  }
  svg += text_at((kLeft + kWidth - kRight) / 2, kHeight - 10, "middle", axes.x);
  const double middle = (kTop + kHeight - kBottom) / 2;
  return svg + turned_text(middle, axes.y);
}

std::string draw_point(const Frame& frame, const Point& point, size_t i, const std::string& name) {
  const double x = frame.x.at(point.x), y = frame.y.at(point.y);
  std::string svg;
  if (point.low && point.high && *point.high > *point.low) {
    svg += fmt::format(R"(<path stroke="{}" opacity="0.45" d="M{:.1f} {:.1f}V{:.1f}"/>)", colour(i), x,
                       frame.y.at(*point.low), frame.y.at(*point.high));
  }
  return svg + fmt::format(R"(<circle cx="{:.1f}" cy="{:.1f}" r="3.5" fill="{}"><title>{}</title></circle>)", x, y,
                           colour(i), escaped(name + (point.label.empty() ? "" : ": " + point.label)));
}

/// White on dark cells, black on light ones; from dark blue (0) over green to yellow (1), as viridis goes.
std::string cell_colour(double value) {
  constexpr double kStops[5][3] = {{68, 1, 84}, {59, 82, 139}, {33, 145, 140}, {94, 201, 98}, {253, 231, 37}};
  const double place = std::clamp(value, 0.0, 1.0) * 4;
  const auto low = std::min(static_cast<size_t>(place), size_t{3});
  const double share = place - static_cast<double>(low);
  const auto channel = [&](size_t c) {
    return std::lround(kStops[low][c] + share * (kStops[low + 1][c] - kStops[low][c]));
  };
  return fmt::format("#{:02x}{:02x}{:02x}", channel(0), channel(1), channel(2));
}

std::string draw_cell(const HeatMap& map, size_t row, size_t column, double x, double y, double width, double height) {
  const double value = map.values[row][column];
  const bool there = !std::isnan(value);
  std::string svg = fmt::format(
      R"(<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"><title>{} {}, {} {}: {}</title></rect>)",
      x, y, width - 1, height - 1, there ? cell_colour(value) : "#dddddd", escaped(map.y), escaped(map.rows[row]),
      escaped(map.x), escaped(map.columns[column]), there ? fmt::format("{:.1f} %", value * 100) : "nothing measured");
  if (map.numbers && there) {
    svg += text_at(x + width / 2, y + height / 2 + 4, "middle", fmt::format("{:.0f}", value * 100),
                   value < 0.55 ? R"( fill="#ffffff")" : R"( fill="#000000")");
  }
  return svg;
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string safe;
  for (const char c : text) {
    switch (c) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      case '"':
        safe += "&quot;";
        break;
      default:
        safe += c;
    }
  }
  return safe;
}

std::string line_chart(const Axes& axes, const std::vector<Series>& series) {
  const Frame frame = frame_of(axes, series);
  std::string svg =
      opening(kWidth, kHeight + kLegendLine * static_cast<double>(series.size()), axes.title) + draw_axes(axes, frame);
  for (size_t i = 0; i < series.size(); ++i) {
    std::string path;
    for (const Point& point : series[i].points) {
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", frame.x.at(point.x), frame.y.at(point.y));
    }
    svg += fmt::format(R"(<path fill="none" stroke="{}" stroke-width="1.8" stroke-dasharray="{}" d="{}"/>)", colour(i),
                       dash(i), path);
    for (const Point& point : series[i].points) svg += draw_point(frame, point, i, series[i].name);
    const double y = kHeight + kLegendLine * static_cast<double>(i);
    svg += fmt::format(R"(<path stroke="{}" stroke-width="3" stroke-dasharray="{}" d="M{:.1f} {:.1f}h22"/>)", colour(i),
                       dash(i), kLeft, y);
    svg += text_at(kLeft + 28, y + 4, "start", series[i].name);
  }
  return svg + "</svg>\n";
}

std::string scatter_chart(const Axes& axes, const std::vector<Series>& series, const std::vector<size_t>& front) {
  const Frame frame = frame_of(axes, series);
  std::string svg = opening(kWidth, kHeight, axes.title) + draw_axes(axes, frame);
  std::string path;
  for (const size_t i : front) {
    const Point& point = series[i].points.front();
    path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", frame.x.at(point.x), frame.y.at(point.y));
  }
  svg += fmt::format(R"(<path class="front" d="{}"/>)", path);
  for (size_t i = 0; i < series.size(); ++i) {
    const Point& point = series[i].points.front();
    svg += draw_point(frame, point, i, series[i].name);
    const double x = frame.x.at(point.x);
    const bool left = x > kWidth * 0.6;
    svg += text_at(x + (left ? -7 : 7), frame.y.at(point.y) - 6, left ? "end" : "start", series[i].name);
  }
  return svg + "</svg>\n";
}

std::string heat_map(const HeatMap& map) {
  constexpr double kSpan = 420, kRowNames = 70;
  const double width = std::clamp(kSpan / static_cast<double>(map.columns.size()), 16.0, 70.0);
  const double height = map.numbers ? 22 : 14;
  const double right = kRowNames + width * static_cast<double>(map.columns.size());
  const double bottom = kTop + height * static_cast<double>(map.rows.size());
  std::string svg = opening(std::max(right + kRight, 360.0), bottom + kBottom, map.title);
  for (size_t row = 0; row < map.rows.size(); ++row) {
    const double y = kTop + height * static_cast<double>(row);
    svg += text_at(kRowNames - 6, y + height / 2 + 4, "end", map.rows[row]);
    for (size_t column = 0; column < map.columns.size(); ++column) {
      svg += draw_cell(map, row, column, kRowNames + width * static_cast<double>(column), y, width, height);
    }
  }
  for (size_t column = 0; column < map.columns.size(); ++column) {
    svg += text_at(kRowNames + width * (static_cast<double>(column) + 0.5), bottom + 14, "middle", map.columns[column]);
  }
  svg += text_at((kRowNames + right) / 2, bottom + 34, "middle", map.x);
  const double middle = (kTop + bottom) / 2;
  svg += turned_text(middle, map.y);
  return svg + "</svg>\n";
}

}  // namespace winnow::eval
