// The verbs that methods are written in. Plain data in, plain data out; every device implements all of them, and
// src/kernels/ref is the oracle. Scores are float32. A verb that takes a KvView dequantises what it reads.
#pragma once

#include <array>
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

/// Blocks whose attention is estimated by averaged heads (ProxyAttn, arXiv 2509.24745).
struct ProxyArgs {
  HeadsView q;  // [n_rows, n_head, head_dim]
  KvView kv;
  std::span<const int32_t> limit;  // [n_rows]
  float scale = 1;
  int32_t n_group = 1;  // of kv heads that follow each other, with their query heads; those of a group hold equal slots
  int32_t stride = 1;   // every stride-th row, from row 0 on, and slot, from slot 0 on, takes part
  int32_t block = 0;    // rows and slots of a block; a multiple of stride
};

/// Blocks in the order of averaged heads' scores, as many for each head as its own attention needs.
struct RankedArgs {
  ProxyArgs scores;       // whose blocks are ranked; rows and slots come in blocks of scores.block
  ProbeArgs probe;        // the last rows, at most scores.block of them
  double share = 1;       // of a head's mass that its blocks of the last row of blocks hold
  int64_t least = 0;      // blocks of a row of blocks, where there are so many
  bool same_all = false;  // rows of blocks get the last one's number; else their share of it
};

/// Budgets that blocks of a core have: the shares of them that keep 1, 2, 4, ... kCoreBlock slots; their sum is 1.
inline constexpr int32_t kCoreBlock = 64;
using CoreShares = std::array<double, 7>;

/// Slots of which every block keeps as many as its concentration leaves it (TCA-Attention, arXiv 2512.09238); see
/// attention/core.h.
struct CoreArgs {
  ProbeArgs votes;                     // the rows whose attention is the vote
  std::span<const int32_t> begin;      // [n_head_kv] slots before these are kept, whole blocks from there on vote
  std::span<const CoreShares> shares;  // [n_head_kv]
  int32_t sinks = 0;                   // first slots that are kept in any case
  std::span<const int32_t> near;       // [n_head_kv] slots from which on all are seen, for the estimate of mass
};

/// Slots that hold a share of attention's mass (ZipVL, arXiv 2410.08584); see attention/important.h.
struct ImportantArgs {
  std::span<const ProbeArgs> probes;  // of one cache
  double share = 1;                   // of the mass that the probes' rows spend
  int32_t first = 0;                  // slots that are important in any case
  bool together = false;              // one set for all kv heads, which hold the same slots; else one for each
};

/// Rows that see a set of slots, and everything from some way before themselves on.
struct SetArgs {
  KvView kv;
  std::span<const int32_t> limit;   // [n_rows], in blocks of kSetRows
  int32_t n_head = 0;               // of queries
  const Selection* sets = nullptr;  // not that of everything
  int32_t window = 1;               // last slots that the first row of a block sees, itself included,
  int32_t unit = 1;                 // from a multiple of so many slots on
  // Or only rows whose own slot is in a set attend, at least one, and the last n_wanted. They see what lies of their
  // set before their block's last row, and the block's own slots.
  bool only_rows_of_sets = false;
  int64_t n_wanted = 0;
};
inline constexpr int32_t kSetRows = 128;
inline constexpr int32_t kSetBlock = 64;  // slots

/// Rows of a block that searches, and slots of a block of its window.
inline constexpr int32_t kTreeBlock = 64;

/// Keys that a tree search finds; see attention/tree.h.
struct TreeArgs {
  HeadsView q;  // [n_rows, n_head, head_dim]
  KvView kv;
  std::span<const int32_t> limit;  // [n_rows]
  float scale = 1;
  int32_t n_keys = 0;        // that a block of rows finds
  int32_t key_block = 1;     // neighbouring keys that are found together; at most n_keys
  int32_t query_stride = 1;  // every how many-th row of a block is scored,
  int32_t key_stride = 1;    // and every how many-th key of a key block
  int32_t window = 1;        // last tokens that a row sees, itself included
  int32_t sinks = 0;         // first tokens that every row sees
  int32_t n_later =
      0;  // slots behind the last row's that windows reach: of rows that come later and use the lists, too
};

