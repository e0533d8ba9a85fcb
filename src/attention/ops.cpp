// The verbs that need no device: choosing and smoothing scores on the host; and what others are by default.
#include "attention/ops.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>

namespace winnow {

void Ops::gather_keys(const KvView& kv, int32_t kv_head, std::span<const int32_t> slots, std::vector<float>& keys) {
  const KvHead& head = kv.heads[static_cast<size_t>(kv_head)];
  const auto dim = static_cast<size_t>(kv.head_dim);
  keys.resize(slots.size() * dim);
  std::vector<float> block;
  int32_t in_block = -1;  // the cache block whose keys are in `block`
  for (size_t i = 0; i < slots.size(); ++i) {
    const int32_t wanted = slots[i] / kBlockSlots, first = wanted * kBlockSlots;
    if (wanted != in_block) {
      const KvHead one = {.k = head.k.subspan(static_cast<size_t>(wanted), 1),
                          .v = head.v.subspan(static_cast<size_t>(wanted), 1),
                          .n_slots = std::min(kBlockSlots, head.n_slots - first)};
      pool_keys({kv.k_type, kv.v_type, kv.head_dim, {&one, 1}}, 0, 1, block);
      in_block = wanted;
    }
    std::copy_n(block.begin() + (slots[i] - first) * kv.head_dim, dim,
                keys.begin() + static_cast<std::ptrdiff_t>(i * dim));
  }
}

namespace {

/// Adds rows [n_rows, sum.size()] to `sum` in their order, four in one pass over it.
void add_rows(const float* rows, size_t n_rows, std::span<float> sum) {
  const size_t n = sum.size();
  for (; n_rows >= 4; n_rows -= 4, rows += 4 * n) {
    for (size_t i = 0; i < n; ++i) sum[i] = sum[i] + rows[i] + rows[n + i] + rows[2 * n + i] + rows[3 * n + i];
  }
  for (; n_rows > 0; --n_rows, rows += n) {
    for (size_t i = 0; i < n; ++i) sum[i] += rows[i];
  }
}

}  // namespace

void Ops::window_mass(const ProbeArgs& args, std::vector<std::vector<float>>& mass) {
  mass.resize(static_cast<size_t>(args.q.n_head));
  const size_t group = mass.size() / args.kv.heads.size();
  for_each(args.q.n_head, [&](int64_t head, int /*thread*/) {
    std::vector<float>& sum = mass[static_cast<size_t>(head)];
    const auto n_slots = static_cast<size_t>(args.kv.heads[static_cast<size_t>(head) / group].n_slots);
    std::vector<float> probabilities;
    score_window(args, static_cast<int32_t>(head), probabilities);
    sum.assign(n_slots, 0.0F);
    add_rows(probabilities.data(), static_cast<size_t>(args.q.n_rows), sum);
  });
}

namespace {

/// The k-th largest of scores, 0 < k. The scores themselves are partitioned, not their indices: these would be looked
/// up in no order.
float partitioned(std::vector<float>& scores, int64_t k) {
  const auto last = scores.begin() + k - 1;
  std::nth_element(scores.begin(), last, scores.end(), std::greater<>());
  return *last;
}

/// The same of scores that stay as they are. Partitioning guesses wrong at every other score; so they are first counted
/// in equal steps between the smallest and the largest, and only those of the step that the k-th is in are partitioned.
float kth_largest(std::span<const float> scores, int64_t k) {
  constexpr size_t kSteps = 256;
  constexpr size_t kApart = 4;  // chains of comparisons that do not wait for each other
  float low[kApart], high[kApart];
  std::fill_n(low, kApart, scores.front());
  std::fill_n(high, kApart, scores.front());
  for (size_t i = 0; i < scores.size(); ++i) {
    low[i % kApart] = std::min(low[i % kApart], scores[i]);
    high[i % kApart] = std::max(high[i % kApart], scores[i]);
  }
  const float least = *std::min_element(low, low + kApart);
  const float per_unit = static_cast<float>(kSteps) / (*std::max_element(high, high + kApart) - least);
  std::vector<float> left;
  if (!(per_unit > 0) || std::isinf(per_unit)) {  // infinite scores, or all (nearly) the same
    left.assign(scores.begin(), scores.end());
    return partitioned(left, k);
  }
  std::vector<uint8_t> step(scores.size());
  std::array<int32_t, kSteps> count{};
  for (size_t i = 0; i < scores.size(); ++i) {
    // In this order of its arguments std::min makes of no number the last step.
    step[i] = static_cast<uint8_t>(std::min(static_cast<float>(kSteps - 1), (scores[i] - least) * per_unit));
  }
  for (const uint8_t s : step) ++count[s];
  size_t at = kSteps - 1;
  for (; count[at] < k; --at) k -= count[at];
  left.resize(static_cast<size_t>(count[at]) + 1);  // and one that is written over
  size_t n_left = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    left[n_left] = scores[i];
    n_left += step[i] == at ? 1 : 0;
  }
  left.pop_back();
  return partitioned(left, k);
}

}  // namespace

