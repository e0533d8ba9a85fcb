#include "distributions.h"

#include <algorithm>
#include <cmath>

namespace winnow {
namespace {

/// ln of the sum of exp(logit).
double log_sum(std::span<const float> logits) {
  const float top = logits[best_token(logits)];
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  return top + std::log(sum);
}

}  // namespace

size_t best_token(std::span<const float> logits) {
  return static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

double surprise(std::span<const float> logits, int32_t token) {
  return log_sum(logits) - logits[static_cast<size_t>(token)];
}

double kl_divergence(std::span<const float> p, std::span<const float> q) {
  const double p_sum = log_sum(p), q_sum = log_sum(q);
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double log_p = p[i] - p_sum;
    kl += std::exp(log_p) * (log_p - (q[i] - q_sum));
  }
  return std::max(kl, 0.0);
}

}  // namespace winnow
