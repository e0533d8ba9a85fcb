// The keys and values of one sequence. Heads are ragged: every kv head of every layer has its own slots, in blocks of
// kBlockSlots that are shared between sequences and copied when one of them writes.
//
//   KvCache cache(device, {.n_layer = 24, .n_head_kv = 2, .head_dim = 64});
//   cache.append(layer, k, v, first_position);        // new rows, all heads
//   device.attend({.q = q, .kv = cache.view(layer), ...});
//   cache.apply(layer, edit);                         // a compressor's decision: real bytes are freed
//   cache.truncate(n_positions);                      // back to a prefix
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "attention/device.h"

namespace winnow {

struct CacheShape {
  int32_t n_layer = 0;
  int32_t n_head_kv = 0;
  int32_t head_dim = 0;
  Type k_type = Type::f16, v_type = Type::f16;  // f32, f16, bf16, q8_0 or fp8
};

/// A change of one layer's cache. Slots are those before the edit.
struct KvEdit {
  struct Merge {  // slot `from` is folded into slot `into`: K and V become the weighted mean, weights (1 - weight,
                  // weight)
    int32_t into, from;
    float weight;
  };
  struct Head {
    bool all = true;            // keep every slot; `keep` is then ignored
    std::vector<int32_t> keep;  // ascending slots that stay, the `into` of merges among them
    std::vector<Merge> merge;   // carried out in order, before slots are dropped
  };
  std::vector<Head> head;  // one for each kv head; empty: no change
};

class KvCache {
 public:
  KvCache(Device& device, const CacheShape& shape);
  KvCache(KvCache&&) = default;
  KvCache& operator=(KvCache&&) = default;

  const CacheShape& shape() const { return shape_; }
  /// Adds the rows of `k` and `v` [n_rows, n_head_kv, head_dim] at causal positions first_position, first_position + 1,
  /// ...
  void append(int32_t layer, HeadsView k, HeadsView v, int32_t first_position);
  /// The same at ascending positions that the layer does not hold yet, which may lie between those that it holds; there
  /// the slots behind them move up.
  void insert(int32_t layer, HeadsView k, HeadsView v, std::span<const int32_t> position);
  /// What attention reads; valid until this layer changes.
  KvView view(int32_t layer) const;
  int32_t n_slots(int32_t layer, int32_t head) const;
  void apply(int32_t layer, const KvEdit& edit);
  /// Drops every slot at position n_positions or later, in all layers. Slots already dropped by an edit stay dropped.
  void truncate(int32_t n_positions);
  /// Another sequence with the same contents; blocks are shared until one of them writes.
  KvCache fork() const;
  /// From now on edits keep what they change, until `forget` or `take_back`, for a step that may fail: what a fork
  /// would hold, but only of layers that are edited.
  void remember() { before_.emplace(); }
  void forget() { before_.reset(); }
  /// The contents as they were at `remember`, at the first n_positions. Since then rows were only appended, and edits
  /// applied.
  void take_back(int32_t n_positions);
  /// Bytes of the blocks and position tables this cache refers to; a shared block counts in each of its owners.
  size_t bytes() const;

 private:
  struct Head {
    std::vector<std::shared_ptr<std::byte>> k, v;  // blocks
    std::vector<std::byte*> k_at, v_at;            // the same, as KvHead wants them
    int32_t n_slots = 0;
    std::vector<int32_t> idx;  // [n_slots] positions; empty while slot j stands at position j
    int32_t position(int32_t slot) const { return idx.empty() ? slot : idx[static_cast<size_t>(slot)]; }
  };
  Head& head(int32_t layer, int32_t h) { return heads_[static_cast<size_t>(layer * shape_.n_head_kv + h)]; }
  const Head& head(int32_t layer, int32_t h) const { return heads_[static_cast<size_t>(layer * shape_.n_head_kv + h)]; }
  std::byte* slot_at(const std::vector<std::shared_ptr<std::byte>>& blocks, int32_t slot, size_t slot_bytes) const;
  void add_block(Head& head);
  using Copies = std::vector<BytesCopy>;
  void make_writable(Head& head, int32_t block, Copies& copies);
  void extend(Head& head, int64_t n_rows, int32_t first_position, Copies& copies);
  std::vector<int32_t> open_slots(Head& head, std::span<const int32_t> position);
  void copy_slots(const Head& to, int32_t to_slot, const Head& from, int32_t from_slot, int32_t n,
                  Copies& copies) const;
  void fold_slot(Head& head, const KvEdit::Merge& merge);
  Head kept_of(const Head& head, const std::vector<int32_t>& keep, Copies& copies);
  void shrink(Head& head, int32_t n_slots);
  void refresh_views(int32_t layer);

  Device* device_;
  CacheShape shape_;
  size_t k_slot_bytes_, v_slot_bytes_;
  std::vector<Head> heads_;    // [n_layer, n_head_kv]
  std::vector<KvHead> views_;  // the same
  // Layers that were edited since `remember`, as they were before: [n_head_kv].
  std::optional<std::map<int32_t, std::vector<Head>>> before_;
};

}  // namespace winnow
