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

constexpr int64_t kMostParts = int64_t{1} << 26;    // at a time
constexpr int64_t kMostQueries = int64_t{1} << 26;  // values of several heads
constexpr int64_t kPartRows = 128;                  // row groups come in multiples of this: whole blocks of rows

/// Scores [n_block_q, n_block] of each of n heads or groups, to the host.
template <typename Estimate>
void bring_scores(Estimate& estimate, int32_t n, CudaContext& context, std::vector<std::vector<float>>& scores) {
  scores.resize(static_cast<size_t>(n));
  for (int32_t i = 0; i < n; ++i) {
    const BlockRows rows = estimate.block_rows(i, estimate.n_block(i));
    std::vector<float>& to = scores[static_cast<size_t>(i)];
    to.resize(static_cast<size_t>(ceil_div(rows.n_rows, rows.block)) * static_cast<size_t>(rows.n_block));
    const auto made = context.memory.lend(to.size() * sizeof(float));
    estimate.run({i}, rows.n_block, reinterpret_cast<float*>(made.get()));
    context.transfers.download(to.data(), made.get(), to.size() * sizeof(float));
  }
}

}  // namespace

void CudaDevice::estimate_blocks(EstimateCall call) {
  call.ld = call.rows.n_block + (call.maxima ? ceil_div(call.n_k, kEstimateColumns) : 0);
  call.n_sm = context_.n_sm;
  const int64_t wanted = kMostParts / (call.ld * call.n_head) / kPartRows * kPartRows;
  const int64_t n_rows = std::min(call.n_q, std::max(wanted, kPartRows));
  const auto parts = gpu_memory_.lend(static_cast<size_t>(call.n_head * n_rows * call.ld) * sizeof(float));
  call.parts = reinterpret_cast<float*>(parts.get());
  for (call.first = 0; call.first < call.n_q; call.first += n_rows) {
    call.n = std::min(n_rows, call.n_q - call.first);
    if (hopper_) {
      estimate_hopper(call);
    } else {
      estimate_portable(call);
    }
    score_parts(call);
  }
}

/// A call's tables, and what is gathered of some heads. A group's rows one behind the other are one vector, and the sum
/// along an antidiagonal is the product of two of them, the queries' in reverse order: keys are read as they lie there.
class CudaDevice::Antidiagonals {
 public:
  Antidiagonals(CudaDevice& device, const AntidiagonalArgs& args)
      : device_(device), args_(args), tables_(device.kv_tables_.of(args.rows.kv)) {
    const ProbeArgs& rows = args.rows;
    visible_ = device.visible_rows(tables_, {rows.limit, static_cast<size_t>(rows.q.n_rows)}, 0, nullptr, 1);
    kv_ = device.staged(rows.kv, tables_);
    n_q_ = ceil_div(rows.q.n_rows, args.stride);
    depth_ = int64_t{args.stride} * kv_.dim;
    const int64_t parts = n_q_ * ceil_div(tables_.max_slots, args.block);
    const int64_t most = std::min(kMostQueries / (n_q_ * depth_), kMostParts / std::max<int64_t>(parts, 1));
    at_once_ = static_cast<int32_t>(std::clamp<int64_t>(most, 1, rows.q.n_head));
    queries_ = device.gpu_memory_.lend(static_cast<size_t>(at_once_ * n_q_ * depth_) * sizeof(__nv_bfloat16));
  }

  int32_t n_block(int32_t head) const { return ceil_div(n_seen(head, args_.rows.q.n_rows - 1), args_.block); }
  int32_t most_blocks() const { return ceil_div(tables_.max_slots, args_.block); }
  /// Heads that one run takes, at most: one alone would not fill the machine where rows are few.
  int32_t at_once() const { return at_once_; }

  BlockRows block_rows(int32_t head, int32_t n_block) const {
    return {.visible = visible() + head / group() * args_.rows.q.n_rows,
            .n_rows = args_.rows.q.n_rows,
            .stride = args_.stride,
            .block = args_.block,
            .n_block = n_block,
            .scale = args_.rows.scale / static_cast<float>(args_.stride),
            .softcap = args_.rows.softcap,
            .stream = device_.stream_};
  }

