// Prefill on the CPU: K and V of a kv head are unpacked once into the kernel's own form, then its query tiles (64 rows
// of one head) are computed in any order by all threads. A thread takes several neighbouring tiles at a time, a stack,
// which go over the keys together: each part of K and V then comes once from memory for all of them.
#include <algorithm>
#include <atomic>
#include <limits>

#include "base/error.h"
#include "kernels/cpu/attend_lists.h"
#include "kernels/cpu/attention.h"

namespace winnow::cpu {
namespace {

// Unpacked K and V of as many kv heads as fit here are computed together, so that short prompts keep all threads busy.
constexpr size_t kUnpackedBytes = size_t{64} << 20;
// What the tiles of a stack keep between their turns should lie in a core's own cache beside a part of K and V.
constexpr size_t kStackBytes = size_t{320} << 10;
// Threads get at least so many stacks each, so that they finish together.
constexpr int64_t kStacksPerThread = 16;
// Up to this many rows are memory-bound: their time is the reading of the cache.
constexpr int64_t kFewRows = 8;

class Prefill {
 public:
  Prefill(const AttendKernel& kernel, CpuContext& context, const AttnArgs& args)
      : kernel_(kernel),
        context_(context),
        args_(args),
        n_kv_(static_cast<int32_t>(args.kv.heads.size())),
        group_(args.q.n_head / n_kv_),
        n_tiles_((args.q.n_rows + kTileRows - 1) / kTileRows),
        stack_(stack_size()),
        thread_bytes_((kernel.scratch_bytes(args.q.head_dim, stack_) + 63) / 64 * 64),
        scratch_(thread_bytes_ * static_cast<size_t>(context.pool.size()), &context.memory) {}

  void run() {
    int32_t most_slots = 0;
    for (const KvHead& head : args_.kv.heads) most_slots = std::max(most_slots, head.n_slots);
    const int32_t n_slots = (most_slots + kBlockSlots - 1) / kBlockSlots * kBlockSlots;
    const size_t bytes = (kernel_.kv_bytes(n_slots, args_.q.head_dim) + 63) / 64 * 64;
    const auto fit = static_cast<int32_t>(kUnpackedBytes / std::max<size_t>(2 * bytes, 1));
    const int32_t at_once = std::clamp(fit, 1, n_kv_);
    context_.unpacked.reserve(2 * bytes * static_cast<size_t>(at_once));
    for (int32_t first = 0; first < n_kv_; first += at_once) {
      heads_.clear();
      for (int32_t h = first; h < std::min(first + at_once, n_kv_); ++h) {
        std::byte* at = context_.unpacked.data() + 2 * bytes * static_cast<size_t>(h - first);
        const KvHead& kv = args_.kv.heads[static_cast<size_t>(h)];
        heads_.push_back({h,
                          visible_slots(kv, args_.limit, args_.q.n_rows, args_.window),
                          {at, at + bytes, n_slots, args_.q.head_dim}});
      }
      unpack();
      compute();
    }
    if (args_.counts != nullptr) {
      args_.counts->permitted += permitted_;
      args_.counts->computed += computed_.load();
    }
  }

 private:
  struct Head {
    int32_t kv_head;
    Visible visible;
    UnpackedKv kv;
  };

  /// Query tiles [first, first + n) of a kv head: its rows' blocks in descending order, in each the heads of its group.
  struct Stack {
    const Head* head;
    int64_t first;
    int32_t n;
  };

  int32_t stack_size() const {
    const size_t kept = kernel_.scratch_bytes(args_.q.head_dim, 2) - kernel_.scratch_bytes(args_.q.head_dim, 1);
    const int64_t fair = n_tiles_ * args_.q.n_head / (kStacksPerThread * context_.pool.size());
    return static_cast<int32_t>(std::clamp<int64_t>(std::min<int64_t>(fair, kStackBytes / kept), 1, kMostTiles));
  }

  struct Block {
    const Head* head;
    int32_t block;
  };

