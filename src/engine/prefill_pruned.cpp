// Prefill's side of a pruner: who is taken up again before a layer, and who goes no further after it.
#include <algorithm>

#include "engine/prefill.h"
#include "engine/pruned.h"
#include "methods/density.h"

namespace winnow {

// Tokens that are alive, but neither in this layer's cache nor among the rows, stopped below in an earlier step: their
// states become rows. Every layer of a token is computed once, whenever that is.
void Prefill::wake(int32_t index, Pass& pass) {
  std::vector<std::vector<int32_t>> woken(pass.parts.size());
  bool any = false;
  for (size_t i = 0; i < pass.parts.size() && index > 0; ++i) {
    const Part& part = pass.parts[i];
    if (part.pruner == nullptr || !part.pruner->revives()) continue;
    const KvHead& held = part.sequence->cache_.view(index).heads.front();
    woken[i] = missing_positions(part.alive, held, pass.rows_of(part));
    any = any || !woken[i].empty();
  }
  if (!any) return;
  std::vector<RowSource> sources;
  std::vector<int32_t> positions;
  for (size_t i = 0; i < pass.parts.size(); ++i) {
    Part& part = pass.parts[i];
    const HiddenRows& asleep = part.sequence->hidden_[static_cast<size_t>(std::max(index, 1) - 1)];
    const std::span<const int32_t> rows = pass.rows_of(part);
    const auto begin = std::ssize(positions);
    auto next = woken[i].begin();
    for (size_t row = 0; row <= rows.size(); ++row) {
      while (next != woken[i].end() && (row == rows.size() || *next < rows[row])) {
        sources.push_back(asleep.row(*next));
        positions.push_back(*next++);
      }
      if (row == rows.size()) break;
      sources.push_back({pass.x, static_cast<int32_t>(part.begin) + static_cast<int32_t>(row)});
      positions.push_back(rows[row]);
    }
    part.n = std::ssize(positions) - begin;
    part.begin = begin;
  }
  Scratch x = collect_rows(device_, sources, pass.x->cols);
  for (size_t i = 0; i < pass.parts.size(); ++i) {
    pass.parts[i].sequence->hidden_[static_cast<size_t>(std::max(index, 1) - 1)].erase(woken[i]);
  }
  pass.x = std::move(x);
  pass.position = std::move(positions);
}

// The pruner's decision; rows whose logits are wanted stay.
void Prefill::prune(Part& part, const Site& site) {
  if (site.limit.back() + 1 < part.sequence->policy_.prune_break_even()) return;
  const std::vector<int32_t> kept = part.pruner->prune(site, part.alive);
  if (kept.empty()) return;
  std::vector<uint8_t> stays(part.alive.size());
  for (const int32_t index : kept) stays[static_cast<size_t>(index)] = 1;
  std::fill(stays.end() - part.n_logits, stays.end(), uint8_t{1});
  std::vector<int32_t> alive;
  for (size_t i = 0; i < stays.size(); ++i) {
    if (stays[i] != 0) alive.push_back(part.alive[i]);
  }
  part.alive = std::move(alive);
}

// After a layer: rows of dropped tokens leave the pass, their states are kept where they may be wanted again.
void Prefill::put_to_sleep(int32_t index, Pass& pass) {
  const auto plain = [](const Part& part) { return part.pruner == nullptr; };
  if (std::all_of(pass.parts.begin(), pass.parts.end(), plain)) return;
  std::vector<RowSource> sources;
  std::vector<int32_t> positions;
  for (Part& part : pass.parts) {
    const std::span<const int32_t> rows = pass.rows_of(part);
    std::vector<RowSource> dropped;
    std::vector<int32_t> dropped_position;
    const auto begin = std::ssize(positions);
    for (size_t row = 0; row < rows.size(); ++row) {
      const bool goes_on =
          part.pruner == nullptr || std::binary_search(part.alive.begin(), part.alive.end(), rows[row]);
      (goes_on ? sources : dropped).push_back({pass.x, static_cast<int32_t>(part.begin) + static_cast<int32_t>(row)});
      (goes_on ? positions : dropped_position).push_back(rows[row]);
    }
    if (!dropped.empty() && part.pruner->revives()) {
      part.sequence->hidden_[static_cast<size_t>(index)].add(collect_rows(device_, dropped, pass.x->cols),
                                                             dropped_position);
    }
    part.n = std::ssize(positions) - begin;
    part.begin = begin;
  }
  if (positions.size() == pass.position.size()) return;
  pass.x = collect_rows(device_, sources, pass.x->cols);
  pass.position = std::move(positions);
}

// Adds to what was permitted the (row, slot, head) triples that plain attention would have computed beyond the rows and
// slots that are left: attention's own count knows only these.
void Prefill::count_pruned(const Site& site, const Part& part) {
  const KvHead& head = site.kv.heads.front();
  const int32_t first = part.sequence->n_tokens();
  int64_t triples = 0;
  for (int64_t i = 0; i < std::ssize(part.tokens); ++i) {
    triples += dense_slots(first + static_cast<int32_t>(i), site.window);
  }
  for (const int32_t limit : site.limit) {
    if (limit < first) continue;  // taken up again: computed on top
    triples -= permitted_slots(site, head, limit);
  }
  part.sequence->stats_.counts.permitted += triples * site.q.n_head;
}

}  // namespace winnow
