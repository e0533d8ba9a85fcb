// The largest product of any of some rows with each of some keys, on the products of attend_tile.h, for the instruction
// set that the including file is compiled for.
#pragma once

#include "kernels/cpu/attend_tile.h"

namespace winnow::cpu {
namespace {

template <typename Math>
struct BestProducts {
  static constexpr int32_t kSpareKeys = 32;  // that a product may write behind the last one

  static size_t packed_bytes(int32_t dim) { return Math::query_bytes(dim) * kPanels; }

  static void pack_rows(const float* q, int64_t stride, int32_t n_rows, int32_t dim, std::byte* to) {
    for (int32_t first = 0; first < n_rows; first += kPanel, to += Math::query_bytes(dim)) {
      Math::pack_query(q + first * stride, stride, smaller(kPanel, n_rows - first), dim, 1, to);
    }
  }

  static size_t scratch_bytes(int32_t dim) {
    return sizeof(float) * kPanel * (kTileSlots + kSpareKeys) + Math::kv_bytes(kTileSlots, dim);
  }

  static void find(const std::byte* packed, int32_t n_rows, const KeyChoice& keys, float* best, std::byte* scratch) {
    [[maybe_unused]] const typename Math::Session session;
    const int32_t dim = keys.kv->head_dim;
    const auto bytes = static_cast<size_t>(slot_bytes<Math>(dim));
    auto* products = reinterpret_cast<float*>(scratch);
    std::byte* rows = scratch + sizeof(float) * kPanel * (kTileSlots + kSpareKeys);
    const auto n_keys = static_cast<int32_t>(keys.slot.size());
    const int32_t n_pieces = (n_rows + kPanel - 1) / kPanel * (kTileSlots / Math::kStep);
    Fetches fetch;
    for (int32_t begin = 0; begin < n_keys; begin += kTileSlots) {
      const int32_t n = smaller(kTileSlots, n_keys - begin);
      gather(*keys.kv, keys.slot.data() + begin, n, bytes, rows);
      fetch.keys.clear();
      if (const int32_t next = begin + kTileSlots; next < n_keys) {
        const auto stride = static_cast<int64_t>(bytes);
        fetch.keys.add({keys.kv->k, stride, stride, smaller(kTileSlots, n_keys - next), keys.slot.data() + next});
        fetch.keys.spread(n_pieces);
      }
      for (int32_t i = 0; i < n; ++i) best[begin + i] = kNothing;
      const std::byte* panel = packed;
      for (int32_t first = 0; first < n_rows; first += kPanel, panel += Math::query_bytes(dim)) {
        Math::scores(panel, {rows, 0, 0, n, n, dim}, products, fetch);
        raise(products, n, n_rows - first, best + begin);
      }
    }
  }

  /// The keys of n slots one behind the other; neighbours are copied together.
  static void gather(const UnpackedKv& kv, const int32_t* slot, int32_t n, size_t bytes, std::byte* to) {
    for (int32_t i = 0, next = 0; i < n; i = next) {
      for (next = i + 1; next < n && slot[next] == slot[next - 1] + 1;) ++next;
      const size_t run = static_cast<size_t>(next - i) * bytes;
      __builtin_memcpy(to, kv.k + static_cast<size_t>(slot[i]) * bytes, run);
      to += run;
    }
  }

  /// best[i] = max(best[i], products[i][lanes that are rows]). Products behind the last key may be anything.
  static void raise(const float* products, int32_t n, int32_t n_lanes, float* best) {
    alignas(64) int32_t lane[kPanel];
    for (int32_t i = 0; i < kPanel; ++i) lane[i] = i;
    const Ints is_row[2] = {load(lane) < n_lanes, load(lane + kLanes) < n_lanes};
    for (int32_t begin = 0; begin < n; begin += kLanes, products += kLanes * kPanel) {
      Floats most[kLanes];
      WINNOW_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        most[i] = max(select(is_row[0], load(products + i * kPanel), broadcast(kNothing)),
                      select(is_row[1], load(products + i * kPanel + kLanes), broadcast(kNothing)));
      }
      const Floats before = load_some(best + begin, n - begin);
      store_some(best + begin, max(before, max_across(most)), n - begin);
    }
  }
};

}  // namespace
}  // namespace winnow::cpu
