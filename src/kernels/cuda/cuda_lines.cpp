// Attention of a probe's rows for all heads on the GPU: what it sums up to for each slot, and lines of it. The host
// waits once, for these sums or for the lengths of the lists.
#include <algorithm>

#include "base/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/lines.h"

namespace winnow::cuda {
namespace {

template <typename T>
T* as(const std::shared_ptr<std::byte>& memory) {
  return reinterpret_cast<T*>(memory.get());
}

}  // namespace

LineProbe CudaDevice::line_probe(const ProbeArgs& args, const DeviceKv& tables, RowRange rows,
                                 std::shared_ptr<std::byte>& visible) {
  const auto limit = std::span(args.limit + rows.begin, static_cast<size_t>(rows.n));
  visible = visible_rows(tables, limit, args.window, nullptr, 1);
  return {.q = rows_of(args.q.rows(rows.begin, rows.n)),
          .kv = staged(args.kv, tables),
          .visible = as<const int2>(visible),
          .max_slots = tables.max_slots,
          .scale = args.scale,
          .softcap = args.softcap,
          .stream = stream_};
}

void CudaDevice::spend(const ProbeArgs& args, const DeviceKv& tables, float* sums, bool adds) {
  for (int64_t first = 0; first < args.q.n_rows; first += kMaxProbeRows) {
    std::shared_ptr<std::byte> visible;
    const int64_t n = std::min<int64_t>(kMaxProbeRows, args.q.n_rows - first);
    const LineProbe probe = line_probe(args, tables, {first, n}, visible);
    const auto work = gpu_memory_.lend(line_work_bytes(probe));
    line_mass(probe, {.vertical = sums, .slash = nullptr, .adds = adds || first > 0}, work.get());
  }
}

/// Sums that the GPU makes, on the way to the host.
class CudaDevice::MassUnderWay final : public PendingMass {
 public:
  MassUnderWay(CudaDevice& device, const ProbeArgs& args) : device_(device), n_rows_(args.q.n_rows) {
    const DeviceKv tables = device.kv_tables_.of(args.kv);
    const auto n_head = static_cast<size_t>(args.q.n_head);
    width_ = static_cast<size_t>(tables.max_slots);
    for (size_t head = 0; head < n_head; ++head) {
      n_slots_.push_back(static_cast<size_t>(args.kv.heads[head * args.kv.heads.size() / n_head].n_slots));
    }
    sums_ = device.gpu_memory_.lend(n_head * width_ * sizeof(float));
    check(cudaEventCreateWithFlags(&made_, cudaEventDisableTiming), "creating an event");
    if (width_ > 0) device.spend(args, tables, as<float>(sums_), false);
    check(cudaEventRecord(made_, device.stream_), "recording an event");
  }
  ~MassUnderWay() override { cudaEventDestroy(made_); }
  MassUnderWay(const MassUnderWay&) = delete;
  MassUnderWay& operator=(const MassUnderWay&) = delete;

  void get(std::vector<std::vector<float>>& mass) override {
    const auto lock = device_.begin();
    mass.resize(n_slots_.size());
    device_.pool_.parallel_for(std::ssize(mass), [&](int64_t head, int /*thread*/) {  // while the GPU is at it
      const auto at = static_cast<size_t>(head);
      mass[at].assign(n_slots_[at], 0.0F);
    });
    if (n_rows_ == 0) return;
    device_.transfers_.download(
        sums_.get(), mass.size() * width_ * sizeof(float),
        [&](std::span<const std::byte> piece, size_t begin) { take(piece, begin, mass); }, made_);
  }

 private:
  void take(std::span<const std::byte> piece, size_t begin, std::vector<std::vector<float>>& mass) const {
    const size_t row = width_ * sizeof(float), first = begin / row, end = (begin + piece.size() + row - 1) / row;
    device_.pool_.parallel_for(static_cast<int64_t>(end - first), [&](int64_t i, int /*thread*/) {
      const size_t head = first + static_cast<size_t>(i);
      const auto to = std::as_writable_bytes(std::span(mass[head]));
      // What the piece holds of the head, counted from the head's first byte.
      const size_t from = std::max(begin, head * row) - head * row;
      const size_t last = std::min(begin + piece.size() - head * row, to.size());
      if (from < last) std::copy_n(piece.begin() + (head * row + from - begin), last - from, to.begin() + from);
    });
  }

  CudaDevice& device_;
  int64_t n_rows_;
  size_t width_ = 0;             // of a head's sums
  std::vector<size_t> n_slots_;  // [n_head]
  std::shared_ptr<std::byte> sums_;
  cudaEvent_t made_ = nullptr;
};

std::unique_ptr<PendingMass> CudaDevice::begin_window_mass(const ProbeArgs& args) {
  const auto lock = begin();
  return std::make_unique<MassUnderWay>(*this, args);
}

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
  std::shared_ptr<std::byte> probe_visible;
  const LineProbe probe = line_probe(probe_args, tables, {0, n_probe}, probe_visible);
  const size_t mass_bytes = static_cast<size_t>(n_head) * static_cast<size_t>(tables.max_slots) * sizeof(float);
  const auto vertical = gpu_memory_.lend(mass_bytes), slash = gpu_memory_.lend(mass_bytes);
  {
    const auto work = gpu_memory_.lend(line_work_bytes(probe));
    line_mass(probe, {.vertical = as<float>(vertical), .slash = as<float>(slash)}, work.get());
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
  const auto n_block_q = static_cast<int32_t>((rows.n_rows + kLineBlock - 1) / kLineBlock);
  NewLists lists = new_lists({kLineBlock, kLineBlock, rows.n_head, n_block_q});
  LayArgs lay{.chosen = chosen,
              .visible = rows.visible,
              .n_rows = rows.n_rows,
              .n_head = rows.n_head,
              .group = rows.group,
              .block_ptr = lists.block_ptr,
              .column_ptr = lists.column_ptr,
              .block_begin = nullptr,
              .column = nullptr,
              .work = nullptr,
              .stream = stream_};
  {
    const auto work = gpu_memory_.lend(lay_work_bytes(rows.n_head, rows.n_rows));
    lay.work = work.get();
    lay_lines(lay);
  }
  make_room(lists);
  lay.block_begin = lists.block_begin;
  lay.column = lists.column;
  lay_lines(lay);
  return lists.selection();
}

}  // namespace winnow::cuda