  /// Cache blocks of one kv head that any row of its group reads.
  std::vector<Block> needed_blocks(const Head& head) const {
    const KvHead& kv = args_.kv.heads[static_cast<size_t>(head.kv_head)];
    std::vector<char> needed(static_cast<size_t>((kv.n_slots + kBlockSlots - 1) / kBlockSlots), 0);
    size_t n_needed = 0;
    const auto mark = [&](int32_t begin, int32_t end) {
      for (int32_t at = begin / kBlockSlots; at * kBlockSlots < end; ++at) {
        n_needed += needed[static_cast<size_t>(at)] == 0 ? 1 : 0;
        needed[static_cast<size_t>(at)] = 1;
      }
    };
    // Late rows see most; most often a part of the lists is enough to find that all blocks are needed.
    const bool shared = args_.selection == nullptr || args_.selection->n_head <= 1;
    const int32_t n_lists = shared ? 1 : group_;
    for (int64_t item = n_tiles_ * n_lists - 1; item >= 0 && n_needed < needed.size(); --item) {
      const int64_t row = item / n_lists * kTileRows;
      const int32_t low = head.visible.begin[static_cast<size_t>(row)];
      const int32_t high = head.visible.end[static_cast<size_t>(std::min(row + kTileRows, args_.q.n_rows) - 1)];
      const auto h = static_cast<int32_t>(item % n_lists);
      const KeyLists lists = lists_of(args_, head.kv_head * group_ + h, row, kv.n_slots);
      for (const int32_t begin : lists.block) mark(std::max(begin, low), std::min(begin + lists.block_k, high));
      for (const int32_t slot : lists.column) {
        if (slot >= low && slot < high) mark(slot, slot + 1);
      }
    }
    std::vector<Block> blocks;
    for (size_t i = 0; i < needed.size(); ++i) {
      if (needed[i] != 0) blocks.push_back({&head, static_cast<int32_t>(i)});
    }
    return blocks;
  }

  void unpack() {
    std::vector<Block> blocks;
    for (const Head& head : heads_) {
      const std::vector<Block> more = needed_blocks(head);
      blocks.insert(blocks.end(), more.begin(), more.end());
    }
    context_.pool.parallel_for(static_cast<int64_t>(blocks.size()), [&](int64_t item, int /*thread*/) {
      const Block& block = blocks[static_cast<size_t>(item)];
      const KvHead& kv = args_.kv.heads[static_cast<size_t>(block.head->kv_head)];
      const auto at = static_cast<size_t>(block.block);
      const int32_t n_rows = std::min(kBlockSlots, kv.n_slots - block.block * kBlockSlots);
      kernel_.unpack_k(kv.k[at], args_.kv.k_type, block.block, n_rows, block.head->kv);
      kernel_.unpack_v(kv.v[at], args_.kv.v_type, block.block, n_rows, block.head->kv);
    });
  }

  /// Late rows see most and come first; what is left for the end is small, so threads finish together.
  Stack stack(int64_t item) const {
    const auto n_heads = static_cast<int64_t>(heads_.size());
    const int64_t first = item / n_heads * stack_;
    return {&heads_[static_cast<size_t>(item % n_heads)], first,
            static_cast<int32_t>(std::min<int64_t>(stack_, n_tiles_ * group_ - first))};
  }

  void compute() {
    for (const Head& head : heads_) permitted_ += head.visible.pairs() * group_;
    const int64_t n_items = (n_tiles_ * group_ + stack_ - 1) / stack_ * static_cast<int64_t>(heads_.size());
    const int64_t n_threads = context_.pool.size();
    std::atomic<int64_t> next{0};
    // A thread takes its next stack before it computes one, whose queries can then be fetched meanwhile; but not where
    // others would have nothing to do for that.
    context_.pool.parallel_for(n_threads, [&](int64_t /*item*/, int thread) {
      for (int64_t item = next.fetch_add(1); item < n_items;) {
        const bool ahead = item + 2 * n_threads < n_items;
        const int64_t following = ahead ? next.fetch_add(1) : n_items;
        attend(stack(item), following < n_items ? stack(following) : Stack{}, thread);
        item = ahead ? following : next.fetch_add(1);
      }
    });
  }

