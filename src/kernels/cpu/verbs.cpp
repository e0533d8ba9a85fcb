// The verbs around attention: exact merging, and the scores that methods choose keys by. All but `merge` run on the
// calling thread.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/cpu/attend_lists.h"
#include "kernels/cpu/attention.h"
#include "kernels/rows.h"

namespace winnow::cpu {
namespace {

constexpr float kLog2E = 1.44269504F;
constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr int32_t kPadding = 16;  // exp2_of and its like take multiples of this

/// Scratch of the row kernels, and queries in the form that they want.
class Rows {
 public:
  Rows(CpuContext& context, int32_t head_dim)
      : kernel(*attend_kernels(context.features).front()),
        dim((head_dim + kernel.lanes - 1) / kernel.lanes * kernel.lanes),
        head_dim_(head_dim),
        scratch_(kernel.row_bytes(head_dim), &context.memory) {}

  const AttendKernel& kernel;
  const int32_t dim;  // padded

  /// The rows times `factor`, for keys of `type`.
  Buffer packed(const HeadsView& q, int32_t head, float factor, Type type) const {
    const size_t bytes = kernel.query_bytes(type, head_dim_);
    Buffer rows(bytes * static_cast<size_t>(q.n_rows), nullptr);
    std::vector<float> values(static_cast<size_t>(head_dim_));
    for (int64_t row = 0; row < q.n_rows; ++row) {
      const float* from = q.at(row, head);
      std::transform(from, from + head_dim_, values.begin(), [factor](float x) { return x * factor; });
      kernel.pack_query(values.data(), type, head_dim_, rows.data() + static_cast<size_t>(row) * bytes);
    }
    return rows;
  }

  void dot(const RowTile& tile, Type type, const Buffer& q, float* logits, int64_t stride) const {
    const auto n_q = static_cast<int32_t>(q.bytes() / kernel.query_bytes(type, head_dim_));
    kernel.dot_rows(tile, type, head_dim_, q.data(), n_q, logits, stride, scratch_.data());
  }

  void sum(const RowTile& tile, Type type, float* o) const {
    static constexpr std::array<float, kTileSlots> kOnes = [] {
      std::array<float, kTileSlots> ones{};
      ones.fill(1);
      return ones;
    }();
    kernel.mix_rows(tile, type, head_dim_, kOnes.data(), kTileSlots, 1, o, scratch_.data());
  }

 private:
  int32_t head_dim_;
  Buffer scratch_;
};

/// Addresses of the key rows of slots [begin, begin + n).
class KeyRows {
 public:
  KeyRows(const KvHead& kv, Type type, int32_t head_dim) : kv_(kv), bytes_(type_bytes(type, head_dim)) {}

  RowTile tile(int32_t begin, int32_t n) {
    for (int32_t i = 0; i < n; ++i) {
      const auto slot = static_cast<size_t>(begin) + static_cast<size_t>(i);
      rows_[static_cast<size_t>(i)] = kv_.k[slot / kBlockSlots] + bytes_ * (slot % kBlockSlots);
    }
    return {rows_.data(), nullptr, n};
  }

