#include "kernels/cpu/cpu_device.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/few_rows.h"
#include "kernels/cpu/low_bit.h"
#include "kernels/rows.h"

namespace winnow {
namespace {

constexpr int64_t kManyRows = 4;  // from here on, unpacked weights are the faster ones where there are any

}  // namespace

template <typename Work>
void CpuDevice::for_rows(int64_t n_rows, int64_t cost, Work work) {
  constexpr int64_t kWorthHandingOut = 16384;  // values; some microseconds, against the one that handing out takes
  const int64_t step = std::max<int64_t>(1, kWorthHandingOut / std::max<int64_t>(1, cost));
  pool_.parallel_for((n_rows + step - 1) / step, [&](int64_t piece, int /*thread*/) {
    const int64_t end = std::min(n_rows, (piece + 1) * step);
    for (int64_t row = piece * step; row < end; ++row) work(row);
  });
}

std::string CpuDevice::description() const {
  return fmt::format("cpu: {} threads, {}; prefill {}; decode reads the file's quantised blocks", n_threads(),
                     describe_features(context_.features), many_rows_.ops().name);
}

std::unique_ptr<Unpacked> CpuDevice::unpack(std::span<const Weight* const> weights) {
  return many_rows_.unpack(weights);
}

bool CpuDevice::takes_many(int64_t n_rows, std::span<const Weight* const> weights) const {
  return n_rows >= kManyRows && many_rows_.has(weights);
}

void CpuDevice::linear(const Weight& weight, Mat x, Mat y, const float* bias) {
  const Weight* const weights[] = {&weight};
  const Mat ys[] = {y};
  if (takes_many(x.rows, weights)) {
    many_rows_.multiply(weights, x, ys, {.biases = {&bias, 1}});
  } else {
    multiply_few_rows(context_, scratch_, weights, x, ys, bias);
  }
}

void CpuDevice::linear_many(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys,
                            std::span<const float* const> biases) {
  if (takes_many(x.rows, weights)) {
    many_rows_.multiply(weights, x, ys, {.biases = biases});
    return;
  }
  multiply_few_rows(context_, scratch_, weights, x, ys, nullptr);
  for (size_t i = 0; i < biases.size(); ++i) {
    if (biases[i] != nullptr) add_bias(ys[i], biases[i]);
  }
}

void CpuDevice::feed_forward(const GatedWeights& weights, Mat x, Mat y) {
  if (takes_many(x.rows, std::array{weights.gate, weights.up, weights.down})) {
    many_rows_.feed_forward(weights, gate_op(weights.act), x, y, {});
  } else {
    Device::feed_forward(weights, x, y);
  }
}

void CpuDevice::linear_add(const Weight& weight, Mat h, Mat x) {
  const Weight* const weights[] = {&weight};
  if (takes_many(h.rows, weights)) {
    many_rows_.multiply(weights, h, std::array{x}, {.adds = true});
  } else {
    Device::linear_add(weight, h, x);
  }
}

void CpuDevice::feed_forward_add(const GatedWeights& weights, Mat h, Mat x) {
  if (takes_many(h.rows, std::array{weights.gate, weights.up, weights.down})) {
    many_rows_.feed_forward(weights, gate_op(weights.act), h, x, {.adds = true});
  } else {
    Device::feed_forward_add(weights, h, x);
  }
}

void CpuDevice::embed(const Weight& table, std::span<const int32_t> tokens, float scale, Mat x) {
  const size_t row_bytes = type_bytes(table.type, table.n_in);
  for_rows(x.rows, table.n_in, [&](int64_t r) {
    const auto token = static_cast<size_t>(tokens[static_cast<size_t>(r)]);
    decode_row(table.type, table.data + token * row_bytes, x.row(r), table.n_in);
    if (scale != 1) ops_->scale(x.row(r), scale, table.n_in);
  });
}

void CpuDevice::rms_norm(Mat x, const float* weight, float eps, Mat y) {
  for_rows(x.rows, x.cols, [&](int64_t r) { ops_->rms_norm(x.row(r), weight, eps, x.cols, y.row(r)); });
}

void CpuDevice::rms_norm_heads(HeadsView x, const float* weight, float eps) {
  for_rows(x.n_rows, static_cast<int64_t>(x.n_head) * x.head_dim, [&](int64_t r) {
    for (int32_t h = 0; h < x.n_head; ++h) ops_->rms_norm(x.at(r, h), weight, eps, x.head_dim, x.at(r, h));
  });
}

void CpuDevice::rope(HeadsView x, const RopeArgs& args, std::span<const int32_t> position) {
  const auto half = static_cast<size_t>(args.n_rot / 2);
  const RopeAngles& angles = rope_tables_.of(args);
  constexpr int64_t kRowsAtOnce = 64;
  pool_.parallel_for((x.n_rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t piece, int /*thread*/) {
    RopeAngles::Cursor row = angles.cursor();
    std::vector<float> first(half), second(half);
    const int64_t end = std::min(x.n_rows, (piece + 1) * kRowsAtOnce);
    for (int64_t r = piece * kRowsAtOnce; r < end; ++r) {
      angles.move(position[static_cast<size_t>(r)], args.magnitude, row);
      const float* cosine = row.row_cosine.data();
      const float* sine = row.row_sine.data();
      for (int32_t h = 0; h < x.n_head; ++h) {
        float* head = x.at(r, h);
        if (args.neox) {
          ops_->turn(head, head + half, cosine, sine, static_cast<int64_t>(half));
          continue;
        }
        // Neighbouring pairs are drawn apart, turned, and put back.
        for (size_t i = 0; i < half; ++i) {
          first[i] = head[2 * i];
          second[i] = head[2 * i + 1];
        }
        ops_->turn(first.data(), second.data(), cosine, sine, static_cast<int64_t>(half));
        for (size_t i = 0; i < half; ++i) {
          head[2 * i] = first[i];
          head[2 * i + 1] = second[i];
        }
      }
    }
  });
}

GateOp* CpuDevice::gate_op(Gate kind) const {
  return kind == Gate::silu ? ops_->silu_gated : ops_->gelu_gated;
}

void CpuDevice::gated(Mat gate, Mat up, Gate kind, Mat y) {
  const auto op = gate_op(kind);
  for_rows(gate.rows, gate.cols, [&](int64_t r) { op(gate.row(r), up.row(r), gate.cols, y.row(r)); });
}

void CpuDevice::add(Mat x, Mat y) {
  for_rows(x.rows, x.cols, [&](int64_t r) { ops_->add(x.row(r), y.row(r), x.cols); });
}

void CpuDevice::add_bias(Mat x, const float* bias) {
  for_rows(x.rows, x.cols, [&](int64_t r) { ops_->add(x.row(r), bias, x.cols); });
}

void CpuDevice::scale_softcap(Mat x, float softcap) {
  for_rows(x.rows, x.cols, [&](int64_t r) { ops_->softcap(x.row(r), softcap, x.cols); });
}

void CpuDevice::store_kv(HeadsView k, HeadsView v, Type k_type, Type v_type, std::span<const KvTarget> target) {
  for_rows(k.n_rows, 2 * static_cast<int64_t>(k.n_head) * k.head_dim, [&](int64_t r) {
    for (int32_t h = 0; h < k.n_head; ++h) {
      const KvTarget& to = target[static_cast<size_t>(h)];
      const int64_t slot = to.first_slot + r;
      const auto block = static_cast<size_t>(slot / kBlockSlots);
      const auto within = static_cast<int32_t>(slot % kBlockSlots);
      store_slot(to.k[block], k_type, k.head_dim, within, k.at(r, h));
      store_slot(to.v[block], v_type, v.head_dim, within, v.at(r, h));
    }
  });
}

void CpuDevice::load_slot(const std::byte* block, Type type, int32_t head_dim, int32_t slot, float* values) {
  decode_row(type, block + static_cast<size_t>(slot) * type_bytes(type, head_dim), values, head_dim);
}

void CpuDevice::store_slot(std::byte* block, Type type, int32_t head_dim, int32_t slot, const float* values) {
  encode_row(type, values, block + static_cast<size_t>(slot) * type_bytes(type, head_dim), head_dim);
}

void CpuDevice::attend(const AttnArgs& args) {
  cpu::attend(context_, args);
}

void CpuDevice::merge(HeadsView into, float* into_lse, const Partial& from, float gain) {
  cpu::merge(context_, into, into_lse, from, gain);
}

void CpuDevice::score_window(const ProbeArgs& args, int32_t head, std::vector<float>& probabilities) {
  cpu::score_window(context_, args, head, probabilities);
}

void CpuDevice::pool_queries(const HeadsView& q, int32_t head, int32_t block, std::vector<float>& pooled) {
  cpu::pool_queries(context_, q, head, block, pooled);
}

void CpuDevice::pool_keys(const KvView& kv, int32_t kv_head, int32_t block, std::vector<float>& pooled) {
  cpu::pool_keys(context_, kv, kv_head, block, pooled);
}

void CpuDevice::gather_keys(const KvView& kv, int32_t kv_head, std::span<const int32_t> slots,
                            std::vector<float>& keys) {
  cpu::gather_keys(kv, kv_head, slots, keys);
}

void CpuDevice::score_blocks(const std::vector<float>& a, const std::vector<float>& b, int32_t dim, float scale,
                             std::vector<float>& scores) {
  cpu::score_blocks(context_, a, b, dim, scale, scores);
}

void CpuDevice::antidiagonal_scores(const AntidiagonalArgs& args, std::vector<std::vector<float>>& scores) {
  if (!cpu::antidiagonal_scores(context_, args, cpu::BlockScore::sum, scores)) {
    Ops::antidiagonal_scores(args, scores);
  }
}

void CpuDevice::proxy_scores(const ProxyArgs& args, std::vector<std::vector<float>>& scores) {
  if (!cpu::proxy_scores(context_, args, scores)) Ops::proxy_scores(args, scores);
}

Selection CpuDevice::select_tree(const TreeArgs& args) {
  return args.q.n_rows > 1 ? cpu::select_tree(context_, *this, args) : Ops::select_tree(args);
}

std::unique_ptr<LowBitScores> CpuDevice::low_bit_scores(const LowBitArgs& args) {
  return host_low_bit_scores(*this, args, true, cpu::low_bit_kernels(context_.features));
}

}  // namespace winnow
