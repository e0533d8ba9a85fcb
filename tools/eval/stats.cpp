#include "eval/stats.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace winnow::eval {
namespace {

constexpr double kZ = 1.959963984540054;  // 97.5 % of the normal distribution lie below

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(std::max<size_t>(values.size(), 1));
}

}  // namespace

Interval share_interval(const std::vector<double>& scores) {
  if (scores.empty()) return {};
  const double p = mean_of(scores), n = static_cast<double>(scores.size()), z2 = kZ * kZ / n;
  const double middle = (p + z2 / 2) / (1 + z2);
  const double half = kZ / (1 + z2) * std::sqrt(p * (1 - p) / n + z2 / (4 * n));
  return {p, std::max(middle - half, 0.0), std::min(middle + half, 1.0), static_cast<int64_t>(scores.size())};
}

Interval mean_interval(const std::vector<double>& values) {
  if (values.empty()) return {};
  const double mean = mean_of(values);
  const auto n = static_cast<double>(values.size());
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  const double half = values.size() < 2 ? 0 : kZ * std::sqrt(squares / (n - 1) / n);
  return {mean, mean - half, mean + half, static_cast<int64_t>(values.size())};
}

Interval share_interval_of_means(const std::vector<std::vector<double>>& strata) {
  Interval result;
  if (strata.empty()) return result;
  const auto k = static_cast<double>(strata.size());
  double below = 0, above = 0;  // squares of the half widths, which add up over independent strata
  for (const std::vector<double>& scores : strata) {
    const Interval one = share_interval(scores);
    result.mean += one.mean / k;
    result.n += one.n;
    below += (one.mean - one.low) * (one.mean - one.low);
    above += (one.high - one.mean) * (one.high - one.mean);
  }
  result.low = result.mean - std::sqrt(below) / k;
  result.high = result.mean + std::sqrt(above) / k;
  return result;
}

std::vector<size_t> pareto_front(const std::vector<double>& x, const std::vector<double>& y) {
  std::vector<size_t> front;
  for (size_t i = 0; i < x.size(); ++i) {
    bool beaten = false;
    for (size_t j = 0; j < x.size(); ++j) {
      const bool as_good = x[j] >= x[i] && y[j] >= y[i];
      beaten = beaten || (as_good && (x[j] > x[i] || y[j] > y[i]));
    }
    if (!beaten) front.push_back(i);
  }
  std::sort(front.begin(), front.end(), [&](size_t a, size_t b) { return x[a] < x[b]; });
  return front;
}

}  // namespace winnow::eval
