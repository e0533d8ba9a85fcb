#include "methods/antidiagonal_blocks.h"

#include <limits>
#include <numeric>
#include <utility>

#include "methods/lists.h"

namespace winnow {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Of the blocks that a block of rows sees, the last ones, from `own` on, are its own.
void push_blocks(const AntidiagonalBlocks& s, std::span<float> scores, int32_t own, HeadLists& lists) {
  const double total = std::accumulate(scores.begin(), scores.end(), 0.0);
  double mass = 0;
  int64_t n = 0;
  const auto force = [&](float& score) {
    mass += std::exchange(score, 0.0F);
    ++n;
  };
  const auto from = static_cast<size_t>(own);
  std::for_each(scores.begin() + own, scores.end(), force);
  if (from > 0) force(scores.front());
  if (mass < s.threshold * total) n += top_p_count(scores, s.threshold * total - mass);
  scores.front() = kInfinity;
  std::fill(scores.begin() + own, scores.end(), kInfinity);
  for (const int32_t block : top_k(scores, n)) lists.block_begin.push_back(block * s.block);
  lists.end_block();
}

void select_head(const Site& site, const AntidiagonalBlocks& s, int32_t head, HeadLists& lists) {
  const KvHead& kv = kv_head_of(site, head);
  std::vector<float> scores;
  site.ops.antidiagonal_scores({last_rows(site, site.q.n_rows), s.stride, s.block}, head, scores);
  const auto n_block = static_cast<size_t>(ceil_div(visible_slots(kv, site.limit.back()), s.block));
  for (int64_t row = 0; row < site.q.n_rows; row += s.block) {
    const int64_t last_row = std::min<int64_t>(row + s.block, site.q.n_rows) - 1;
    const int32_t first = slot_of_row(site, kv, row) / s.block, last = slot_of_row(site, kv, last_row) / s.block;
    const auto at = static_cast<size_t>(row / s.block) * n_block;
    push_blocks(s, std::span(scores).subspan(at, static_cast<size_t>(last) + 1), first, lists);
  }
}

}  // namespace

Selection antidiagonal_blocks(const Site& site, const AntidiagonalBlocks& settings) {
  std::vector<HeadLists> lists(static_cast<size_t>(site.q.n_head));
  site.ops.for_each(site.q.n_head, [&](int64_t head, int) {
    select_head(site, settings, static_cast<int32_t>(head), lists[static_cast<size_t>(head)]);
  });
  return join_lists(lists, settings.block, settings.block);
}

}  // namespace winnow
