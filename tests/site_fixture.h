// A random attention layer for tests of methods: queries, keys and values with sinks, diagonals and hot columns, so
// that there is something to select; and plain attention over it in double.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "kernels/ref/attention.h"
#include "methods/roster.h"
#include "random_weights.h"

namespace winnow::test {

struct SiteShape {
  int32_t n_q = 1, n_k = 1;  // rows, and slots of every kv head; rows are the last n_q of n_k positions
  int32_t n_head = 2, n_head_kv = 1, head_dim = 16;
  float contrast = 2;  // 0: uniform attention; 4: a few slots take nearly everything

  std::string text() const {
    return fmt::format("n_q={} n_k={} heads={}/{} dim={} contrast={}", n_q, n_k, n_head, n_head_kv, head_dim, contrast);
  }
};

class SiteFixture {
 public:
  SiteFixture(const SiteShape& shape, uint32_t seed) : shape_(shape), random_(seed) {
    const auto dim = static_cast<size_t>(shape.head_dim);
    q_.resize(static_cast<size_t>(shape.n_q * shape.n_head) * dim);
    fill(q_, shape.contrast);
    for (int32_t h = 0; h < shape.n_head_kv; ++h) {
      Head& head = heads_.emplace_back();
      head.k.resize(static_cast<size_t>(shape.n_k) * dim);
      head.v.resize(head.k.size());
      fill(head.k, 1);
      fill(head.v, 1);
      // A sink, and a few columns that many queries look at.
      for (size_t d = 0; d < dim; ++d) head.k[d] *= 2;
      for (int32_t slot = 7 + h; slot < shape.n_k; slot += 97) {
        for (size_t d = 0; d < dim; ++d) head.k[static_cast<size_t>(slot) * dim + d] *= 1.5F;
      }
      for (int32_t slot = 0; slot < shape.n_k; ++slot) head.position.push_back(slot);
    }
    // Queries lean towards the sink and the key at a fixed distance: verticals and slashes.
    for (int32_t row = 0; row < shape.n_q; ++row) {
      for (int32_t head = 0; head < shape.n_head; ++head) lean(row, head);
    }
    for (int32_t row = 0; row < shape.n_q; ++row) limit_.push_back(shape.n_k - shape.n_q + row);
    store();
  }

  /// Keeps these slots of one kv head only; the rows' own must be among them.
  void keep(int32_t kv_head, const std::vector<int32_t>& slots) {
    Head& head = heads_[static_cast<size_t>(kv_head)];
    Head kept;
    const auto dim = static_cast<size_t>(shape_.head_dim);
    for (const int32_t slot : slots) {
      const auto begin = static_cast<std::ptrdiff_t>(static_cast<size_t>(slot) * dim);
      const auto end = begin + static_cast<std::ptrdiff_t>(dim);
      kept.k.insert(kept.k.end(), head.k.begin() + begin, head.k.begin() + end);
      kept.v.insert(kept.v.end(), head.v.begin() + begin, head.v.begin() + end);
      kept.position.push_back(head.position[static_cast<size_t>(slot)]);
    }
    head = std::move(kept);
    store();
  }

  Site site(Ops& ops, int32_t layer = 0) {
    const float scale = 1 / std::sqrt(static_cast<float>(shape_.head_dim));
    return {.layer = layer,
            .q = {q_.data(), shape_.n_q, shape_.n_head, shape_.head_dim, int64_t{shape_.n_head} * shape_.head_dim},
            .kv = {Type::f32, Type::f32, shape_.head_dim, views_},
            .limit = limit_,
            .scale = scale,
            .softcap = 0,
            .window = 0,
            .rope = rope_,
            .ops = ops};
  }

  /// Turns queries and keys by their positions. As they are filled, they are not turned at all.
  void turn(const RopeArgs& args) {
    rope_ = args;
    for (int32_t row = 0; row < shape_.n_q; ++row) {
      for (int32_t head = 0; head < shape_.n_head; ++head) turn(query(row, head), limit(row));
    }
    for (int32_t kv = 0; kv < shape_.n_head_kv; ++kv) {
      for (int32_t slot = 0; slot < n_slots(kv); ++slot) turn(key(kv, slot), position(kv, slot));
    }
    store();
  }
  /// One head at a position, by the formula of RoPE.
  void turn(float* values, int32_t position) const {
    for (int32_t i = 0; i < rope_.n_rot / 2; ++i) {
      const double angle = double{rope_.frequency[i]} * position;
      float& first = values[rope_.neox ? i : 2 * i];
      float& second = values[rope_.neox ? i + rope_.n_rot / 2 : 2 * i + 1];
      const double a = double{first} * double{rope_.magnitude}, b = double{second} * double{rope_.magnitude};
      first = static_cast<float>(a * std::cos(angle) - b * std::sin(angle));
      second = static_cast<float>(a * std::sin(angle) + b * std::cos(angle));
    }
  }

