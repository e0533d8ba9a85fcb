// What selectors share: a site's rows in terms of a head's slots.
#pragma once

#include "attention/lists.h"
#include "methods/method.h"

namespace winnow {

/// The kv head that query head `head` reads.
inline const KvHead& kv_head_of(const Site& site, int32_t head) {
  const auto n_kv = static_cast<int32_t>(site.kv.heads.size());
  return site.kv.heads[static_cast<size_t>(head / (site.q.n_head / n_kv))];
}

/// The slot that row `row` itself takes in `kv`, the last one that it sees.
inline int32_t slot_of_row(const Site& site, const KvHead& kv, int64_t row) {
  return visible_slots(kv, site.limit[static_cast<size_t>(row)]) - 1;
}

/// The last `n` rows as a probe.
inline ProbeArgs last_rows(const Site& site, int64_t n) {
  const int64_t begin = site.q.n_rows - n;
  return {.q = site.q.rows(begin, n),
          .kv = site.kv,
          .limit = site.limit.data() + begin,
          .scale = site.scale,
          .softcap = site.softcap,
          .window = site.window};
}

}  // namespace winnow