/// Slots of a key block in lists of chunks.
inline constexpr int32_t kChunkBlock = 64;

/// A budget of slots for each block of rows (DHSA, arXiv 2510.24606).
struct ChunkArgs {
  HeadsView q;  // [n_rows, n_head, head_dim]
  KvView kv;
  std::span<const int32_t> limit;  // [n_rows]
  int32_t budget = 0;              // slots of a block of rows; at least sinks + recent
  int32_t block = 128;             // rows of a block: 64 or 128
  int32_t chunk = 64;              // slots that are chosen together, where `bounds` is empty
  int32_t sinks = 0, recent = 0;   // first and last slots that every block sees; its own rows are among the last
  bool together = false;           // one list for all heads, by the means over heads; all hold the same slots then
  // Where chunks of any length begin, and the end, for all kv heads; these have the same slots then.
  std::span<const int32_t> bounds{};
};

/// Key blocks of kBlockSlots slots that hold a logit which matters to a block of as many rows; see
/// attention/outstanding.h.
struct OutstandingArgs {
  HeadsView q;  // [n_rows, n_head, head_dim]
  KvView kv;
  std::span<const int32_t> limit;  // [n_rows]
  float scale = 1, softcap = 0;
  int32_t sink_blocks = 0, local_blocks = 0;  // first key blocks, and those before the rows' own, taken in any case
  int32_t step = 1;                           // of the rows that vote; divides kBlockSlots
  std::span<const double> tau;                // [n_head] in [0, 1]
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

/// Key blocks that a trained gate finds worth it (SeerAttention, arXiv 2410.13276).
struct GateArgs {
  UnturnedArgs rows;            // rows and slots come in blocks of rows.block
  std::span<const float> gate;  // [n_head, head_dim, 3 * head_dim] from a block's greatest, least and mean key
  double threshold = 0;         // share of a row of blocks above which a block is computed,
  double ratio = 1;             // or below 1: the share of all blocks that is; see attention/gates.h
  bool last_dense = false;      // the last two blocks of rows see everything
};

/// What Ops::window_mass answers, of rows whose attention is under way.
class PendingMass {
 public:
  virtual ~PendingMass() = default;
  /// Waits for it, not for what the device was given since. Once.
  virtual void get(std::vector<std::vector<float>>& mass) = 0;
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

  /// window_mass: the same, summed over the probe rows, for all query heads. -> [n_head] of [n_slots(head's kv head)].
  /// The default asks score_window head by head.
  virtual void window_mass(const ProbeArgs& args, std::vector<std::vector<float>>& mass);
  /// Begins the same on a device that works beside the host, which may give it other work before it asks for the
  /// answer. Null: there is no "meanwhile"; window_mass is to be asked.
  virtual std::unique_ptr<PendingMass> begin_window_mass(const ProbeArgs& /*args*/) { return nullptr; }

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
  /// -> [n_head] of [ceil(n_rows / block), ceil(n_seen / block)], where the last row sees n_seen slots; a row of blocks
  /// sums to its number of row groups. The default multiplies with score_blocks, about 1 / stride of the work of
  /// q k^T, and holds the keys of a head for each thread in float32.
  virtual void antidiagonal_scores(const AntidiagonalArgs& args, std::vector<std::vector<float>>& scores);

  /// Lists of the blocks that antidiagonal_scores weighs heaviest, for all heads: of each block of rows the first block
  /// and those of the rows themselves, and of the others the heaviest until all together hold `share` of what it
  /// spends; the lower block wins a tie.
  virtual Selection select_antidiagonals(const AntidiagonalArgs& args, double share);

  /// Lists of vertical and slash lines for all heads: line_mass, choose_lines and push_lines of attention/lines.h,
  /// which this runs head by head; a device may do the same in its own way. Blocks are of kLineBlock rows and slots.
  virtual Selection select_lines(const LineArgs& args);

