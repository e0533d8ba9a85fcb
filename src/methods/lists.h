// What selectors share: a site's rows in terms of a head's slots, lists of fixed patterns, a parameter.
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

/// The parameter "block" of a method whose blocks are of 64 or 128 rows and slots.
inline int32_t block_size(const Params& params, std::string_view method) {
  const int32_t block = params.whole("block");
  if (block != 64 && block != 128) fail("{}: block={} must be 64 or 128", method, block);
  return block;
}

/// Whether all heads hold slots at the same positions.
inline bool alike(std::span<const KvHead> kv) {
  return std::all_of(kv.begin(), kv.end(), [first = kv.front()](const KvHead& head) {
    if (head.n_slots != first.n_slots || (head.idx == nullptr) != (first.idx == nullptr)) return false;
    return head.idx == first.idx || std::equal(head.idx, head.idx + head.n_slots, first.idx);
  });
}

/// Lists of a pattern that depends on slots alone, by write(kv head, lists): one for all heads while every kv head
/// holds the same slots, else one for each. Blocks are of `block` rows and slots.
template <typename Write>
Selection pattern_lists(const Site& site, int32_t block, const Write& write) {
  std::vector<HeadLists> lists(alike(site.kv.heads) ? 1 : static_cast<size_t>(site.q.n_head));
  for (size_t head = 0; head < lists.size(); ++head) {
    write(kv_head_of(site, static_cast<int32_t>(head)), lists[head]);
  }
  return join_lists(lists, block, block);
}

/// Adds the mass of one head to `sum`, of as many first slots as this has.
inline void add_mass(std::span<const float> mass, std::span<float> sum) {
  for (size_t slot = 0; slot < sum.size(); ++slot) sum[slot] += mass[slot];
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

/// How many of the site's rows are among the last `n` of the prompt, some of which a later chunk may hold.
inline int32_t n_of_last_rows(const Site& site, int64_t n) {
  return static_cast<int32_t>(std::clamp<int64_t>(n - site.n_later, 0, site.q.n_rows));
}

/// Rows at even distances as a probe: `n` of them from `first` on, every `step`th.
class SpreadRows {
 public:
  SpreadRows(const Site& site, int64_t first, int64_t step, int64_t n)
      : args_{site.q.rows(first, n), site.kv, nullptr, site.scale, site.softcap, site.window} {
    args_.q.stride *= step;
    for (int64_t i = 0; i < n; ++i) limit_.push_back(site.limit[static_cast<size_t>(first + i * step)]);
    args_.limit = limit_.data();
  }
  SpreadRows(const SpreadRows&) = delete;
  SpreadRows& operator=(const SpreadRows&) = delete;
  const ProbeArgs& args() const { return args_; }

 private:
  std::vector<int32_t> limit_;
  ProbeArgs args_;
};

}  // namespace winnow
