#include "kernels/cuda/tables.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/error.h"

namespace winnow::cuda {
namespace {

constexpr size_t kMostParameters = 1U << 14;
constexpr size_t kMostCaches = 1U << 12;

bool equal(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace

void Tables::begin_step() {
  in_step_ = true;
  step_began_ = clock_;
  n_asked_ = 0;
}

const std::byte* Tables::put_bytes(std::span<const std::byte> bytes) {
  if (bytes.empty()) return nullptr;
  const size_t index = in_step_ ? entry_in_step(bytes) : entry_of(bytes);
  entries_[index].used = ++clock_;
  return entries_[index].data.get();
}

size_t Tables::entry_of(std::span<const std::byte> bytes) {
  const auto equals = [&](const Entry& entry) { return equal(entry.shadow, bytes); };
  const auto found = std::find_if(entries_.begin(), entries_.end(), equals);
  return found != entries_.end() ? static_cast<size_t>(found - entries_.begin()) : make_entry(bytes);
}

size_t Tables::entry_in_step(std::span<const std::byte> bytes) {
  if (n_asked_ == asked_for_.size()) asked_for_.push_back(entries_.size());
  size_t& index = asked_for_[n_asked_++];
  if (index < entries_.size() && equal(entries_[index].shadow, bytes)) return index;
  // Only among those of this step: two tables that happen to be equal in one step would change places in the next.
  const auto equals = [&](const Entry& entry) { return !free_in_step(entry) && equal(entry.shadow, bytes); };
  const auto found = std::find_if(entries_.begin(), entries_.end(), equals);
  if (found != entries_.end()) return index = static_cast<size_t>(found - entries_.begin());
  if (index < entries_.size() && free_in_step(entries_[index]) && entries_[index].shadow.size() == bytes.size()) {
    // Launches that wait are of this step: none of them reads this one.
    Entry& own = entries_[index];
    own.shadow.assign(bytes.begin(), bytes.end());
    context_.transfers.upload(own.data.get(), bytes.data(), bytes.size(), When::ahead);
    return index;
  }
  return index = make_entry(bytes);
}

/// In a new buffer, whose upload comes behind whatever still uses it.
size_t Tables::make_entry(std::span<const std::byte> bytes) {
  const auto older = [](const Entry& a, const Entry& b) { return a.used < b.used; };
  auto entry = std::min_element(entries_.begin(), entries_.end(), older);
  if (entries_.size() < kKept || (in_step_ && !free_in_step(*entry))) {
    entries_.emplace_back();
    entry = entries_.end() - 1;
  }
  entry->data = context_.memory.lend(bytes.size());
  entry->shadow.assign(bytes.begin(), bytes.end());
  context_.transfers.upload(entry->data.get(), bytes.data(), bytes.size());
  return static_cast<size_t>(entry - entries_.begin());
}

const float* Parameters::get(const float* values, int64_t n) {
  const auto bytes = std::as_bytes(std::span(values, static_cast<size_t>(n)));
  if (entries_.size() > kMostParameters) entries_.clear();
  Entry& entry = entries_[values];
  if (!equal(std::as_bytes(std::span<const float>(entry.shadow)), bytes)) {
    entry.shadow.assign(values, values + n);
    entry.data = context_.memory.lend(bytes.size());
    context_.transfers.upload(entry.data.get(), bytes.data(), bytes.size());
  }
  return reinterpret_cast<const float*>(entry.data.get());
}

KvTables::Entry& KvTables::entry(const void* key) {
  if (entries_.size() >= kMostCaches && entries_.count(key) == 0) {  // lists that grew moved on, and left theirs behind
    std::vector<uint64_t> ages;
    for (const auto& [address, old] : entries_) ages.push_back(old.used);
    std::nth_element(ages.begin(), ages.begin() + kMostCaches / 2, ages.end());
    const uint64_t middle = ages[kMostCaches / 2];
    std::erase_if(entries_, [middle](const auto& item) { return item.second.used < middle; });
  }
  Entry& found = entries_[key];
  found.used = ++clock_;
  return found;
}

void KvTables::replace(Ragged& table, const Rows& rows) {
  size_t longest = 0;
  for (const auto& row : rows) longest = std::max(longest, row.size() / table.value_bytes);
  // Room to grow by an eighth; the stride of a bias table is also the capacity of staged keys, a multiple of 128.
  table.stride = static_cast<int64_t>((longest + longest / 8 + 128) / 128 * 128);
  const size_t row_bytes = static_cast<size_t>(table.stride) * table.value_bytes;
  table.shadow.assign(rows.size() * row_bytes, std::byte{0});
  for (size_t h = 0; h < rows.size(); ++h) {
    if (!rows[h].empty()) std::memcpy(table.shadow.data() + h * row_bytes, rows[h].data(), rows[h].size());
  }
  table.data = context_.memory.lend(table.shadow.size());
  context_.transfers.upload(table.data.get(), table.shadow.data(), table.shadow.size());
}

void KvTables::update(Ragged& table, const Rows& rows, Patches& patches) {
  const size_t row_bytes = static_cast<size_t>(table.stride) * table.value_bytes;
  const auto fits = [&](const auto& row) { return row.size() <= row_bytes; };
  if (table.data == nullptr || table.shadow.size() != rows.size() * row_bytes ||
      !std::all_of(rows.begin(), rows.end(), fits)) {
    replace(table, rows);
    return;
  }
  for (size_t h = 0; h < rows.size(); ++h) {
    const std::span<const std::byte> row = rows[h];
    std::byte* shadow = table.shadow.data() + h * row_bytes;
    if (row.empty() || std::memcmp(shadow, row.data(), row.size()) == 0) continue;
    // Mostly the tail is new; what stands before it is skipped in steps that memcmp is quick at.
    constexpr size_t kStep = 256;
    size_t begin = 0;
    while (begin < row.size() &&
           std::memcmp(shadow + begin, row.data() + begin, std::min(kStep, row.size() - begin)) == 0) {
      begin += kStep;
    }
    while (std::memcmp(shadow + begin, row.data() + begin, table.value_bytes) == 0) begin += table.value_bytes;
    std::memcpy(shadow + begin, row.data() + begin, row.size() - begin);
    patches.add(table.data.get() + h * row_bytes + begin, shadow + begin, row.size() - begin);
  }
}

DeviceBlocks KvTables::blocks_of(Entry& entry, const Rows& k, const Rows& v, Patches& patches) {
  update(entry.k, k, patches);
  update(entry.v, v, patches);
  WINNOW_ASSERT(entry.k.stride == entry.v.stride);  // as many blocks of keys as of values
  std::vector<int32_t> first(k.size());
  for (size_t h = 0; h < first.size(); ++h) first[h] = static_cast<int32_t>(static_cast<int64_t>(h) * entry.k.stride);
  return {reinterpret_cast<const std::byte* const*>(entry.k.data.get()),
          reinterpret_cast<const std::byte* const*>(entry.v.data.get()), tables_.put(std::span<const int32_t>(first)),
          entry.k.stride};
}

/// Ahead of launches that wait, unless they may read the entry's tables as they are.
void KvTables::apply(Patches& patches, Entry& entry) {
  patches.apply(entry.turn == context_.stream.turn() ? When::in_turn : When::ahead);
  entry.turn = context_.stream.turn();
}

DeviceBlocks KvTables::of(std::span<const KvTarget> target) {
  Rows k, v;
  for (const KvTarget& head : target) {
    k.push_back(std::as_bytes(head.k));
    v.push_back(std::as_bytes(head.v));
  }
  Patches patches(context_, room_);
  Entry& found = entry(target[0].k.data());
  const DeviceBlocks blocks = blocks_of(found, k, v, patches);
  apply(patches, found);
  return blocks;
}

DeviceKv KvTables::of(const KvView& kv, bool positions) {
  Rows k, v, position, bias;
  std::vector<int32_t> n_slots, identity;
  DeviceKv on_gpu;
  on_gpu.n_head = static_cast<int32_t>(kv.heads.size());
  bool moved = false, biased = false;
  for (const KvHead& head : kv.heads) {
    k.push_back(std::as_bytes(head.k));
    v.push_back(std::as_bytes(head.v));
    n_slots.push_back(head.n_slots);
    moved = moved || (positions && head.idx != nullptr);
    biased = biased || head.bias != nullptr;
    on_gpu.max_slots = std::max(on_gpu.max_slots, head.n_slots);
  }
  const auto n_longest = static_cast<size_t>(on_gpu.max_slots);
  const std::vector<float> no_bias(biased ? n_longest : 0);
  if (moved) {
    identity.resize(n_longest);
    std::iota(identity.begin(), identity.end(), 0);
  }
  for (const KvHead& head : kv.heads) {
    const auto n = static_cast<size_t>(head.n_slots);
    if (moved) position.push_back(std::as_bytes(std::span(head.idx != nullptr ? head.idx : identity.data(), n)));
    if (biased) bias.push_back(std::as_bytes(std::span(head.bias != nullptr ? head.bias : no_bias.data(), n)));
  }
  Entry& found = entry(kv.heads[0].k.data());
  Patches patches(context_, room_);
  on_gpu.blocks = blocks_of(found, k, v, patches);
  on_gpu.n_slots = tables_.put(std::span<const int32_t>(n_slots));
  if (moved) {
    update(found.position, position, patches);
    on_gpu.position = reinterpret_cast<const int32_t*>(found.position.data.get());
    on_gpu.position_stride = found.position.stride;
  }
  if (biased) {
    update(found.bias, bias, patches);
    on_gpu.bias = reinterpret_cast<const float*>(found.bias.data.get());
    on_gpu.bias_stride = found.bias.stride;
  }
  apply(patches, found);
  return on_gpu;
}

}  // namespace winnow::cuda
