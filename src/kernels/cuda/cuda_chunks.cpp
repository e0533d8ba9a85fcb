// select_chunks for all heads on the GPU. The host waits once, for the lengths of the lists.
#include "kernels/cuda/chunks.h"

#include "attention/lists.h"
#include "kernels/cuda/cover.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/verbs.h"

namespace winnow::cuda {

/// Means of all heads' query blocks and of all kv heads' chunks; where heads choose together, the first ones are those
/// of all.
struct CudaDevice::ChunkMeansOnGpu {
  std::shared_ptr<std::byte> queries, keys;  // [n_head, n_block_q, dim], [n_head_kv, n_chunk, dim]
  int32_t dim;

  const float* of_queries(const ChunkCall& call, int32_t head) const {
    return reinterpret_cast<const float*>(queries.get()) + int64_t{head} * call.n_block_q * dim;
  }
  const float* of_keys(const ChunkCall& call, int32_t head) const {
    return reinterpret_cast<const float*>(keys.get()) + int64_t{head / call.group} * call.n_chunk * dim;
  }
};

CudaDevice::ChunkMeansOnGpu CudaDevice::chunk_means(const ChunkArgs& args, const ChunkCall& call, const StagedKv& kv) {
  const int32_t dim = args.q.head_dim;
  const auto lend = [&](int64_t n) { return gpu_memory_.lend(static_cast<size_t>(n) * sizeof(float)); };
  ChunkMeansOnGpu means{.queries = lend(int64_t{args.q.n_head} * call.n_block_q * dim),
                        .keys = lend(int64_t{kv.n_head_kv} * call.n_chunk * dim),
                        .dim = dim};
  auto* queries = reinterpret_cast<float*>(means.queries.get());
  pool_heads({.data = args.q.data,
              .type = args.q.type,
              .head_stride = dim,
              .row_stride = args.q.stride,
              .n_rows = args.q.n_rows,
              .n_head = args.q.n_head,
              .head_dim = dim,
              .block = args.block,
              .n_block = call.n_block_q,
              .out = queries,
              .stream = call.stream});
  auto* keys = reinterpret_cast<float*>(means.keys.get());
  pool_heads({.data = kv.k,
              .head_stride = kv.capacity * kv.dim,
              .row_stride = kv.dim,
              .n_slots = kv.n_slots,
              .n_head = kv.n_head_kv,
              .head_dim = dim,
              .block = args.chunk,
              .n_block = call.n_chunk,
              .out = keys,
              .stream = call.stream});
  weigh_means(keys, kv.n_slots, kv.n_head_kv, call, dim);
  if (args.together) {
    mean_of_heads(queries, args.q.n_head, int64_t{call.n_block_q} * dim, call.stream);
    mean_of_heads(keys, kv.n_head_kv, int64_t{call.n_chunk} * dim, call.stream);
  }
  return means;
}

Selection CudaDevice::select_chunks(const ChunkArgs& args) {
  if (!args.bounds.empty()) return Ops::select_chunks(args);  // on the host
  const auto lock = begin();
  const DeviceKv tables = kv_tables_.of(args.kv);
  const StagedKv kv = staged(args.kv, tables);
  const auto visible = visible_rows(tables, args.limit, 0, nullptr, 1);
  ChunkCall call{.n_rows = args.q.n_rows,
                 .n_head = args.together ? 1 : args.q.n_head,
                 .group = args.q.n_head / tables.n_head,
                 .visible = reinterpret_cast<const int2*>(visible.get()),
                 .budget = args.budget,
                 .block = args.block,
                 .chunk = args.chunk,
                 .sinks = args.sinks,
                 .recent = args.recent,
                 .n_block_q = ceil_div(args.q.n_rows, args.block),
                 .n_chunk = ceil_div(tables.max_slots, args.chunk),
                 .stream = stream_};
  const ChunkMeansOnGpu means = chunk_means(args, call, kv);
  NewLists lists = new_lists({args.block, kChunkBlock, call.n_head, call.n_block_q});
  call.block_ptr = lists.block_ptr;
  call.column_ptr = lists.column_ptr;
  const auto n_list = static_cast<size_t>(call.n_list());
  const auto chosen = gpu_memory_.lend(n_list * static_cast<size_t>(call.words()) * sizeof(uint32_t)),
             last = gpu_memory_.lend(n_list * sizeof(int2)),
             scores = gpu_memory_.lend(static_cast<size_t>(call.n_block_q) * static_cast<size_t>(call.n_chunk) *
                                       sizeof(float));
  call.chosen = reinterpret_cast<uint32_t*>(chosen.get());
  call.last = reinterpret_cast<int2*>(last.get());
  auto* of_head = reinterpret_cast<float*>(scores.get());
  for (int32_t head = 0; head < call.n_head; ++head) {
    cuda::score_blocks(means.of_queries(call, head), call.n_block_q, means.of_keys(call, head), call.n_chunk, means.dim,
                       1, of_head, call.stream);
    choose_chunks(call, head, of_head);
  }
  {
    const auto work = gpu_memory_.lend(chunk_work_bytes(call));
    measure_chunks(call, work.get());
  }
  make_room(lists);
  write_chunks(call, lists.block_begin, lists.column);
  return lists.selection();
}

}  // namespace winnow::cuda
