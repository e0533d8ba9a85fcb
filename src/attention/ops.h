// The verbs that methods are written in. Plain data in, plain data out; every device implements all of them, and
// src/kernels/ref is the oracle. Scores are float32. A verb that takes a KvView dequantises what it reads.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "attention/low_bit.h"
#include "attention/types.h"

namespace winnow {

/// Probabilities of some probe rows over all slots, per query head.
struct ProbeArgs {
  HeadsView q;  // [n_probe, n_head, head_dim] the probe rows only
  KvView kv;
  const int32_t* limit = nullptr;  // [n_probe]
  float scale = 1;
  float softcap = 0;
  int32_t window = 0;
};

/// How many vertical and slash lines one head computes; see attention/lines.h.
struct LineBudget {
  int32_t n_vertical = 0, n_slash = 0;               // columns and distances, the forced ones among them
  int32_t forced_verticals = 0, forced_slashes = 0;  // first columns and shortest distances that are taken in any case
};

/// Rows and slots of a block that diagonals are cut into.
inline constexpr int32_t kLineBlock = 64;

struct LineArgs {
  ProbeArgs probe;                     // the rows whose attention shows which lines weigh most
  std::span<const int32_t> limit;      // [n_rows] of the rows that lists are made for
  std::span<const LineBudget> budget;  // [n_head]
};

/// Blocks whose attention is estimated by antidiagonals.
struct AntidiagonalArgs {
  ProbeArgs rows;      // all rows of the query blocks; their window is not looked at
  int32_t stride = 0;  // rows and slots of a tile that one antidiagonal stands for
  int32_t block = 0;   // rows and slots of a block; a multiple of stride
};

/// Key blocks that cover a share of attention's mass, as much as each head needs; see attention/cover.h.
struct CoverArgs {
  ProbeArgs probe;                 // the last rows of q, at most `block` of them
  HeadsView q;                     // [n_rows, n_head, head_dim] the rows that lists are made for
  std::span<const int32_t> limit;  // [n_rows]
  int32_t block = 128;             // rows and slots of a block: 64 or 128
  double share = 0.9;              // of the mass that is covered; above 1: all of it
  double distance = 0.1;           // of pooled from exact attention below which a head takes the pooled map's blocks
  int32_t least = 0, most = 0;     // blocks of a kind: key blocks, and distances
};

/// Rows of queries and slots of keys as they were before RoPE turned them.
struct UnturnedArgs {
  HeadsView q;                     // [n_rows, n_head, head_dim]
  std::span<const int32_t> limit;  // [n_rows] positions of the rows
  KvView kv;
  RopeArgs rope;
  int32_t block = 64;  // rows and slots of a block, the last one by its true length; of keys a power of two
};

class Ops {
 public:
  virtual ~Ops() = default;

  /// The attention call and the exact sum of two disjoint ones: into = merge(into, from), by their log-sum-exp, where
  /// `gain` scales from's mass (calibration; 1 is the plain union). into.o and into.lse are rewritten.
  virtual void attend(const AttnArgs& args) = 0;
  virtual void merge(HeadsView into, float* into_lse, const Partial& from, float gain) = 0;

  /// score_window: softmax probabilities of the probe rows. -> [n_probe, n_slots(head's kv head)] for query head
  /// `head`; forbidden slots get 0.
  virtual void score_window(const ProbeArgs& args, int32_t head, std::vector<float>& probabilities) = 0;

  /// pool_blocks: mean query of each block of `block` rows of one head, the last block by its true length.
  /// -> [ceil(n_rows / block), head_dim]
  virtual void pool_queries(const HeadsView& q, int32_t head, int32_t block, std::vector<float>& pooled) = 0;
  /// pool_blocks: the same of one kv head's keys over slots. -> [ceil(n_slots / block), head_dim]
  virtual void pool_keys(const KvView& kv, int32_t kv_head, int32_t block, std::vector<float>& pooled) = 0;
  /// score_blocks: scale * a b^T of pooled rows. a [n_a, dim], b [n_b, dim] -> [n_a, n_b]
  virtual void score_blocks(const std::vector<float>& a, const std::vector<float>& b, int32_t dim, float scale,
                            std::vector<float>& scores) = 0;

