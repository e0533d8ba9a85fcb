// Estimates by antidiagonals on the products of attend_tile.h, for the instruction set that the including file is
// compiled for.
//
// Panels take turns over a tile of slot groups, which the cache near the core then holds for all of them. A tile's
// probabilities are relative to its own largest logit, lane by lane, and are summed to blocks at once; in the end all
// tiles are made relative to the largest one. So nothing grows with the square of the prompt but the scores.
#pragma once

#include "kernels/cpu/antidiagonal_kernel.h"
#include "kernels/cpu/attend_tile.h"

namespace winnow::cpu {
namespace {

template <typename Math>
class Antidiagonals {
 public:
  static bool fits(const SlotGroups& groups) {
    const bool lanes_are_whole = kPanel % groups.per_block == 0 || groups.per_block % kPanel == 0;
    const bool joins = Math::query_bytes(groups.head_dim) == kPanel * piece_bytes(groups);  // no padding between pieces
    return joins && lanes_are_whole && groups.per_block <= kMostTileGroups && kBlockSlots % groups.stride == 0;
  }

  static size_t key_bytes(const SlotGroups& groups) {
    return (static_cast<size_t>(groups.n_groups) + kSpareGroups) * group_bytes(groups);
  }

  static void pack_keys(const std::byte* from, Type type, int32_t block, int32_t n_slots, const SlotGroups& to) {
    alignas(64) std::byte rows[size_t{4} * kBlockSlots * kMostDim];
    const size_t piece = piece_bytes(to);
    Math::unpack_k(from, type, 0, n_slots, {rows, nullptr, kBlockSlots, to.head_dim});
    std::byte* group = to.k + static_cast<size_t>(block * (kBlockSlots / to.stride)) * group_bytes(to);
    for (int32_t slot = 0; slot < n_slots; slot += to.stride, group += group_bytes(to)) {
      const size_t bytes = piece * static_cast<size_t>(smaller(to.stride, n_slots - slot));
      __builtin_memcpy(group, rows + piece * static_cast<size_t>(slot), bytes);
      __builtin_memset(group + bytes, 0, group_bytes(to) - bytes);
    }
  }

  static int32_t n_panels(const SlotGroups& groups) {
    return clamp(static_cast<int32_t>(kPanelsBytes / panel_bytes(groups)), 1, kMostPanels);
  }

  static size_t scratch_bytes(const SlotGroups& groups) {
    const auto n = static_cast<size_t>(n_panels(groups));
    return sizeof(float) * kPanel * (kMostTileGroups + kSpareGroups) + n * (panel_bytes(groups) + sums_bytes(groups));
  }

  template <BlockScore kScore>
  static void score(std::span<const RowGroups> panels, const SlotGroups& keys, std::byte* scratch) {
    [[maybe_unused]] const typename Math::Session session;
    Antidiagonals run[kMostPanels];
    auto* logits = reinterpret_cast<float*>(scratch);
    scratch += sizeof(float) * kPanel * (kMostTileGroups + kSpareGroups);
    int32_t most = 0;
    for (size_t i = 0; i < panels.size(); ++i, scratch += panel_bytes(keys) + sums_bytes(keys)) {
      run[i].begin(panels[i], keys, logits, scratch);
      if (run[i].most_ > most) most = run[i].most_;
    }
    for (int32_t first = 0; first < most; first += tile_groups(keys)) {
      for (size_t i = 0; i < panels.size(); ++i) run[i].template visit<kScore>(first);
    }
    for (size_t i = 0; i < panels.size(); ++i) run[i].template end<kScore>();
  }

 private:
  static constexpr int32_t kMostTileGroups = 128;
  static constexpr int32_t kSpareGroups = 32;                // that a product may read, and write, behind the last one
  static constexpr size_t kLine = 64;                        // keeps groups from beginning in the same set of a cache
  static constexpr size_t kPanelsBytes = size_t{512} << 10;  // packed queries
  static constexpr size_t kTileBytes = size_t{256} << 10;    // and a tile of keys, which lie in a core's own cache

  /// Bytes of one key in a group, of a group, of the packed queries of a panel.
  static size_t piece_bytes(const SlotGroups& groups) { return static_cast<size_t>(slot_bytes<Math>(groups.head_dim)); }
  static size_t group_bytes(const SlotGroups& groups) {
    return static_cast<size_t>(groups.stride) * piece_bytes(groups) + kLine;
  }
  static size_t panel_bytes(const SlotGroups& groups) { return kPanel * group_bytes(groups); }

  /// Groups of a tile: whole blocks.
  static int32_t tile_groups(const SlotGroups& groups) {
    const auto fit = static_cast<int32_t>(kTileBytes / group_bytes(groups));
    return clamp(fit / groups.per_block * groups.per_block, groups.per_block, kMostTileGroups);
  }
  static int32_t n_tiles(const SlotGroups& groups) {
    return (groups.n_groups + tile_groups(groups) - 1) / tile_groups(groups);
  }
  /// A panel's sums, or largest logits, of blocks, and its largest logits and sums of tiles.
  static size_t sums_bytes(const SlotGroups& groups) {
    return sizeof(float) * kPanel * static_cast<size_t>(groups.n_block + kLanes + 2 * n_tiles(groups));
  }

