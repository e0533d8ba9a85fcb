// The attention call and the verbs: host data becomes tables in GPU memory, then kernels are launched.
#include <algorithm>

#include "base/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/gpu_lists.h"
#include "kernels/cuda/verbs.h"

namespace winnow::cuda {
namespace {

constexpr int64_t kFewRows = 16;
constexpr int32_t kLargestHead = 256;
constexpr int64_t kCapacityUnit = 128;  // of staged slots

bool is_host_memory(const void* address) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, address), "asking where memory lies");
  return attributes.type == cudaMemoryTypeUnregistered || attributes.type == cudaMemoryTypeHost;
}

int64_t rounded_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

/// Whether two views of a head, nothing having been written between them, show the same keys and values.
bool same_head(const KvHead& a, const KvHead& b) {
  return a.k.data() == b.k.data() && a.v.data() == b.v.data() && a.n_slots == b.n_slots;
}

/// The slots [x, y) of `head` that a row of limit `limit` sees.
int2 visible_of(const KvHead& head, int32_t limit, int32_t window) {
  const auto slots_up_to = [&head](int64_t position) {
    if (head.idx == nullptr) return static_cast<int32_t>(std::clamp<int64_t>(position + 1, 0, head.n_slots));
    return static_cast<int32_t>(std::upper_bound(head.idx, head.idx + head.n_slots, position) - head.idx);
  };
  const int32_t end = slots_up_to(limit);
  const int32_t begin = window > 0 ? slots_up_to(static_cast<int64_t>(limit) - window) : 0;
  return {std::min(begin, end), end};
}

/// The lists' shape, without their entries.
Lists shape_of(const Selection& selection) {
  return {.block_q = selection.block_q,
          .block_k = selection.block_k,
          .n_head = selection.n_head,
          .n_block_q = selection.n_block_q,
          .group = selection.group};
}

}  // namespace

int32_t padded_head(int32_t head_dim) {
  if (head_dim % 8 != 0 || head_dim > kLargestHead) {
    fail("device cuda: heads of {} values; their size must be a multiple of 8 and at most {}", head_dim, kLargestHead);
  }
  return head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : kLargestHead;
}

struct CudaDevice::Call {
  DeviceKv kv;
  const int2* visible = nullptr;  // [n_head_kv, n_rows]
  const Lists* lists = nullptr;
  const float* skip = nullptr;
  unsigned long long* computed = nullptr;
};

std::shared_ptr<std::byte> CudaDevice::upload_lists(const Selection& selection, Lists& lists) {
  const std::vector<int32_t>* const from[] = {&selection.block_ptr, &selection.block_begin, &selection.column_ptr,
                                              &selection.column, &selection.column_end};
  lists = shape_of(selection);
  const int32_t** const to[] = {&lists.block_ptr, &lists.block_begin, &lists.column_ptr, &lists.column,
                                &lists.column_end};
  constexpr size_t kUnit = 64;  // values: each list begins on a line of its own
  size_t total = 0;
  for (const auto* list : from) total += (list->size() / kUnit + 1) * kUnit;
  std::shared_ptr<std::byte> memory = gpu_memory_.lend(total * sizeof(int32_t));
  auto* at = reinterpret_cast<int32_t*>(memory.get());
  for (size_t i = 0; i < std::size(from); ++i) {
    transfers_.upload(at, from[i]->data(), from[i]->size() * sizeof(int32_t));
    *to[i] = at;
    at += (from[i]->size() / kUnit + 1) * kUnit;
  }
  if (selection.column_end.empty()) lists.column_end = lists.column_ptr + 1;
  return memory;
}

/// Of few rows, for which all layers may have the same lists.
Lists CudaDevice::few_lists(const Selection& selection) {
  Lists lists = shape_of(selection);
  lists.block_ptr = on_gpu(selection.block_ptr);
  lists.block_begin = on_gpu(selection.block_begin);
  lists.column_ptr = on_gpu(selection.column_ptr);
  lists.column = on_gpu(selection.column);
  lists.column_end = selection.column_end.empty() ? lists.column_ptr + 1 : on_gpu(selection.column_end);
  return lists;
}

