// One query tile of prefill, for the instruction set that the including file is compiled for.
//
// Query rows lie on the lanes: a panel is kPanel = 2 vectors of rows. For a tile of keys the kernel computes
//   S^T [slot][lane] = K [slot][d] . Q^T [d][lane]     (a value of K is broadcast, a vector of Q^T loaded)
//   P^T = 2^(S^T - max), running maximum and sum down the slots: no operation crosses lanes
//   O^T [d][lane] += V [slot][d] . P^T [slot][lane]    (a value of V is broadcast)
// so that K and V are used as they lie, whatever the slot a tile begins at. `Math` supplies the number format: how K
// and V are unpacked and the two products.
#pragma once

#include "kernels/cpu/fetch.h"
#include "kernels/cpu/key_tile.h"
#include "kernels/cpu/simd.h"

namespace winnow::cpu {
namespace {

/// Bytes of a slot of K or V, unpacked.
template <typename Math>
int64_t slot_bytes(int32_t dim) {
  const size_t bytes = Math::kv_bytes(2 * kTileSlots, dim) - Math::kv_bytes(kTileSlots, dim);
  return static_cast<int64_t>(bytes / kTileSlots);
}

template <typename Math>
class TileRun {
 public:
  /// Bytes of what a tile keeps between its turns, and of what only its turn needs.
  static size_t kept_bytes(int32_t dim) {
    return Math::query_bytes(dim) * kPanels + size_t{4} * kTileRows * Math::result_dim(dim) + size_t{64} * 2;
  }
  static size_t shared_bytes(int32_t dim) {
    return size_t{4} * kTileRows * kTileSlots + 2 * Math::kv_bytes(kTileSlots, dim) + size_t{64} * 3;
  }

  /// Takes up a tile and computes its columns.
  void begin(const QueryTile& tile, const UnpackedKv& kv, std::byte* kept, std::byte* shared) {
    tile_ = &tile;
    kv_ = &kv;
    dim_ = kv.head_dim;
    q_ = take(kept, Math::query_bytes(dim_) * kPanels);
    o_ = reinterpret_cast<float*>(take(kept, size_t{4} * kTileRows * Math::result_dim(dim_)));
    s_ = reinterpret_cast<float*>(take(shared, size_t{4} * kTileRows * kTileSlots));
    gathered_.k = take(shared, Math::kv_bytes(kTileSlots, dim_));
    gathered_.v = take(shared, Math::kv_bytes(kTileSlots, dim_));
    gathered_.head_dim = dim_;
    pack();
    n_visits_ = count_visits();
    if (n_visits_ < kFetchTiles && n_visits_ > 0) fetch_rows();
    visit_columns();
  }

  /// Goes on with the key tiles of the blocks that begin below slot turn.until; false when none is left after them.
  bool advance(const Turn& turn) {
    for (; block_ < tile_->block.size(); ++block_) {
      const int32_t begin = tile_->block[block_];
      const int32_t end = begin + tile_->block_k;
      if (done_ < begin || done_ >= end) done_ = begin;
      for (; done_ < end; done_ += kTileSlots) {
        if (done_ >= turn.until) return true;
        if (done_ + kTileSlots < end) {
          fetch_part(turn, end);
        } else {
          fetch_block(block_ + 1, end);
        }
        visit_slots(done_, smaller(done_ + kTileSlots, end));
      }
    }
    return false;
  }

  /// Writes the results; returns how many pairs were computed.
  int64_t end() {
    finish();
    return computed_;
  }

 private:
  static std::byte* take(std::byte*& scratch, size_t bytes) {
    std::byte* at = scratch;
    scratch += (bytes + 63) / 64 * 64;
    return at;
  }

  /// Floats of one panel's results, [Math::result_dim][kPanel].
  int64_t panel_values() const { return static_cast<int64_t>(Math::result_dim(dim_)) * kPanel; }