  MethodShape method_shape(int32_t n_layer = 1) const {
    return {n_layer, shape_.n_head, shape_.n_head_kv, shape_.head_dim};
  }
  const SiteShape& shape() const { return shape_; }
  int32_t kv_of(int32_t head) const { return head / (shape_.n_head / shape_.n_head_kv); }
  int32_t n_slots(int32_t kv_head) const { return static_cast<int32_t>(at(kv_head).position.size()); }
  int32_t position(int32_t kv_head, int32_t slot) const { return at(kv_head).position[static_cast<size_t>(slot)]; }
  int32_t limit(int32_t row) const { return limit_[static_cast<size_t>(row)]; }
  float* query(int32_t row, int32_t head) { return q_.data() + (row * shape_.n_head + head) * shape_.head_dim; }
  float* key(int32_t kv_head, int32_t slot) {
    return heads_[static_cast<size_t>(kv_head)].k.data() + slot * shape_.head_dim;
  }
  float* value(int32_t kv_head, int32_t slot) {
    return heads_[static_cast<size_t>(kv_head)].v.data() + slot * shape_.head_dim;
  }
  /// To be called after keys or values were changed.
  void store() {
    constexpr size_t kSlots = kBlockSlots;
    views_.clear();
    for (Head& head : heads_) {
      const auto dim = static_cast<size_t>(shape_.head_dim);
      const size_t n_block = (head.position.size() + kSlots - 1) / kSlots;
      head.k_stored = head.k;
      head.v_stored = head.v;
      head.k_stored.resize(n_block * kSlots * dim);
      head.v_stored.resize(n_block * kSlots * dim);
      head.k_at.clear();
      head.v_at.clear();
      for (size_t block = 0; block < n_block; ++block) {
        head.k_at.push_back(reinterpret_cast<const std::byte*>(head.k_stored.data() + block * kSlots * dim));
        head.v_at.push_back(reinterpret_cast<const std::byte*>(head.v_stored.data() + block * kSlots * dim));
      }
      const auto n = static_cast<int32_t>(head.position.size());
      const bool identity = n == 0 || head.position.back() == n - 1;
      views_.push_back({head.k_at, head.v_at, n, identity ? nullptr : head.position.data(), nullptr});
    }
  }

  /// Softmax probabilities of one row over all slots of its kv head, in double.
  std::vector<double> probabilities(int32_t row, int32_t head) {
    const int32_t kv = kv_of(head);
    std::vector<double> p;
    double top = -INFINITY, sum = 0;
    for (int32_t slot = 0; slot < n_slots(kv); ++slot) {
      double logit = 0;
      for (int32_t d = 0; d < shape_.head_dim; ++d) logit += double{query(row, head)[d]} * double{key(kv, slot)[d]};
      logit /= std::sqrt(static_cast<double>(shape_.head_dim));
      p.push_back(position(kv, slot) <= limit(row) ? logit : -INFINITY);
      top = std::max(top, p.back());
    }
    for (double& x : p) sum += x = std::exp(x - top);
    for (double& x : p) x /= sum;
    return p;
  }

 private:
  struct Head {
    std::vector<float> k, v, k_stored, v_stored;
    std::vector<int32_t> position;
    std::vector<const std::byte*> k_at, v_at;
  };
  const Head& at(int32_t kv_head) const { return heads_[static_cast<size_t>(kv_head)]; }

  void fill(std::vector<float>& values, float scale) {
    std::normal_distribution<float> normal(0, scale);
    for (float& value : values) value = normal(random_);
  }

  void lean(int32_t row, int32_t head) {
    const int32_t kv = kv_of(head), own = shape_.n_k - shape_.n_q + row;
    const int32_t distance = std::min(own, 5 + 130 * (head % 2));
    for (int32_t d = 0; d < shape_.head_dim; ++d) {
      query(row, head)[d] += shape_.contrast * (0.3F * key(kv, 0)[d] + 0.8F * key(kv, own - distance)[d]);
    }
  }

