#include "engine/hidden_rows.h"

#include <algorithm>
#include <set>

#include "base/error.h"

namespace winnow {

std::vector<HiddenRows::Row>::const_iterator HiddenRows::find(int32_t position) const {
  const auto at = std::lower_bound(rows_.begin(), rows_.end(), position,
                                   [](const Row& row, int32_t wanted) { return row.position < wanted; });
  return at != rows_.end() && at->position == position ? at : rows_.end();
}

RowSource HiddenRows::row(int32_t position) const {
  const auto found = find(position);
  WINNOW_ASSERT(found != rows_.end());
  return {found->buffer, found->index};
}

void HiddenRows::add(const Scratch& rows, std::span<const int32_t> position) {
  const auto n_before = static_cast<std::ptrdiff_t>(rows_.size());
  for (size_t i = 0; i < position.size(); ++i) rows_.push_back({position[i], static_cast<int32_t>(i), rows});
  const auto earlier = [](const Row& a, const Row& b) { return a.position < b.position; };
  std::inplace_merge(rows_.begin(), rows_.begin() + n_before, rows_.end(), earlier);
}

void HiddenRows::erase(std::span<const int32_t> position) {
  std::erase_if(rows_,
                [&](const Row& row) { return std::binary_search(position.begin(), position.end(), row.position); });
}

void HiddenRows::truncate(int32_t n_positions) {
  std::erase_if(rows_, [&](const Row& row) { return row.position >= n_positions; });
}

size_t HiddenRows::bytes() const {
  std::set<const float*> seen;
  size_t total = 0;
  for (const Row& row : rows_) {
    if (!seen.insert(row.buffer->data).second) continue;
    total += static_cast<size_t>(row.buffer->rows * row.buffer->cols) * sizeof(float);
  }
  return total;
}

Scratch collect_rows(Device& device, std::span<const RowSource> sources, int64_t n_cols) {
  Scratch collected = device.scratch(std::ssize(sources), n_cols);
  for (size_t begin = 0; begin < sources.size();) {
    std::vector<int32_t> rows;
    const float* from = sources[begin].from.data;
    while (begin + rows.size() < sources.size() && sources[begin + rows.size()].from.data == from) {
      rows.push_back(sources[begin + rows.size()].row);
    }
    device.gather_rows(sources[begin].from, rows, collected->slice(static_cast<int64_t>(begin), std::ssize(rows)));
    begin += rows.size();
  }
  return collected;
}

}  // namespace winnow