  void pack() {
    n_panels_ = (tile_->n_rows + kPanel - 1) / kPanel;
    const float factor = tile_->softcap > 0 ? tile_->scale / tile_->softcap : tile_->scale * kLog2E;
    for (int32_t lane = 0; lane < n_panels_ * kPanel; lane += kLanes) {
      store(max_ + lane, broadcast(kNothing));
      store(sum_ + lane, Floats{});
      store(begin_ + lane, load_some(tile_->begin + lane, tile_->n_rows - lane));
      store(end_ + lane, load_some(tile_->end + lane, tile_->n_rows - lane));
    }
    for (int32_t p = 0; p < n_panels_; ++p) {
      const int32_t first = p * kPanel;
      const int32_t n = smaller(kPanel, tile_->n_rows - first);
      panel_[p] = {n, begin_[first], begin_[first + n - 1], end_[first], end_[first + n - 1], 0, 0, 0, true};
      Math::pack_query(tile_->q + first * tile_->q_stride, tile_->q_stride, n, dim_, factor,
                       q_ + Math::query_bytes(dim_) * static_cast<size_t>(p));
    }
  }

  /// How many key tiles come, at most.
  int32_t count_visits() const {
    int32_t n = (static_cast<int32_t>(tile_->column.size()) + kTileSlots - 1) / kTileSlots;
    for (const int32_t begin : tile_->block) {
      const int32_t low = begin > begin_[0] ? begin : begin_[0];
      const int32_t high = smaller(begin + tile_->block_k, end_[tile_->n_rows - 1]);
      if (low < high) n += (high - begin + kTileSlots - 1) / kTileSlots - (low - begin) / kTileSlots;
    }
    return n;
  }

  /// Pieces of the products of one key tile: as many times lines are fetched.
  int32_t n_pieces() const { return n_panels_ * ((kTileSlots + dim_) / Math::kStep); }

  /// To be fetched during the last key tiles: where the results go, and what comes next.
  void fetch_rows() {
    const int64_t bytes = int64_t{4} * dim_;
    const Upcoming& next = tile_->next;
    fetch_.rows.add({tile_->o, tile_->o_stride * 4, bytes, tile_->n_rows});
    fetch_.rows.add({next.q, tile_->q_stride * 4, bytes, next.n_rows});
    if (!next.column.empty()) {
      fetch_columns(*next.kv, next.column, fetch_.rows);
    } else if (!next.block.empty()) {
      fetch_slots(*next.kv, next.block[0], next.kv->n_slots, fetch_.rows);
    }
    fetch_.rows.spread(n_visits_ * n_pieces());
  }

  /// The first tile of columns.
  void fetch_columns(const UnpackedKv& kv, std::span<const int32_t> column, Fetch& fetch) {
    const int32_t n = smaller(kTileSlots, static_cast<int32_t>(column.size()));
    const int64_t bytes = slot_bytes<Math>(dim_);
    fetch.add({kv.k, bytes, bytes, n, column.data()});
    if constexpr (Math::kValueSlots > 0) {
      fetch.add({kv.v, bytes * Math::kValueSlots, bytes * Math::kValueSlots, n, column.data(), Math::kValueSlots});
    }
  }

  /// A tile of slots from `begin` on, up to `end`.
  void fetch_slots(const UnpackedKv& kv, int32_t begin, int32_t end, Fetch& fetch) {
    const int32_t n = smaller(kTileSlots, end - begin);
    if (begin < 0 || n <= 0) return;
    const int64_t bytes = slot_bytes<Math>(dim_);
    fetch.add({kv.k + begin * bytes, 0, n * bytes, 1});
    fetch.add({kv.v + begin * bytes, 0, n * bytes, 1});
  }

  /// Lets the keys of block `next` be fetched while a tile is computed that does not lie right before them; those that
  /// follow each other the processor fetches by itself.
  void fetch_block(size_t next, int32_t end) {
    fetch_.keys.clear();
    if (next >= tile_->block.size() || tile_->block[next] == end) return;
    fetch_slots(*kv_, tile_->block[next], end_[tile_->n_rows - 1], fetch_.keys);
    fetch_.keys.spread(n_pieces());
  }

  /// Lets this tile's part of the keys that lie turn.ahead slots behind the present ones be fetched.
  void fetch_part(const Turn& turn, int32_t end) {
    fetch_.keys.clear();
    if (turn.ahead == 0) return;
    const int32_t at = done_ + turn.ahead;
    const int32_t limit = smaller(end, end_[tile_->n_rows - 1]);
    fetch_slots(*kv_, at + kTileSlots * turn.part / turn.n_parts,
                smaller(at + kTileSlots * (turn.part + 1) / turn.n_parts, limit), fetch_.keys);
    fetch_.keys.spread(n_pieces());
  }

