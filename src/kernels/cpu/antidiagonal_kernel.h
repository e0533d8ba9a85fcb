// What one instruction set offers to estimates by antidiagonals (attention/ops.h, antidiagonal_scores), and to those by
// averaged heads (proxy_scores), whose groups are single rows and slots.
//
// A group is `stride` rows or slots, and one long vector: its keys one behind the other, or its queries in reverse
// order. The sum along an antidiagonal of logits is then one product of two vectors, and row groups lie on the lanes
// as rows do in attention (attend_tile.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "attention/types.h"

namespace winnow::cpu {

/// The keys of one kv head, as groups. `per_block` groups are a block.
struct SlotGroups {
  std::byte* k = nullptr;  // AntidiagonalKernel::key_bytes
  int32_t n_groups = 0;
  int32_t n_block = 0;  // of blocks that any row sees
  int32_t head_dim = 0, stride = 0, per_block = 0;
};

/// Row groups of one query head, as many as lie on the lanes. The first one begins a block of rows where blocks are no
/// longer than the lanes; where they are longer, all lie in one.
struct RowGroups {
  const float* q = nullptr;  // [n_rows, head_dim], rows q_stride floats apart; the last group may lack rows
  int64_t q_stride = 0;
  int64_t n_rows = 0;
  const int32_t* seen = nullptr;  // [ceil(n_rows / stride)] slot groups that each sees, ascending
  float scale = 1;                // of a mean logit
  float softcap = 0;
  float* scores = nullptr;  // [blocks of rows, n_block]; see BlockScore
};

/// What becomes of the probabilities between the groups of a block of rows and those of a block of slots: their sum,
/// added to the score, or the logarithm of the largest one, if that is more than the score.
enum class BlockScore { sum, log_of_largest };

inline constexpr int32_t kMostPanels = 4;  // row groups of so many heads or places that take turns over the same keys

struct AntidiagonalKernel {
  int32_t lanes;
  /// Whether it can take groups of this shape.
  bool (*fits)(const SlotGroups& groups);
  size_t (*key_bytes)(const SlotGroups& groups);
  /// Unpacks the first n_slots keys of cache block `block` into their groups; of what the last group lacks it makes
  /// zeros. Blocks may be packed side by side where a group does not lie in two.
  void (*pack_keys)(const std::byte* from, Type type, int32_t block, int32_t n_slots, const SlotGroups& to);
  /// How many panels should take turns, and what the scratch of a call is.
  int32_t (*n_panels)(const SlotGroups& groups);
  size_t (*scratch_bytes)(const SlotGroups& groups);
  using Score = void (*)(std::span<const RowGroups> panels, const SlotGroups& keys, std::byte* scratch);
  Score sums, largest;
  Score score(BlockScore what) const { return what == BlockScore::sum ? sums : largest; }
};

}  // namespace winnow::cpu