  SiteShape shape_;
  RopeArgs rope_{};
  std::mt19937 random_;
  std::vector<float> q_;  // [n_q, n_head, head_dim]
  std::vector<Head> heads_;
  std::vector<KvHead> views_;
  std::vector<int32_t> limit_;
};

/// The oracle's verbs, without a device around them.
class RefOps : public Ops {
 public:
  explicit RefOps(int n_threads) : pool_(n_threads) {}
  void attend(const AttnArgs& args) override { ref::attend(args); }
  void merge(HeadsView into, float* into_lse, const Partial& from, float gain) override {
    ref::merge(into, into_lse, from, gain);
  }
  void score_window(const ProbeArgs& args, int32_t head, std::vector<float>& probabilities) override {
    ref::score_window(args, head, probabilities);
  }
  void pool_queries(const HeadsView& q, int32_t head, int32_t block, std::vector<float>& pooled) override {
    ref::pool_queries(q, head, block, pooled);
  }
  void pool_keys(const KvView& kv, int32_t kv_head, int32_t block, std::vector<float>& pooled) override {
    ref::pool_keys(kv, kv_head, block, pooled);
  }
  void score_blocks(const std::vector<float>& a, const std::vector<float>& b, int32_t dim, float scale,
                    std::vector<float>& scores) override {
    ref::score_blocks(a, b, dim, scale, scores);
  }
  void for_each(int64_t n_items, const std::function<void(int64_t item, int thread)>& work) override {
    pool_.parallel_for(n_items, work);
  }

