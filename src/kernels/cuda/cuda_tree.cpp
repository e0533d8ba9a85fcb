// select_tree for all heads on the GPU. The host waits once, for the lengths of the lists.
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
                .kv = staged(args.kv, tables),
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
                .stream = stream_};
  if (!tree_fits(call)) return Ops::select_tree(args);
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
  make_room(lists);
  write_tree(call, lists.block_begin, lists.column);
  return lists.selection();
}

}  // namespace winnow::cuda
