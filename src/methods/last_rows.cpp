#include "methods/last_rows.h"

#include "methods/lists.h"

namespace winnow {

Selection with_full_rows(Selection selection, const Site& site, int64_t n) {
  const int32_t n_full = n_of_last_rows(site, n);
  if (n_full == 0 || selection.everything()) return selection;
  const auto first = static_cast<int32_t>(site.q.n_rows) - n_full;
  int64_t at = first;  // among the rows that attend
  std::vector<int32_t>& rows = selection.rows;
  if (!rows.empty()) {
    rows.erase(std::lower_bound(rows.begin(), rows.end(), first), rows.end());
    at = std::ssize(rows);
    for (int32_t row = first; row < site.q.n_rows; ++row) rows.push_back(row);
  }
  selection.full_from = at / selection.block_q * selection.block_q;
  if (selection.full_from == 0 && rows.empty()) return {};
  return selection;
}

}  // namespace winnow
