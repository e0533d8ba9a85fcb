// Verbs that estimate attention by products, on the GPU.
#include <algorithm>
#include <cmath>

#include "attention/lists.h"
#include "attention/outstanding.h"
#include "base/error.h"
#include "kernels/cuda/cuda_device.h"

namespace winnow::cuda {
namespace {

constexpr int64_t kPanelValues = int64_t{1} << 26;
constexpr int64_t kPanelUnit = 256;    // logits of a row come in multiples of this: few shapes for cuBLAS to plan
constexpr int64_t kPanelRows = 128;    // rows come in multiples of this: whole blocks of rows, and aligned beginnings
constexpr int64_t kLeastPanel = 1024;  // rows, where there is room: fewer would not fill the machine
constexpr int64_t kPanels = 4;         // of many rows: what no row of a panel sees is not multiplied

int64_t rounded_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

/// Rows of query head `head` that vote. -> to [voters.n(), head_dim]
void gather_voters(const HeadsView& q, int32_t head, const Voters& voters, __nv_bfloat16* to, Stream stream) {
  float* rows = advance(q.data, int64_t{head} * q.head_dim, q.type);
  gather({.data = rows,
          .type = q.type,
          .row_stride = q.stride,
          .n_rows = q.n_rows / kBlockSlots * kBlockSlots,
          .head_dim = q.head_dim,
          .stride = voters.step,
          .reversed = true,
          .only_first = true,
          .n_out = voters.in_whole_blocks(),
          .out = to,
          .stream = stream});
  gather({.data = advance(rows, voters.tail_row() * q.stride, q.type),
          .type = q.type,
          .row_stride = q.stride,
          .n_rows = q.n_rows - voters.tail_row(),
          .head_dim = q.head_dim,
          .stride = voters.step,
          .only_first = true,
          .n_out = voters.n() - voters.in_whole_blocks(),
          .out = to + voters.in_whole_blocks() * q.head_dim,
          .stream = stream});
}

}  // namespace

void CudaDevice::in_panels(const PanelArgs& args, const std::function<int64_t(int64_t)>& seen,
                           const std::function<void(const Panel&)>& use) {
  const int64_t width = std::min(rounded_up(std::max<int64_t>(args.n_b, 1), kPanelUnit), kPanelValues);
  const int64_t wanted = std::max(kLeastPanel, (args.n_a + kPanels - 1) / kPanels);
  const int64_t n_rows = rounded_up(std::min(kPanelValues / width, wanted), kPanelRows);
  const auto memory = gpu_memory_.lend(static_cast<size_t>(std::min(n_rows, args.n_a) * width) * sizeof(float));
  for (int64_t first = 0; first < args.n_a; first += n_rows) {
    const int64_t n = std::min(n_rows, args.n_a - first);
    const int64_t n_seen = std::min(rounded_up(std::max<int64_t>(seen(first + n - 1), 1), kPanelUnit), args.n_b);
    const Mat a{const_cast<float*>(reinterpret_cast<const float*>(args.a + first * args.depth)), n, args.depth,
                args.depth, Type::bf16};
    const Mat logits{reinterpret_cast<float*>(memory.get()), n, n_seen, width, Type::f32};
    products_.scores({args.b, args.depth}, n_seen, a, logits);
    use({logits.data, width, first, n});
  }
}

/// A call's tables, and what is gathered of one head.
class CudaDevice::Antidiagonals {
 public:
  Antidiagonals(CudaDevice& device, const AntidiagonalArgs& args)
      : device_(device), args_(args), tables_(device.kv_tables_.of(args.rows.kv)) {
    const ProbeArgs& rows = args.rows;
    visible_ = device.visible_rows(tables_, {rows.limit, static_cast<size_t>(rows.q.n_rows)}, 0, nullptr, 1);
    kv_ = device.staged(rows.kv, tables_);
    n_q_ = ceil_div(rows.q.n_rows, args.stride);
    n_k_ = ceil_div(tables_.max_slots, args.stride);
    const auto values = static_cast<size_t>(args.stride) * static_cast<size_t>(kv_.dim);
    queries_ = device.gpu_memory_.lend(static_cast<size_t>(n_q_) * values * sizeof(__nv_bfloat16));
    keys_ = device.gpu_memory_.lend(static_cast<size_t>(n_k_) * values * sizeof(__nv_bfloat16));
  }