std::shared_ptr<std::byte> CudaDevice::visible_rows(const DeviceKv& kv, std::span<const int32_t> limit, int32_t window,
                                                    unsigned long long* permitted, int32_t group) {
  std::shared_ptr<std::byte> visible = gpu_memory_.lend(limit.size() * static_cast<size_t>(kv.n_head) * sizeof(int2));
  visible_slots({.position = kv.position,
                 .n_slots = kv.n_slots,
                 .capacity = kv.position_stride,
                 .n_head_kv = kv.n_head,
                 .limit = on_gpu(limit),
                 .n_rows = static_cast<int64_t>(limit.size()),
                 .window = window,
                 .visible = reinterpret_cast<int2*>(visible.get()),
                 .permitted = permitted,
                 .group = group,
                 .stream = stream_});
  return visible;
}

StagedKv CudaDevice::staged(const KvView& view, const DeviceKv& kv) {
  if (std::ranges::equal(staged_.heads, view.heads, same_head)) {
    staged_.kv.n_slots = kv.n_slots;  // tables move
    staged_.kv.bias = kv.bias;
    return staged_.kv;
  }
  const int32_t dim = padded_head(view.head_dim);
  const int64_t capacity = kv.bias != nullptr ? kv.bias_stride : rounded_up(std::max(kv.max_slots, 1), kCapacityUnit);
  const size_t bytes = static_cast<size_t>(capacity * kv.n_head * dim) * sizeof(__nv_bfloat16);
  staged_ = {};  // the memory of the layer before serves this one
  staged_.k = gpu_memory_.lend(bytes);
  staged_.v = gpu_memory_.lend(bytes);
  const StageArgs args{.k_type = view.k_type,
                       .v_type = view.v_type,
                       .k = kv.blocks.k,
                       .v = kv.blocks.v,
                       .first_block = kv.blocks.first_block,
                       .n_slots = kv.n_slots,
                       .n_head_kv = kv.n_head,
                       .head_dim = view.head_dim,
                       .dim = dim,
                       .capacity = capacity,
                       .k_out = reinterpret_cast<__nv_bfloat16*>(staged_.k.get()),
                       .v_out = reinterpret_cast<__nv_bfloat16*>(staged_.v.get()),
                       .stream = stream_};
  stage_kv(args);
  staged_.kv = {.k = args.k_out,
                .v = args.v_out,
                .bias = kv.bias,
                .n_slots = kv.n_slots,
                .capacity = capacity,
                .n_head_kv = kv.n_head,
                .dim = dim};
  staged_.heads.assign(view.heads.begin(), view.heads.end());
  return staged_.kv;
}

void CudaDevice::attend(const AttnArgs& args) {
  if (args.q.n_rows == 0) return;
  const auto lock = begin();
  // Asking costs a third of a launch; what is bf16 is ours.
  if (args.o.type == Type::f32 && is_host_memory(args.o.data)) {
    attend_to_host(args);
    return;
  }
  padded_head(args.q.head_dim);
  const auto n_head_kv = static_cast<int32_t>(args.kv.heads.size());
  Call call;
  const bool few = args.q.n_rows <= kFewRows;
  call.kv = kv_tables_.of(args.kv, !few);
  Lists lists;
  std::shared_ptr<std::byte> lists_memory;
  if (args.selection != nullptr && !args.selection->everything()) {
    if (args.selection->on_device != nullptr) {
      lists = static_cast<const GpuLists&>(*args.selection->on_device).lists;
    } else if (few) {
      lists = few_lists(*args.selection);
    } else {
      lists_memory = upload_lists(*args.selection, lists);
    }
    call.lists = &lists;
  }
  if (args.skip != nullptr) {
    call.skip = tables_.put(std::span<const float>(args.skip, static_cast<size_t>(args.q.n_head)));
  }
  const Counters::Pair counters = counters_.of(args.counts);
  call.computed = counters.computed;
  if (few) {
    call.visible = visible_to_few(args);
    attend_few_rows(args, call);
    return;
  }
  const auto visible = visible_rows(call.kv, {args.limit, static_cast<size_t>(args.q.n_rows)}, args.window,
                                    counters.permitted, args.q.n_head / n_head_kv);
  call.visible = reinterpret_cast<const int2*>(visible.get());
  attend_many_rows(args, call);
}

