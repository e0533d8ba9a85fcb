#include "attention/low_bit.h"

#include <algorithm>
#include <limits>

#include "attention/low_bit_inl.h"
#include "attention/ops.h"
#include "base/error.h"

namespace winnow {

const LowBitKernel kLowBitPortable = {kGroup, low_bit_query_bytes, low_bit_pack_query, low_bit_dot};

namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr int32_t kCopyStep = 64;  // the head size of copied rows is a multiple of this, which every kernel takes

float dot(const float* a, const float* b, int32_t n) {
  constexpr int32_t kLanes = 8;
  float sum[kLanes] = {};
  int32_t d = 0;
  for (; d + kLanes <= n; d += kLanes) {
    for (int32_t i = 0; i < kLanes; ++i) sum[i] += a[d + i] * b[d + i];
  }
  for (; d < n; ++d) sum[0] += a[d] * b[d];
  float total = 0;
  for (const float part : sum) total += part;
  return total;
}

void encode(const float* values, int32_t dim, std::byte* to) {
  for (int32_t g = 0; g < dim; g += kGroup, to += kGroupBytes) {
    float largest = 0;
    for (int32_t d = 0; d < kGroup; ++d) largest = std::max(largest, std::fabs(values[g + d]));
    const uint16_t bits = f32_to_f16(largest / 127);
    const float scale = f16_to_f32(bits), inverse = scale > 0 ? 1 / scale : 0;
    std::memcpy(to, &bits, sizeof(bits));
    auto* codes = reinterpret_cast<int8_t*>(to + sizeof(bits));
    for (int32_t d = 0; d < kGroup; ++d) {
      // The scale was rounded: the largest value may lie beyond the last code.
      const float code = std::clamp(values[g + d] * inverse, -127.0F, 127.0F);
      codes[d] = static_cast<int8_t>(static_cast<int32_t>(code + 128.5F) - 128);
    }
  }
}

void decode(const std::byte* from, int32_t dim, float* values) {
  for (int32_t g = 0; g < dim; g += kGroup, from += kGroupBytes) {
    uint16_t bits = 0;
    std::memcpy(&bits, from, sizeof(bits));
    const float scale = f16_to_f32(bits);
    const auto* codes = reinterpret_cast<const int8_t*>(from + sizeof(bits));
    for (int32_t d = 0; d < kGroup; ++d) values[g + d] = scale * static_cast<float>(codes[d]);
  }
}

class HostLowBitScores final : public LowBitScores {
 public:
  HostLowBitScores(Ops& ops, const LowBitArgs& args, bool read_cache, std::span<const LowBitKernel* const> kernels)
      : ops_(ops),
        args_(args),
        copied_(!read_cache || args.kv.k_type != Type::q8_0),
        dim_(copied_ ? (args.q.head_dim + kCopyStep - 1) / kCopyStep * kCopyStep : args.q.head_dim),
        row_bytes_(static_cast<size_t>(dim_ / kGroup) * kGroupBytes),
        copies_(args.kv.heads.size()),
        mean_(static_cast<size_t>(args.q.n_head)),
        bias_(static_cast<size_t>(args.q.n_head)) {
    const auto fits = [this](const LowBitKernel* kernel) { return dim_ % kernel->dim_step == 0; };
    kernel_ = *std::find_if(kernels.begin(), kernels.end(), fits);
    WINNOW_ASSERT(args.q.n_rows > 0);
    ops.for_each(args.q.n_head, [this](int64_t head, int) {
      ops_.pool_queries(args_.q, static_cast<int32_t>(head), static_cast<int32_t>(args_.q.n_rows),
                        mean_[static_cast<size_t>(head)]);
    });
    ops.for_each(static_cast<int64_t>(args.kv.heads.size()),
                 [this](int64_t kv_head, int) { prepare(static_cast<int32_t>(kv_head)); });
  }

  void score(const HeadsView& rows, int32_t head, const LowBitSlots& slots, std::vector<float>& logits) const override {
    WINNOW_ASSERT(slots.block == 1 || slots.block == kBlockSlots);
    const std::vector<std::byte> queries = pack(rows, head);
    const bool each = slots.block == 1;
    const auto n_q = static_cast<int32_t>(rows.n_rows);
    const int32_t n_tile = (std::max(0, slots.end - slots.begin) + kBlockSlots - 1) / kBlockSlots;
    const int64_t stride = each ? std::max(0, slots.end - slots.begin) : n_tile;
    logits.resize(static_cast<size_t>(n_q * stride));
    std::vector<float> part(static_cast<size_t>(n_q) * (each ? kBlockSlots : 1));
    const std::byte* row[kBlockSlots];
    float bias[kBlockSlots];
    for (int32_t t = 0; t < n_tile; ++t) {
      const int32_t begin = slots.begin + t * kBlockSlots, n = std::min(kBlockSlots, slots.end - begin);
      for (int32_t j = 0; j < kBlockSlots; ++j) {
        row[j] = key(head / group(), begin + std::min(j, n - 1));
        bias[j] = j < n ? bias_[static_cast<size_t>(head)][static_cast<size_t>(begin + j)] : kNothing;
      }
      kernel_->dot({row, dim_, queries.data(), n_q, bias, each ? part.data() : nullptr, each ? nullptr : part.data()});
      const int32_t width = each ? n : 1;
      for (int32_t i = 0; i < n_q; ++i) {
        const float* from = part.data() + static_cast<size_t>(i) * (each ? kBlockSlots : 1);
        std::copy_n(from, width, logits.data() + i * stride + (each ? t * kBlockSlots : t));
      }
    }
    if (args_.softcap > 0) {
      for (float& x : logits) x = args_.softcap * std::tanh(x / args_.softcap);
    }
  }

