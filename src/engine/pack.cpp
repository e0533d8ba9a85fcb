#include "engine/pack.h"

#include <algorithm>
#include <numeric>

namespace winnow {

std::vector<std::vector<int32_t>> pack_prompts(std::span<const int64_t> lengths, int64_t capacity) {
  std::vector<int32_t> order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  const auto length = [&](int32_t prompt) { return lengths[static_cast<size_t>(prompt)]; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return length(a) > length(b); });
  std::vector<std::vector<int32_t>> bins;
  std::vector<int64_t> filled;
  for (const int32_t prompt : order) {
    size_t best = bins.size();
    for (size_t bin = 0; bin < bins.size(); ++bin) {
      const bool fits = filled[bin] + length(prompt) <= capacity;
      if (fits && (best == bins.size() || filled[bin] > filled[best])) best = bin;
    }
    if (best == bins.size()) {
      bins.emplace_back();
      filled.push_back(0);
    }
    bins[best].push_back(prompt);
    filled[best] += length(prompt);
  }
  return bins;
}

}  // namespace winnow
