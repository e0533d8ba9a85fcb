// Next-token distributions, given by their logits, and how they differ.
#pragma once

#include <cstdint>
#include <span>

namespace winnow {

/// The likeliest token; the lower id on a tie.
size_t best_token(std::span<const float> logits);
/// -ln of the probability of `token`.
double surprise(std::span<const float> logits, int32_t token);
/// KL(p || q) in nats, never negative.
double kl_divergence(std::span<const float> p, std::span<const float> q);

}  // namespace winnow
