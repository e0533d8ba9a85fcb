// A stack of query tiles over one kv head: they take turns over a span of keys, which the cache near the core then
// holds for all of them, so that K and V come from memory once a stack. The order in which one tile sees its keys, and
// with it every result, is the same as alone.
#pragma once

#include "kernels/cpu/attend_tile.h"

namespace winnow::cpu {
namespace {

constexpr int64_t kSpanBytes = 128 << 10;  // of K and V, over which the tiles of a stack take turns
constexpr int64_t kNearBytes = 4 << 20;    // of K and V: more of them are far enough to be fetched a span ahead

template <typename Math>
int64_t attend_tiles(std::span<const QueryTile> tiles, const UnpackedKv& kv, std::byte* scratch) {
  [[maybe_unused]] const typename Math::Session session;
  TileRun<Math> run[kMostTiles];
  std::byte* kept = scratch + TileRun<Math>::shared_bytes(kv.head_dim);
  for (size_t i = 0; i < tiles.size(); ++i) {
    run[i].begin(tiles[i], kv, kept + i * TileRun<Math>::kept_bytes(kv.head_dim), scratch);
  }
  const int64_t bytes = 2 * slot_bytes<Math>(kv.head_dim);
  const auto span = static_cast<int32_t>(kSpanBytes / bytes);
  const auto n_tiles = static_cast<int32_t>(tiles.size());
  Turn turn{.until = span, .ahead = kv.n_slots * bytes > kNearBytes ? span : 0, .part = 0, .n_parts = n_tiles};
  for (bool more = true; more; turn.until += span) {
    more = false;
    for (turn.part = 0; turn.part < n_tiles; ++turn.part) more = run[turn.part].advance(turn) || more;
  }
  int64_t computed = 0;
  for (size_t i = 0; i < tiles.size(); ++i) computed += run[i].end();
  return computed;
}

template <typename Math>
size_t attend_bytes(int32_t dim, int32_t n_tiles) {
  return TileRun<Math>::shared_bytes(dim) + static_cast<size_t>(n_tiles) * TileRun<Math>::kept_bytes(dim);
}

}  // namespace
}  // namespace winnow::cpu