std::vector<int32_t> top_k(std::span<const float> scores, int64_t k) {
  k = std::clamp<int64_t>(k, 0, std::ssize(scores));
  std::vector<int32_t> index(static_cast<size_t>(k));
  if (k == std::ssize(scores)) {
    std::iota(index.begin(), index.end(), 0);
    return index;
  }
  if (k == 0) return index;
  const float least = kth_largest(scores, k);
  int64_t n_equal = k - std::ranges::count_if(scores, [least](float score) { return score > least; });
  // Every index is written, and the next one over it if it was not to be taken.
  index.resize(static_cast<size_t>(k) + 1);
  size_t n = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    const bool equal = scores[i] == least && n_equal > 0;
    n_equal -= equal ? 1 : 0;
    index[n] = static_cast<int32_t>(i);
    n += scores[i] > least || equal ? 1 : 0;
  }
  index.pop_back();
  return index;
}

int64_t top_p_count(std::span<const float> scores, double mass) {
  // Lazily sorted: a max-heap gives up its largest one by one, and few are needed where the mass is concentrated.
  std::vector<float> heap(scores.begin(), scores.end());
  std::make_heap(heap.begin(), heap.end());
  const auto n = static_cast<int64_t>(heap.size());
  double sum = 0;
  for (int64_t taken = 0; taken < n; ++taken) {
    std::pop_heap(heap.begin(), heap.end() - taken);
    sum += heap[static_cast<size_t>(n - 1 - taken)];
    if (sum > mass) return taken + 1;
  }
  return n;
}

void avg_pool(std::span<float> scores, int32_t width) {
  const auto n = static_cast<int64_t>(scores.size());
  const int64_t half = width / 2;
  std::vector<double> sums(scores.size() + 1);  // sums[i] = scores[0] + ... + scores[i - 1]
  for (size_t i = 0; i < scores.size(); ++i) sums[i + 1] = sums[i] + static_cast<double>(scores[i]);
  for (int64_t i = 0; i < n; ++i) {
    const auto begin = static_cast<size_t>(std::max<int64_t>(0, i - half));
    const auto end = static_cast<size_t>(std::min(n, i + half + 1));
    scores[static_cast<size_t>(i)] = static_cast<float>((sums[end] - sums[begin]) / width);
  }
}

void max_pool(std::span<float> scores, int32_t width) {
  const auto n = static_cast<int64_t>(scores.size());
  const int64_t half = width / 2;
  const std::vector<float> from(scores.begin(), scores.end());
  // Neighbour by neighbour of all scores, which vector instructions can do.
  for (int64_t distance = -half; distance <= half; ++distance) {
    const float* neighbour = from.data() + distance;
    for (int64_t i = std::max<int64_t>(0, -distance); i < std::min(n, n - distance); ++i) {
      scores[static_cast<size_t>(i)] = std::max(scores[static_cast<size_t>(i)], neighbour[i]);
    }
  }
}

}  // namespace winnow
