// select_lines for all heads on the GPU. The host waits once, for the lengths of the lists.
#include <algorithm>

#include "base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/gpu_lists.h"
#include "kernels/cuda/lines.h"

namespace winnow::cuda {
namespace {

template <typename T>
T* as(const std::shared_ptr<std::byte>& memory) {
  return reinterpret_cast<T*>(memory.get());
}

}  // namespace

Selection CudaDevice::select_lines(const LineArgs& args) {
  const ProbeArgs& probe_args = args.probe;
  const int64_t n_probe = probe_args.q.n_rows;
  if (n_probe > kMaxProbeRows || args.limit.empty()) return Ops::select_lines(args);
  const auto lock = begin();
  const auto n_head_kv = static_cast<int32_t>(probe_args.kv.heads.size());
  const int32_t n_head = probe_args.q.n_head;
  const auto n_rows = static_cast<int64_t>(args.limit.size());
  const DeviceKv tables = kv_tables_.of(probe_args.kv);

  const auto visible = visible_rows(tables, args.limit, probe_args.window, nullptr, 1);
  const auto probe_visible =
      visible_rows(tables, {probe_args.limit, static_cast<size_t>(n_probe)}, probe_args.window, nullptr, 1);
  const LineProbe probe{.q = rows_of(probe_args.q),
                        .kv = staged(probe_args.kv, tables),
                        .visible = as<const int2>(probe_visible),
                        .max_slots = tables.max_slots,
                        .scale = probe_args.scale,
                        .softcap = probe_args.softcap,
                        .stream = stream_.stream};
  const size_t mass_bytes = static_cast<size_t>(n_head) * static_cast<size_t>(tables.max_slots) * sizeof(float);
  const auto vertical = gpu_memory_.lend(mass_bytes), slash = gpu_memory_.lend(mass_bytes);
  {
    const auto work = gpu_memory_.lend(line_work_bytes(probe));
    line_mass(probe, as<float>(vertical), as<float>(slash), work.get());
  }

  ChosenLines chosen;
  for (const LineBudget& budget : args.budget) {
    chosen.most_vertical = std::max(chosen.most_vertical, std::min(budget.n_vertical, tables.max_slots));
    chosen.most_slash = std::max(chosen.most_slash, std::min(budget.n_slash, tables.max_slots));
  }
  const auto n_chosen = static_cast<size_t>(n_head) * static_cast<size_t>(chosen.most_vertical + chosen.most_slash + 2);
  const auto lines = gpu_memory_.lend(n_chosen * sizeof(int32_t));
  chosen.n = as<int32_t>(lines);
  chosen.vertical = chosen.n + 2 * static_cast<ptrdiff_t>(n_head);
  chosen.slash = chosen.vertical + static_cast<ptrdiff_t>(n_head) * chosen.most_vertical;
  choose_lines(probe, as<float>(vertical), as<float>(slash), tables_.put(args.budget), chosen);
  return lay(chosen, {as<const int2>(visible), n_rows, n_head, n_head / n_head_kv});
}

Selection CudaDevice::lay(const ChosenLines& chosen, const LineRows& rows) {
  const int64_t n_block_q = (rows.n_rows + kLineBlock - 1) / kLineBlock;
  const auto n_list = static_cast<size_t>(rows.n_head) * static_cast<size_t>(n_block_q);
  auto made = std::make_shared<GpuLists>();
  const auto lend = [&](size_t n) { return made->memory.emplace_back(gpu_memory_.lend(n * sizeof(int32_t))); };
  const auto block_ptr = lend(n_list + 1), column_ptr = lend(n_list + 1);
  LayArgs lay{.chosen = chosen,
              .visible = rows.visible,
              .n_rows = rows.n_rows,
              .n_head = rows.n_head,
              .group = rows.group,
              .block_ptr = as<int32_t>(block_ptr),
              .column_ptr = as<int32_t>(column_ptr),
              .block_begin = nullptr,
              .column = nullptr,
              .work = nullptr,
              .stream = stream_.stream};
  {
    const auto work = gpu_memory_.lend(lay_work_bytes(rows.n_head, rows.n_rows));
    lay.work = work.get();
    lay_lines(lay);
  }
  int32_t n_block = 0, n_column = 0;
  transfers_.download(&n_block, lay.block_ptr + n_list, sizeof(n_block));
  transfers_.download(&n_column, lay.column_ptr + n_list, sizeof(n_column));
  const auto block_begin = lend(static_cast<size_t>(n_block) + 1), column = lend(static_cast<size_t>(n_column) + 1);
  lay.block_begin = as<int32_t>(block_begin);
  lay.column = as<int32_t>(column);
  lay_lines(lay);

  made->lists = {kLineBlock,    kLineBlock,      rows.n_head,    static_cast<int32_t>(n_block_q),
                 lay.block_ptr, lay.block_begin, lay.column_ptr, lay.column};
  made->n_block = static_cast<size_t>(n_block);
  made->n_column = static_cast<size_t>(n_column);
  Selection selection;
  selection.block_q = kLineBlock;
  selection.block_k = kLineBlock;
  selection.n_head = rows.n_head;
  selection.n_block_q = static_cast<int32_t>(n_block_q);
  selection.on_device = std::move(made);
  return selection;
}

Selection CudaDevice::on_host(const Selection& selection) {
  if (selection.on_device == nullptr) return selection;
  const auto lock = begin();
  const auto& made = static_cast<const GpuLists&>(*selection.on_device);
  const auto n_list = static_cast<size_t>(made.lists.n_head) * static_cast<size_t>(made.lists.n_block_q);
  Selection host = selection;
  host.on_device = nullptr;
  const auto fetch = [this](std::vector<int32_t>& to, const int32_t* from, size_t n) {
    to.resize(n);
    if (n > 0) transfers_.download(to.data(), from, n * sizeof(int32_t));
  };
  fetch(host.block_ptr, made.lists.block_ptr, n_list + 1);
  fetch(host.column_ptr, made.lists.column_ptr, n_list + 1);
  fetch(host.block_begin, made.lists.block_begin, made.n_block);
  fetch(host.column, made.lists.column, made.n_column);
  return host;
}

Selection CudaDevice::on_device(const Selection& selection) {
  if (selection.everything() || selection.on_device != nullptr) return selection;
  const auto lock = begin();
  auto made = std::make_shared<GpuLists>();
  made->memory.push_back(upload_lists(selection, made->lists));
  made->n_block = selection.block_begin.size();
  made->n_column = selection.column.size();
  Selection moved;
  moved.block_q = selection.block_q;
  moved.block_k = selection.block_k;
  moved.n_head = selection.n_head;
  moved.group = selection.group;
  moved.n_block_q = selection.n_block_q;
  moved.on_device = std::move(made);
  return moved;
}

}  // namespace winnow::cuda
