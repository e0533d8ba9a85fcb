#include "attention/sets.h"

#include <algorithm>
#include <iterator>

namespace winnow {

Selection join_sets(const KvView& kv, std::span<const std::vector<int32_t>> sets, std::span<const double> kept) {
  std::vector<HeadLists> lists(sets.size());
  bool all = true;
  for (size_t i = 0; i < sets.size(); ++i) {
    all = all && std::ssize(sets[i]) == kv.heads[i].n_slots;
    lists[i].column = sets[i];
    lists[i].end_block();
    lists[i].kept.add(kept[i]);
  }
  return all ? Selection{} : join_lists(lists, kSetRows, kSetBlock);
}

namespace {

// The slot that row `row` itself takes, the last one that it sees.
int32_t own_slot(const SetArgs& args, const KvHead& kv, int64_t row) {
  return visible_slots(kv, args.limit[static_cast<size_t>(row)]) - 1;
}

// Ascending: rows whose own slot any of the sets has, and the last n_wanted.
std::vector<int32_t> attending(const SetArgs& args, const Selection& sets) {
  std::vector<uint8_t> attends(args.limit.size());
  const auto n_rows = std::ssize(attends);
  for (int32_t i = 0; i < sets.n_head; ++i) {
    const std::span<const int32_t> set = sets.columns(i);
    auto next = set.begin();
    for (int64_t row = 0; row < n_rows; ++row) {
      const int32_t own = own_slot(args, args.kv.heads[static_cast<size_t>(i)], row);
      next = std::lower_bound(next, set.end(), own);
      if (next != set.end() && *next == own) attends[static_cast<size_t>(row)] = 1;
    }
  }
  std::fill(attends.end() - std::min(args.n_wanted, n_rows), attends.end(), uint8_t{1});
  std::vector<int32_t> rows;
  for (size_t row = 0; row < attends.size(); ++row) {
    if (attends[row] != 0) rows.push_back(static_cast<int32_t>(row));
  }
  return rows;
}

// Blocks of `rows` see the set's slots before them, and each other.
void push_set_and_rows(const SetArgs& args, const KvHead& kv, std::span<const int32_t> set,
                       std::span<const int32_t> rows, HeadLists& lists) {
  const SharedSet shared(set, kSetBlock, lists);
  std::vector<int32_t> own, slots;
  for (size_t begin = 0; begin < rows.size(); begin += kSetRows) {
    own.clear();
    for (const int32_t row : rows.subspan(begin, std::min<size_t>(kSetRows, rows.size() - begin))) {
      own.push_back(own_slot(args, kv, row));
    }
    const auto first = std::lower_bound(set.begin(), set.end(), own.front());
    const auto last = std::upper_bound(first, set.end(), own.back());
    if (std::includes(first, last, own.begin(), own.end())) {  // rows do not see what lies behind them
      shared.push_blocks(own.back() + 1);
      shared.end_block(own.back() + 1);
      continue;
    }
    slots.assign(set.begin(), first);
    std::set_union(first, last, own.begin(), own.end(), std::back_inserter(slots));
    const auto n_before = static_cast<int32_t>(lists.column.size());
    push_slots(slots, kSetBlock, lists);
    lists.end_block(n_before, static_cast<int32_t>(lists.column.size()));
  }
}

// `lists` of `sets`, which every group of query heads shares.
Selection join_set_lists(const SetArgs& args, const Selection& sets, std::span<const HeadLists> lists) {
  Selection selection = join_lists(lists, kSetRows, kSetBlock);
  selection.group = args.n_head / sets.n_head;
  selection.estimated_mass = sets.estimated_mass;
  return selection;
}

Selection rows_of_sets(Ops& ops, const SetArgs& args, const Selection& sets) {
  std::vector<int32_t> rows = attending(args, sets);
  std::vector<HeadLists> lists(static_cast<size_t>(sets.n_head));
  ops.for_each(sets.n_head, [&](int64_t set, int /*thread*/) {
    const auto i = static_cast<size_t>(set);
    push_set_and_rows(args, args.kv.heads[i], sets.columns(set), rows, lists[i]);
  });
  Selection selection = join_set_lists(args, sets, lists);
  if (rows.size() < args.limit.size()) selection.rows = std::move(rows);
  return selection;
}

}  // namespace

Selection Ops::select_sets(const SetArgs& args) {
  const Selection sets = on_host(*args.sets);
  if (args.only_rows_of_sets) return rows_of_sets(*this, args, sets);
  std::vector<HeadLists> lists(static_cast<size_t>(sets.n_head));
  for_each(sets.n_head, [&](int64_t item, int /*thread*/) {
    const KvHead& kv = args.kv.heads[static_cast<size_t>(item)];
    const SharedSet set(sets.columns(item), kSetBlock, lists[static_cast<size_t>(item)]);
    const auto n_seen = [&](int64_t row) { return visible_slots(kv, args.limit[static_cast<size_t>(row)]); };
    const auto n_rows = std::ssize(args.limit);
    for (int64_t row = 0; row < n_rows; row += kSetRows) {
      const int32_t near = std::max(0, n_seen(row) - args.window) / args.unit * args.unit;
      const int32_t end = n_seen(std::min(row + kSetRows, n_rows) - 1);
      for (int32_t slot = set.push_blocks(near); slot < end; slot += kSetBlock) {
        lists[static_cast<size_t>(item)].block_begin.push_back(slot);
      }
      set.end_block(near);
    }
  });
  return join_set_lists(args, sets, lists);
}

}  // namespace winnow
