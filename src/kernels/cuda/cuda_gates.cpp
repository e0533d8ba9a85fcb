// select_gated for all heads on the GPU. The host waits for the length of the lists and for what they hold.
#include <algorithm>
#include <cmath>

#include "attention/gates.h"
#include "attention/lists.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/gates.h"
#include "kernels/cuda/verbs.h"

namespace winnow::cuda {
namespace {

constexpr size_t kMostScoreBytes = size_t{1} << 28;  // of the heads that are done at a time

}  // namespace

/// Everything of a call that is asked for and given back together.
struct CudaDevice::Gates {
  CudaDevice& device;
  std::vector<std::shared_ptr<std::byte>> memory{};

  template <typename T>
  T* lend(size_t n) {
    return reinterpret_cast<T*>(memory.emplace_back(device.gpu_memory_.lend(n * sizeof(T))).get());
  }

  /// Pooled queries and the gate's keys, and room for what is chosen by them.
  GateCall prepare(const GateArgs& args) {
    const UnturnedArgs& rows = args.rows;
    const DeviceKv tables = device.kv_tables_.of(rows.kv);
    const auto n_head = static_cast<size_t>(rows.q.n_head), n_head_kv = rows.kv.heads.size();
    const auto dim = static_cast<size_t>(rows.q.head_dim);
    std::vector<int32_t> n_best;
    for (const KvHead& head : rows.kv.heads) {
      n_best.push_back(static_cast<int32_t>(gate_count(args.ratio, ceil_div(head.n_slots, rows.block))));
    }
    GateCall call{.q = rows_of(rows.q),
                  .limit = device.on_gpu(rows.limit),
                  .kv = device.staged(rows.kv, tables),
                  .position = tables.position,
                  .position_stride = tables.position_stride,
                  .half = rows.rope.n_rot / 2,
                  .neox = rows.rope.neox,
                  .magnitude = rows.rope.magnitude,
                  .frequency = device.tables_.put(
                      std::span<const float>(rows.rope.frequency, static_cast<size_t>(rows.rope.n_rot / 2))),
                  .block = rows.block,
                  .n_block_q = ceil_div(rows.q.n_rows, rows.block),
                  .n_block = ceil_div(tables.max_slots, rows.block),
                  .threshold = args.threshold,
                  .n_best = device.on_gpu(n_best),
                  .last_dense = args.last_dense,
                  .stream = device.stream_};
    memory.push_back(device.visible_rows(tables, rows.limit, 0, nullptr, 1));
    call.visible = reinterpret_cast<const int2*>(memory.back().get());
    const auto n_block_q = static_cast<size_t>(call.n_block_q), n_block = static_cast<size_t>(call.n_block);
    call.queries = lend<float>(n_head * n_block_q * dim);
    call.pooled = lend<float>(n_head_kv * n_block * 3 * dim);
    call.keys = lend<float>(n_head * n_block * dim);
    call.marks = lend<uint32_t>(n_head * n_block_q * static_cast<size_t>(call.words()));
    call.kept = lend<float>(n_head * n_block_q);
    auto* gate = lend<float>(args.gate.size());
    device.transfers_.upload(gate, args.gate.data(), args.gate.size_bytes());
    pool_for_gate(call);
    const auto inputs = static_cast<int64_t>(3 * dim);
    score_blocks_of_heads({call.pooled, call.n_block, call.n_block * inputs, call.group()},
                          {gate, rows.q.head_dim, rows.q.head_dim * inputs, 1},
                          {static_cast<int32_t>(inputs), rows.q.n_head, 1}, call.keys, call.stream);
    turn_gate_keys(call);
    return call;
  }
};

Selection CudaDevice::select_gated(const GateArgs& args) {
  const auto lock = begin();
  Gates gates{*this};
  GateCall call = gates.prepare(args);
  const int32_t dim = call.q.head_dim;
  const size_t n_scores = static_cast<size_t>(call.n_block_q) * static_cast<size_t>(call.n_block);
  const auto at_once = static_cast<int32_t>(
      std::clamp<size_t>(kMostScoreBytes / (n_scores * sizeof(float)), 1, static_cast<size_t>(call.q.n_head)));
  call.scores = gates.lend<float>(static_cast<size_t>(at_once) * n_scores);
  const int64_t of_queries = int64_t{call.n_block_q} * dim, of_keys = int64_t{call.n_block} * dim;
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dim)));
  for (int32_t first = 0; first < call.q.n_head; first += at_once) {
    const int32_t n = std::min(at_once, call.q.n_head - first);
    score_blocks_of_heads({call.queries + first * of_queries, call.n_block_q, of_queries, 1},
                          {call.keys + first * of_keys, call.n_block, of_keys, 1}, {dim, n, scale}, call.scores,
                          call.stream);
    mark_gated(call, first, n);
  }
  CoverCall lists{.n_head = call.q.n_head,
                  .block = call.block,
                  .n_block_q = call.n_block_q,
                  .n_block = call.n_block,
                  .marks = call.marks,
                  .stream = stream_};
  Selection selection = lists_of_marks(lists);
  selection.estimated_mass =
      mean_share(call.kept, static_cast<size_t>(call.q.n_head) * static_cast<size_t>(call.n_block_q));
  return selection;
}

}  // namespace winnow::cuda
