// The plain data of one attention call: views of queries and cache, what a row may see, what is computed.
// Nothing here owns device memory except Selection.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/types.h"

namespace winnow {

/// Slots of one cache block. A block holds K and V of this many consecutive slots of one kv head.
inline constexpr int32_t kBlockSlots = 64;

/// The address `n` values of `type` behind `data`: only devices whose activations are not float32 tell the two apart.
inline float* advance(float* data, int64_t n, Type type) {
  if (type == Type::f32) return data + n;
  return reinterpret_cast<float*>(reinterpret_cast<uint16_t*>(data) + n);
}

/// Rows of several heads. A row's heads are contiguous; rows lie `stride` values apart.
struct HeadsView {  // [n_rows, n_head, head_dim]
  float* data = nullptr;
  int64_t n_rows = 0;
  int32_t n_head = 0;
  int32_t head_dim = 0;
  int64_t stride = 0;     // values from one row to the next, at least n_head * head_dim
  Type type = Type::f32;  // or bf16, where the device's activations are: `data` then points at these

  /// One head of one row; float32 only.
  float* at(int64_t row, int32_t head) const { return data + row * stride + static_cast<int64_t>(head) * head_dim; }
  HeadsView rows(int64_t begin, int64_t n) const {
    return {advance(data, begin * stride, type), n, n_head, head_dim, stride, type};
  }
};

/// How positions turn the heads of queries and keys.
struct RopeArgs {
  int32_t head_dim = 0;
  int32_t n_rot = 0;                 // leading values of a head that turn; the rest stay
  bool neox = true;                  // pairs (i, i + n_rot/2); else neighbours (2i, 2i+1)
  float magnitude = 1;               // YaRN's attention factor, on both sine and cosine
  const float* frequency = nullptr;  // [n_rot / 2] angle per position, scalings applied; host memory
};

/// One kv head of one layer: its own number of slots, in blocks that may be shared with other sequences.
struct KvHead {
  std::span<const std::byte* const> k;  // blocks of [kBlockSlots, head_dim] in KvView::k_type, keys after RoPE
  std::span<const std::byte* const> v;  // the same of values
  int32_t n_slots = 0;
  const int32_t* idx = nullptr;  // [n_slots] ascending causal position of each slot; null: slot j stands at j
  const float* bias = nullptr;   // [n_slots] added to the logit (log of a merged slot's weight); null: 0

  int32_t position(int32_t slot) const { return idx == nullptr ? slot : idx[slot]; }
};

struct KvView {
  Type k_type = Type::f16, v_type = Type::f16;  // f32, f16, bf16, q8_0 or fp8
  int32_t head_dim = 0;
  std::span<const KvHead> heads;
};

/// Lists of a Selection in the memory of a device, which alone knows what they are.
class DeviceLists {
 public:
  virtual ~DeviceLists() = default;
};

/// Which keys each (head, query block) computes, in compressed sparse rows. A default-made one selects everything.
///
/// Query block b of head h is row r = h * n_block_q + b of the lists: key blocks
/// block_begin[block_ptr[r]..block_ptr[r+1]) and single slots column[column_ptr[r]..column_ptr[r+1]). A key block is
/// the interval of `block_k` slots that begins at its entry: a multiple of block_k for most methods, any slot for those
/// that follow diagonals. Entries ascend, and intervals and columns of one row are disjoint. Causal and window limits
/// hold on top; parts beyond them, and beyond the last slot, are ignored. Slots are those of the kv head.
///
/// Lists may share columns: where every query block sees as much of one ascending list as lies before it, that list is
/// written once, and `column_end` says where each row of the lists ends in it.
///
/// Where `rows` names some rows, only these attend, and query blocks are blocks of them: block b covers
/// rows[b * block_q, (b + 1) * block_q). All other rows get o = 0. The caller of Ops::attend gathers them (the engine's
/// attend_layer): an attention call's rows are those of the lists, one by one, and kernels do not look at `rows`.
struct Selection {
  int32_t block_q = 64;   // rows of a query block: 64 or 128
  int32_t block_k = 64;   // slots of a key block: 64 or 128
  int32_t n_head = 0;     // query heads with lists of their own: all of them, or 1 where all share them; see `group`
  int32_t n_block_q = 0;  // query blocks; block b covers rows [b * block_q, (b + 1) * block_q) of those that attend
  std::vector<int32_t> block_ptr, block_begin, column_ptr, column;  // ptr: [n_head * n_block_q + 1]
  // [n_head * n_block_q] in place of column_ptr[r + 1], which then says no more than where the next row begins; empty
  // where rows follow one another.
  std::vector<int32_t> column_end{};
  int32_t group = 1;  // neighbouring query heads of one kv head that share lists: the n_head-th part of all heads
  // Where a device made the lists and keeps them: the vectors are then empty, and Ops::on_host fills them.
  std::shared_ptr<const DeviceLists> on_device{};
  std::vector<int32_t> rows{};  // ascending, of the prompt's rows; empty: all. Only beside lists
  // Of the rows that attend, those from here on see everything, whatever the lists say: a multiple of block_q, which
  // need not have lists behind it. Like `rows` it is the caller of Ops::attend who heeds it.
  int64_t full_from = std::numeric_limits<int64_t>::max();
  // The share of attention's mass that these keys hold by the estimate that chose them, as a mean over heads and the
  // rows that were looked at; none where the choice was not made by mass, or where a device made it and did not tell.
  std::optional<double> estimated_mass{};

