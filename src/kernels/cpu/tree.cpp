// The tree search of attention/tree.h on the CPU: keys are unpacked once for all query heads and rounds, in the number
// format of attention's own products.
#include "attention/tree.h"

#include <algorithm>

#include "kernels/cpu/attend_kernel.h"
#include "kernels/cpu/attention.h"

namespace winnow::cpu {
namespace {

class PanelScores final : public TreeScores {
 public:
  PanelScores(const AttendKernel& kernel, const UnpackedKv& kv, int32_t head)
      : kernel_(kernel),
        kv_(kv),
        head_(head),
        packed_(kernel.packed_bytes(kv.head_dim), nullptr),
        scratch_(kernel.best_bytes(kv.head_dim), nullptr) {}

  void begin(const HeadsView& rows) override {
    n_rows_ = static_cast<int32_t>(rows.n_rows);
    kernel_.pack_rows(rows.at(0, head_), rows.stride, n_rows_, kv_.head_dim, packed_.data());
  }

  void score(std::span<const int32_t> slots, std::vector<float>& best) override {
    best.resize(slots.size());
    kernel_.best_products(packed_.data(), n_rows_, {&kv_, slots}, best.data(), scratch_.data());
  }

 private:
  const AttendKernel& kernel_;
  const UnpackedKv& kv_;
  int32_t head_;
  int32_t n_rows_ = 0;
  Buffer packed_, scratch_;
};

}  // namespace

Selection select_tree(CpuContext& context, Ops& ops, const TreeArgs& args) {
  const AttendKernel& kernel = *attend_kernels(context.features).front();
  std::vector<Buffer> memory;
  std::vector<UnpackedKv> keys;
  struct Block {
    size_t head;
    int32_t at;
  };
  std::vector<Block> blocks;
  for (const KvHead& head : args.kv.heads) {
    const int32_t n_block = ceil_div(head.n_slots, kBlockSlots);
    memory.emplace_back(kernel.kv_bytes(n_block * kBlockSlots, args.kv.head_dim), &context.memory);
    for (int32_t block = 0; block < n_block; ++block) blocks.push_back({keys.size(), block});
    keys.push_back({memory.back().data(), nullptr, n_block * kBlockSlots, args.kv.head_dim});
  }
  context.pool.parallel_for(std::ssize(blocks), [&](int64_t item, int /*thread*/) {
    const auto [head, at] = blocks[static_cast<size_t>(item)];
    const KvHead& kv = args.kv.heads[head];
    const int32_t n_rows = std::min(kBlockSlots, kv.n_slots - at * kBlockSlots);
    kernel.unpack_k(kv.k[static_cast<size_t>(at)], args.kv.k_type, at, n_rows, keys[head]);
  });
  const size_t group = static_cast<size_t>(args.q.n_head) / keys.size();
  return select_tree_by(ops, args, [&](int32_t head) -> std::unique_ptr<TreeScores> {
    return std::make_unique<PanelScores>(kernel, keys[static_cast<size_t>(head) / group], head);
  });
}

}  // namespace winnow::cpu