 private:
  ThreadPool pool_;
};

inline Ops& ref_ops() {
  static RefOps ops(1);
  return ops;
}

/// Attention of every row of the site over what `selection` leaves; 0 where a row does not attend, of which nothing is
/// counted. -> [n_q, n_head, head_dim]
inline std::vector<float> attend(const Site& site, const Selection& selection, const float* skip = nullptr,
                                 AttnCounts* counts = nullptr) {
  HeadsView view = site.q;
  view.stride = int64_t{site.q.n_head} * site.q.head_dim;
  std::vector<float> o(static_cast<size_t>(site.q.n_rows * view.stride));
  view.data = o.data();
  if (!selection.rows.empty()) {
    std::vector<float> q;
    std::vector<int32_t> limit;
    for (const int32_t row : selection.rows) {
      q.insert(q.end(), site.q.at(row, 0), site.q.at(row, 0) + view.stride);
      limit.push_back(site.limit[static_cast<size_t>(row)]);
    }
    Site some = site;
    some.q = {q.data(), std::ssize(selection.rows), site.q.n_head, site.q.head_dim, view.stride};
    some.limit = limit;
    Selection lists = selection;
    lists.rows.clear();
    const std::vector<float> got = attend(some, lists, skip, counts);
    for (size_t i = 0; i < limit.size(); ++i) {
      const auto at = static_cast<std::ptrdiff_t>(i) * view.stride;
      std::copy_n(got.begin() + at, view.stride, o.begin() + selection.rows[i] * view.stride);
    }
    return o;
  }
  site.ops.attend({.q = site.q,
                   .kv = site.kv,
                   .limit = site.limit.data(),
                   .selection = selection.everything() ? nullptr : &selection,
                   .first_row = 0,
                   .scale = site.scale,
                   .softcap = site.softcap,
                   .window = site.window,
                   .skip = skip,
                   .o = view,
                   .lse = nullptr,
                   .counts = counts});
  return o;
}

/// The only method of a spec, made for this fixture. If it needs trained weights and none are named, it gets random
/// ones.
inline Method make_method(const std::string& text, const MethodShape& shape) {
  const Spec spec = parse_spec(with_weights(text, shape));
  const MethodInfo& info = find_method(spec.name);
  return info.make(resolve(spec, info.params, info.texts), shape);
}

/// Which slots query head `head` computes for row `row`: [n_slots], causal limit applied. None where it does not
/// attend.
inline std::vector<bool> computed(const Selection& selection, SiteFixture& fixture, int32_t row, int32_t head) {
  const int32_t kv = fixture.kv_of(head);
  const int32_t block = selection.everything() ? -1 : selection.block_of(row);
  const bool all = selection.everything() || (block >= 0 && selection.full(block));
  std::vector<bool> mask(static_cast<size_t>(fixture.n_slots(kv)), all);
  const auto set = [&](int32_t slot) {
    if (slot < fixture.n_slots(kv)) mask[static_cast<size_t>(slot)] = true;
  };
  if (block >= 0 && !all) {
    const int64_t list = selection.list(head, block);
    for (const int32_t begin : selection.blocks(list)) {
      for (int32_t j = 0; j < selection.block_k; ++j) set(begin + j);
    }
    for (const int32_t slot : selection.columns(list)) set(slot);
  }
  for (int32_t slot = 0; slot < fixture.n_slots(kv); ++slot) {
    if (fixture.position(kv, slot) > fixture.limit(row)) mask[static_cast<size_t>(slot)] = false;
  }
  return mask;
}

/// Empty where every list of `selection` is as attention/types.h promises; else what is wrong.
inline std::string malformed(const Selection& selection, const Site& site) {
  const std::vector<int32_t>& rows = selection.rows;
  if (selection.everything()) return rows.empty() ? "" : "rows without lists";
  if (!rows.empty()) {
    if (rows.front() < 0 || rows.back() != site.q.n_rows - 1) return "rows range, or the last one does not attend";
    if (std::adjacent_find(rows.begin(), rows.end(), std::greater_equal<>()) != rows.end()) return "rows order";
  }
  const auto n_list = static_cast<size_t>(selection.n_head) * static_cast<size_t>(selection.n_block_q);
  const int64_t n_rows = rows.empty() ? site.q.n_rows : std::ssize(rows);
  const int64_t n_block_q = (n_rows + selection.block_q - 1) / selection.block_q;
  if (selection.n_head != 1 && selection.n_head * selection.group != site.q.n_head) return "n_head";
  if (selection.n_block_q != n_block_q) return "n_block_q";
  if ((selection.block_q != 64 && selection.block_q != 128) || (selection.block_k != 64 && selection.block_k != 128)) {
    return "block sizes";
  }
  if (selection.block_ptr.size() != n_list + 1 || selection.column_ptr.size() != n_list + 1) return "ptr sizes";
  if (selection.block_ptr.front() != 0) return "block_ptr begin";
  if (selection.column_end.empty() && selection.column_ptr.front() != 0) return "column_ptr begin";
  if (selection.block_ptr.back() != static_cast<int32_t>(selection.block_begin.size())) return "block_ptr end";
  if (selection.column_ptr.back() != static_cast<int32_t>(selection.column.size())) return "column_ptr end";
  if (!selection.column_end.empty() && selection.column_end.size() != n_list) return "column_end size";
  for (size_t list = 0; list < n_list; ++list) {
    const auto head = static_cast<int32_t>(list / static_cast<size_t>(selection.n_block_q)) * selection.group;
    const auto n_kv = static_cast<int32_t>(site.kv.heads.size());
    const int32_t n_slots = site.kv.heads[static_cast<size_t>(head / (site.q.n_head / n_kv))].n_slots;
    std::vector<int> taken(static_cast<size_t>(n_slots) + 128);
    int32_t before = -1;
    if (selection.block_ptr[list] > selection.block_ptr[list + 1]) return "block_ptr descends";
    const int32_t end = selection.column_end.empty() ? selection.column_ptr[list + 1] : selection.column_end[list];
    if (selection.column_ptr[list] > end || end > selection.column_ptr.back()) return "columns' end";
    for (const int32_t begin : selection.blocks(static_cast<int64_t>(list))) {
      if (begin <= before || begin < 0) return "block_begin order or range";
      before = begin;
      if (site.q.n_rows == 1 && begin >= n_slots) continue;  // of later rows
      if (begin >= n_slots) return "block_begin beyond the last slot";
      for (int32_t j = 0; j < selection.block_k; ++j) {
        if (taken[static_cast<size_t>(begin + j)]++ != 0) return "blocks overlap";
      }
    }
    before = -1;
    for (const int32_t slot : selection.columns(static_cast<int64_t>(list))) {
      if (slot <= before || slot < 0 || slot >= n_slots) return "column order or range";
      before = slot;
      if (taken[static_cast<size_t>(slot)]++ != 0) return "column inside a block";
    }
  }
  return "";
}

}  // namespace winnow::test
