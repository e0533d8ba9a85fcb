// Verbs that estimate attention by products, on the GPU.
#include <algorithm>
#include <cmath>

#include "attention/lists.h"
#include "attention/outstanding.h"
#include "base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/outstanding.h"

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

/// Scores [n_block_q, n_block] of each of n heads or groups, to the host.
template <typename Estimate>
void bring_scores(Estimate& estimate, int32_t n, CudaContext& context, std::vector<std::vector<float>>& scores) {
  scores.resize(static_cast<size_t>(n));
  for (int32_t i = 0; i < n; ++i) {
    const BlockRows rows = estimate.block_rows(i, estimate.n_block(i));
    std::vector<float>& to = scores[static_cast<size_t>(i)];
    to.resize(static_cast<size_t>(ceil_div(rows.n_rows, rows.block)) * static_cast<size_t>(rows.n_block));
    const auto made = context.memory.lend(to.size() * sizeof(float));
    estimate.run(i, rows, reinterpret_cast<float*>(made.get()));
    context.transfers.download(to.data(), made.get(), to.size() * sizeof(float));
  }
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
  bring_scores(estimate, args.rows.q.n_head, context_, scores);
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

/// A call's tables, and what is gathered of one group.
class CudaDevice::Proxies {
 public:
  Proxies(CudaDevice& device, const ProxyArgs& args, const DeviceKv& tables)
      : device_(device),
        args_(args),
        kv_(device.staged(args.kv, tables)),
        visible_(device.visible_rows(tables, args.limit, 0, nullptr, 1)),
        n_rows_(ceil_div(args.q.n_rows, args.stride)),
        n_slots_(ceil_div(tables.max_slots, args.stride)),
        queries_(device.gpu_memory_.lend(bytes(n_rows_))),
        keys_(device.gpu_memory_.lend(bytes(n_slots_))) {}

  int32_t n_kv() const { return kv_.n_head_kv / args_.n_group; }
  int32_t n_block(int32_t group) const {
    return ceil_div(visible_slots(first(group), args_.limit.back()), args_.block);
  }
  BlockRows block_rows(int32_t group, int32_t n_block) const {
    return {.visible = reinterpret_cast<const int2*>(visible_.get()) + int64_t{group} * n_kv() * args_.q.n_rows,
            .n_rows = args_.q.n_rows,
            .stride = args_.stride,
            .block = args_.block,
            .n_block = n_block,
            .scale = args_.scale,
            .stream = device_.stream_};
  }

  /// -> scores [n_block_q, n_block] in GPU memory
  void run(int32_t group, const BlockRows& rows, float* scores) {
    const int32_t n_q = args_.q.n_head / args_.n_group;
    gather({.data = advance(args_.q.data, int64_t{group} * n_q * args_.q.head_dim, args_.q.type),
            .type = args_.q.type,
            .head_stride = args_.q.head_dim,
            .row_stride = args_.q.stride,
            .n_rows = args_.q.n_rows,
            .n_head = n_q,
            .head_dim = args_.q.head_dim,
            .stride = args_.stride,
            .only_first = true,
            .n_out = n_rows_,
            .out = reinterpret_cast<__nv_bfloat16*>(queries_.get()),
            .stream = rows.stream});
    gather({.data = kv_.k + int64_t{group} * n_kv() * kv_.capacity * kv_.dim,
            .head_stride = kv_.capacity * kv_.dim,
            .row_stride = kv_.dim,
            .n_rows = first(group).n_slots,
            .n_head = n_kv(),
            .head_dim = args_.q.head_dim,
            .stride = args_.stride,
            .only_first = true,
            .n_out = n_slots_,
            .out = reinterpret_cast<__nv_bfloat16*>(keys_.get()),
            .stream = rows.stream});
    const auto seen = [&](int64_t sample) {
      return ceil_div(visible_slots(first(group), args_.limit[static_cast<size_t>(sample * args_.stride)]),
                      args_.stride);
    };
    device_.in_panels({.a = reinterpret_cast<const __nv_bfloat16*>(queries_.get()),
                       .b = reinterpret_cast<const __nv_bfloat16*>(keys_.get()),
                       .n_a = n_rows_,
                       .n_b = n_slots_,
                       .depth = args_.q.head_dim},
                      seen, [&](const Panel& panel) { proxy_maxima(rows, panel, scores); });
  }

 private:
  const KvHead& first(int32_t group) const { return args_.kv.heads[static_cast<size_t>(group * n_kv())]; }
  size_t bytes(int64_t n) const { return static_cast<size_t>(n * args_.q.head_dim) * sizeof(__nv_bfloat16); }

  CudaDevice& device_;
  const ProxyArgs& args_;
  StagedKv kv_;
  std::shared_ptr<std::byte> visible_;
  int64_t n_rows_, n_slots_;  // that take part
  std::shared_ptr<std::byte> queries_, keys_;
};

void CudaDevice::proxy_scores(const ProxyArgs& args, std::vector<std::vector<float>>& scores) {
  const auto lock = begin();
  Proxies proxies(*this, args, kv_tables_.of(args.kv));
  bring_scores(proxies, args.n_group, context_, scores);
}

Selection CudaDevice::select_ranked(const RankedArgs& args) {
  const auto lock = begin();
  const DeviceKv tables = kv_tables_.of(args.scores.kv);
  Proxies proxies(*this, args.scores, tables);
  CoverCall call{.n_head = args.scores.q.n_head,
                 .block = args.scores.block,
                 .n_block_q = ceil_div(args.scores.q.n_rows, args.scores.block),
                 .n_block = ceil_div(tables.max_slots, args.scores.block),
                 .stream = stream_};
  const auto n_head = static_cast<size_t>(call.n_head), n_block_q = static_cast<size_t>(call.n_block_q);
  const auto n_block = static_cast<size_t>(call.n_block), n_words = static_cast<size_t>(call.mark_words());
  const auto n_group_head = n_head / static_cast<size_t>(args.scores.n_group);
  const auto marks = gpu_memory_.lend(n_head * n_block_q * n_words * sizeof(uint32_t));
  const auto mass = gpu_memory_.lend(n_head * static_cast<size_t>(tables.max_slots) * sizeof(float));
  const auto by_block = gpu_memory_.lend(n_group_head * n_block * sizeof(float));
  const auto budget = gpu_memory_.lend(n_group_head * sizeof(int32_t));
  const auto scores = gpu_memory_.lend(n_block_q * n_block * sizeof(float));
  const auto kept = gpu_memory_.lend(n_head * sizeof(float));
  call.marks = reinterpret_cast<uint32_t*>(marks.get());
  spend(args.probe, tables, reinterpret_cast<float*>(mass.get()), false);
  for (int32_t group = 0; group < args.scores.n_group; ++group) {
    const size_t first = static_cast<size_t>(group) * n_group_head;
    const RankedMarks ranked{
        .rows = proxies.block_rows(group, call.n_block),
        .n_head = static_cast<int32_t>(n_group_head),
        .max_slots = tables.max_slots,
        .share = args.share,
        .least = args.least,
        .same_all = args.same_all,
        .scores = reinterpret_cast<const float*>(scores.get()),
        .mass = reinterpret_cast<const float*>(mass.get()) + first * static_cast<size_t>(tables.max_slots),
        .by_block = reinterpret_cast<float*>(by_block.get()),
        .budget = reinterpret_cast<int32_t*>(budget.get()),
        .marks = call.marks + first * n_block_q * n_words,
        .kept = reinterpret_cast<float*>(kept.get()) + first};
    proxies.run(group, ranked.rows, reinterpret_cast<float*>(scores.get()));
    mark_ranked(ranked);
  }
  Selection selection = lists_of_marks(call);
  selection.estimated_mass = mean_share(reinterpret_cast<const float*>(kept.get()), n_head);
  return selection;
}

Selection CudaDevice::select_outstanding(const OutstandingArgs& args) {
  const auto lock = begin();
  const DeviceKv tables = kv_tables_.of(args.kv);
  const StagedKv kv = staged(args.kv, tables);
  const auto visible = visible_rows(tables, args.limit, 0, nullptr, 1);
  CoverCall lists{.n_head = args.q.n_head,
                  .block = kBlockSlots,
                  .n_block_q = ceil_div(args.q.n_rows, kBlockSlots),
                  .n_block = ceil_div(tables.max_slots, kBlockSlots),
                  .stream = stream_};
  const auto marks = gpu_memory_.lend(static_cast<size_t>(lists.n_head) * static_cast<size_t>(lists.n_block_q) *
                                      static_cast<size_t>(lists.mark_words()) * sizeof(uint32_t));
  lists.marks = reinterpret_cast<uint32_t*>(marks.get());
  std::vector<float> log_tau;
  for (const double tau : args.tau) log_tau.push_back(tau < kNoTau ? -INFINITY : static_cast<float>(std::log(tau)));
  mark_outstanding({.q = rows_of(args.q),
                    .kv = kv,
                    .visible = reinterpret_cast<const int2*>(visible.get()),
                    .voters = {args.q.n_rows, args.step},
                    .scale = args.scale,
                    .softcap = args.softcap,
                    .sink_blocks = args.sink_blocks,
                    .local_blocks = args.local_blocks,
                    .log_tau = tables_.put(std::span<const float>(log_tau)),
                    .n_block = lists.n_block,
                    .marks = lists.marks,
                    .stream = stream_});
  return lists_of_marks(lists);
}

}  // namespace winnow::cuda