  /// An estimator of every logit, at a fraction of the cost of computing them. A device that has no kernels for it
  /// inherits the host's.
  virtual std::unique_ptr<LowBitScores> low_bit_scores(const LowBitArgs& args);

  /// proxy_scores: queries and keys of a group are averaged; a block's score is the logarithm of the largest softmax
  /// probability between a sampled row and a sampled slot of it; -infinity where no row sees one.
  /// -> [n_group] of [ceil(n_rows / block), ceil(n_seen / block)], where the last row sees n_seen slots
  virtual void proxy_scores(const ProxyArgs& args, std::vector<std::vector<float>>& scores);

  /// Lists of budgets of slots, for all heads: the last slots first, then chunks by the product of a block's mean query
  /// and the chunk's mean key times the root of its length, the lower of equal ones; of the last chunk as many slots as
  /// are left. The first slots take the places of the lowest ones. Runs of slots are blocks of 64, from any slot on,
  /// and columns.
  virtual Selection select_chunks(const ChunkArgs& args);

  /// Lists of sinks and found keys, as columns, and of windows, as blocks from any slot on, for all heads. Blocks are
  /// of kTreeBlock rows and slots; a window is that of a block's first row.
  virtual Selection select_tree(const TreeArgs& args);

  /// Lists of outstanding blocks for all heads. Every step-th row of a block votes, its last one among them. Where m
  /// and l are maximum and denominator of a voter's softmax over sink and local slots alone, it wants each other block
  /// that has a slot with exp(logit - m) / l > tau; a block of rows takes what any voter wants. Logits are estimates in
  /// at least eight bits: the default's are low_bit_scores. A head whose tau is below kNoTau takes everything.
  virtual Selection select_outstanding(const OutstandingArgs& args);

  /// Lists of covering blocks for all heads: cover_blocks of attention/cover.h, which this runs head by head. Blocks
  /// begin at multiples of args.block; rows and slots come in blocks of that size.
  virtual Selection select_cover(const CoverArgs& args);

  /// Lists of ranked blocks for all heads. A head needs k of the N blocks that the last row of blocks sees: one more
  /// than the heaviest ones whose share of the probe's mass does not exceed args.share. Row m of blocks takes ceil(k
  /// seen / N) of those that it sees, or k, and args.least: the first block, those of its own rows, and the best scores
  /// among the others, of equal ones the lower block.
  virtual Selection select_ranked(const RankedArgs& args);

  /// Lists of blocks by the softmax of a gate's products, for all heads. A block's key is what the gate makes of its
  /// pooled keys, its query the mean one, both of before RoPE and turned by the position of the block's first token. Of
  /// the blocks that a block of rows sees those are taken whose probability is above the threshold, or the n best, the
  /// lower of equal ones; and its own. The estimated mass is the share of the probabilities.
  virtual Selection select_gated(const GateArgs& args);

  /// Sets of slots, for each kv head or for all of them: the columns of a selection of one query block. Where no slot
  /// is left out, the selection of everything. Estimated mass is that of the votes or probes.
  virtual Selection choose_core(const CoreArgs& args);
  virtual Selection choose_important(const ImportantArgs& args);
  /// Lists for such sets: slots of the set before the rows' window, as blocks where kSetBlock of them follow one
  /// another, the others as columns that all lists share; and blocks from there to the rows' own slots. Of rows of the
  /// sets alone: the set's slots, and columns that a list has for itself where it holds rows that are not in its set.
  virtual Selection select_sets(const SetArgs& args);

  /// The selection with its lists in vectors, for those who look at them.
  virtual Selection on_host(const Selection& selection) { return selection; }
  /// The selection with its lists where the device reads them fastest, for those who use it many times.
  virtual Selection on_device(const Selection& selection) { return selection; }

  /// Calls work(item, thread) for all items, spread over the device's host threads: heads are scored side by side.
  /// Verbs of one head may be called from inside; those of all heads spread them themselves.
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
