#include "model/rope.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace winnow {
namespace {

double positive(const ModelFile& file, std::string_view key, double otherwise) {
  const double value = file.real_or(key, otherwise);
  if (!(value > 0) || !std::isfinite(value)) {
    fail("{}: {} is {}; it must be a number above 0", file.path(), file.full_key(key), value);
  }
  return value;
}

double checked_base(const ModelFile& file, double base) {
  if (!(base > 1) || !std::isfinite(base)) fail("{}: RoPE's base is {}; it must be above 1", file.path(), base);
  return base;
}

std::vector<double> plain_frequencies(int32_t n_rot, double base) {
  std::vector<double> frequency(static_cast<size_t>(n_rot / 2));
  for (size_t i = 0; i < frequency.size(); ++i) frequency[i] = std::pow(base, -2.0 * static_cast<double>(i) / n_rot);
  return frequency;
}

Rope make_rope(const ModelFile& file, RopePairs pairs) {
  const int32_t head_dim = file.shape().head_dim;
  const int64_t n_rot = file.integer_or("rope.dimension_count", head_dim);
  if (n_rot < 2 || n_rot > head_dim || n_rot % 2 != 0) {
    fail("{}: {} is {}; it must be even and from 2 to the head's {} values", file.path(),
         file.full_key("rope.dimension_count"), n_rot, head_dim);
  }
  return {head_dim, static_cast<int32_t>(n_rot), pairs, 1, {}};
}

/// The pair (a real number) whose wave makes `turns` turns in the original context: YaRN's section 3.2, solved for i.
double pair_of_turns(double turns, double n_ctx, int32_t n_rot, double base) {
  return n_rot * std::log(n_ctx / (turns * 2 * M_PI)) / (2 * std::log(base));
}

void apply_yarn(const ModelFile& file, double base, double factor, Rope& rope, std::vector<double>& frequency) {
  const double n_ctx = positive(file, "rope.scaling.original_context_length", file.shape().n_ctx);
  const double beta_fast = positive(file, "rope.scaling.yarn_beta_fast", 32);
  const double beta_slow = positive(file, "rope.scaling.yarn_beta_slow", 1);
  const double extrapolate = file.real_or("rope.scaling.yarn_ext_factor", 1);
  const double last = rope.n_rot - 1;
  const double low = std::clamp(std::floor(pair_of_turns(beta_fast, n_ctx, rope.n_rot, base)), 0.0, last);
  const double high = std::clamp(std::ceil(pair_of_turns(beta_slow, n_ctx, rope.n_rot, base)), 0.0, last);
  for (size_t i = 0; i < frequency.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / std::max(0.001, high - low), 0.0, 1.0);
    const double kept = (1 - ramp) * extrapolate;
    frequency[i] *= kept + (1 - kept) / factor;
  }
  const auto enlarged = [&](double weight) { return factor > 1 ? 1 + 0.1 * weight * std::log(factor) : 1.0; };
  const double computed = enlarged(1) / enlarged(file.real_or("rope.scaling.yarn_log_multiplier", 0));
  rope.magnitude = static_cast<float>(positive(file, "rope.scaling.yarn_attn_factor", computed) *
                                      positive(file, "rope.scaling.attn_factor", 1));
}

void apply_factors(ModelFile& file, std::vector<double>& frequency) {
  const std::vector<float> factors = file.optional_vector("rope_freqs.weight", static_cast<int64_t>(frequency.size()));
  for (size_t i = 0; i < factors.size(); ++i) {
    if (!(factors[i] > 0)) fail("{}: rope_freqs.weight holds {}; it must be above 0", file.path(), factors[i]);
    frequency[i] /= factors[i];
  }
}

}  // namespace

Rope load_rope(ModelFile& file, RopePairs pairs) {
  Rope rope = make_rope(file, pairs);
  const double base = checked_base(file, file.real_or("rope.freq_base", 10000));
  std::vector<double> frequency = plain_frequencies(rope.n_rot, base);
  apply_factors(file, frequency);
  const std::string scaling = file.text_or("rope.scaling.type", "linear");
  const double factor = positive(file, "rope.scaling.factor", positive(file, "rope.scale_linear", 1));
  if (scaling == "linear") {
    for (double& value : frequency) value /= factor;
  } else if (scaling == "yarn") {
    apply_yarn(file, base, factor, rope, frequency);
  } else if (scaling != "none") {
    fail("{}: {} is \"{}\"; winnow knows none, linear and yarn", file.path(), file.full_key("rope.scaling.type"),
         scaling);
  }
  rope.frequency.assign(frequency.begin(), frequency.end());
  return rope;
}

Rope unscaled_rope(const ModelFile& file, RopePairs pairs, double base) {
  Rope rope = make_rope(file, pairs);
  const std::vector<double> frequency = plain_frequencies(rope.n_rot, checked_base(file, base));
  rope.frequency.assign(frequency.begin(), frequency.end());
  return rope;
}

}  // namespace winnow
