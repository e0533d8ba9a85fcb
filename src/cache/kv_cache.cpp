#include "cache/kv_cache.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace winnow {

KvCache::KvCache(Device& device, const CacheShape& shape)
    : device_(&device),
      shape_(shape),
      k_slot_bytes_(type_bytes(shape.k_type, shape.head_dim)),
      v_slot_bytes_(type_bytes(shape.v_type, shape.head_dim)),
      heads_(static_cast<size_t>(shape.n_layer * shape.n_head_kv)),
      views_(heads_.size()) {}

std::byte* KvCache::slot_at(const std::vector<std::shared_ptr<std::byte>>& blocks, int32_t slot,
                            size_t slot_bytes) const {
  return blocks[static_cast<size_t>(slot / kBlockSlots)].get() + static_cast<size_t>(slot % kBlockSlots) * slot_bytes;
}

void KvCache::add_block(Head& head) {
  head.k.push_back(device_->allocate(k_slot_bytes_ * kBlockSlots));
  head.v.push_back(device_->allocate(v_slot_bytes_ * kBlockSlots));
}

// Adds the copies to `copies`; nobody may write to the block before these are carried out.
void KvCache::make_writable(Head& head, int32_t block, Copies& copies) {
  const auto own = [&](std::shared_ptr<std::byte>& shared, size_t bytes) {
    if (shared.use_count() == 1) return;
    std::shared_ptr<std::byte> copy = device_->allocate(bytes);
    copies.push_back({copy.get(), shared.get(), bytes});
    shared = std::move(copy);
  };
  own(head.k[static_cast<size_t>(block)], k_slot_bytes_ * kBlockSlots);
  own(head.v[static_cast<size_t>(block)], v_slot_bytes_ * kBlockSlots);
}

void KvCache::extend(Head& head, int64_t n_rows, int32_t first_position, Copies& copies) {
  if (head.idx.empty() && first_position != head.n_slots) {  // positions and slots part: from now on a table
    head.idx.resize(static_cast<size_t>(head.n_slots));
    for (int32_t slot = 0; slot < head.n_slots; ++slot) head.idx[static_cast<size_t>(slot)] = slot;
  }
  if (!head.idx.empty() || first_position != head.n_slots) {
    for (int64_t r = 0; r < n_rows; ++r) head.idx.push_back(first_position + static_cast<int32_t>(r));
  }
  if (head.n_slots % kBlockSlots != 0) make_writable(head, head.n_slots / kBlockSlots, copies);
  head.n_slots += static_cast<int32_t>(n_rows);
  while (static_cast<int32_t>(head.k.size()) * kBlockSlots < head.n_slots) add_block(head);
}

void KvCache::append(int32_t layer, HeadsView k, HeadsView v, int32_t first_position) {
  WINNOW_ASSERT(k.n_head == shape_.n_head_kv && k.head_dim == shape_.head_dim && v.n_rows == k.n_rows);
  std::vector<KvTarget> target(static_cast<size_t>(shape_.n_head_kv));
  Copies copies;
  for (int32_t h = 0; h < shape_.n_head_kv; ++h) {
    Head& into = head(layer, h);
    const int32_t first_slot = into.n_slots;
    WINNOW_ASSERT(first_slot == 0 || into.position(first_slot - 1) < first_position);
    extend(into, k.n_rows, first_position, copies);
    target[static_cast<size_t>(h)].first_slot = first_slot;
  }
  device_->copy_bytes(copies);
  refresh_views(layer);
  for (int32_t h = 0; h < shape_.n_head_kv; ++h) {
    target[static_cast<size_t>(h)].k = head(layer, h).k_at;
    target[static_cast<size_t>(h)].v = head(layer, h).v_at;
  }
  device_->store_kv(k, v, shape_.k_type, shape_.v_type, target);
}

// Whole runs at a time: within a block of either side slots lie one after another.
void KvCache::copy_slots(const Head& to, int32_t to_slot, const Head& from, int32_t from_slot, int32_t n,
                         Copies& copies) const {
  while (n > 0) {
    const int32_t run = std::min({n, kBlockSlots - to_slot % kBlockSlots, kBlockSlots - from_slot % kBlockSlots});
    const auto copy = [&](const auto& into, const auto& out_of, size_t bytes) {
      copies.push_back(
          {slot_at(into, to_slot, bytes), slot_at(out_of, from_slot, bytes), static_cast<size_t>(run) * bytes});
    };
    copy(to.k, from.k, k_slot_bytes_);
    copy(to.v, from.v, v_slot_bytes_);
    to_slot += run;
    from_slot += run;
    n -= run;
  }
}

