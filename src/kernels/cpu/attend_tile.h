// One query tile of prefill, for the instruction set that the including file is compiled for.
//
// Query rows lie on the lanes: a panel is kPanel = 2 vectors of rows. For a tile of keys the kernel computes
//   S^T [slot][lane] = K [slot][d] . Q^T [d][lane]     (a value of K is broadcast, a vector of Q^T loaded)
//   P^T = 2^(S^T - max), running maximum and sum down the slots: no operation crosses lanes
//   O^T [d][lane] += V [slot][d] . P^T [slot][lane]    (a value of V is broadcast)
// so that K and V are used as they lie, whatever the slot a tile begins at. `Math` supplies the number format: how K
// and V are unpacked and the two products.
#pragma once

#include "kernels/cpu/attend_kernel.h"
#include "kernels/cpu/simd.h"

namespace winnow::cpu {
namespace {

constexpr int kPanel = 2 * kLanes;
constexpr int kPanels = kTileRows / kPanel;
constexpr float kLog2E = 1.44269504F;
constexpr float kLn2 = 0.693147181F;
constexpr float kNothing = -__builtin_inff();

inline int32_t smaller(int32_t a, int32_t b) {
  return a < b ? a : b;
}

inline int32_t clamp(int32_t x, int32_t low, int32_t high) {
  return x < low ? low : (x > high ? high : x);
}

/// Calls f(begin, size) over [0, n) in pieces of at most kStep, the last two of about equal size: a small piece has too
/// few independent sums to hide the latency of a multiply-add. `size` is a constant.
template <int kStep, typename F>
inline void each_piece(int32_t n, const F& f) {
  int32_t begin = 0;
  const auto piece = [&]<int... kSize>(int32_t size, std::integer_sequence<int, kSize...> /*sizes*/) {
    static_cast<void>(
        ((size == kSize + 1 ? (f(begin, std::integral_constant<int, kSize + 1>{}), true) : false) || ...));
    begin += size;
  };
  while (begin < n) {
    const int32_t rest = n - begin;
    const int32_t size = rest >= 2 * kStep || rest == kStep ? kStep : (rest > kStep ? (rest + 1) / 2 : rest);
    piece(size, std::make_integer_sequence<int, kStep>{});
  }
}

/// Keys of one tile: consecutive slots from `first` on, or the `slot`s of columns gathered into consecutive rows.
struct KeyTile {
  const std::byte* k;
  const std::byte* v;
  const float* bias;  // [n] or null
  const int32_t* slot;
  int32_t first;
  int32_t n;

  int32_t slot_at(int32_t i) const { return slot == nullptr ? first + i : slot[i]; }
  /// How many of the tile's slots lie below `limit`.
  int32_t below(int32_t limit) const {
    if (slot == nullptr) return clamp(limit - first, 0, n);
    int32_t count = 0;
    while (count < n && slot[count] < limit) ++count;
    return count;
  }
};

/// A part of the query tile that fills the lanes, and the part of the current key tile that any of its rows sees.
struct Panel {
  int32_t n_rows;
  int32_t begin_low, begin_high;  // of the rows' visible intervals
  int32_t end_low, end_high;
  int32_t from, to;  // slots of the current tile
};

template <typename Math>
class TileRun {
 public:
  TileRun(const QueryTile& tile, const UnpackedKv& kv, std::byte* scratch)
      : tile_(tile), kv_(kv), dim_(kv.head_dim), row_bytes_(Math::row_bytes(dim_)) {
    const auto take = [&scratch](size_t bytes) {
      std::byte* at = scratch;
      scratch += (bytes + 63) / 64 * 64;
      return at;
    };
    q_ = take(Math::query_bytes(dim_) * kPanels);
    o_ = reinterpret_cast<float*>(take(size_t{4} * kTileRows * static_cast<size_t>(dim_)));
    s_ = reinterpret_cast<float*>(take(size_t{4} * kTileRows * kTileSlots));
    gathered_k_ = take(static_cast<size_t>(row_bytes_) * kTileSlots);
    gathered_v_ = take(static_cast<size_t>(row_bytes_) * kTileSlots);
  }

  static size_t scratch_bytes(int32_t dim) {
    return Math::query_bytes(dim) * kPanels + size_t{4} * kTileRows * (static_cast<size_t>(dim) + kTileSlots) +
           2 * static_cast<size_t>(Math::row_bytes(dim)) * kTileSlots + size_t{64} * 5;
  }

  int64_t run() {
    start();
    visit_columns();
    for (const int32_t begin : tile_.block) {
      for (int32_t at = begin; at < begin + tile_.block_k; at += kTileSlots) {
        visit_slots(at, smaller(at + kTileSlots, begin + tile_.block_k));
      }
    }
    finish();
    return computed_;
  }

