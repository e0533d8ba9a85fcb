// select_tree for all heads on the GPU. The host waits once, for the lengths of the lists, and of a single row's never.
#include <algorithm>

#include "attention/tree.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/tree.h"

namespace winnow::cuda {

Selection CudaDevice::select_tree(const TreeArgs& args) {
  const auto lock = begin();
  const DeviceKv tables = kv_tables_.of(args.kv);
  const auto visible = visible_rows(tables, args.limit, 0, nullptr, 1);
  TreeCall call{.q = rows_of(args.q),
                .kv = {.n_head_kv = tables.n_head, .dim = padded_head(args.kv.head_dim)},
                .k = tables.blocks.k,
                .first_block = tables.blocks.first_block,
                .k_type = args.kv.k_type,
                .visible = reinterpret_cast<const int2*>(visible.get()),
                .scale = args.scale,
                // Who searches has more than n_keys slots, and so at least n_keys / key_block blocks of them.
                .n_keep = std::min(args.n_keys, tables.max_slots) / args.key_block,
                .n_keys = args.n_keys,
                .key_block = args.key_block,
                .query_stride = args.query_stride,
                .key_stride = args.key_stride,
                .window = args.window,
                .sinks = args.sinks,
                .n_later = args.n_later,
                .stream = stream_};
  if (!tree_fits(call)) return Ops::select_tree(args);
  if (call.n_block_q() > 1) {
    call.kv = staged(args.kv, tables);
    call.k = nullptr;
  }
  NewLists lists = new_lists({kTreeBlock, kTreeBlock, call.q.n_head, call.n_block_q()});
  const auto n_found = static_cast<size_t>(lists.n_list() * call.n_keep + 1);
  const auto found = gpu_memory_.lend(n_found * sizeof(int32_t));
  call.found = reinterpret_cast<int32_t*>(found.get());
  call.block_ptr = lists.block_ptr;
  call.column_ptr = lists.column_ptr;
  {
    const auto work = gpu_memory_.lend(tree_work_bytes(call));
    search_tree(call, work.get());
  }
  if (args.q.n_rows == 1) {
    const int64_t n_window = std::min(args.window, tables.max_slots) + args.n_later;
    make_room(lists, lists.n_list() * ceil_div(n_window, kTreeBlock), lists.n_list() * (args.sinks + args.n_keys));
  } else {
    make_room(lists);
  }
  write_tree(call, lists.block_begin, lists.column);
  return lists.selection();
}

}  // namespace winnow::cuda