// Makes room for rows at `position`. -> their slots
std::vector<int32_t> KvCache::open_slots(Head& head, std::span<const int32_t> position) {
  std::vector<int32_t> all;  // positions as they will be
  int32_t first = 0;         // slots before the first new row stay where they are
  while (first < head.n_slots && head.position(first) < position.front()) all.push_back(head.position(first++));
  std::vector<int32_t> opened;
  Copies copies;
  Head wider;
  const int32_t n_kept_blocks = first / kBlockSlots;
  wider.k.assign(head.k.begin(), head.k.begin() + n_kept_blocks);
  wider.v.assign(head.v.begin(), head.v.begin() + n_kept_blocks);
  wider.n_slots = head.n_slots + static_cast<int32_t>(position.size());
  while (static_cast<int32_t>(wider.k.size()) * kBlockSlots < wider.n_slots) add_block(wider);
  const int32_t kept = n_kept_blocks * kBlockSlots;
  copy_slots(wider, kept, head, kept, first - kept, copies);
  int32_t slot = first;
  for (size_t i = 0; i < position.size(); ++i) {
    opened.push_back(static_cast<int32_t>(all.size()));
    all.push_back(position[i]);
    const int32_t begin = slot;
    const auto to = static_cast<int32_t>(all.size());
    while (slot < head.n_slots && (i + 1 == position.size() || head.position(slot) < position[i + 1])) {
      WINNOW_ASSERT(head.position(slot) > position[i]);
      all.push_back(head.position(slot++));
    }
    copy_slots(wider, to, head, begin, slot - begin, copies);
  }
  device_->copy_bytes(copies);
  if (all.back() + 1 != wider.n_slots) wider.idx = std::move(all);
  head = std::move(wider);
  return opened;
}

void KvCache::insert(int32_t layer, HeadsView k, HeadsView v, std::span<const int32_t> position) {
  WINNOW_ASSERT(k.n_head == shape_.n_head_kv && std::ssize(position) == k.n_rows && v.n_rows == k.n_rows);
  const bool in_a_row = position.back() - position.front() + 1 == k.n_rows;
  bool behind = true;
  for (int32_t h = 0; h < shape_.n_head_kv; ++h) {
    const Head& into = head(layer, h);
    behind = behind && (into.n_slots == 0 || into.position(into.n_slots - 1) < position.front());
  }
  if (in_a_row && behind) {
    append(layer, k, v, position.front());
    return;
  }
  for (int32_t h = 0; h < shape_.n_head_kv; ++h) {
    const std::vector<int32_t> slots = open_slots(head(layer, h), position);
    refresh_views(layer);
    const auto of_head = [&](const HeadsView& all) {
      return HeadsView{
          advance(all.data, int64_t{h} * all.head_dim, all.type), all.n_rows, 1, all.head_dim, all.stride, all.type};
    };
    const HeadsView k_head = of_head(k), v_head = of_head(v);
    for (size_t begin = 0, end = 0; begin < slots.size(); begin = end) {
      end = begin + 1;
      while (end < slots.size() && slots[end] == slots[end - 1] + 1) ++end;
      const auto row = static_cast<int64_t>(begin), n = static_cast<int64_t>(end - begin);
      const KvTarget target = {head(layer, h).k_at, head(layer, h).v_at, slots[begin]};
      device_->store_kv(k_head.rows(row, n), v_head.rows(row, n), shape_.k_type, shape_.v_type, {&target, 1});
    }
  }
}

KvView KvCache::view(int32_t layer) const {
  const auto n = static_cast<size_t>(shape_.n_head_kv);
  return {shape_.k_type, shape_.v_type, shape_.head_dim, {views_.data() + static_cast<size_t>(layer) * n, n}};
}

int32_t KvCache::n_slots(int32_t layer, int32_t h) const {
  return head(layer, h).n_slots;
}

void KvCache::fold_slot(Head& head, const KvEdit::Merge& merge) {
  Copies copies;
  make_writable(head, merge.into / kBlockSlots, copies);
  device_->copy_bytes(copies);
  std::vector<float> a(static_cast<size_t>(shape_.head_dim)), b(a.size());
  const auto fold = [&](std::vector<std::shared_ptr<std::byte>>& blocks, Type type) {
    std::byte* into = blocks[static_cast<size_t>(merge.into / kBlockSlots)].get();
    const std::byte* from = blocks[static_cast<size_t>(merge.from / kBlockSlots)].get();
    device_->load_slot(into, type, shape_.head_dim, merge.into % kBlockSlots, a.data());
    device_->load_slot(from, type, shape_.head_dim, merge.from % kBlockSlots, b.data());
    for (size_t i = 0; i < a.size(); ++i) a[i] += merge.weight * (b[i] - a[i]);
    device_->store_slot(into, type, shape_.head_dim, merge.into % kBlockSlots, a.data());
  };
  fold(head.k, shape_.k_type);
  fold(head.v, shape_.v_type);
}