 private:
  int32_t group() const { return args_.q.n_head / static_cast<int32_t>(args_.kv.heads.size()); }

  const std::byte* key(int32_t kv_head, int32_t slot) const {
    const auto at = static_cast<size_t>(slot);
    if (copied_) return copies_[static_cast<size_t>(kv_head)].data() + at * row_bytes_;
    return args_.kv.heads[static_cast<size_t>(kv_head)].k[at / kBlockSlots] + at % kBlockSlots * row_bytes_;
  }

  std::vector<std::byte> pack(const HeadsView& rows, int32_t head) const {
    const size_t bytes = kernel_->query_bytes(dim_);
    std::vector<std::byte> queries(bytes * static_cast<size_t>(rows.n_rows));
    std::vector<float> values, padded(static_cast<size_t>(dim_));
    ops_.pool_queries(rows, head, 1, values);
    const std::vector<float>& mean = mean_[static_cast<size_t>(head)];
    for (size_t i = 0; i < static_cast<size_t>(rows.n_rows); ++i) {
      const float* from = values.data() + i * mean.size();
      for (size_t d = 0; d < mean.size(); ++d) padded[d] = (from[d] - mean[d]) * args_.scale;
      kernel_->pack_query(padded.data(), dim_, queries.data() + i * bytes);
    }
    return queries;
  }

  // The codes of one kv head's keys, and what the mean queries of its group owe to each of them.
  void prepare(int32_t kv_head) {
    const KvHead& kv = args_.kv.heads[static_cast<size_t>(kv_head)];
    const auto n = static_cast<size_t>(kv.n_slots), head_dim = static_cast<size_t>(args_.q.head_dim);
    std::vector<float> keys, mean(head_dim), values(static_cast<size_t>(dim_));
    if (copied_) {
      ops_.pool_keys(args_.kv, kv_head, 1, keys);
      for (size_t j = 0; j < n; ++j) {
        for (size_t d = 0; d < head_dim; ++d) mean[d] += keys[j * head_dim + d];
      }
      for (float& x : mean) x /= static_cast<float>(std::max<size_t>(n, 1));
      copies_[static_cast<size_t>(kv_head)].resize(n * row_bytes_);
    }
    const int32_t first = kv_head * group();
    for (int32_t head = first; head < first + group(); ++head) bias_[static_cast<size_t>(head)].resize(n);
    for (size_t j = 0; j < n; ++j) {
      if (copied_) {
        for (size_t d = 0; d < head_dim; ++d) values[d] = keys[j * head_dim + d] - mean[d];
        encode(values.data(), dim_, copies_[static_cast<size_t>(kv_head)].data() + j * row_bytes_);
      } else {
        decode(key(kv_head, static_cast<int32_t>(j)), dim_, values.data());
      }
      const float own = kv.bias == nullptr ? 0 : kv.bias[j];
      for (int32_t head = first; head < first + group(); ++head) {
        const float* query = mean_[static_cast<size_t>(head)].data();
        bias_[static_cast<size_t>(head)][j] = args_.scale * dot(query, values.data(), args_.q.head_dim) + own;
      }
    }
  }

  Ops& ops_;
  LowBitArgs args_;
  bool copied_;
  int32_t dim_;  // of a row of codes
  size_t row_bytes_;
  const LowBitKernel* kernel_ = nullptr;
  std::vector<std::vector<std::byte>> copies_;  // [n_kv_head] of [n_slots, row_bytes], where the cache is not read
  std::vector<std::vector<float>> mean_;        // [n_head, head_dim] mean query
  std::vector<std::vector<float>> bias_;        // [n_head, n_slots] its logits, and the slots' own bias
};

}  // namespace

std::unique_ptr<LowBitScores> host_low_bit_scores(Ops& ops, const LowBitArgs& args, bool read_cache,
                                                  std::span<const LowBitKernel* const> kernels) {
  return std::make_unique<HostLowBitScores>(ops, args, read_cache, kernels);
}

std::unique_ptr<LowBitScores> Ops::low_bit_scores(const LowBitArgs& args) {
  static constexpr const LowBitKernel* kKernels[] = {&kLowBitPortable};
  return host_low_bit_scores(*this, args, false, kKernels);
}

}  // namespace winnow
