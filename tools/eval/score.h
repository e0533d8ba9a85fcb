// Metrics: an answer against its references, in [0, 1].
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace winnow::eval {

struct Metric {
  std::string_view name;
  std::string_view meaning;  // one line for people
  double (*score)(std::string_view answer, std::span<const std::string> outputs);
};

std::span<const Metric> metrics();
/// Throws Error that lists the known names.
const Metric& find_metric(std::string_view name);

/// The answer as RULER scores it: stripped, bytes below 0x20 as line ends, stripped again.
std::string clean_answer(std::string_view answer);

}  // namespace winnow::eval
