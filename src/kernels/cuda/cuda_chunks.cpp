// select_chunks for all heads on the GPU. The host waits once, for the lengths of the lists.
#include "attention/chunks.h"

#include "kernels/cuda/chunks.h"
#include "kernels/cuda/cover.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/gpu_lists.h"
#include "kernels/cuda/verbs.h"

namespace winnow::cuda {

Selection CudaDevice::select_chunks(const ChunkArgs& args) {
  const auto lock = begin();
  const DeviceKv tables = kv_tables_.of(args.kv);
  const StagedKv kv = staged(args.kv, tables);
  const auto visible = visible_rows(tables, args.limit, 0, nullptr, 1);
  ChunkCall call{.n_rows = args.q.n_rows,
                 .n_head = args.q.n_head,
                 .group = args.q.n_head / tables.n_head,
                 .visible = reinterpret_cast<const int2*>(visible.get()),
                 .budget = args.budget,
                 .block = args.block,
                 .chunk = args.chunk,
                 .sinks = args.sinks,
                 .recent = args.recent,
                 .last_rows = args.last_rows,
                 .n_block_q = ceil_div(args.q.n_rows, args.block),
                 .n_chunk = ceil_div(tables.max_slots, args.chunk),
                 .stream = stream_.stream};
  std::vector<std::shared_ptr<std::byte>> memory;
  const auto lend = [&](int64_t n_values) {
    return reinterpret_cast<float*>(memory.emplace_back(gpu_memory_.lend(static_cast<size_t>(n_values) * 4)).get());
  };
  const int32_t dim = args.q.head_dim;
  PoolArgs queries{.data = args.q.data,
                   .type = args.q.type,
                   .head_stride = dim,
                   .row_stride = args.q.stride,
                   .n_rows = args.q.n_rows,
                   .n_head = args.q.n_head,
                   .head_dim = dim,
                   .block = args.block,
                   .n_block = call.n_block_q,
                   .out = lend(int64_t{call.n_head} * call.n_block_q * dim),
                   .stream = call.stream};
  pool_heads(queries);
  PoolArgs keys{.data = kv.k,
                .head_stride = kv.capacity * kv.dim,
                .row_stride = kv.dim,
                .n_slots = kv.n_slots,
                .n_head = kv.n_head_kv,
                .head_dim = dim,
                .block = args.chunk,
                .n_block = call.n_chunk,
                .out = lend(int64_t{kv.n_head_kv} * call.n_chunk * dim),
                .stream = call.stream};
  pool_heads(keys);
  weigh_means(keys.out, kv.n_slots, kv.n_head_kv, call, dim);

  call.chosen = reinterpret_cast<uint32_t*>(lend(call.n_list() * call.words()));
  call.last = reinterpret_cast<int2*>(lend(2 * call.n_list()));
  float* scores = lend(int64_t{call.n_block_q} * call.n_chunk);
  for (int32_t head = 0; head < call.n_head; ++head) {
    cuda::score_blocks(queries.out + int64_t{head} * call.n_block_q * dim, call.n_block_q,
                       keys.out + int64_t{head / call.group} * call.n_chunk * dim, call.n_chunk, dim, 1, scores,
                       call.stream);
    choose_chunks(call, head, scores);
  }

  auto made = std::make_shared<GpuLists>();
  const auto keep = [&](int64_t n) {
    return reinterpret_cast<int32_t*>(made->memory.emplace_back(gpu_memory_.lend(static_cast<size_t>(n) * 4)).get());
  };
  call.block_ptr = keep(call.n_list() + 1);
  call.column_ptr = keep(call.n_list() + 1);
  {
    const auto work = gpu_memory_.lend(chunk_work_bytes(call));
    measure_chunks(call, work.get());
  }
  int32_t n_block = 0, n_column = 0;
  transfers_.download(&n_block, call.block_ptr + call.n_list(), sizeof(n_block));
  transfers_.download(&n_column, call.column_ptr + call.n_list(), sizeof(n_column));
  int32_t* block_begin = keep(n_block + 1);
  int32_t* column = keep(n_column + 1);
  write_chunks(call, block_begin, column);

  made->lists = {args.block,     kChunkBlock, call.n_head,     call.n_block_q,
                 call.block_ptr, block_begin, call.column_ptr, column};
  made->n_block = static_cast<size_t>(n_block);
  made->n_column = static_cast<size_t>(n_column);
  Selection selection;
  selection.block_q = args.block;
  selection.block_k = kChunkBlock;
  selection.n_head = call.n_head;
  selection.n_block_q = call.n_block_q;
  selection.on_device = std::move(made);
  return selection;
}

}  // namespace winnow::cuda