  int32_t n_block(int32_t head) const { return ceil_div(n_seen(head, args_.rows.q.n_rows - 1), args_.block); }
  int32_t most_blocks() const { return ceil_div(tables_.max_slots, args_.block); }

  BlockRows block_rows(int32_t head, int32_t n_block) const {
    return {.visible = reinterpret_cast<const int2*>(visible_.get()) + kv_head(head) * args_.rows.q.n_rows,
            .n_rows = args_.rows.q.n_rows,
            .stride = args_.stride,
            .block = args_.block,
            .n_block = n_block,
            .scale = args_.rows.scale / static_cast<float>(args_.stride),
            .softcap = args_.rows.softcap,
            .stream = device_.stream_};
  }

  /// -> scores [n_block_q, n_block] in GPU memory
  void run(int32_t head, const BlockRows& rows, float* scores) {
    const HeadsView& q = args_.rows.q;
    auto* queries = reinterpret_cast<__nv_bfloat16*>(queries_.get());
    auto* keys = reinterpret_cast<__nv_bfloat16*>(keys_.get());
    gather({.data = advance(q.data, int64_t{head} * q.head_dim, q.type),
            .type = q.type,
            .row_stride = q.stride,
            .n_rows = q.n_rows,
            .head_dim = q.head_dim,
            .stride = args_.stride,
            .n_out = n_q_,
            .out = queries,
            .stream = rows.stream});
    if (const int32_t wanted = kv_head(head); wanted != gathered_) {
      gather({.data = kv_.k + wanted * kv_.capacity * kv_.dim,
              .row_stride = kv_.dim,
              .n_rows = kv_of(head).n_slots,
              .head_dim = q.head_dim,
              .stride = args_.stride,
              .reversed = true,
              .n_out = n_k_,
              .out = keys,
              .stream = rows.stream});
      gathered_ = wanted;
    }
    const auto seen = [&](int64_t group) {
      return ceil_div(n_seen(head, std::min((group + 1) * args_.stride, q.n_rows) - 1), args_.stride);
    };
    device_.in_panels({.a = queries, .b = keys, .n_a = n_q_, .n_b = n_k_, .depth = int64_t{args_.stride} * q.head_dim},
                      seen, [&](const Panel& panel) { antidiagonal_sums(rows, panel, scores); });
  }

 private:
  int32_t kv_head(int32_t head) const { return head / (args_.rows.q.n_head / tables_.n_head); }
  const KvHead& kv_of(int32_t head) const { return args_.rows.kv.heads[static_cast<size_t>(kv_head(head))]; }
  int32_t n_seen(int32_t head, int64_t row) const { return visible_slots(kv_of(head), args_.rows.limit[row]); }