const int2* CudaDevice::visible_to_few(const AttnArgs& args) {
  std::vector<int2> visible;
  int64_t n_seen = 0;
  for (const KvHead& head : args.kv.heads) {
    for (int64_t row = 0; row < args.q.n_rows; ++row) {
      visible.push_back(visible_of(head, args.limit[row], args.window));
      n_seen += visible.back().y - visible.back().x;
    }
  }
  if (args.counts != nullptr) args.counts->permitted += n_seen * args.q.n_head / std::ssize(args.kv.heads);
  return tables_.put(std::span<const int2>(visible));
}

void CudaDevice::attend_few_rows(const AttnArgs& args, const Call& call) {
  FewRows few{.q = rows_of(args.q),
              .o = rows_of(args.o),
              .k_type = args.kv.k_type,
              .v_type = args.kv.v_type,
              .k = call.kv.blocks.k,
              .v = call.kv.blocks.v,
              .first_block = call.kv.blocks.first_block,
              .n_slots = call.kv.n_slots,
              .bias = call.kv.bias,
              .bias_stride = call.kv.bias_stride,
              .n_head_kv = call.kv.n_head,
              .max_slots = call.kv.max_slots,
              .visible = call.visible,
              .lists = call.lists,
              .first_row = args.first_row,
              .scale = args.scale,
              .softcap = args.softcap,
              .skip = call.skip,
              .lse = args.lse,
              .computed = call.computed,
              .work = nullptr,
              .stream = stream_};
  const auto work = gpu_memory_.lend(few_rows_work_bytes(few));
  few.work = work.get();
  attend_few(few);
}

void CudaDevice::attend_many_rows(const AttnArgs& args, const Call& call) {
  const ManyRows many{.q = rows_of(args.q),
                      .o = rows_of(args.o),
                      .kv = staged(args.kv, call.kv),
                      .visible = call.visible,
                      .lists = call.lists,
                      .first_row = args.first_row,
                      .scale = args.scale,
                      .softcap = args.softcap,
                      .skip = call.skip,
                      .lse = args.lse,
                      .computed = call.computed,
                      .stream = stream_};
  if (hopper_) {
    attend_hopper(many);
  } else {
    attend_portable(many);
  }
}

/// For calibration, whose results are the host's: counts are complete too when this returns.
void CudaDevice::attend_to_host(const AttnArgs& args) {
  WINNOW_ASSERT(args.lse == nullptr);
  const int64_t width = static_cast<int64_t>(args.o.n_head) * args.o.head_dim;
  const Scratch o = scratch(args.o.n_rows, width);
  AttnArgs on_device = args;
  on_device.o = o->heads(args.o.head_dim);
  attend(on_device);
  std::vector<float> values(static_cast<size_t>(args.o.n_rows * width));
  download(values.data(), o);
  for (int64_t row = 0; row < args.o.n_rows; ++row) {
    std::copy_n(values.begin() + row * width, width, args.o.at(row, 0));
  }
  counters_.fold();
}

void CudaDevice::merge(HeadsView into, float* into_lse, const Partial& from, float gain) {
  const auto lock = begin();
  cuda::merge(rows_of(into), into_lse, rows_of(from.o), from.lse, gain, stream_);
}