  /// gather: keys of some slots of one kv head, in any order. -> [slots.size(), head_dim]. The default pools blocks of
  /// one slot, which reads the whole cache block around each.
  virtual void gather_keys(const KvView& kv, int32_t kv_head, std::span<const int32_t> slots, std::vector<float>& keys);

  /// pool_unturned: the mean query before RoPE of each block of rows of one head. -> [ceil(n_rows / block), head_dim].
  /// The default turns back what pool_queries and pool_keys give for blocks of one, in pieces.
  virtual void pool_unturned_queries(const UnturnedArgs& args, int32_t head, std::vector<float>& pooled);
  /// pool_unturned: of each block of slots of one kv head, the greatest, the least and the mean key before RoPE, value
  /// by value. -> [ceil(n_slots / block), 3, head_dim]
  virtual void pool_unturned_keys(const UnturnedArgs& args, int32_t kv_head, std::vector<float>& pooled);

  /// antidiagonal_scores: attention that blocks of rows give to blocks of slots, by the estimate of XAttention (arXiv
  /// 2503.16428, section 2). Rows (from row 0) and slots are cut into groups of `stride`. The logit of a row group and
  /// a slot group is the mean of the logits on the antidiagonal of their tile (row i with slot stride - 1 - i), what is
  /// missing of the last groups counting as 0; softmax runs over the slot groups that begin where the row group's last
  /// row sees; a block's score is the sum of its probabilities. Biases of slots are not looked at.
  /// -> [ceil(n_rows / block), ceil(n_seen / block)] of query head `head`, where the last row sees n_seen slots; a row
  /// of blocks sums to its number of row groups. The default multiplies with score_blocks, about 1 / stride of the work
  /// of q k^T, and holds one head's keys in float32.
  virtual void antidiagonal_scores(const AntidiagonalArgs& args, int32_t head, std::vector<float>& scores);

  /// Lists of vertical and slash lines for all heads: line_mass, choose_lines and push_lines of attention/lines.h,
  /// which this runs head by head; a device may do the same in its own way. Blocks are of kLineBlock rows and slots.
  virtual Selection select_lines(const LineArgs& args);

  /// An estimator of every logit, at a fraction of the cost of computing them. A device that has no kernels for it
  /// inherits the host's.
  virtual std::unique_ptr<LowBitScores> low_bit_scores(const LowBitArgs& args);

  /// Lists of covering blocks for all heads: cover_blocks of attention/cover.h, which this runs head by head. Blocks
  /// begin at multiples of args.block; rows and slots come in blocks of that size.
  virtual Selection select_cover(const CoverArgs& args);

  /// The selection with its lists in vectors, for those who look at them.
  virtual Selection on_host(const Selection& selection) { return selection; }
  /// The selection with its lists where the device reads them fastest, for those who use it many times.
  virtual Selection on_device(const Selection& selection) { return selection; }

  /// Calls work(item, thread) for all items, spread over the device's host threads: heads are scored side by side.
  /// Verbs may be called from inside.
  virtual void for_each(int64_t n_items, const std::function<void(int64_t item, int thread)>& work) = 0;
};

/// top_k: indices of the k largest scores, ascending by index; the lower index wins a tie. k is clamped to the size.
std::vector<int32_t> top_k(std::span<const float> scores, int64_t k);
/// top_p: how many of the largest scores are needed until their sum exceeds `mass` (absolute, not a share): one more
/// than the number of leading cumulative sums that are <= mass, at most the size.
int64_t top_p_count(std::span<const float> scores, double mass);
/// avg_pool: centred mean over `width` neighbours (odd), border values divided by `width` all the same (zero padding).
void avg_pool(std::span<float> scores, int32_t width);
/// max_pool: the same with the maximum.
void max_pool(std::span<float> scores, int32_t width);

}  // namespace winnow