 private:
  void start() {
    n_panels_ = (tile_.n_rows + kPanel - 1) / kPanel;
    const float factor = tile_.softcap > 0 ? tile_.scale / tile_.softcap : tile_.scale * kLog2E;
    for (int32_t lane = 0; lane < n_panels_ * kPanel; ++lane) {
      max_[lane] = kNothing;
      sum_[lane] = 0;
      begin_[lane] = lane < tile_.n_rows ? tile_.begin[lane] : 0;
      end_[lane] = lane < tile_.n_rows ? tile_.end[lane] : 0;
    }
    for (int32_t p = 0; p < n_panels_; ++p) {
      const int32_t first = p * kPanel;
      const int32_t n = smaller(kPanel, tile_.n_rows - first);
      panel_[p] = {n, begin_[first], begin_[first + n - 1], end_[first], end_[first + n - 1], 0, 0};
      Math::pack_query(tile_.q + first * tile_.q_stride, tile_.q_stride, n, dim_, factor,
                       q_ + Math::query_bytes(dim_) * static_cast<size_t>(p));
    }
    const int64_t n_values = int64_t{n_panels_} * kPanel * dim_;
    for (int64_t i = 0; i < n_values; i += kLanes) store(o_ + i, Floats{});
  }

  /// Slots [begin, end) clipped to what any row sees.
  void visit_slots(int32_t begin, int32_t end) {
    const int32_t low = begin_[0];
    const int32_t high = end_[tile_.n_rows - 1];
    if (begin < low) begin = low;
    if (end > high) end = high;
    if (begin >= end) return;
    visit({kv_.k + begin * row_bytes_, kv_.v + begin * row_bytes_, tile_.bias == nullptr ? nullptr : tile_.bias + begin,
           nullptr, begin, end - begin});
  }

  void visit_columns() {
    const int32_t low = begin_[0];
    const int32_t high = end_[tile_.n_rows - 1];
    const auto n_columns = static_cast<int32_t>(tile_.column.size());
    for (int32_t at = 0; at < n_columns; at += kTileSlots) {
      int32_t n = 0;
      for (int32_t i = at; i < smaller(at + kTileSlots, n_columns); ++i) {
        const int32_t slot = tile_.column[static_cast<size_t>(i)];
        if (slot < low || slot >= high) continue;
        const auto bytes = static_cast<size_t>(row_bytes_);
        __builtin_memcpy(gathered_k_ + n * row_bytes_, kv_.k + slot * row_bytes_, bytes);
        __builtin_memcpy(gathered_v_ + n * row_bytes_, kv_.v + slot * row_bytes_, bytes);
        if (tile_.bias != nullptr) gathered_bias_[n] = tile_.bias[slot];
        slot_[n++] = slot;
      }
      if (n > 0) visit({gathered_k_, gathered_v_, tile_.bias == nullptr ? nullptr : gathered_bias_, slot_, 0, n});
    }
  }

  void visit(const KeyTile& keys) {
    for (int32_t p = 0; p < n_panels_; ++p) {
      Panel& panel = panel_[p];
      panel.from = keys.below(panel.begin_low);
      panel.to = keys.below(panel.end_high);
      if (panel.from >= panel.to) continue;
      float* s = s_ + p * kPanel * kTileSlots;
      Math::scores(q_ + Math::query_bytes(dim_) * static_cast<size_t>(p), keys.k, panel.from, panel.to, dim_, s);
      shape(keys, panel, p, s);
    }
    if (!first_ && tile_.skip > kNothing && all_skip(keys)) return;
    first_ = false;
    for (int32_t p = 0; p < n_panels_; ++p) {
      if (panel_[p].from < panel_[p].to) add(keys, p);
    }
    count(keys);
  }

  /// Softcap, bias, mask and the largest logit of each lane.
  void shape(const KeyTile& keys, const Panel& panel, int32_t p, float* s) {
    if (tile_.softcap > 0) {
      for (int32_t i = panel.from * kPanel; i < panel.to * kPanel; i += kLanes) {
        store(s + i, tanh(load(s + i)) * (tile_.softcap * kLog2E));
      }
    }
    if (keys.bias != nullptr) {
      for (int32_t i = panel.from; i < panel.to; ++i) {
        const float bias = keys.bias[i] * kLog2E;
        for (int32_t lane = 0; lane < kPanel; lane += kLanes) {
          store(s + i * kPanel + lane, load(s + i * kPanel + lane) + bias);
        }
      }
    }
    if (keys.slot_at(panel.from) < panel.begin_high || keys.slot_at(panel.to - 1) >= panel.end_low) {
      mask(keys, panel, p, s);
    }
    Floats largest[2] = {broadcast(kNothing), broadcast(kNothing)};
    for (int32_t i = panel.from; i < panel.to; ++i) {
      largest[0] = max(largest[0], load(s + i * kPanel));
      largest[1] = max(largest[1], load(s + i * kPanel + kLanes));
    }
    store(tile_max_ + p * kPanel, largest[0]);
    store(tile_max_ + p * kPanel + kLanes, largest[1]);
  }