  void begin(const RowGroups& rows, const SlotGroups& keys, float* logits, std::byte* scratch) {
    rows_ = &rows;
    keys_ = &keys;
    logits_ = logits;
    q_ = scratch;
    sums_ = reinterpret_cast<float*>(scratch + panel_bytes(keys));
    tile_max_ = sums_ + (keys.n_block + kLanes) * kPanel;
    tile_sum_ = tile_max_ + n_tiles(keys) * kPanel;
    const auto n = static_cast<int32_t>((rows.n_rows + keys.stride - 1) / keys.stride);
    for (int32_t lane = 0; lane < kPanel; lane += kLanes) store(seen_ + lane, load_some(rows.seen + lane, n - lane));
    least_ = n < kPanel ? 0 : seen_[0];
    most_ = seen_[n - 1];
    const float factor = rows.softcap > 0 ? rows.scale / rows.softcap : rows.scale * kLog2E;
    const size_t piece = kPanel * piece_bytes(keys);
    for (int32_t i = 0; i < keys.stride; ++i) {
      const int32_t row = keys.stride - 1 - i;  // of each group
      const int64_t n_rows = (rows.n_rows - row + keys.stride - 1) / keys.stride;
      Math::pack_query(rows.q + row * rows.q_stride, keys.stride * rows.q_stride, static_cast<int32_t>(n_rows),
                       keys.head_dim, factor, q_ + static_cast<size_t>(i) * piece);
    }
    __builtin_memset(q_ + static_cast<size_t>(keys.stride) * piece, 0, kPanel * kLine);
  }

  /// The tile of slot groups that begins with `first`.
  template <BlockScore kScore>
  void visit(int32_t first) {
    const int32_t n = smaller(tile_groups(*keys_), most_ - first);
    if (n <= 0) return;
    constexpr size_t kValue = Math::kProduct == Type::bf16 ? 2 : 4;
    const auto dim = static_cast<int32_t>(group_bytes(*keys_) / kValue);
    Math::scores(q_, {keys_->k, first, 0, n, n, dim}, logits_, fetch_);
    for (int32_t lane = 0; lane < kPanel; lane += kLanes) {
      limit(first, n, lane);
      if constexpr (kScore == BlockScore::sum) {
        sum(first, n, lane);
      } else {
        find_largest(first, n, lane);
      }
    }
  }

  /// Caps logits, and takes away what rows do not see; of one vector of lanes, as below.
  void limit(int32_t first, int32_t n, int32_t lane) {
    float* logits = logits_ + lane;
    if (rows_->softcap > 0) {
      for (int32_t i = 0; i < n; ++i) {
        store(logits + i * kPanel, tanh(load(logits + i * kPanel)) * (rows_->softcap * kLog2E));
      }
    }
    if (first + n > least_) {
      const Ints seen = load(seen_ + lane);
      for (int32_t i = 0; i < n; ++i) {
        float* at = logits + i * kPanel;
        store(at, select(broadcast(first + i) < seen, load(at), broadcast(kNothing)));
      }
    }
  }

  /// From logits to sums of blocks, relative to the tile's largest logit.
  void sum(int32_t first, int32_t n, int32_t lane) {
    const float* logits = logits_ + lane;
    Floats largest = broadcast(kNothing);
    for (int32_t i = 0; i < n; ++i) largest = max(largest, load(logits + i * kPanel));
    store(tile_max_ + first / tile_groups(*keys_) * kPanel + lane, largest);
    const Floats base = select(largest == kNothing, Floats{}, largest);
    float* out = sums_ + first / keys_->per_block * kPanel + lane;
    for (int32_t begin = 0; begin < n; begin += keys_->per_block, out += kPanel) {
      Floats total{};
      for (int32_t i = begin; i < smaller(begin + keys_->per_block, n); ++i) {
        total += exp2_below(load(logits + i * kPanel) - base);
      }
      store(out, total);
    }
  }

  /// From logits to the largest one of each block, and the sum of the tile's.
  void find_largest(int32_t first, int32_t n, int32_t lane) {
    const float* logits = logits_ + lane;
    Floats largest = broadcast(kNothing), total{};
    float* out = sums_ + first / keys_->per_block * kPanel + lane;
    for (int32_t begin = 0; begin < n; begin += keys_->per_block, out += kPanel) {
      Floats of_block = broadcast(kNothing);
      for (int32_t i = begin; i < smaller(begin + keys_->per_block, n); ++i) {
        of_block = max(of_block, load(logits + i * kPanel));
      }
      store(out, of_block);
      largest = max(largest, of_block);
    }
    const Floats base = select(largest == kNothing, Floats{}, largest);
    for (int32_t i = 0; i < n; ++i) total += exp2_below(load(logits + i * kPanel) - base);
    store(tile_max_ + first / tile_groups(*keys_) * kPanel + lane, largest);
    store(tile_sum_ + first / tile_groups(*keys_) * kPanel + lane, total);
  }

