#include "attention/sets.h"

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

Selection Ops::select_sets(const SetArgs& args) {
  const Selection sets = on_host(*args.sets);
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
  Selection selection = join_lists(lists, kSetRows, kSetBlock);
  selection.group = args.n_head / sets.n_head;
  selection.estimated_mass = sets.estimated_mass;
  return selection;
}

}  // namespace winnow
