// Logits estimated in eight bits: keys and queries as whole numbers with a scale for each 32 of them, multiplied in
// integers (SALE, arXiv 2505.24179, section 3.1, with eight bits where the paper's GPU multiplies four).
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "attention/types.h"

namespace winnow {

class Ops;

struct LowBitArgs {
  HeadsView q;  // [n_rows, n_head, head_dim] all rows of the site: their mean is taken out before they are rounded
  KvView kv;
  float scale = 1;
  float softcap = 0;
};

/// Slots [begin, end) of a kv head; results are one for each `block` of them: 1, or kBlockSlots for the largest.
struct LowBitSlots {
  int32_t begin = 0, end = 0, block = 1;
};

/// Estimated logits of one site. Lives as long as the cache and the queries that it was made of stay as they are.
class LowBitScores {
 public:
  virtual ~LowBitScores() = default;
  /// logits of `rows`, a view of some of the site's rows, for query head `head`; the largest of each block of slots
  /// counted from `begin` where block is kBlockSlots. Causal limits are the caller's. Where the cache was copied, its
  /// mean key was taken out: logits of one row are all off by the same amount. May be called from several threads.
  /// -> [n_rows, ceil((end - begin) / block)]
  virtual void score(const HeadsView& rows, int32_t head, const LowBitSlots& slots,
                     std::vector<float>& logits) const = 0;
};

/// Up to kBlockSlots keys as rows of q8_0 and some queries as the kernel packs them.
struct LowBitTile {
  const std::byte* const* row = nullptr;  // [kBlockSlots] rows of q8_0
  int32_t dim = 0;
  const std::byte* q = nullptr;  // n_q queries, query_bytes(dim) apart
  int32_t n_q = 0;
  const float* bias = nullptr;  // [kBlockSlots] added to the logits of each key
  float* logits = nullptr;      // [n_q, kBlockSlots] or null
  float* largest = nullptr;     // [n_q] largest logit of each query, or null
};

/// What an instruction set offers to this: see kernels/cpu/low_bit.h.
struct LowBitKernel {
  int32_t dim_step;  // dim must be a multiple of this, itself a multiple of 32
  size_t (*query_bytes)(int32_t dim);
  /// Rounds q [dim] to eight bits with one scale.
  void (*pack_query)(const float* q, int32_t dim, std::byte* to);
  void (*dot)(const LowBitTile& tile);
};

extern const LowBitKernel kLowBitPortable;

/// The estimator in host memory, through the verbs of `ops` alone. read_cache: the cache is in host memory, and is read
/// as it is where it is stored in q8_0; else its keys are copied: head_dim * 34 / 32 bytes for each slot.
/// `kernels`: the best first; the first that takes this head size is used.
std::unique_ptr<LowBitScores> host_low_bit_scores(Ops& ops, const LowBitArgs& args, bool read_cache,
                                                  std::span<const LowBitKernel* const> kernels);

}  // namespace winnow
