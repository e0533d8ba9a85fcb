// select_cover for all heads on the GPU. The host waits once, for the length of the lists.
#include <algorithm>
#include <array>

#include "base/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/cover.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/lines.h"

namespace winnow::cuda {
namespace {

constexpr size_t kMostMapBytes = size_t{1} << 30;  // of the pooled maps of the heads that are done at a time

int32_t blocks_of(int64_t n, int32_t block) {
  return static_cast<int32_t>((n + block - 1) / block);
}

}  // namespace

/// Everything of a call that is asked for and given back together.
struct CudaDevice::Cover {
  CudaDevice& device;
  std::vector<std::shared_ptr<std::byte>> memory;

  template <typename T>
  T* lend(size_t n) {
    return reinterpret_cast<T*>(memory.emplace_back(device.gpu_memory_.lend(n * sizeof(T))).get());
  }

  /// Means of blocks; see PoolArgs.
  float* pool(PoolArgs args) {
    args.out = lend<float>(static_cast<size_t>(args.n_head) * static_cast<size_t>(args.n_block * args.head_dim));
    args.stream = device.stream_;
    pool_heads(args);
    return args.out;
  }
  float* pool(const HeadsView& q, int32_t block) {
    return pool({.data = q.data,
                 .type = q.type,
                 .head_stride = q.head_dim,
                 .row_stride = q.stride,
                 .n_rows = q.n_rows,
                 .n_head = q.n_head,
                 .head_dim = q.head_dim,
                 .block = block,
                 .n_block = blocks_of(q.n_rows, block)});
  }

  /// The mass of the probe's rows [begin, begin + n) on every slot and distance.
  std::array<float*, 2> mass(const ProbeArgs& args, const DeviceKv& tables, int64_t begin, int64_t n) {
    const LineProbe probe = device.line_probe(args, tables, {begin, n}, memory.emplace_back());
    const size_t n_mass = static_cast<size_t>(args.q.n_head) * static_cast<size_t>(tables.max_slots);
    const std::array<float*, 2> made = {lend<float>(n_mass), lend<float>(n_mass)};
    line_mass(probe, {.vertical = made[0], .slash = made[1]}, lend<std::byte>(line_work_bytes(probe)));
    return made;
  }

  /// The probe's side of a call, its means and its room.
  CoverCall prepare(const CoverArgs& args) {
    const DeviceKv tables = device.kv_tables_.of(args.probe.kv);
    memory.push_back(device.visible_rows(tables, args.limit, args.probe.window, nullptr, 1));
    const int64_t n_probe = args.probe.q.n_rows, n_first = std::min<int64_t>(n_probe, kMaxProbeRows);
    CoverCall call{.n_head = args.q.n_head,
                   .group = args.q.n_head / tables.n_head,
                   .head_dim = args.q.head_dim,
                   .block = args.block,
                   .n_block_q = blocks_of(args.q.n_rows, args.block),
                   .n_block = blocks_of(tables.max_slots, args.block),
                   .n_rows = args.q.n_rows,
                   .max_slots = tables.max_slots,
                   .n_probe = static_cast<int32_t>(n_probe),
                   .visible = reinterpret_cast<const int2*>(memory.back().get()),
                   .share = args.share,
                   .distance = args.distance,
                   .least = args.least,
                   .most = args.most,
                   .scale = args.probe.scale,
                   .stream = device.stream_};
    const auto first = mass(args.probe, tables, 0, n_first);
    call.vertical = first[0];
    call.slash = first[1];
    if (n_probe > n_first) {
      const auto more = mass(args.probe, tables, n_first, n_probe - n_first);
      call.more_vertical = more[0];
      call.more_slash = more[1];
    }
    const StagedKv kv = device.staged(args.probe.kv, tables);
    call.probe_mean = pool(args.probe.q, static_cast<int32_t>(n_probe));
    call.queries = pool(args.q, args.block);
    call.keys = pool({.data = kv.k,
                      .head_stride = kv.capacity * kv.dim,
                      .row_stride = kv.dim,
                      .n_slots = kv.n_slots,
                      .n_head = kv.n_head_kv,
                      .head_dim = args.q.head_dim,
                      .block = args.block,
                      .n_block = call.n_block});
    const size_t n_lines = static_cast<size_t>(call.n_head) * static_cast<size_t>(call.n_block);
    call.work = lend<float>(3 * n_lines);
    call.lines = lend<uint8_t>(2 * n_lines);
    call.pooled = lend<uint8_t>(static_cast<size_t>(call.n_head));
    return call;
  }
};

Selection CudaDevice::select_cover(const CoverArgs& args) {
  if (args.limit.empty() || args.probe.q.n_rows > 2 * kMaxProbeRows) return Ops::select_cover(args);
  const auto lock = begin();
  Cover cover{*this, {}};
  CoverCall call = cover.prepare(args);
  decide_cover(call);

  const auto n_list = static_cast<size_t>(call.n_head) * static_cast<size_t>(call.n_block_q);
  const size_t map_values = static_cast<size_t>(call.n_block_q) * static_cast<size_t>(call.n_block);
  const auto at_once = static_cast<int32_t>(
      std::clamp<size_t>(kMostMapBytes / (map_values * sizeof(float)), 1, static_cast<size_t>(call.n_head)));
  call.map = cover.lend<float>(static_cast<size_t>(at_once) * map_values);
  call.cut = cover.lend<Cut>(static_cast<size_t>(at_once));
  call.map_cut = cover.lend<MapCut>(static_cast<size_t>(at_once));
  call.ties = cover.lend<int32_t>(static_cast<size_t>(at_once) * static_cast<size_t>(call.n_block_q));
  call.marks = cover.lend<uint32_t>(n_list * static_cast<size_t>(call.mark_words()));
  for (int32_t first = 0; first < call.n_head; first += at_once) {
    mark_cover(call, first, std::min(at_once, call.n_head - first));
  }

  return lists_of_marks(call);
}

Selection CudaDevice::lists_of_marks(CoverCall& call) {
  NewLists lists = new_lists({call.block, call.block, call.n_head, call.n_block_q});
  call.block_ptr = lists.block_ptr;
  const auto n_ends = static_cast<size_t>(lists.n_list() + 1);
  check(cudaMemsetAsync(lists.column_ptr, 0, n_ends * sizeof(int32_t), call.stream), "clearing lists");
  measure_cover(call, gpu_memory_.lend(cover_scan_bytes(call)).get());
  make_room(lists);
  write_cover(call, lists.block_begin);
  return lists.selection();
}

}  // namespace winnow::cuda
