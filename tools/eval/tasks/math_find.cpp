// InfiniteBench's Math.Find: one of seven order statistics of a list of numbers from 0 to 99. Each sample's numbers lie
// in a range of its own, or the largest of a long list would always be 99; second and third count different numbers.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>

#include "eval/infinite_bench.h"

namespace winnow::roster {
namespace {

constexpr int32_t kTokens = 16;
constexpr std::array<std::string_view, 7> kWhat = {"largest",         "second largest", "third largest", "smallest",
                                                   "second smallest", "third smallest", "median"};
constexpr size_t kMedian = 6;

int64_t statistic(size_t what, std::vector<int64_t> numbers) {
  if (what == kMedian) {
    const auto middle = numbers.begin() + static_cast<std::ptrdiff_t>(numbers.size() / 2);
    std::nth_element(numbers.begin(), middle, numbers.end());
    return *middle;
  }
  const std::set<int64_t> distinct(numbers.begin(), numbers.end());
  return what < 3 ? *std::next(distinct.rbegin(), static_cast<std::ptrdiff_t>(what))
                  : *std::next(distinct.begin(), static_cast<std::ptrdiff_t>(what) - 3);
}

eval::Sample build(eval::Draw& draw, int64_t size) {
  const int64_t low = draw.between(0, 40), high = draw.between(60, 99);
  const int64_t n = 2 * size + 1;  // odd, so that one number is the median
  std::vector<int64_t> numbers;
  for (int64_t i = 0; i < n; ++i) numbers.push_back(draw.between(low, high));
  for (int64_t i = 0; i < 3; ++i) numbers[static_cast<size_t>(i)] = low + i;  // at least three different ones
  draw.shuffle(numbers);
  const size_t what = draw.below(kWhat.size());
  eval::Sample sample;
  sample.context =
      fmt::format("Find the {} number from the list below:\n\n[{}]", kWhat[what], fmt::join(numbers, ", "));
  sample.question = fmt::format(
      "\n\nYou should answer with only one number, no other words. The {} number of the list is: ", kWhat[what]);
  sample.outputs = {std::to_string(statistic(what, std::move(numbers)))};
  return sample;
}

}  // namespace

const eval::TaskInfo& task_math_find() {
  static const eval::TaskInfo kInfo = {
      .name = "math_find",
      .title = "the largest, smallest or middle number of a list",
      .source = eval::kInfiniteBench,
      .metric = "first_value",
      .n_gen = kTokens,
      .make = [](const eval::Request& request) {
        return eval::make_sized(request, {.name = "math_find", .build = build, .step = 8, .reserve = kTokens});
      }};
  return kInfo;
}

}  // namespace winnow::roster
