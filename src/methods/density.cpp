#include "methods/density.h"

#include <algorithm>

#include "methods/lists.h"

namespace winnow {
namespace {

/// How many slots the rows of the selection see, ascending as rows do.
std::vector<int32_t> seen_by_rows(const Site& site, const KvHead& kv, const Selection& selection) {
  std::vector<int32_t> seen;
  if (selection.rows.empty()) {
    for (const int32_t limit : site.limit) seen.push_back(visible_slots(kv, limit));
  }
  for (const int32_t row : selection.rows) seen.push_back(visible_slots(kv, site.limit[static_cast<size_t>(row)]));
  return seen;
}

int64_t permitted_pairs(const Site& site, const KvHead& kv) {
  int64_t pairs = 0;
  for (const int32_t limit : site.limit) pairs += permitted_slots(site, kv, limit);
  return pairs;
}

/// Pairs of the rows that see `seen` slots with the slots [begin, end).
int64_t pairs_with(std::span<const int32_t> seen, int32_t begin, int32_t end) {
  const auto n_rows = static_cast<int64_t>(seen.size());
  if (end <= seen.front()) return n_rows * (end - begin);
  int64_t pairs = 0;
  for (const int32_t n : seen) pairs += std::clamp(n - begin, 0, end - begin);
  return pairs;
}

int64_t selected_pairs(const Selection& selection, int32_t head, std::span<const int32_t> seen) {
  int64_t pairs = 0;
  const auto block_q = static_cast<size_t>(selection.block_q);
  for (int32_t block = 0; static_cast<size_t>(block) * block_q < seen.size(); ++block) {
    const size_t first = static_cast<size_t>(block) * block_q;
    const auto rows = seen.subspan(first, std::min(block_q, seen.size() - first));
    if (selection.full(block)) {
      pairs += pairs_with(rows, 0, rows.back());
      continue;
    }
    const int64_t list = selection.list(head, block);
    for (const int32_t begin : selection.blocks(list)) pairs += pairs_with(rows, begin, begin + selection.block_k);
    for (const int32_t slot : selection.columns(list)) pairs += pairs_with(rows, slot, slot + 1);
  }
  return pairs;
}

}  // namespace

int32_t permitted_slots(const Site& site, const KvHead& kv, int32_t limit) {
  const int32_t hidden = site.window > 0 ? visible_slots(kv, limit - site.window) : 0;
  return visible_slots(kv, limit) - hidden;
}

std::vector<AttnCounts> count_selected(const Site& site, const Selection& made) {
  const Selection selection = made.everything() ? Selection() : site.ops.on_host(made);
  std::vector<AttnCounts> counts(static_cast<size_t>(site.q.n_head));
  site.ops.for_each(site.q.n_head, [&](int64_t item, int) {
    const auto head = static_cast<int32_t>(item);
    const KvHead& kv = kv_head_of(site, head);
    AttnCounts& count = counts[static_cast<size_t>(item)];
    count.permitted = permitted_pairs(site, kv);
    count.computed =
        made.everything() ? count.permitted : selected_pairs(selection, head, seen_by_rows(site, kv, selection));
  });
  return counts;
}

}  // namespace winnow