  void attend(const Stack& stack, const Stack& next, int thread) {
    QueryTile tiles[kMostTiles];
    for (int32_t i = 0; i < stack.n; ++i) tiles[i] = tile(*stack.head, stack.first + i);
    for (int32_t i = 0; i < std::min(stack.n, next.n); ++i) {
      const QueryTile after = tile(*next.head, next.first + i);
      tiles[i].next = {.q = after.q, .n_rows = after.n_rows, .column = {}, .block = {}, .kv = nullptr};
    }
    if (next.n > 0) {  // the keys that come first are asked for last
      const QueryTile after = tile(*next.head, next.first);
      Upcoming& last = tiles[stack.n - 1].next;
      last.column = after.column;
      last.block = after.block;
      last.kv = &next.head->kv;
    }
    computed_ += kernel_.attend_tiles({tiles, static_cast<size_t>(stack.n)}, stack.head->kv,
                                      scratch_.data() + thread_bytes_ * static_cast<size_t>(thread));
  }

  QueryTile tile(const Head& head, int64_t item) const {
    const int64_t row = (n_tiles_ - 1 - item / group_) * kTileRows;
    const int32_t q_head = head.kv_head * group_ + static_cast<int32_t>(item % group_);
    const KvHead& kv = args_.kv.heads[static_cast<size_t>(head.kv_head)];
    const KeyLists lists = lists_of(args_, q_head, row, kv.n_slots);
    return {.q = args_.q.at(row, q_head),
            .q_stride = args_.q.stride,
            .o = args_.o.at(row, q_head),
            .o_stride = args_.o.stride,
            .lse = args_.lse == nullptr ? nullptr : args_.lse + row * args_.q.n_head + q_head,
            .lse_stride = args_.q.n_head,
            .n_rows = static_cast<int32_t>(std::min<int64_t>(kTileRows, args_.q.n_rows - row)),
            .begin = head.visible.begin.data() + row,
            .end = head.visible.end.data() + row,
            .bias = kv.bias,
            .scale = args_.scale,
            .softcap = args_.softcap,
            .skip = args_.skip == nullptr ? -std::numeric_limits<float>::infinity() : args_.skip[q_head],
            .column = lists.column,
            .block = lists.block,
            .block_k = lists.block_k,
            .next = {}};
  }

  const AttendKernel& kernel_;
  CpuContext& context_;
  const AttnArgs& args_;
  int32_t n_kv_;
  int32_t group_;
  int64_t n_tiles_;
  int32_t stack_;
  size_t thread_bytes_;
  Buffer scratch_;
  std::vector<Head> heads_;  // those that are unpacked now
  int64_t permitted_ = 0;
  std::atomic<int64_t> computed_{0};
};

}  // namespace

std::span<const AttendKernel* const> all_attend_kernels() {
  static const std::vector<const AttendKernel*> kAll {
#if defined(__x86_64__)
    &kAttendAmx, &kAttendBf16, &kAttendAvx512, &kAttendInt16, &kAttendAvx2,
#elif defined(__aarch64__)
    &kAttendNeon,
#endif
        &kAttendPortable
  };
  return kAll;
}

std::span<const AttendKernel* const> attend_kernels(const CpuFeatures& features) {
  const std::span<const AttendKernel* const> all = all_attend_kernels();
  size_t first = 0;
  while (!all[first]->runs_on(features)) ++first;
  return all.subspan(first);
}

void attend_many(const AttendKernel& kernel, CpuContext& context, const AttnArgs& args) {
  Prefill(kernel, context, args).run();
}

void attend_with(const AttendKernel& kernel, CpuContext& context, const AttnArgs& args) {
  WINNOW_ASSERT(args.q.head_dim <= kMostDim);
  if (args.q.n_rows <= 0) return;
  (args.q.n_rows <= kFewRows ? attend_few : attend_many)(kernel, context, args);
}

void attend(CpuContext& context, const AttnArgs& args) {
  attend_with(*attend_kernels(context.features).front(), context, args);
}

}  // namespace winnow::cpu
