#include "attention/tree.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace winnow {
namespace {

// By the verbs that all devices have.
class VerbScores final : public TreeScores {
 public:
  // keys: [n_slots, head_dim] of the kv head; null: read what is needed
  VerbScores(Ops& ops, const TreeArgs& args, int32_t head, const std::vector<float>* keys)
      : ops_(ops), args_(args), head_(head), all_(keys) {}

  void begin(const HeadsView& rows) override { ops_.pool_queries(rows, head_, 1, queries_); }

  void score(std::span<const int32_t> slots, std::vector<float>& best) override {
    const auto dim = static_cast<size_t>(args_.kv.head_dim);
    if (all_ == nullptr) {
      ops_.gather_keys(args_.kv, head_ / (args_.q.n_head / static_cast<int32_t>(args_.kv.heads.size())), slots, keys_);
    } else {
      keys_.resize(slots.size() * dim);
      for (size_t i = 0; i < slots.size(); ++i) {
        std::copy_n(all_->data() + static_cast<size_t>(slots[i]) * dim, dim, keys_.data() + i * dim);
      }
    }
    ops_.score_blocks(queries_, keys_, args_.kv.head_dim, args_.scale, products_);
    best.assign(products_.begin(), products_.begin() + std::ssize(slots));
    for (size_t row = slots.size(); row < products_.size(); row += slots.size()) {
      for (size_t i = 0; i < slots.size(); ++i) best[i] = std::max(best[i], products_[row + i]);
    }
  }

 private:
  Ops& ops_;
  const TreeArgs& args_;
  int32_t head_;
  const std::vector<float>* all_;
  std::vector<float> queries_, keys_, products_;
};

constexpr float kUnknown = std::numeric_limits<float>::quiet_NaN();

// Key blocks [start, start + size) of the searched slots. What is known of them: the score of the first, which was the
// middle of a longer branch once, and that of the one in the middle, which is the branch's own.
struct Branch {
  int32_t start, size;
  float first = kUnknown, score = kUnknown;

  int32_t middle() const { return start + size / 2; }
  bool known() const { return !std::isnan(score); }
  /// [start + begin, start + end), where begin is 0 or the middle.
  Branch part(int32_t begin, int32_t end) const {
    const float at_begin = begin == size / 2 ? score : first;
    return {start + begin, end - begin, at_begin, end - begin == 1 ? at_begin : kUnknown};
  }
};

class Tree {
 public:
  Tree(const TreeArgs& args, TreeScores& scores) : args_(args), scores_(scores) {}

  // Slots up to `end` that `rows` compute beside sinks and window: all where they are no more than n_keys; else whole
  // key blocks. Ascending.
  std::vector<int32_t> find(HeadsView rows, int32_t end) {
    end_ = end;
    begin_ = std::min(args_.sinks, end);
    std::vector<int32_t> slots;
    if (end_ - begin_ <= args_.n_keys) {
      slots.resize(static_cast<size_t>(end_ - begin_));
      std::iota(slots.begin(), slots.end(), begin_);
      return slots;
    }
    rows.n_rows = ceil_div(rows.n_rows, args_.query_stride);
    rows.stride *= args_.query_stride;
    scores_.begin(rows);
    for (const int32_t block : descend()) {
      const int32_t first = begin_ + block * args_.key_block;
      for (int32_t slot = first; slot < std::min(first + args_.key_block, end_); ++slot) slots.push_back(slot);
    }
    return slots;
  }

 private:
  // The tree search. -> key blocks, ascending
  std::vector<int32_t> descend() {
    const int32_t n_block = ceil_div(end_ - begin_, args_.key_block);
    const int32_t n_keep = std::min(args_.n_keys / args_.key_block, n_block);
    const auto start = [&](int64_t j) { return static_cast<int32_t>(j * n_block / n_keep); };
    std::vector<Branch> branches;
    branches.reserve(static_cast<size_t>(n_keep));
    for (int32_t j = 0; j < n_keep; ++j) branches.push_back({start(j), start(j + 1) - start(j)});
    const auto wide = [](const Branch& branch) { return branch.size > 1; };
    std::vector<Branch> halves;
    while (std::any_of(branches.begin(), branches.end(), wide)) {
      halves.clear();
      for (const Branch& branch : branches) {
        const int32_t left = branch.size / 2;
        if (left > 0) halves.push_back(branch.part(0, left));
        halves.push_back(branch.part(left, branch.size));
      }
      score(halves);
      branches.clear();
      for (const int32_t i : top_k(scores_of_, n_keep)) branches.push_back(halves[static_cast<size_t>(i)]);
    }
    std::vector<int32_t> blocks;
    blocks.reserve(branches.size());
    for (const Branch& branch : branches) blocks.push_back(branch.start);
    return blocks;
  }

