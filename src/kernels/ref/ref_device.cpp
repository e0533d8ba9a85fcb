#include "kernels/ref/ref_device.h"

#include <fmt/format.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "kernels/ref/attention.h"
#include "kernels/rows.h"

namespace winnow {
namespace {

void rms_norm_values(const float* x, const float* weight, float eps, int64_t n, float* y) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  const double scale = 1.0 / std::sqrt(sum / static_cast<double>(n) + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(x[i] * scale * weight[i]);
}

double activate(double x, Gate kind) {
  if (kind == Gate::silu) return x / (1.0 + std::exp(-x));
  const double inner = std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x);
  return 0.5 * x * (1.0 + std::tanh(inner));
}

}  // namespace

std::string RefDevice::description() const {
  return fmt::format("ref: plain loops in double, {} threads", n_threads());
}

std::unique_ptr<Unpacked> RefDevice::unpack(std::span<const Weight* const> /*weights*/) {
  return std::make_unique<Unpacked>();  // products read the file's values whatever the number of rows
}

void RefDevice::linear(const Weight& weight, Mat x, Mat y, const float* bias) {
  const size_t row_bytes = type_bytes(weight.type, weight.n_in);
  pool_.parallel_for(weight.n_out, [&](int64_t out, int /*thread*/) {
    std::vector<float> w(static_cast<size_t>(weight.n_in));
    decode_row(weight.type, weight.data + static_cast<size_t>(out) * row_bytes, w.data(), weight.n_in);
    for (int64_t r = 0; r < x.rows; ++r) {
      const float* values = x.row(r);
      double sum = bias == nullptr ? 0.0 : bias[out];
      for (int64_t i = 0; i < weight.n_in; ++i) sum += static_cast<double>(w[static_cast<size_t>(i)]) * values[i];
      y.row(r)[out] = static_cast<float>(sum);
    }
  });
}

void RefDevice::linear_many(std::span<const Weight* const> weights, Mat x, std::span<const Mat> ys,
                            std::span<const float* const> biases) {
  for (size_t i = 0; i < weights.size(); ++i) linear(*weights[i], x, ys[i], biases.empty() ? nullptr : biases[i]);
}

void RefDevice::embed(const Weight& table, std::span<const int32_t> tokens, float scale, Mat x) {
  const size_t row_bytes = type_bytes(table.type, table.n_in);
  for (size_t i = 0; i < tokens.size(); ++i) {
    float* row = x.row(static_cast<int64_t>(i));
    decode_row(table.type, table.data + static_cast<size_t>(tokens[i]) * row_bytes, row, table.n_in);
    for (int64_t c = 0; c < table.n_in; ++c) row[c] *= scale;
  }
}

void RefDevice::rms_norm(Mat x, const float* weight, float eps, Mat y) {
  for (int64_t r = 0; r < x.rows; ++r) rms_norm_values(x.row(r), weight, eps, x.cols, y.row(r));
}

void RefDevice::rms_norm_heads(HeadsView x, const float* weight, float eps) {
  for (int64_t r = 0; r < x.n_rows; ++r) {
    for (int32_t h = 0; h < x.n_head; ++h) rms_norm_values(x.at(r, h), weight, eps, x.head_dim, x.at(r, h));
  }
}

void RefDevice::rope(HeadsView x, const RopeArgs& args, std::span<const int32_t> position) {
  const int32_t half = args.n_rot / 2;
  for (int64_t r = 0; r < x.n_rows; ++r) {
    for (int32_t h = 0; h < x.n_head; ++h) {
      float* head = x.at(r, h);
      for (int32_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(position[static_cast<size_t>(r)]) * args.frequency[i];
        const double cosine = std::cos(angle) * args.magnitude;
        const double sine = std::sin(angle) * args.magnitude;
        float& first = args.neox ? head[i] : head[2 * i];
        float& second = args.neox ? head[i + half] : head[2 * i + 1];
        const double a = first;
        const double b = second;
        first = static_cast<float>(a * cosine - b * sine);
        second = static_cast<float>(a * sine + b * cosine);
      }
    }
  }
}

void RefDevice::gated(Mat gate, Mat up, Gate kind, Mat y) {
  for (int64_t r = 0; r < gate.rows; ++r) {
    for (int64_t c = 0; c < gate.cols; ++c) {
      y.row(r)[c] = static_cast<float>(activate(gate.row(r)[c], kind) * up.row(r)[c]);
    }
  }
}

void RefDevice::add(Mat x, Mat y) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) x.row(r)[c] += y.row(r)[c];
  }
}

void RefDevice::add_bias(Mat x, const float* bias) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) x.row(r)[c] += bias[c];
  }
}

void RefDevice::scale_softcap(Mat x, float softcap) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      float& value = x.row(r)[c];
      value = static_cast<float>(softcap * std::tanh(static_cast<double>(value) / softcap));
    }
  }
}

void RefDevice::store_kv(HeadsView k, HeadsView v, Type k_type, Type v_type, std::span<const KvTarget> target) {
  for (int64_t r = 0; r < k.n_rows; ++r) {
    for (int32_t h = 0; h < k.n_head; ++h) {
      const KvTarget& to = target[static_cast<size_t>(h)];
      const int64_t slot = to.first_slot + r;
      const auto block = static_cast<size_t>(slot / kBlockSlots);
      const auto within = static_cast<int32_t>(slot % kBlockSlots);
      store_slot(to.k[block], k_type, k.head_dim, within, k.at(r, h));
      store_slot(to.v[block], v_type, v.head_dim, within, v.at(r, h));
    }
  }
}

void RefDevice::load_slot(const std::byte* block, Type type, int32_t head_dim, int32_t slot, float* values) {
  decode_row(type, block + static_cast<size_t>(slot) * type_bytes(type, head_dim), values, head_dim);
}

void RefDevice::store_slot(std::byte* block, Type type, int32_t head_dim, int32_t slot, const float* values) {
  encode_row_plain(type, values, block + static_cast<size_t>(slot) * type_bytes(type, head_dim), head_dim);
}

void RefDevice::attend(const AttnArgs& args) {
  ref::attend(args);
}

void RefDevice::merge(HeadsView into, float* into_lse, const Partial& from, float gain) {
  ref::merge(into, into_lse, from, gain);
}

void RefDevice::score_window(const ProbeArgs& args, int32_t head, std::vector<float>& probabilities) {
  ref::score_window(args, head, probabilities);
}

void RefDevice::pool_queries(const HeadsView& q, int32_t head, int32_t block, std::vector<float>& pooled) {
  ref::pool_queries(q, head, block, pooled);
}

void RefDevice::pool_keys(const KvView& kv, int32_t kv_head, int32_t block, std::vector<float>& pooled) {
  ref::pool_keys(kv, kv_head, block, pooled);
}

void RefDevice::score_blocks(const std::vector<float>& a, const std::vector<float>& b, int32_t dim, float scale,
                             std::vector<float>& scores) {
  ref::score_blocks(a, b, dim, scale, scores);
}

}  // namespace winnow