  /// Slots [begin, end) clipped to what any row sees.
  void visit_slots(int32_t begin, int32_t end) {
    const int32_t low = begin_[0];
    const int32_t high = end_[tile_->n_rows - 1];
    if (begin < low) begin = low;
    if (end > high) end = high;
    if (begin >= end) return;
    visit({kv_->k, kv_->v, begin, tile_->bias == nullptr ? nullptr : tile_->bias + begin, nullptr, begin, end - begin});
  }

  void visit_columns() {
    const int32_t low = begin_[0];
    const int32_t high = end_[tile_->n_rows - 1];
    const auto n_columns = static_cast<int32_t>(tile_->column.size());
    for (int32_t at = 0; at < n_columns; at += kTileSlots) {
      int32_t n = 0;
      for (int32_t i = at; i < smaller(at + kTileSlots, n_columns); ++i) {
        const int32_t slot = tile_->column[static_cast<size_t>(i)];
        if (slot < low || slot >= high) continue;
        if (tile_->bias != nullptr) gathered_bias_[n] = tile_->bias[slot];
        slot_[n++] = slot;
      }
      if (n == 0) continue;
      Math::gather(*kv_, slot_, n, gathered_);
      if (at + kTileSlots < n_columns) {
        fetch_.keys.clear();
        fetch_columns(*kv_, tile_->column.subspan(static_cast<size_t>(at) + kTileSlots), fetch_.keys);
        fetch_.keys.spread(n_pieces());
      } else {
        fetch_block(0, -1);
      }
      visit({gathered_.k, gathered_.v, 0, tile_->bias == nullptr ? nullptr : gathered_bias_, slot_, 0, n});
    }
  }

  void visit(const KeyTile& keys) {
    if (n_visits_ == kFetchTiles) fetch_rows();
    --n_visits_;
    for (int32_t p = 0; p < n_panels_; ++p) {
      Panel& panel = panel_[p];
      panel.from = keys.below(panel.begin_low);
      panel.to = keys.below(panel.end_high);
      panel.split =
          panel.n_rows > kLanes ? clamp(keys.below(end_[p * kPanel + kLanes - 1]), panel.from, panel.to) : panel.to;
      if (panel.from >= panel.to) continue;
      float* s = s_ + p * kPanel * kTileSlots;
      Math::scores(q_ + Math::query_bytes(dim_) * static_cast<size_t>(p),
                   {keys.k, keys.row, panel.from, panel.split, panel.to, dim_}, s, fetch_);
      shape(keys, panel, p, s);
    }
    if (!first_ && tile_->skip > kNothing && all_skip(keys)) return;
    first_ = false;
    for (int32_t p = 0; p < n_panels_; ++p) {
      if (panel_[p].from < panel_[p].to) add(keys, p);
    }
    count(keys);
  }