void CudaDevice::score_window(const ProbeArgs& args, int32_t head, std::vector<float>& scores) {
  const auto lock = begin();
  const int32_t kv_head = head / (args.q.n_head / static_cast<int32_t>(args.kv.heads.size()));
  const KvHead& kv = args.kv.heads[static_cast<size_t>(kv_head)];
  scores.resize(static_cast<size_t>(args.q.n_rows * kv.n_slots));
  if (scores.empty()) return;
  std::vector<int2> visible;
  for (int64_t row = 0; row < args.q.n_rows; ++row) visible.push_back(visible_of(kv, args.limit[row], args.window));
  const DeviceKv tables = kv_tables_.of(args.kv);
  const auto out = gpu_memory_.lend(scores.size() * sizeof(float));
  cuda::score_window({.q = {advance(args.q.data, int64_t{head} * args.q.head_dim, args.q.type), args.q.type,
                            args.q.stride, args.q.n_rows},
                      .k = {tables.blocks.k + kv_head * tables.blocks.stride, args.kv.k_type, kv.n_slots},
                      .head_dim = args.q.head_dim,
                      .visible = tables_.put(std::span<const int2>(visible)),
                      .bias = tables.bias == nullptr ? nullptr : tables.bias + kv_head * tables.bias_stride,
                      .scale = args.scale,
                      .softcap = args.softcap},
                     reinterpret_cast<float*>(out.get()), stream_);
  transfers_.download(scores.data(), out.get(), scores.size() * sizeof(float));
}

void CudaDevice::pool_queries(const HeadsView& q, int32_t head, int32_t block, std::vector<float>& pooled) {
  const auto lock = begin();
  pooled.resize(static_cast<size_t>((q.n_rows + block - 1) / block * q.head_dim));
  if (pooled.empty()) return;
  const auto out = gpu_memory_.lend(pooled.size() * sizeof(float));
  pool_rows({advance(q.data, int64_t{head} * q.head_dim, q.type), q.type, q.stride, q.n_rows}, q.head_dim, block,
            reinterpret_cast<float*>(out.get()), stream_);
  transfers_.download(pooled.data(), out.get(), pooled.size() * sizeof(float));
}

void CudaDevice::pool_keys(const KvView& kv, int32_t kv_head, int32_t block, std::vector<float>& pooled) {
  const auto lock = begin();
  const KvHead& head = kv.heads[static_cast<size_t>(kv_head)];
  pooled.resize(static_cast<size_t>((head.n_slots + block - 1) / block) * static_cast<size_t>(kv.head_dim));
  if (pooled.empty()) return;
  const DeviceKv tables = kv_tables_.of(kv);
  const auto out = gpu_memory_.lend(pooled.size() * sizeof(float));
  cuda::pool_keys({tables.blocks.k + kv_head * tables.blocks.stride, kv.k_type, head.n_slots}, kv.head_dim, block,
                  reinterpret_cast<float*>(out.get()), stream_);
  transfers_.download(pooled.data(), out.get(), pooled.size() * sizeof(float));
}

void CudaDevice::score_blocks(const std::vector<float>& a, const std::vector<float>& b, int32_t dim, float scale,
                              std::vector<float>& scores) {
  const auto lock = begin();
  const auto n_a = static_cast<int64_t>(a.size()) / dim, n_b = static_cast<int64_t>(b.size()) / dim;
  scores.resize(static_cast<size_t>(n_a * n_b));
  if (scores.empty()) return;
  const auto left = gpu_memory_.lend(a.size() * sizeof(float)), right = gpu_memory_.lend(b.size() * sizeof(float)),
             out = gpu_memory_.lend(scores.size() * sizeof(float));
  transfers_.upload(left.get(), a.data(), a.size() * sizeof(float));
  transfers_.upload(right.get(), b.data(), b.size() * sizeof(float));
  cuda::score_blocks(reinterpret_cast<const float*>(left.get()), n_a, reinterpret_cast<const float*>(right.get()), n_b,
                     dim, scale, reinterpret_cast<float*>(out.get()), stream_);
  transfers_.download(scores.data(), out.get(), scores.size() * sizeof(float));
}

}  // namespace winnow::cuda
