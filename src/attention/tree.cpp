#include "attention/tree.h"

#include <algorithm>
#include <numeric>

namespace winnow {
namespace {

// Rows that search together.
struct TreeRows {
  HeadsView q;                               // some of TreeArgs::q's rows
  int32_t end = 0;                           // the search takes slots from the sinks up to this
  const std::vector<float>* keys = nullptr;  // [n_slots, head_dim] of the kv head; null: read what is needed
};

// What rows search: slots [begin, end) of one head's keys.
struct Search {
  int32_t kv_head = 0;
  int32_t begin = 0, end = 0;
  std::vector<float> queries;                // [n, head_dim]
  const std::vector<float>* keys = nullptr;  // [n_slots, head_dim]; null: read what is needed
};

// Key blocks [start, start + size) of the searched slots.
struct Branch {
  int32_t start, size;
  int32_t middle() const { return start + size / 2; }
};

class Tree {
 public:
  Tree(Ops& ops, const TreeArgs& args) : ops_(ops), args_(args) {}

  // Slots that `rows` of query head `head` compute beside sinks and window: all where they are no more than n_keys;
  // else whole key blocks. Ascending.
  std::vector<int32_t> find(int32_t head, const TreeRows& rows) const {
    const int32_t end = rows.end, begin = std::min(args_.sinks, end);
    std::vector<int32_t> slots;
    if (end - begin <= args_.n_keys) {
      slots.resize(static_cast<size_t>(end - begin));
      std::iota(slots.begin(), slots.end(), begin);
      return slots;
    }
    Search search{.kv_head = head / (args_.q.n_head / static_cast<int32_t>(args_.kv.heads.size())),
                  .begin = begin,
                  .end = end,
                  .queries = {},
                  .keys = rows.keys};
    HeadsView sampled = rows.q;
    sampled.n_rows = ceil_div(rows.q.n_rows, args_.query_stride);
    sampled.stride *= args_.query_stride;
    ops_.pool_queries(sampled, head, 1, search.queries);
    for (const int32_t block : descend(search)) {
      const int32_t first = begin + block * args_.key_block;
      for (int32_t slot = first; slot < std::min(first + args_.key_block, end); ++slot) slots.push_back(slot);
    }
    return slots;
  }

 private:
  // The tree search. -> key blocks, ascending
  std::vector<int32_t> descend(const Search& search) const {
    const int32_t n_block = ceil_div(search.end - search.begin, args_.key_block);
    const int32_t n_keep = std::min(args_.n_keys / args_.key_block, n_block);
    const auto start = [&](int64_t j) { return static_cast<int32_t>(j * n_block / n_keep); };
    std::vector<Branch> branches;
    branches.reserve(static_cast<size_t>(n_keep));
    for (int32_t j = 0; j < n_keep; ++j) branches.push_back({start(j), start(j + 1) - start(j)});
    const auto wide = [](const Branch& branch) { return branch.size > 1; };
    while (std::any_of(branches.begin(), branches.end(), wide)) {
      std::vector<Branch> halves;
      for (const Branch& branch : branches) {
        const int32_t left = branch.size / 2;
        if (left > 0) halves.push_back({branch.start, left});
        halves.push_back({branch.start + left, branch.size - left});
      }
      const std::vector<float> scores = score(search, halves);
      branches.clear();
      for (const int32_t i : top_k(scores, n_keep)) branches.push_back(halves[static_cast<size_t>(i)]);
    }
    std::vector<int32_t> blocks;
    blocks.reserve(branches.size());
    for (const Branch& branch : branches) blocks.push_back(branch.start);
    return blocks;
  }

  // Largest product of a sampled row with a sampled key of the block in the middle, for each branch.
  std::vector<float> score(const Search& search, const std::vector<Branch>& branches) const {
    const auto dim = static_cast<size_t>(args_.kv.head_dim);
    const int32_t n_key = ceil_div(args_.key_block, args_.key_stride);
    std::vector<int32_t> slots;
    for (const Branch& branch : branches) {
      const int32_t first = search.begin + branch.middle() * args_.key_block;
      for (int32_t i = 0; i < n_key; ++i) slots.push_back(std::min(first + i * args_.key_stride, search.end - 1));
    }
    std::vector<float> keys, products;
    if (search.keys == nullptr) {
      ops_.gather_keys(args_.kv, search.kv_head, slots, keys);
    } else {
      keys.resize(slots.size() * dim);
      for (size_t i = 0; i < slots.size(); ++i) {
        std::copy_n(search.keys->data() + static_cast<size_t>(slots[i]) * dim, dim, keys.data() + i * dim);
      }
    }
    ops_.score_blocks(search.queries, keys, args_.kv.head_dim, args_.scale, products);
    std::vector<float> best(products.begin(), products.begin() + std::ssize(slots));
    for (size_t row = slots.size(); row < products.size(); row += slots.size()) {
      for (size_t i = 0; i < slots.size(); ++i) best[i] = std::max(best[i], products[row + i]);
    }
    std::vector<float> scores;
    for (auto at = best.begin(); at != best.end(); at += n_key) scores.push_back(*std::max_element(at, at + n_key));
    return scores;
  }

  Ops& ops_;
  const TreeArgs& args_;
};

}  // namespace

void push_found(const TreeArgs& args, const std::vector<int32_t>& found, const TreeWindow& window, HeadLists& lists) {
  for (int32_t slot = 0; slot < std::min(args.sinks, window.begin); ++slot) lists.column.push_back(slot);
  lists.column.insert(lists.column.end(), found.begin(), found.end());
  for (int32_t slot = window.begin; slot < window.end; slot += kTreeBlock) lists.block_begin.push_back(slot);
  lists.end_block();
}

Selection Ops::select_tree(const TreeArgs& args) {
  const std::span<const KvHead> kv = args.kv.heads;
  const bool reads_all = args.q.n_rows > 1;
  std::vector<std::vector<float>> keys(reads_all ? kv.size() : 0);
  for_each(std::ssize(keys), [&](int64_t head, int) {
    pool_keys(args.kv, static_cast<int32_t>(head), 1, keys[static_cast<size_t>(head)]);
  });
  std::vector<HeadLists> lists(static_cast<size_t>(args.q.n_head));
  const size_t group = lists.size() / kv.size();
  for_each(args.q.n_head, [&](int64_t item, int) {
    const auto head = static_cast<size_t>(item);
    const auto n_seen = [&](int64_t row) {
      return visible_slots(kv[head / group], args.limit[static_cast<size_t>(row)]);
    };
    for (int64_t row = 0; row < args.q.n_rows; row += kTreeBlock) {
      const int64_t n_rows = std::min<int64_t>(kTreeBlock, args.q.n_rows - row);
      const TreeWindow window{std::max(0, n_seen(row) - args.window), n_seen(row + n_rows - 1)};
      const TreeRows rows{args.q.rows(row, n_rows), window.begin, reads_all ? &keys[head / group] : nullptr};
      push_found(args, Tree(*this, args).find(static_cast<int32_t>(item), rows), window, lists[head]);
    }
  });
  return join_lists(lists, kTreeBlock, kTreeBlock);
}

}  // namespace winnow