  /// Softcap, bias, mask and the largest logit of each lane.
  void shape(const KeyTile& keys, const Panel& panel, int32_t p, float* s) {
    if (tile_->softcap > 0) {
      for (int32_t i = panel.from * kPanel; i < panel.to * kPanel; i += kLanes) {
        store(s + i, tanh(load(s + i)) * (tile_->softcap * kLog2E));
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
    const float threshold = tile_->skip * kLog2E;
    for (int32_t lane = 0; lane < tile_->n_rows; ++lane) {
      const Panel& panel = panel_[lane / kPanel];
      if (panel.from >= panel.to || tile_max_[lane] == kNothing) continue;
      const float highest = tile_max_[lane] > max_[lane] ? tile_max_[lane] : max_[lane];
      if (!(tile_max_[lane] - highest < threshold)) return false;
    }
    return keys.n > 0;
  }

  /// The softmax of one panel's logits and its product with V.
  void add(const KeyTile& keys, int32_t p) {
    Panel& panel = panel_[p];
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
    Math::values({keys.v, keys.row, panel.from, panel.split, panel.to, dim_}, s,
                 {o_ + p * panel_values(), raised && !panel.fresh ? shrink : nullptr, panel.fresh}, fetch_);
    panel.fresh = false;
  }

  static bool any_differs(Floats a, Floats b) {
    const Ints differs = a != b;
    const Ints zero{};
    return __builtin_memcmp(&differs, &zero, sizeof(zero)) != 0;
  }

  void count(const KeyTile& keys) {
    if (keys.slot_at(0) >= begin_[tile_->n_rows - 1] && keys.slot_at(keys.n - 1) < end_[0]) {
      computed_ += int64_t{keys.n} * tile_->n_rows;
      return;
    }
    int32_t from = 0;  // the limits of the rows ascend
    int32_t to = 0;
    for (int32_t row = 0; row < tile_->n_rows; ++row) {
      while (from < keys.n && keys.slot_at(from) < begin_[row]) ++from;
      while (to < keys.n && keys.slot_at(to) < end_[row]) ++to;
      computed_ += to > from ? to - from : 0;
    }
  }

  void finish() {
    alignas(64) float inverse[kTileRows];
    for (int32_t row = 0; row < n_panels_ * kPanel; ++row) inverse[row] = sum_[row] > 0 ? 1 / sum_[row] : 0;
    for (int32_t p = 0; p < n_panels_; ++p) {
      if (!panel_[p].fresh) continue;  // its rows see nothing
      for (int64_t i = 0; i < panel_values(); i += kLanes) store(o_ + p * panel_values() + i, Floats{});
    }
    for (int32_t lane = 0; lane < tile_->n_rows; lane += kLanes) {
      const float* from = o_ + lane / kPanel * panel_values() + lane % kPanel;
      write_rows(from, load(inverse + lane), lane, smaller(kLanes, tile_->n_rows - lane));
    }
    if (tile_->lse == nullptr) return;
    for (int32_t lane = 0; lane < n_panels_ * kPanel; lane += kLanes) {
      const Floats sum = load(sum_ + lane);
      store(sum_ + lane, select(sum > 0, (load(max_ + lane) + log2_of(sum)) * kLn2, broadcast(kNothing)));
    }
    for (int32_t row = 0; row < tile_->n_rows; ++row) tile_->lse[row * tile_->lse_stride] = sum_[row];
  }

  /// The results of up to kLanes rows, from [dim][kPanel].
  void write_rows(const float* from, Floats factor, int32_t row, int32_t n) {
    for (int32_t d = 0; d < dim_; d += kLanes) {
      Floats block[kLanes];
      WINNOW_UNROLL
      for (int i = 0; i < kLanes; ++i) block[i] = d + i < dim_ ? load(from + (d + i) * kPanel) * factor : Floats{};
      transpose(block);
      float* out = tile_->o + row * tile_->o_stride + d;
      if (n >= kLanes && dim_ - d >= kLanes) {
        WINNOW_UNROLL
        for (int i = 0; i < kLanes; ++i) store(out + i * tile_->o_stride, block[i]);
      } else {
        for (int32_t i = 0; i < n; ++i) store_some(out + i * tile_->o_stride, block[i], dim_ - d);
      }
    }
  }

  const QueryTile* tile_ = nullptr;
  const UnpackedKv* kv_ = nullptr;
  int32_t dim_ = 0;
  int32_t n_panels_ = 0;
  int32_t n_visits_ = 0;  // key tiles that are left
  size_t block_ = 0;      // the block that is being computed, and where in it
  int32_t done_ = -1;
  bool first_ = true;
  int64_t computed_ = 0;
  Fetches fetch_;
  std::byte* q_ = nullptr;  // [panel] Math's form
  float* o_ = nullptr;      // [panel][dim][kPanel]
  float* s_ = nullptr;      // [panel][kTileSlots][kPanel]
  UnpackedKv gathered_;     // columns, as consecutive rows
  Panel panel_[kPanels];
  alignas(64) float max_[kTileRows];
  alignas(64) float sum_[kTileRows];
  alignas(64) float tile_max_[kTileRows];
  alignas(64) int32_t begin_[kTileRows];
  alignas(64) int32_t end_[kTileRows];
  float gathered_bias_[kTileSlots];
  int32_t slot_[kTileSlots];
};

}  // namespace
}  // namespace winnow::cpu
