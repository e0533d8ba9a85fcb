// Sets of slots and their lists on the GPU. The host waits for the size of the sets, which say how much room lists
// need, and for the lists' blocks.
#include <algorithm>

#include "attention/lists.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/sets.h"

namespace winnow::cuda {

/// A choice of sets that is under way, and its memory.
struct CudaDevice::Sets {
  CudaDevice& device;
  SetsCall call{};
  std::vector<std::shared_ptr<std::byte>> memory{};

  template <typename T>
  T* lend(int64_t n) {
    const size_t bytes = static_cast<size_t>(std::max<int64_t>(n, 1)) * sizeof(T);
    return reinterpret_cast<T*>(memory.emplace_back(device.gpu_memory_.lend(bytes)).get());
  }

  /// Room for sets by what the rows of all probes spend.
  void prepare(std::span<const ProbeArgs> probes, int32_t n_set) {
    const DeviceKv tables = device.kv_tables_.of(probes.front().kv);
    const int32_t n_head = probes.front().q.n_head;
    const int64_t max_slots = tables.max_slots;
    auto* mass = lend<float>(n_head * max_slots);
    bool adds = false;
    for (const ProbeArgs& probe : probes) {
      device.spend(probe, tables, mass, adds);
      adds = true;
    }
    call = {.n_set = n_set,
            .n_together = n_head / n_set,
            .max_slots = max_slots,
            .n_slots = tables.n_slots,
            .mass = mass,
            .sum = lend<float>(n_set * max_slots),
            .taken = lend<int32_t>(n_set * max_slots),
            .stream = device.stream_};
  }

