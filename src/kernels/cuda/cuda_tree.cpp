// select_tree for all heads on the GPU. The host waits once, for the lengths of the lists.
#include <algorithm>

#include "attention/tree.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/gpu_lists.h"
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
                .stream = stream_.stream};
  if (!tree_fits(call)) return Ops::select_tree(args);
  const auto n_list = static_cast<size_t>(call.q.n_head) * static_cast<size_t>(call.n_block_q());
  auto made = std::make_shared<GpuLists>();
  const auto keep = [&](size_t n) {
    return reinterpret_cast<int32_t*>(made->memory.emplace_back(gpu_memory_.lend(n * sizeof(int32_t))).get());
  };
  const auto found = gpu_memory_.lend((n_list * static_cast<size_t>(call.n_keep) + 1) * sizeof(int32_t));
  call.found = reinterpret_cast<int32_t*>(found.get());
  call.block_ptr = keep(n_list + 1);
  call.column_ptr = keep(n_list + 1);
  {
    const auto work = gpu_memory_.lend(tree_work_bytes(call));
    search_tree(call, work.get());
  }
  int32_t n_block = 0, n_column = 0;
  transfers_.download(&n_block, call.block_ptr + n_list, sizeof(n_block));
  transfers_.download(&n_column, call.column_ptr + n_list, sizeof(n_column));
  int32_t* block_begin = keep(static_cast<size_t>(n_block) + 1);
  int32_t* column = keep(static_cast<size_t>(n_column) + 1);
  write_tree(call, block_begin, column);

  made->lists = {kTreeBlock,     kTreeBlock,  call.q.n_head,   call.n_block_q(),
                 call.block_ptr, block_begin, call.column_ptr, column};
  made->n_block = static_cast<size_t>(n_block);
  made->n_column = static_cast<size_t>(n_column);
  Selection selection;
  selection.block_q = kTreeBlock;
  selection.block_k = kTreeBlock;
  selection.n_head = call.q.n_head;
  selection.n_block_q = call.n_block_q();
  selection.on_device = std::move(made);
  return selection;
}

}  // namespace winnow::cuda