 private:
  const KvHead& kv_;
  size_t bytes_;
  std::array<const std::byte*, kTileSlots> rows_{};
};

/// Logits of one row, in base 2, to probabilities. `work` holds the row, padded.
void softmax_row(const AttendKernel& kernel, const ProbeArgs& args, const KvHead& kv, const std::vector<float>& bias,
                 int64_t row, std::vector<float>& work, float* out) {
  const Visible visible = visible_slots(kv, args.limit + row, 1, args.window);
  std::fill(work.begin(), work.end(), 0.0F);
  std::copy_n(out, kv.n_slots, work.begin());
  const auto n = static_cast<int32_t>(work.size());
  if (args.softcap > 0 || !bias.empty()) {
    kernel.shape_logits(work.data(), n, args.softcap, bias.empty() ? nullptr : bias.data());
  }
  std::fill(work.begin(), work.begin() + visible.begin[0], kNothing);
  std::fill(work.begin() + std::max(visible.begin[0], visible.end[0]), work.end(), kNothing);
  const float max = kernel.max_of(work.data(), n);
  const float sum = kernel.exp2_of(work.data(), n, max == kNothing ? 0 : max);
  const float factor = sum > 0 ? 1 / sum : 0;
  std::transform(work.begin(), work.begin() + kv.n_slots, out, [factor](float x) { return x * factor; });
}

}  // namespace

void merge(CpuContext& context, HeadsView into, float* into_lse, const Partial& from, float gain) {
  const float log_gain = std::log(gain);
  context.pool.parallel_for(into.n_rows, [&](int64_t row, int /*thread*/) {
    for (int32_t head = 0; head < into.n_head; ++head) {
      float& lse = into_lse[row * into.n_head + head];
      const float other_lse = from.lse[row * into.n_head + head] + log_gain;
      const float max = std::max(lse, other_lse);
      if (max == kNothing) continue;  // neither saw anything
      const float a = std::exp(lse - max);
      const float b = std::exp(other_lse - max);
      const float share_a = a / (a + b);
      const float share_b = b / (a + b);
      float* o = into.at(row, head);
      const float* other = from.o.at(row, head);
      for (int32_t d = 0; d < into.head_dim; ++d) o[d] = share_a * o[d] + share_b * other[d];
      lse = max + std::log(a + b);
    }
  });
}

void score_window(CpuContext& context, const ProbeArgs& args, int32_t head, std::vector<float>& probabilities) {
  const int32_t group = args.q.n_head / static_cast<int32_t>(args.kv.heads.size());
  const KvHead& kv = args.kv.heads[static_cast<size_t>(head / group)];
  const Rows rows(context, args.q.head_dim);
  const float factor = args.softcap > 0 ? args.scale / args.softcap : args.scale * kLog2E;
  const Buffer q = rows.packed(args.q, head, factor, args.kv.k_type);
  probabilities.resize(static_cast<size_t>(args.q.n_rows * kv.n_slots));
  KeyRows keys(kv, args.kv.k_type, args.q.head_dim);
  for (int32_t begin = 0; begin < kv.n_slots; begin += kTileSlots) {
    const int32_t n = std::min(kTileSlots, kv.n_slots - begin);
    rows.dot(keys.tile(begin, n), args.kv.k_type, q, probabilities.data() + begin, kv.n_slots);
  }
  std::vector<float> work(static_cast<size_t>((kv.n_slots + kPadding - 1) / kPadding * kPadding));
  std::vector<float> bias(kv.bias == nullptr ? 0 : work.size());
  if (kv.bias != nullptr) {
    std::transform(kv.bias, kv.bias + kv.n_slots, bias.begin(), [](float x) { return x * kLog2E; });
  }
  for (int64_t row = 0; row < args.q.n_rows && kv.n_slots > 0; ++row) {
    softmax_row(rows.kernel, args, kv, bias, row, work, probabilities.data() + row * kv.n_slots);
  }
}

void pool_queries(CpuContext& /*context*/, const HeadsView& q, int32_t head, int32_t block,
                  std::vector<float>& pooled) {
  const int64_t n_blocks = (q.n_rows + block - 1) / block;
  pooled.assign(static_cast<size_t>(n_blocks * q.head_dim), 0.0F);
  for (int64_t b = 0; b < n_blocks; ++b) {
    const int64_t end = std::min<int64_t>(q.n_rows, (b + 1) * block);
    float* sum = pooled.data() + b * q.head_dim;
    for (int64_t row = b * block; row < end; ++row) {
      const float* from = q.at(row, head);
      for (int32_t d = 0; d < q.head_dim; ++d) sum[d] += from[d];
    }
    const float share = 1 / static_cast<float>(end - b * block);
    for (int32_t d = 0; d < q.head_dim; ++d) sum[d] *= share;
  }
}

void pool_keys(CpuContext& context, const KvView& kv, int32_t kv_head, int32_t block, std::vector<float>& pooled) {
  const KvHead& head = kv.heads[static_cast<size_t>(kv_head)];
  const Rows rows(context, kv.head_dim);
  KeyRows keys(head, kv.k_type, kv.head_dim);
  const int32_t n_blocks = (head.n_slots + block - 1) / block;
  pooled.resize(static_cast<size_t>(n_blocks) * static_cast<size_t>(kv.head_dim));
  std::vector<float> sum(static_cast<size_t>(rows.dim));
  for (int32_t b = 0; b < n_blocks; ++b) {
    const int32_t end = std::min(head.n_slots, (b + 1) * block);
    std::fill(sum.begin(), sum.end(), 0.0F);
    for (int32_t begin = b * block; begin < end; begin += kTileSlots) {
      rows.sum(keys.tile(begin, std::min(kTileSlots, end - begin)), kv.k_type, sum.data());
    }
    const float share = 1 / static_cast<float>(end - b * block);
    std::transform(sum.begin(), sum.begin() + kv.head_dim, pooled.begin() + int64_t{b} * kv.head_dim,
                   [share](float x) { return x * share; });
  }
}

void gather_keys(const KvView& kv, int32_t kv_head, std::span<const int32_t> slots, std::vector<float>& keys) {
  const KvHead& head = kv.heads[static_cast<size_t>(kv_head)];
  const size_t bytes = type_bytes(kv.k_type, kv.head_dim);
  keys.resize(slots.size() * static_cast<size_t>(kv.head_dim));
  float* to = keys.data();
  for (const int32_t slot : slots) {
    const std::byte* block = head.k[static_cast<size_t>(slot / kBlockSlots)];
    decode_row(kv.k_type, block + bytes * static_cast<size_t>(slot % kBlockSlots), to, kv.head_dim);
    to += kv.head_dim;
  }
}

void score_blocks(CpuContext& context, const std::vector<float>& a, const std::vector<float>& b, int32_t dim,
                  float scale, std::vector<float>& scores) {
  const auto n_a = static_cast<int64_t>(a.size()) / dim;
  const auto n_b = static_cast<int64_t>(b.size()) / dim;
  const Rows rows(context, dim);
  // The view is only read; HeadsView has no form for constant data.
  const Buffer q = rows.packed({const_cast<float*>(a.data()), n_a, 1, dim, dim}, 0, scale, Type::f32);
  scores.resize(static_cast<size_t>(n_a * n_b));
  std::array<const std::byte*, kTileSlots> row{};
  for (int64_t begin = 0; begin < n_b; begin += kTileSlots) {
    const auto n = static_cast<int32_t>(std::min<int64_t>(kTileSlots, n_b - begin));
    for (int32_t i = 0; i < n; ++i) {
      row[static_cast<size_t>(i)] = reinterpret_cast<const std::byte*>(b.data() + (begin + i) * dim);
    }
    rows.dot({row.data(), nullptr, n}, Type::f32, q, scores.data() + begin, n_b);
  }
}

}  // namespace winnow::cpu