  /// What was taken, as Ops::choose_core gives it.
  Selection made(const KvView& kv, const int32_t* near, double total) {
    NewLists lists = device.new_lists({kSetRows, kSetBlock, call.n_set, 1});
    auto* facts = lend<SetFacts>(call.n_set);
    end_sets(call, {.near = near,
                    .total = total,
                    .scan_work = lend<std::byte>(static_cast<int64_t>(sets_scan_bytes(call))),
                    .ptr = lists.column_ptr,
                    .facts = facts});
    std::vector<SetFacts> known(static_cast<size_t>(call.n_set));
    device.transfers_.download(known.data(), facts, known.size() * sizeof(SetFacts));
    bool all = true;
    size_t n = 0;
    MassEstimate kept;
    for (size_t set = 0; set < known.size(); ++set) {
      all = all && known[set].n == kv.heads[set].n_slots;
      n += static_cast<size_t>(known[set].n);
      kept.add(known[set].kept);
    }
    if (all) return {};
    const size_t n_ends = static_cast<size_t>(call.n_set + 1) * sizeof(int32_t);
    check(cudaMemsetAsync(lists.block_ptr, 0, n_ends, call.stream), "clearing lists");
    device.make_columns(lists, n);
    write_sets(call, lists.column);
    Selection selection = lists.selection();
    selection.estimated_mass = kept.sum / static_cast<double>(kept.n);
    return selection;
  }
};

Selection CudaDevice::choose_core(const CoreArgs& args) {
  const auto lock = begin();
  Sets sets{*this};
  const auto n_set = static_cast<int32_t>(args.votes.kv.heads.size());
  sets.prepare({&args.votes, 1}, n_set);
  const auto* shares = tables_.put(args.shares);
  cuda::choose_core(sets.call, {.begin = tables_.put(args.begin),
                                .shares = reinterpret_cast<const double*>(shares),
                                .sinks = args.sinks,
                                .concentration = sets.lend<double>(n_set * (sets.call.max_slots / kCoreBlock))});
  return sets.made(args.votes.kv, tables_.put(args.near), 0);
}

Selection CudaDevice::choose_important(const ImportantArgs& args) {
  const auto lock = begin();
  Sets sets{*this};
  const KvView& kv = args.probes.front().kv;
  const auto n_set = args.together ? 1 : static_cast<int32_t>(kv.heads.size());
  sets.prepare(args.probes, n_set);
  std::vector<int32_t> limit, n_slots;
  for (const ProbeArgs& probe : args.probes) limit.insert(limit.end(), probe.limit, probe.limit + probe.q.n_rows);
  for (const KvHead& head : kv.heads) n_slots.push_back(head.n_slots);
  const auto visible = visible_rows(kv_tables_.of(kv), limit, 0, nullptr, 1);
  const auto work = gpu_memory_.lend(important_work_bytes(sets.call));
  cuda::choose_important(sets.call, {.visible = reinterpret_cast<const int2*>(visible.get()),
                                     .n_rows = static_cast<int32_t>(limit.size()),
                                     .share = args.share,
                                     .first = args.first,
                                     .host_n_slots = n_slots.data(),
                                     .work = work.get()});
  return sets.made(kv, nullptr, static_cast<double>(limit.size()));
}

Selection CudaDevice::select_rows_of_sets(const SetArgs& args, const Selection& sets) {
  const auto& from = static_cast<const GpuLists&>(*sets.on_device);
  std::vector<int32_t> own;
  for (const KvHead& head : args.kv.heads) own.push_back(visible_slots(head, args.limit.front()) - 1);
  const auto n_all = std::ssize(args.limit);
  const auto rows = gpu_memory_.lend(static_cast<size_t>(n_all + 1) * sizeof(int32_t));
  SetRows call{.sets = {.n_set = sets.n_head,
                        .ptr = from.lists.column_ptr,
                        .slots = from.lists.column,
                        .n = static_cast<int64_t>(from.n_column),
                        .stream = stream_},
               .own = on_gpu(own),
               .n_all = n_all,
               .n_wanted = std::min(args.n_wanted, n_all),
               .rows = reinterpret_cast<int32_t*>(rows.get())};
  {
    const auto places = gpu_memory_.lend(static_cast<size_t>(n_all) * sizeof(int32_t)),
               scan = gpu_memory_.lend(row_scan_bytes(call));
    find_rows(call, reinterpret_cast<int32_t*>(places.get()), scan.get());
  }
  std::vector<int32_t> known(static_cast<size_t>(n_all + 1));  // the engine gathers them
  transfers_.download(known.data(), rows.get(), known.size() * sizeof(int32_t));
  call.sets.n_rows = known.front();
  call.sets.n_block_q = ceil_div(call.sets.n_rows, kSetRows);
  NewLists lists = new_lists({.block_q = kSetRows,
                              .block_k = kSetBlock,
                              .n_head = sets.n_head,
                              .n_block_q = call.sets.n_block_q,
                              .group = args.n_head / sets.n_head});
  const auto n_list = static_cast<size_t>(lists.n_list());
  const auto more = gpu_memory_.lend(n_list * sizeof(int32_t)),
             work = gpu_memory_.lend(set_lists_work_bytes(call.sets));
  call.sets.work = work.get();
  call.sets.block_ptr = lists.block_ptr;
  call.more = reinterpret_cast<int32_t*>(more.get());
  measure_rows(call);
  make_blocks(lists);
  int32_t n_more = 0;
  transfers_.download(&n_more, call.more + n_list - 1, sizeof(n_more));
  make_columns(lists, from.n_column + static_cast<size_t>(n_more));
  call.sets.column = lists.column;
  call.sets.column_ptr = lists.column_ptr;
  call.sets.column_end = share_columns(lists);
  write_rows(call, lists.block_begin);
  Selection selection = lists.selection();
  selection.estimated_mass = sets.estimated_mass;
  if (call.sets.n_rows < n_all) {
    selection.rows.assign(known.begin() + 1, known.begin() + 1 + known.front());
  }
  return selection;
}

Selection CudaDevice::select_sets(const SetArgs& args) {
  const auto rows_follow = [&](const KvHead& head) {
    return visible_slots(head, args.limit.back()) - visible_slots(head, args.limit.front()) ==
           std::ssize(args.limit) - 1;
  };
  if (args.only_rows_of_sets && !std::ranges::all_of(args.kv.heads, rows_follow)) return Ops::select_sets(args);
  const auto lock = begin();
  const Selection sets = on_device(*args.sets);
  if (args.only_rows_of_sets) return select_rows_of_sets(args, sets);
  const auto& from = static_cast<const GpuLists&>(*sets.on_device);
  const auto n_rows = std::ssize(args.limit);
  const auto visible = visible_rows(kv_tables_.of(args.kv), args.limit, 0, nullptr, 1);
  NewLists lists = new_lists({.block_q = kSetRows,
                              .block_k = kSetBlock,
                              .n_head = sets.n_head,
                              .n_block_q = ceil_div(n_rows, kSetRows),
                              .group = args.n_head / sets.n_head});
  make_columns(lists, from.n_column);
  SetLists call{.n_set = sets.n_head,
                .ptr = from.lists.column_ptr,
                .slots = from.lists.column,
                .n = static_cast<int64_t>(from.n_column),
                .visible = reinterpret_cast<const int2*>(visible.get()),
                .n_rows = n_rows,
                .n_block_q = lists.made->lists.n_block_q,
                .window = args.window,
                .unit = args.unit,
                .column = lists.column,
                .column_ptr = lists.column_ptr,
                .column_end = share_columns(lists),
                .block_ptr = lists.block_ptr,
                .stream = stream_};
  const auto work = gpu_memory_.lend(set_lists_work_bytes(call));
  call.work = work.get();
  measure_sets(call);
  make_blocks(lists);
  write_set_blocks(call, lists.block_begin);
  Selection selection = lists.selection();
  selection.estimated_mass = sets.estimated_mass;
  return selection;
}

}  // namespace winnow::cuda
