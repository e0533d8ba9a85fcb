// Scores of blocks by averaged heads on the CPU: what is sampled of a group of heads is averaged to one head, and its
// blocks are then estimated in the number format of attention's own products (antidiagonals.cpp), one row and one slot
// a group.
#include <algorithm>
#include <limits>

#include "attention/lists.h"
#include "kernels/cpu/attention.h"
#include "kernels/rows.h"

namespace winnow::cpu {
namespace {

class Proxy {
 public:
  Proxy(CpuContext& context, const ProxyArgs& args)
      : context_(context), args_(args), n_kv_(static_cast<int32_t>(args.kv.heads.size()) / args.n_group) {}

  /// -> [ceil(n_rows / block), ceil(n_seen / block)]
  bool run(int32_t group, std::vector<float>& scores) {
    first_kv_ = group * n_kv_;
    const KvHead& kv = args_.kv.heads[static_cast<size_t>(first_kv_)];
    read_queries();
    read_keys(kv);
    limit_.clear();
    for (int64_t row = 0; row < args_.q.n_rows; row += args_.stride) limit_.push_back(n_sampled(kv, row) - 1);
    const int32_t dim = args_.q.head_dim;
    const KvHead sampled{.k = key_blocks_, .v = {}, .n_slots = n_sampled(kv, args_.q.n_rows - 1)};
    std::vector<std::vector<float>> made;
    const ProbeArgs rows = {.q = {queries_.as<float>(), std::ssize(limit_), 1, dim, dim},
                            .kv = {.k_type = Type::f32, .v_type = Type::f32, .head_dim = dim, .heads = {&sampled, 1}},
                            .limit = limit_.data(),
                            .scale = args_.scale};
    if (!antidiagonal_scores(context_, {rows, 1, args_.block / args_.stride}, BlockScore::log_of_largest, made)) {
      return false;
    }
    // Rows behind the last sampled one may see blocks that it does not.
    const auto n_block_q = static_cast<size_t>(ceil_div(args_.q.n_rows, args_.block));
    const auto n_block = static_cast<size_t>(ceil_div(visible_slots(kv, args_.limit.back()), args_.block));
    const size_t n_made = made.front().size() / n_block_q;
    scores.assign(n_block_q * n_block, -std::numeric_limits<float>::infinity());
    for (size_t b = 0; b < n_block_q; ++b) {
      std::copy_n(made.front().data() + b * n_made, n_made, scores.data() + b * n_block);
    }
    return true;
  }

 private:
  /// Sampled slots that a row sees.
  int32_t n_sampled(const KvHead& kv, int64_t row) const {
    return ceil_div(visible_slots(kv, args_.limit[static_cast<size_t>(row)]), args_.stride);
  }

  /// Mean queries of the group's heads at every stride-th row.
  void read_queries() {
    const int32_t dim = args_.q.head_dim, n_rows = ceil_div(args_.q.n_rows, args_.stride);
    const int32_t n_head = args_.q.n_head / args_.n_group, first = first_kv_ * (n_head / n_kv_);
    const float share = 1 / static_cast<float>(n_head);
    queries_.reserve(sizeof(float) * static_cast<size_t>(n_rows) * static_cast<size_t>(dim));
    context_.pool.parallel_for(ceil_div(n_rows, kBlockSlots), [&](int64_t piece, int /*thread*/) {
      const int64_t end = std::min<int64_t>((piece + 1) * kBlockSlots, n_rows);
      for (int64_t row = piece * kBlockSlots; row < end; ++row) {
        float* to = queries_.as<float>() + row * dim;
        std::fill_n(to, dim, 0.0F);
        for (int32_t head = first; head < first + n_head; ++head) {
          const float* from = args_.q.at(row * args_.stride, head);
          for (int32_t d = 0; d < dim; ++d) to[d] += from[d];
        }
        for (int32_t d = 0; d < dim; ++d) to[d] *= share;
      }
    });
  }

  /// Mean keys of the group's kv heads at every stride-th slot that any row sees, in blocks as a cache has them.
  void read_keys(const KvHead& kv) {
    const int32_t dim = args_.q.head_dim, n_slots = n_sampled(kv, args_.q.n_rows - 1);
    const size_t block_bytes = sizeof(float) * static_cast<size_t>(kBlockSlots * dim);
    const auto n_block = static_cast<size_t>(ceil_div(n_slots, kBlockSlots));
    keys_.reserve(n_block * block_bytes);
    key_blocks_.clear();
    for (size_t block = 0; block < n_block; ++block) key_blocks_.push_back(keys_.data() + block * block_bytes);
    context_.pool.parallel_for(std::ssize(key_blocks_), [&](int64_t block, int /*thread*/) {
      std::vector<float> one(static_cast<size_t>(dim));
      const int64_t end = std::min<int64_t>((block + 1) * kBlockSlots, n_slots);
      for (int64_t i = block * kBlockSlots; i < end; ++i) read_key(i * args_.stride, one, keys_.as<float>() + i * dim);
    });
  }

  void read_key(int64_t slot, std::vector<float>& one, float* mean) const {
    const size_t at = static_cast<size_t>(slot % kBlockSlots) * type_bytes(args_.kv.k_type, args_.kv.head_dim);
    const float share = 1 / static_cast<float>(n_kv_);
    std::fill_n(mean, one.size(), 0.0F);
    for (const KvHead& head : args_.kv.heads.subspan(static_cast<size_t>(first_kv_), static_cast<size_t>(n_kv_))) {
      decode_row(args_.kv.k_type, head.k[static_cast<size_t>(slot / kBlockSlots)] + at, one.data(), std::ssize(one));
      for (size_t d = 0; d < one.size(); ++d) mean[d] += share * one[d];
    }
  }

  CpuContext& context_;
  const ProxyArgs& args_;
  int32_t n_kv_, first_kv_ = 0;  // kv heads of a group, and the first one's index
  std::vector<int32_t> limit_;   // [n_rows / stride] the last sampled slot that a sampled row sees
  std::vector<const std::byte*> key_blocks_;
  Buffer queries_{0, &context_.memory}, keys_{0, &context_.memory};
};

}  // namespace

bool proxy_scores(CpuContext& context, const ProxyArgs& args, std::vector<std::vector<float>>& scores) {
  scores.resize(static_cast<size_t>(args.n_group));
  Proxy proxy(context, args);
  for (int32_t group = 0; group < args.n_group; ++group) {
    if (!proxy.run(group, scores[static_cast<size_t>(group)])) return false;
  }
  return true;
}

}  // namespace winnow::cpu
