// Means with their 95 % intervals.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace winnow::eval {

struct Interval {
  double mean = 0, low = 0, high = 0;
  int64_t n = 0;
};

/// Of scores in [0, 1]: Wilson's interval of a share. Scores between 0 and 1 vary less than a share does, so it is
/// never too narrow.
Interval share_interval(const std::vector<double>& scores);

/// Of any values: the normal interval of the mean; of one value, that value.
Interval mean_interval(const std::vector<double>& values);

/// Of `strata`, whose means count alike: the mean of the means. Each holds scores in [0, 1].
Interval share_interval_of_means(const std::vector<std::vector<double>>& strata);

/// Indices of the points that no other point beats in both x and y (more is better), by ascending x.
std::vector<size_t> pareto_front(const std::vector<double>& x, const std::vector<double>& y);

}  // namespace winnow::eval