// What is left of `head` when `copies` are carried out, until when it stays as it is. Blocks whose slots move by whole
// blocks, or not at all, are taken along; the others are written anew, so that a block that somebody shares is never
// touched.
KvCache::Head KvCache::kept_of(const Head& head, const std::vector<int32_t>& keep, Copies& copies) {
  const auto n_kept = static_cast<int32_t>(keep.size());
  const auto source = [&](int32_t slot) { return keep[static_cast<size_t>(slot)]; };
  Head kept;
  kept.n_slots = n_kept;
  kept.idx.reserve(keep.size());
  for (const int32_t slot : keep) kept.idx.push_back(head.position(slot));
  for (int32_t begin = 0; begin < n_kept; begin += kBlockSlots) {
    const int32_t end = std::min(begin + kBlockSlots, n_kept), first = source(begin);
    if (first % kBlockSlots == 0 && source(end - 1) - first == end - 1 - begin) {
      const auto block = static_cast<size_t>(first / kBlockSlots);
      kept.k.push_back(head.k[block]);
      kept.v.push_back(head.v[block]);
      continue;
    }
    add_block(kept);
    for (int32_t to = begin, run = 0; to < end; to += run) {
      run = 1;
      while (to + run < end && source(to + run) == source(to) + run) ++run;
      copy_slots(kept, to, head, source(to), run, copies);
    }
  }
  return kept;
}

void KvCache::apply(int32_t layer, const KvEdit& edit) {
  if (edit.head.empty()) return;
  WINNOW_ASSERT(static_cast<int32_t>(edit.head.size()) == shape_.n_head_kv);
  Head* const heads = &head(layer, 0);
  if (before_) before_->try_emplace(layer, heads, heads + shape_.n_head_kv);
  Copies copies;
  std::vector<std::pair<Head*, Head>> changes;
  for (int32_t h = 0; h < shape_.n_head_kv; ++h) {
    const KvEdit::Head& change = edit.head[static_cast<size_t>(h)];
    Head& changed = heads[h];
    for (const KvEdit::Merge& merge : change.merge) {
      WINNOW_ASSERT(std::max(merge.into, merge.from) < changed.n_slots && std::min(merge.into, merge.from) >= 0);
      fold_slot(changed, merge);
    }
    if (change.all || std::ssize(change.keep) == changed.n_slots) continue;
    WINNOW_ASSERT(std::is_sorted(change.keep.begin(), change.keep.end(), std::less_equal<>()));
    WINNOW_ASSERT(change.keep.empty() || (change.keep.front() >= 0 && change.keep.back() < changed.n_slots));
    changes.emplace_back(&changed, kept_of(changed, change.keep, copies));
  }
  device_->copy_bytes(copies);
  for (auto& [changed, left] : changes) {
    left.k_at = std::move(changed->k_at);  // a device may know its tables by the address of these
    left.v_at = std::move(changed->v_at);
    *changed = std::move(left);
  }
  refresh_views(layer);
}

void KvCache::take_back(int32_t n_positions) {
  for (auto& [layer, heads] : *before_) std::move(heads.begin(), heads.end(), &head(layer, 0));
  before_.reset();
  truncate(n_positions);
}

void KvCache::shrink(Head& head, int32_t n_slots) {
  const auto n_blocks = static_cast<size_t>((n_slots + kBlockSlots - 1) / kBlockSlots);
  head.k.resize(n_blocks);
  head.v.resize(n_blocks);
  if (!head.idx.empty()) head.idx.resize(static_cast<size_t>(n_slots));
  head.n_slots = n_slots;
}

void KvCache::truncate(int32_t n_positions) {
  for (int32_t layer = 0; layer < shape_.n_layer; ++layer) {
    for (int32_t h = 0; h < shape_.n_head_kv; ++h) {
      Head& cut = head(layer, h);
      const int32_t n_left =
          cut.idx.empty()
              ? std::min(cut.n_slots, n_positions)
              : static_cast<int32_t>(std::lower_bound(cut.idx.begin(), cut.idx.end(), n_positions) - cut.idx.begin());
      shrink(cut, n_left);
    }
    refresh_views(layer);
  }
}

KvCache KvCache::fork() const {
  KvCache copy(*device_, shape_);
  copy.heads_ = heads_;
  for (int32_t layer = 0; layer < shape_.n_layer; ++layer) copy.refresh_views(layer);
  return copy;
}

size_t KvCache::bytes() const {
  size_t total = 0;
  for (const Head& h : heads_) {
    total += h.k.size() * kBlockSlots * (k_slot_bytes_ + v_slot_bytes_) + h.idx.size() * sizeof(int32_t);
  }
  return total;
}

void KvCache::refresh_views(int32_t layer) {
  for (int32_t h = 0; h < shape_.n_head_kv; ++h) {
    Head& from = head(layer, h);
    const auto addresses = [](const std::vector<std::shared_ptr<std::byte>>& blocks, std::vector<std::byte*>& at) {
      at.resize(blocks.size());
      for (size_t i = 0; i < blocks.size(); ++i) at[i] = blocks[i].get();
    };
    addresses(from.k, from.k_at);
    addresses(from.v, from.v_at);
    views_[static_cast<size_t>(layer * shape_.n_head_kv + h)] = {from.k_at, from.v_at, from.n_slots,
                                                                 from.idx.empty() ? nullptr : from.idx.data(), nullptr};
  }
}

}  // namespace winnow