  // The score of each branch, into itself and scores_of_: the largest product of a sampled row with a sampled key of
  // the block in the middle.
  void score(std::vector<Branch>& branches) {
    const int32_t n_key = ceil_div(args_.key_block, args_.key_stride);
    slots_.clear();
    for (const Branch& branch : branches) {
      if (branch.known()) continue;
      const int32_t first = begin_ + branch.middle() * args_.key_block;
      for (int32_t i = 0; i < n_key; ++i) slots_.push_back(std::min(first + i * args_.key_stride, end_ - 1));
    }
    if (!slots_.empty()) scores_.score(slots_, best_);
    auto at = best_.begin();
    scores_of_.clear();
    for (Branch& branch : branches) {
      if (!branch.known()) {
        branch.score = *std::max_element(at, at + n_key);
        at += n_key;
      }
      scores_of_.push_back(branch.score);
    }
  }

  const TreeArgs& args_;
  TreeScores& scores_;
  int32_t begin_ = 0, end_ = 0;   // slots that are searched
  std::vector<int32_t> slots_;    // that a round scores
  std::vector<float> best_;       // of these
  std::vector<float> scores_of_;  // of the round's branches
};

// Slots [begin, end) of a window.
struct Window {
  int32_t begin, end;
};

// Sinks and what was found as columns, the window as blocks from its begin on; ends the list.
void push_found(const TreeArgs& args, const std::vector<int32_t>& found, const Window& window, HeadLists& lists) {
  for (int32_t slot = 0; slot < std::min(args.sinks, window.begin); ++slot) lists.column.push_back(slot);
  lists.column.insert(lists.column.end(), found.begin(), found.end());
  for (int32_t slot = window.begin; slot < window.end; slot += kTreeBlock) lists.block_begin.push_back(slot);
  lists.end_block();
}

}  // namespace

Selection select_tree_by(Ops& ops, const TreeArgs& args,
                         const std::function<std::unique_ptr<TreeScores>(int32_t head)>& make) {
  std::vector<HeadLists> lists(static_cast<size_t>(args.q.n_head));
  const size_t group = lists.size() / args.kv.heads.size();
  ops.for_each(args.q.n_head, [&](int64_t item, int) {
    const auto head = static_cast<size_t>(item);
    const auto n_seen = [&](int64_t row) {
      return visible_slots(args.kv.heads[head / group], args.limit[static_cast<size_t>(row)]);
    };
    const std::unique_ptr<TreeScores> scores = make(static_cast<int32_t>(item));
    Tree tree(args, *scores);
    // As much as there can be: lists that grow are copied, and their memory is touched again and again.
    const int64_t most = std::min<int64_t>(int64_t{args.sinks} + args.n_keys, n_seen(args.q.n_rows - 1));
    lists[head].column.reserve(static_cast<size_t>(ceil_div(args.q.n_rows, kTreeBlock) * most));
    for (int64_t row = 0; row < args.q.n_rows; row += kTreeBlock) {
      const int64_t n_rows = std::min<int64_t>(kTreeBlock, args.q.n_rows - row);
      const Window window{std::max(0, n_seen(row) - args.window), n_seen(row + n_rows - 1) + args.n_later};
      push_found(args, tree.find(args.q.rows(row, n_rows), window.begin), window, lists[head]);
    }
  });
  return join_lists(lists, kTreeBlock, kTreeBlock);
}

Selection Ops::select_tree(const TreeArgs& args) {
  const std::span<const KvHead> kv = args.kv.heads;
  std::vector<std::vector<float>> keys(args.q.n_rows > 1 ? kv.size() : 0);
  for_each(std::ssize(keys), [&](int64_t head, int) {
    pool_keys(args.kv, static_cast<int32_t>(head), 1, keys[static_cast<size_t>(head)]);
  });
  const size_t group = static_cast<size_t>(args.q.n_head) / kv.size();
  return select_tree_by(*this, args, [&](int32_t head) -> std::unique_ptr<TreeScores> {
    const auto* all = keys.empty() ? nullptr : &keys[static_cast<size_t>(head) / group];
    return std::make_unique<VerbScores>(*this, args, head, all);
  });
}

}  // namespace winnow