  CudaDevice& device_;
  const AntidiagonalArgs& args_;
  DeviceKv tables_;
  StagedKv kv_;
  std::shared_ptr<std::byte> visible_, queries_, keys_;
  int64_t n_q_ = 0, n_k_ = 0;  // groups
  int32_t gathered_ = -1;      // the kv head whose keys are there
};

void CudaDevice::antidiagonal_scores(const AntidiagonalArgs& args, std::vector<std::vector<float>>& scores) {
  const auto lock = begin();
  Antidiagonals estimate(*this, args);
  scores.resize(static_cast<size_t>(args.rows.q.n_head));
  for (int32_t head = 0; head < args.rows.q.n_head; ++head) {
    const BlockRows rows = estimate.block_rows(head, estimate.n_block(head));
    std::vector<float>& to = scores[static_cast<size_t>(head)];
    to.resize(static_cast<size_t>(ceil_div(rows.n_rows, rows.block)) * static_cast<size_t>(rows.n_block));
    const auto made = gpu_memory_.lend(to.size() * sizeof(float));
    estimate.run(head, rows, reinterpret_cast<float*>(made.get()));
    transfers_.download(to.data(), made.get(), to.size() * sizeof(float));
  }
}

Selection CudaDevice::select_antidiagonals(const AntidiagonalArgs& args, double share) {
  const auto lock = begin();
  Antidiagonals estimate(*this, args);
  CoverCall call{.n_head = args.rows.q.n_head,
                 .block = args.block,
                 .n_block_q = ceil_div(args.rows.q.n_rows, args.block),
                 .n_block = estimate.most_blocks(),
                 .stream = stream_};
  const size_t n_marks = static_cast<size_t>(call.n_block_q) * static_cast<size_t>(call.mark_words());
  const auto marks = gpu_memory_.lend(static_cast<size_t>(call.n_head) * n_marks * sizeof(uint32_t));
  call.marks = reinterpret_cast<uint32_t*>(marks.get());
  const auto scores =
      gpu_memory_.lend(static_cast<size_t>(call.n_block_q) * static_cast<size_t>(call.n_block) * sizeof(float));
  for (int32_t head = 0; head < call.n_head; ++head) {
    const BlockRows rows = estimate.block_rows(head, call.n_block);
    estimate.run(head, rows, reinterpret_cast<float*>(scores.get()));
    mark_heaviest(rows, reinterpret_cast<const float*>(scores.get()), share, args.last_rows,
                  call.marks + static_cast<size_t>(head) * n_marks);
  }
  return lists_of_marks(call);
}

void CudaDevice::proxy_scores(const ProxyArgs& args, std::vector<std::vector<float>>& scores) {
  const auto lock = begin();
  const auto n_head_kv = static_cast<int32_t>(args.kv.heads.size());
  const int32_t n_kv = n_head_kv / args.n_group, n_q = args.q.n_head / args.n_group;
  const DeviceKv tables = kv_tables_.of(args.kv);
  const StagedKv kv = staged(args.kv, tables);
  const auto visible = visible_rows(tables, args.limit, 0, nullptr, 1);
  const int64_t n_rows = ceil_div(args.q.n_rows, args.stride), n_slots = ceil_div(tables.max_slots, args.stride);
  const auto values = [&](int64_t n) { return static_cast<size_t>(n * args.q.head_dim) * sizeof(__nv_bfloat16); };
  const auto queries = gpu_memory_.lend(values(n_rows)), keys = gpu_memory_.lend(values(n_slots));
  scores.resize(static_cast<size_t>(args.n_group));
  for (int32_t group = 0; group < args.n_group; ++group) {
    const KvHead& head = args.kv.heads[static_cast<size_t>(group * n_kv)];
    gather({.data = advance(args.q.data, int64_t{group} * n_q * args.q.head_dim, args.q.type),
            .type = args.q.type,
            .head_stride = args.q.head_dim,
            .row_stride = args.q.stride,
            .n_rows = args.q.n_rows,
            .n_head = n_q,
            .head_dim = args.q.head_dim,
            .stride = args.stride,
            .only_first = true,
            .n_out = n_rows,
            .out = reinterpret_cast<__nv_bfloat16*>(queries.get()),
            .stream = stream_});
    gather({.data = kv.k + group * n_kv * kv.capacity * kv.dim,
            .head_stride = kv.capacity * kv.dim,
            .row_stride = kv.dim,
            .n_rows = head.n_slots,
            .n_head = n_kv,
            .head_dim = args.q.head_dim,
            .stride = args.stride,
            .only_first = true,
            .n_out = n_slots,
            .out = reinterpret_cast<__nv_bfloat16*>(keys.get()),
            .stream = stream_});
    const auto seen = [&](int64_t sample) {
      return ceil_div(visible_slots(head, args.limit[static_cast<size_t>(sample * args.stride)]), args.stride);
    };
    const BlockRows rows{.visible = reinterpret_cast<const int2*>(visible.get()) + group * n_kv * args.q.n_rows,
                         .n_rows = args.q.n_rows,
                         .stride = args.stride,
                         .block = args.block,
                         .n_block = ceil_div(visible_slots(head, args.limit.back()), args.block),
                         .scale = args.scale,
                         .stream = stream_};
    std::vector<float>& of_group = scores[static_cast<size_t>(group)];
    of_group.resize(static_cast<size_t>(ceil_div(args.q.n_rows, args.block)) * static_cast<size_t>(rows.n_block));
    const auto made = gpu_memory_.lend(of_group.size() * sizeof(float));
    in_panels({.a = reinterpret_cast<const __nv_bfloat16*>(queries.get()),
               .b = reinterpret_cast<const __nv_bfloat16*>(keys.get()),
               .n_a = n_rows,
               .n_b = n_slots,
               .depth = args.q.head_dim},
              seen, [&](const Panel& panel) { proxy_maxima(rows, panel, reinterpret_cast<float*>(made.get())); });
    transfers_.download(of_group.data(), made.get(), of_group.size() * sizeof(float));
  }
}

Selection CudaDevice::select_outstanding(const OutstandingArgs& args) {
  const auto lock = begin();
  const DeviceKv tables = kv_tables_.of(args.kv);
  const StagedKv kv = staged(args.kv, tables);
  const auto visible = visible_rows(tables, args.limit, 0, nullptr, 1);
  const Voters voters{args.q.n_rows, args.step};
  const auto values = [&](int64_t n) { return static_cast<size_t>(n * args.q.head_dim) * sizeof(__nv_bfloat16); };
  const auto queries = gpu_memory_.lend(values(voters.n())), keys = gpu_memory_.lend(values(tables.max_slots));
  CoverCall call{.n_head = args.q.n_head,
                 .block = kBlockSlots,
                 .n_block_q = ceil_div(args.q.n_rows, kBlockSlots),
                 .n_block = ceil_div(tables.max_slots, kBlockSlots),
                 .stream = stream_};
  const size_t n_marks = static_cast<size_t>(call.n_block_q) * static_cast<size_t>(call.mark_words());
  const auto marks = gpu_memory_.lend(static_cast<size_t>(call.n_head) * n_marks * sizeof(uint32_t));
  call.marks = reinterpret_cast<uint32_t*>(marks.get());
  const int32_t group = args.q.n_head / tables.n_head;
  for (int32_t head = 0; head < args.q.n_head; ++head) {
    const int32_t kv_head = head / group;
    const KvHead& slots = args.kv.heads[static_cast<size_t>(kv_head)];
    gather_voters(args.q, head, voters, reinterpret_cast<__nv_bfloat16*>(queries.get()), stream_);
    if (head % group == 0) {
      gather({.data = kv.k + kv_head * kv.capacity * kv.dim,
              .row_stride = kv.dim,
              .n_rows = slots.n_slots,
              .head_dim = args.q.head_dim,
              .n_out = tables.max_slots,
              .out = reinterpret_cast<__nv_bfloat16*>(keys.get()),
              .stream = stream_});
    }
    const double tau = args.tau[static_cast<size_t>(head)];
    const OutstandingMarks one{
        .rows = {.visible = reinterpret_cast<const int2*>(visible.get()) + kv_head * args.q.n_rows,
                 .n_rows = args.q.n_rows,
                 .block = kBlockSlots,
                 .n_block = call.n_block,
                 .scale = args.scale,
                 .softcap = args.softcap,
                 .stream = stream_},
        .voters = voters,
        .bias = tables.bias == nullptr ? nullptr : tables.bias + kv_head * tables.bias_stride,
        .sink_blocks = args.sink_blocks,
        .local_blocks = tau < kNoTau ? call.n_block : args.local_blocks,  // none lies before these
        .log_tau = static_cast<float>(std::log(std::max(tau, kNoTau))),
        .marks = call.marks + static_cast<size_t>(head) * n_marks};
    const auto seen = [&](int64_t voter) {
      return visible_slots(slots, args.limit[static_cast<size_t>(voters.row(voter))]);
    };
    in_panels({.a = reinterpret_cast<const __nv_bfloat16*>(queries.get()),
               .b = reinterpret_cast<const __nv_bfloat16*>(keys.get()),
               .n_a = voters.n(),
               .n_b = tables.max_slots,
               .depth = args.q.head_dim},
              seen, [&](const Panel& panel) { mark_outstanding(one, panel); });
  }
  return lists_of_marks(call);
}

}  // namespace winnow::cuda