  /// Softmax, and the rows' scores.
  template <BlockScore kScore>
  void end() {
    const int32_t n_block = (most_ + keys_->per_block - 1) / keys_->per_block;
    for (int32_t lane = 0; lane < kPanel && n_block > 0; lane += kLanes) {
      Floats largest = broadcast(kNothing);
      for (int32_t first = 0; first < most_; first += tile_groups(*keys_)) {
        largest = max(largest, load(tile_max_ + first / tile_groups(*keys_) * kPanel + lane));
      }
      const Floats base = select(largest == kNothing, Floats{}, largest);
      if constexpr (kScore == BlockScore::sum) {
        share(base, n_block, lane);
      } else {
        log_share(base, n_block, lane);
      }
      for (int32_t b = 0; b < n_block; b += kLanes) hand_over<kScore>(b, smaller(kLanes, n_block - b), lane);
    }
  }

  /// From sums of blocks to their shares. `base`: the largest logit of all.
  void share(Floats base, int32_t n_block, int32_t lane) {
    const int32_t per_tile = tile_groups(*keys_) / keys_->per_block;
    Floats total{};
    for (int32_t b = 0; b < n_block; ++b) {
      float* at = sums_ + b * kPanel + lane;
      const Floats sum = load(at) * exp2_below(load(tile_max_ + b / per_tile * kPanel + lane) - base);
      store(at, sum);
      total += sum;
    }
    const Floats factor = select(total > 0, 1 / total, Floats{});
    for (int32_t b = 0; b < n_block; ++b) store(sums_ + b * kPanel + lane, load(sums_ + b * kPanel + lane) * factor);
  }

  /// From the largest logits of blocks to the logarithms of their shares.
  void log_share(Floats base, int32_t n_block, int32_t lane) {
    Floats total{};
    for (int32_t first = 0; first < most_; first += tile_groups(*keys_)) {
      const int32_t at = first / tile_groups(*keys_) * kPanel + lane;
      total += load(tile_sum_ + at) * exp2_below(load(tile_max_ + at) - base);
    }
    const Floats log_total = select(total > 0, base + log2_of(total), Floats{});
    for (int32_t b = 0; b < n_block; ++b) {
      float* at = sums_ + b * kPanel + lane;
      store(at, (load(at) - log_total) * kLn2);
    }
  }

  /// What `n` blocks from `block` on got, to the scores of their rows.
  template <BlockScore kScore>
  void hand_over(int32_t block, int32_t n, int32_t lane) {
    Floats values[kLanes];
    WINNOW_UNROLL
    for (int i = 0; i < kLanes; ++i) values[i] = load(sums_ + (block + i) * kPanel + lane);
    transpose(values);
    const auto n_lanes = static_cast<int32_t>((rows_->n_rows + keys_->stride - 1) / keys_->stride) - lane;
    for (int32_t i = 0; i < smaller(kLanes, n_lanes); ++i) {
      float* to = rows_->scores + int64_t{(lane + i) / keys_->per_block} * keys_->n_block + block;
      const Floats before = load_some(to, n);
      store_some(to, kScore == BlockScore::sum ? before + values[i] : max(before, values[i]), n);
    }
  }

  const RowGroups* rows_ = nullptr;
  const SlotGroups* keys_ = nullptr;
  int32_t least_ = 0, most_ = 0;  // slot groups that the lanes see
  float* logits_ = nullptr;       // [groups of a tile][kPanel]
  std::byte* q_ = nullptr;        // Math's form, the pieces of a group one behind the other
  float* sums_ = nullptr;         // [n_block][kPanel], or largest logits; and room to read whole vectors of blocks
  float* tile_max_ = nullptr;     // [n_tiles][kPanel]
  float* tile_sum_ = nullptr;     // [n_tiles][kPanel], where largest logits are asked for
  alignas(64) int32_t seen_[kPanel];
  Fetches fetch_;  // nothing
};

template <typename Math>
constexpr AntidiagonalKernel make_antidiagonals() {
  using Kernel = Antidiagonals<Math>;
  return {.lanes = kPanel,
          .fits = &Kernel::fits,
          .key_bytes = &Kernel::key_bytes,
          .pack_keys = &Kernel::pack_keys,
          .n_panels = &Kernel::n_panels,
          .scratch_bytes = &Kernel::scratch_bytes,
          .sums = &Kernel::template score<BlockScore::sum>,
          .largest = &Kernel::template score<BlockScore::log_of_largest>};
}

}  // namespace
}  // namespace winnow::cpu
