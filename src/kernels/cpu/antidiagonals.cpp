// Estimates by antidiagonals on the CPU: the keys of a kv head are unpacked to groups once, for all query heads that
// read them, and in the number format of attention's own products. Then threads take stacks of panels, neighbouring
// places and heads, which go over the keys together.
#include <algorithm>
#include <limits>

#include "attention/lists.h"
#include "kernels/cpu/attend_kernel.h"
#include "kernels/cpu/attention.h"

namespace winnow::cpu {
namespace {

class Estimate {
 public:
  Estimate(CpuContext& context, const AntidiagonalArgs& args, BlockScore what)
      : kernel_(attend_kernels(context.features).front()->antidiagonals),
        context_(context),
        args_(args),
        what_(what),
        group_(args.rows.q.n_head / static_cast<int32_t>(args.rows.kv.heads.size())),
        n_group_(ceil_div(args.rows.q.n_rows, args.stride)),
        place_groups_(std::max(kernel_.lanes, args.block / args.stride)),
        n_places_(ceil_div(n_group_, place_groups_)) {}

  bool fits() const { return kernel_.fits(groups_of(args_.rows.kv.heads.front())); }

  void run(std::vector<std::vector<float>>& scores) {
    scores.resize(static_cast<size_t>(args_.rows.q.n_head));
    for (int32_t h = 0; h < std::ssize(args_.rows.kv.heads); ++h) {
      const KvHead& kv = args_.rows.kv.heads[static_cast<size_t>(h)];
      keys_ = groups_of(kv);
      const auto n =
          static_cast<size_t>(ceil_div(args_.rows.q.n_rows, args_.block)) * static_cast<size_t>(keys_.n_block);
      first_ = scores.data() + h * group_;
      const float nothing = what_ == BlockScore::sum ? 0 : -std::numeric_limits<float>::infinity();
      for (int32_t i = 0; i < group_; ++i) first_[i].assign(n, nothing);
      unpacked_.reserve(kernel_.key_bytes(keys_));
      keys_.k = unpacked_.data();
      pack(kv);
      see(kv);
      compute(h);
    }
  }

 private:
  int32_t n_seen(const KvHead& kv, int64_t row) const { return visible_slots(kv, args_.rows.limit[row]); }

  /// The groups that the last row sees, without their keys.
  SlotGroups groups_of(const KvHead& kv) const {
    const int32_t n_slots = n_seen(kv, args_.rows.q.n_rows - 1);
    return {.k = nullptr,
            .n_groups = ceil_div(n_slots, args_.stride),
            .n_block = ceil_div(n_slots, args_.block),
            .head_dim = args_.rows.q.head_dim,
            .stride = args_.stride,
            .per_block = args_.block / args_.stride};
  }

  void pack(const KvHead& kv) {
    const int32_t n_slots = std::min(kv.n_slots, keys_.n_groups * args_.stride);  // no row sees the end of the last one
    context_.pool.parallel_for(ceil_div(n_slots, kBlockSlots), [&](int64_t block, int /*thread*/) {
      const int32_t n = std::min(kBlockSlots, n_slots - static_cast<int32_t>(block) * kBlockSlots);
      kernel_.pack_keys(kv.k[static_cast<size_t>(block)], args_.rows.kv.k_type, static_cast<int32_t>(block), n, keys_);
    });
  }

  void see(const KvHead& kv) {
    seen_.resize(static_cast<size_t>(n_group_));
    for (int32_t g = 0; g < n_group_; ++g) {
      const int64_t last = std::min(int64_t{g + 1} * args_.stride, args_.rows.q.n_rows) - 1;
      seen_[static_cast<size_t>(g)] = ceil_div(n_seen(kv, last), args_.stride);
    }
  }

  /// Late places see most and come first, each with all heads.
  void compute(int32_t kv_head) {
    const int64_t n_items = int64_t{n_places_} * group_;
    const int32_t n_panels = kernel_.n_panels(keys_);
    const size_t bytes = (kernel_.scratch_bytes(keys_) + 63) / 64 * 64;
    scratch_.reserve(bytes * static_cast<size_t>(context_.pool.size()));
    context_.pool.parallel_for(ceil_div(n_items, n_panels), [&](int64_t stack, int thread) {
      RowGroups panels[kMostPanels];
      const int64_t first = stack * n_panels, n = std::min<int64_t>(n_panels, n_items - first);
      for (int32_t part = 0; part < place_groups_; part += kernel_.lanes) {
        size_t n_filled = 0;
        for (int64_t item = first; item < first + n; ++item) {
          const int64_t group = (n_places_ - 1 - item / group_) * place_groups_ + part;
          if (group < n_group_) panels[n_filled++] = panel(kv_head, static_cast<int32_t>(item % group_), group);
        }
        kernel_.score(what_)({panels, n_filled}, keys_, scratch_.data() + bytes * static_cast<size_t>(thread));
      }
    });
  }

  RowGroups panel(int32_t kv_head, int32_t head_of_group, int64_t group) const {
    const HeadsView& q = args_.rows.q;
    const int64_t row = group * args_.stride;
    return {.q = q.at(row, kv_head * group_ + head_of_group),
            .q_stride = q.stride,
            .n_rows = std::min<int64_t>(int64_t{kernel_.lanes} * args_.stride, q.n_rows - row),
            .seen = seen_.data() + group,
            .scale = args_.rows.scale / static_cast<float>(args_.stride),
            .softcap = args_.rows.softcap,
            .scores = first_[head_of_group].data() + row / args_.block * keys_.n_block};
  }

  const AntidiagonalKernel& kernel_;
  CpuContext& context_;
  const AntidiagonalArgs& args_;
  BlockScore what_;
  int32_t group_;         // query heads of a kv head
  int32_t n_group_;       // of rows
  int32_t place_groups_;  // of rows, which whole panels and whole blocks hold: scores of others are not touched
  int32_t n_places_;
  SlotGroups keys_;
  std::vector<float>* first_ = nullptr;  // scores of the kv head's first query head
  std::vector<int32_t> seen_;            // [n_group] slot groups
  Buffer unpacked_{0, &context_.memory}, scratch_{0, &context_.memory};
};

}  // namespace

bool antidiagonal_scores(CpuContext& context, const AntidiagonalArgs& args, BlockScore what,
                         std::vector<std::vector<float>>& scores) {
  Estimate estimate(context, args, what);
  if (!estimate.fits()) return false;
  estimate.run(scores);
  return true;
}

}  // namespace winnow::cpu