  bool everything() const { return n_block_q == 0; }
  /// Whether the rows of a query block see everything though others do not.
  bool full(int32_t block) const { return int64_t{block} * block_q >= full_from; }
  /// The key blocks and the single slots of row `list` of the lists; see `list`. Not of lists that a device keeps.
  std::span<const int32_t> blocks(int64_t list) const {
    const int32_t* ptr = block_ptr.data() + list;
    return {block_begin.data() + ptr[0], block_begin.data() + ptr[1]};
  }
  std::span<const int32_t> columns(int64_t list) const {
    const int32_t end =
        column_end.empty() ? column_ptr[static_cast<size_t>(list + 1)] : column_end[static_cast<size_t>(list)];
    return {column.data() + column_ptr[static_cast<size_t>(list)], column.data() + end};
  }
  int64_t list(int32_t head, int32_t block) const {
    return static_cast<int64_t>(n_head == 1 ? 0 : head / group) * n_block_q + block;
  }
  /// The query block of a row of the prompt; -1 where the row does not attend.
  int32_t block_of(int64_t row) const {
    if (!rows.empty()) {
      const auto at = std::lower_bound(rows.begin(), rows.end(), row);
      if (at == rows.end() || *at != row) return -1;
      row = at - rows.begin();
    }
    return static_cast<int32_t>(row / block_q);
  }
};

/// What was computed of what was permitted, in (row, slot, head) triples: density = computed / permitted.
struct AttnCounts {
  int64_t permitted = 0;  // inside the causal and window limits, of rows that do not attend, too
  int64_t computed = 0;   // of these, read with their values; a tile that skip-softmax dropped does not count
  double density() const {
    return permitted == 0 ? 1.0 : static_cast<double>(computed) / static_cast<double>(permitted);
  }
};

/// Tiles that skip-softmax votes on, the same for every kernel: kVoteRows rows of one query head, counted from q's row
/// 0, by kVoteSlots keys. Keys come in this order: the row's columns in groups of kVoteSlots list entries, then each
/// block in pieces of kVoteSlots slots from its begin on; without a selection all slots in such pieces. Tiles in which
/// no row sees anything are passed over; the first of the others is always kept, and a later one is dropped if every
/// row either sees nothing in it or has (its largest logit there) - (its running maximum) < ln(lambda). A single row
/// (decode) votes together with the other query heads of its kv head, if their lists are equal.
inline constexpr int32_t kVoteRows = 64;
inline constexpr int32_t kVoteSlots = 64;

/// One attention call over one sequence: o = softmax(logit) v, per head, over what `selection` leaves, where
/// logit = softcap(scale * q k^T) + bias.
/// Row r sees slot j iff position(j) <= limit[r], and, where window > 0, limit[r] - position(j) < window.
/// A row that sees nothing gets o = 0 and lse = -infinity.
struct AttnArgs {
  HeadsView q{};  // after RoPE; n_head is a multiple of kv.heads.size()
  KvView kv{};
  const int32_t* limit = nullptr;        // [n_rows], ascending
  const Selection* selection = nullptr;  // null: everything
  int64_t first_row = 0;                 // q's row 0 is this row of the lists; a multiple of their block_q
  float scale = 1;
  float softcap = 0;             // > 0: softcap * tanh(logit / softcap), before the bias
  int32_t window = 0;            // > 0: sliding window, the row itself included
  const float* skip = nullptr;   // [n_head] ln(lambda) < 0 of skip-softmax (BLASST); null or -infinity: off
  HeadsView o{};                 // may be q itself
  float* lse = nullptr;          // [n_rows, n_head] natural log of the softmax's denominator; null: not wanted
  AttnCounts* counts = nullptr;  // added to; null: not wanted
};

/// One partial result of rows that attended to some of their slots.
struct Partial {
  HeadsView o;                 // [n_rows, n_head, head_dim]
  const float* lse = nullptr;  // [n_rows, n_head]
};

}  // namespace winnow
