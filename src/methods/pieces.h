// Query blocks of a site as sites of their own: what a calibration compares on, at a fraction of a prefill's cost.
#pragma once

#include <algorithm>
#include <vector>

#include "methods/method.h"

namespace winnow {

/// At most `n_piece` blocks of `block` rows, spread evenly and ending with the last whole one; a site of fewer rows is
/// one piece.
inline std::vector<Site> sample_blocks(const Site& site, int64_t n_piece, int64_t block) {
  std::vector<Site> pieces;
  const int64_t n_block = std::max<int64_t>(1, site.q.n_rows / block);
  const int64_t n = std::min(n_piece, n_block);
  for (int64_t i = 1; i <= n; ++i) {
    const int64_t begin = (n_block * i / n - 1) * block;
    const int64_t n_rows = std::min(block, site.q.n_rows - begin);
    Site& piece = pieces.emplace_back(site);
    piece.q = site.q.rows(begin, n_rows);
    piece.limit = site.limit.subspan(static_cast<size_t>(begin), static_cast<size_t>(n_rows));
  }
  return pieces;
}

/// Attention of all rows of `site`; the three others may be null. -> [n_rows, n_head, head_dim]
inline std::vector<float> attend_site(const Site& site, const Selection* selection, const float* skip,
                                      AttnCounts* counts) {
  const int64_t stride = int64_t{site.q.n_head} * site.q.head_dim;
  std::vector<float> o(static_cast<size_t>(site.q.n_rows * stride));
  site.ops.attend({.q = site.q,
                   .kv = site.kv,
                   .limit = site.limit.data(),
                   .selection = selection,
                   .first_row = 0,
                   .scale = site.scale,
                   .softcap = site.softcap,
                   .window = site.window,
                   .skip = skip,
                   .o = {o.data(), site.q.n_rows, site.q.n_head, site.q.head_dim, stride},
                   .lse = nullptr,
                   .counts = counts});
  return o;
}

}  // namespace winnow