  struct Heads {
    int32_t first, n = 1;
  };
  /// -> scores [heads.n, n_block_q, n_block] in GPU memory
  void run(Heads heads, int32_t n_block, float* scores) {
    const HeadsView& q = args_.rows.q;
    auto* queries = reinterpret_cast<__nv_bfloat16*>(queries_.get());
    for (int32_t i = 0; i < heads.n; ++i) {
      gather({.data = advance(q.data, int64_t{heads.first + i} * q.head_dim, q.type),
              .type = q.type,
              .row_stride = q.stride,
              .n_rows = q.n_rows,
              .head_dim = q.head_dim,
              .stride = args_.stride,
              .n_out = n_q_,
              .dim = kv_.dim,
              .out = queries + i * n_q_ * depth_,
              .stream = device_.stream_});
    }
    device_.estimate_blocks({.rows = block_rows(0, n_block),
                             .queries = queries,
                             .keys = kv_.k,
                             .n_q = n_q_,
                             .n_k = kv_.capacity / args_.stride,
                             .depth = depth_,
                             .first_head = heads.first,
                             .n_head = heads.n,
                             .n_kv = kv_.n_head_kv,
                             .group = group(),
                             .scores = scores});
  }

 private:
  const int2* visible() const { return reinterpret_cast<const int2*>(visible_.get()); }
  int32_t group() const { return args_.rows.q.n_head / tables_.n_head; }
  int32_t n_seen(int32_t head, int64_t row) const {
    return visible_slots(args_.rows.kv.heads[static_cast<size_t>(head / group())], args_.rows.limit[row]);
  }

  CudaDevice& device_;
  const AntidiagonalArgs& args_;
  DeviceKv tables_;
  StagedKv kv_;
  std::shared_ptr<std::byte> visible_, queries_;
  int64_t n_q_ = 0, depth_ = 0;  // groups of rows, and their values
  int32_t at_once_ = 1;
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
  const size_t n_scores = static_cast<size_t>(call.n_block_q) * static_cast<size_t>(call.n_block);
  const auto memory = gpu_memory_.lend(static_cast<size_t>(estimate.at_once()) * n_scores * sizeof(float));
  auto* scores = reinterpret_cast<float*>(memory.get());
  for (int32_t first = 0; first < call.n_head; first += estimate.at_once()) {
    const int32_t n = std::min(estimate.at_once(), call.n_head - first);
    estimate.run({first, n}, call.n_block, scores);
    for (int32_t i = 0; i < n; ++i) {
      mark_heaviest(estimate.block_rows(first + i, call.n_block), scores + static_cast<size_t>(i) * n_scores, share,
                    call.marks + static_cast<size_t>(first + i) * n_marks);
    }
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

  /// -> scores [n_block_q, n_block] of one group, in GPU memory
  void run(int32_t group, int32_t n_block, float* scores) {
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
            .dim = kv_.dim,
            .out = reinterpret_cast<__nv_bfloat16*>(queries_.get()),
            .stream = device_.stream_});
    gather({.data = kv_.k + int64_t{group} * n_kv() * kv_.capacity * kv_.dim,
            .head_stride = kv_.capacity * kv_.dim,
            .row_stride = kv_.dim,
            .n_rows = first(group).n_slots,
            .n_head = n_kv(),
            .head_dim = args_.q.head_dim,
            .stride = args_.stride,
            .only_first = true,
            .n_out = n_slots_,
            .dim = kv_.dim,
            .out = reinterpret_cast<__nv_bfloat16*>(keys_.get()),
            .stream = device_.stream_});
    device_.estimate_blocks({.rows = block_rows(group, n_block),
                             .queries = reinterpret_cast<const __nv_bfloat16*>(queries_.get()),
                             .keys = reinterpret_cast<const __nv_bfloat16*>(keys_.get()),
                             .n_q = n_rows_,
                             .n_k = n_slots_,
                             .depth = kv_.dim,
                             .maxima = true,
                             .scores = scores});
  }

 private:
  const KvHead& first(int32_t group) const { return args_.kv.heads[static_cast<size_t>(group * n_kv())]; }
  size_t bytes(int64_t n) const { return static_cast<size_t>(n * kv_.dim) * sizeof(__nv_bfloat16); }

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
    proxies.run(group, call.n_block, reinterpret_cast<float*>(scores.get()));
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