  void mask(const KeyTile& keys, const Panel& panel, int32_t p, float* s) {
    for (int32_t lane = 0; lane < kPanel; lane += kLanes) {
      const Ints begin = load(begin_ + p * kPanel + lane);
      const Ints end = load(end_ + p * kPanel + lane);
      for (int32_t i = panel.from; i < panel.to; ++i) {
        const Ints slot = broadcast(keys.slot_at(i));
        float* at = s + i * kPanel + lane;
        store(at, select((begin <= slot) & (slot < end), load(at), broadcast(kNothing)));
      }
    }
  }

  /// Every row either sees nothing of this tile or finds it below its running maximum by more than the threshold.
  bool all_skip(const KeyTile& keys) const {
    const float threshold = tile_.skip * kLog2E;
    for (int32_t lane = 0; lane < tile_.n_rows; ++lane) {
      const Panel& panel = panel_[lane / kPanel];
      if (panel.from >= panel.to || tile_max_[lane] == kNothing) continue;
      const float highest = tile_max_[lane] > max_[lane] ? tile_max_[lane] : max_[lane];
      if (!(tile_max_[lane] - highest < threshold)) return false;
    }
    return keys.n > 0;
  }

  /// The softmax of one panel's logits and its product with V.
  void add(const KeyTile& keys, int32_t p) {
    const Panel& panel = panel_[p];
    float* s = s_ + p * kPanel * kTileSlots;
    alignas(64) float shrink[kPanel];
    bool raised = false;
    for (int32_t lane = 0; lane < kPanel; lane += kLanes) {
      const int32_t at = p * kPanel + lane;
      const Floats before = load(max_ + at);
      const Floats after = max(before, load(tile_max_ + at));
      const Floats base = select(after == kNothing, Floats{}, after);  // rows that have seen nothing yet
      store(max_ + at, after);
      const Floats factor = exp2_below(before - base);
      store(shrink + lane, factor);
      raised = raised || any_differs(before, after);
      Floats sum = load(sum_ + at) * factor;
      for (int32_t i = panel.from; i < panel.to; ++i) {
        const Floats e = exp2_below(load(s + i * kPanel + lane) - base);
        store(s + i * kPanel + lane, e);
        sum += e;
      }
      store(sum_ + at, sum);
    }
    Math::values(keys.v, s, panel.from, panel.to, dim_, raised ? shrink : nullptr, o_ + int64_t{p} * kPanel * dim_);
  }

  static bool any_differs(Floats a, Floats b) {
    const Ints differs = a != b;
    const Ints zero{};
    return __builtin_memcmp(&differs, &zero, sizeof(zero)) != 0;
  }

  void count(const KeyTile& keys) {
    if (keys.slot_at(0) >= begin_[tile_.n_rows - 1] && keys.slot_at(keys.n - 1) < end_[0]) {
      computed_ += int64_t{keys.n} * tile_.n_rows;
      return;
    }
    for (int32_t row = 0; row < tile_.n_rows; ++row) {
      const int32_t seen = keys.below(end_[row]) - keys.below(begin_[row]);
      computed_ += seen > 0 ? seen : 0;
    }
  }

  void finish() {
    for (int32_t row = 0; row < tile_.n_rows; ++row) {
      const float inverse = sum_[row] > 0 ? 1 / sum_[row] : 0;
      const float* from = o_ + int64_t{row / kPanel} * kPanel * dim_ + row % kPanel;
      float* to = tile_.o + row * tile_.o_stride;
      for (int32_t d = 0; d < dim_; ++d) to[d] = from[d * kPanel] * inverse;
      if (tile_.lse == nullptr) continue;
      tile_.lse[row * tile_.lse_stride] = sum_[row] > 0 ? (max_[row] + __builtin_log2f(sum_[row])) * kLn2 : kNothing;
    }
  }

  const QueryTile& tile_;
  const UnpackedKv& kv_;
  int32_t dim_;
  int64_t row_bytes_;
  int32_t n_panels_ = 0;
  bool first_ = true;
  int64_t computed_ = 0;
  std::byte* q_;  // [panel] Math's form
  float* o_;      // [panel][dim][kPanel]
  float* s_;      // [panel][kTileSlots][kPanel]
  std::byte* gathered_k_;
  std::byte* gathered_v_;
  Panel panel_[kPanels];
  alignas(64) float max_[kTileRows];
  alignas(64) float sum_[kTileRows];
  alignas(64) float tile_max_[kTileRows];
  alignas(64) int32_t begin_[kTileRows];
  alignas(64) int32_t end_[kTileRows];
  float gathered_bias_[kTileSlots];
  int32_t slot_[kTileSlots];
};

template <typename Math>
int64_t attend_tile(const QueryTile& tile, const UnpackedKv& kv, std::byte* scratch) {
  TileRun<Math> run(tile, kv, scratch);
  return run.run();
}

}  // namespace
}  // namespace winnow::cpu
