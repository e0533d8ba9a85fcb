#include "text/sampler.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "base/error.h"

namespace winnow {
namespace {

struct Candidate {
  double logit;
  int32_t token;
  double weight = 0;  // probability, not normalised
};

/// Best first; a total order, so that equal logits are sampled alike everywhere.
bool better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

void check(const char* name, double value, double min, double max) {
  if (!(value >= min && value <= max)) fail("{} is {}; it must be from {} to {}", name, value, min, max);
}

/// Sets weights at `temperature`, the best candidate's being 1, and returns their sum.
double weigh(std::vector<Candidate>& candidates, double temperature) {
  const double best = std::min_element(candidates.begin(), candidates.end(), better)->logit;
  double sum = 0;
  for (Candidate& candidate : candidates) {
    candidate.weight = std::exp((candidate.logit - best) / temperature);
    sum += candidate.weight;
  }
  return sum;
}

void keep_top_k(std::vector<Candidate>& candidates, size_t k) {
  if (k >= candidates.size()) return;
  std::nth_element(candidates.begin(), candidates.begin() + static_cast<ptrdiff_t>(k), candidates.end(), better);
  candidates.resize(k);
  std::sort(candidates.begin(), candidates.end(), better);  // the order that nth_element leaves is nobody's promise
}

/// Keeps the best tokens until their probabilities reach `top_p` together.
void keep_top_p(std::vector<Candidate>& candidates, double top_p) {
  const double sum = weigh(candidates, 1);
  // Tokens below this have less than 1 - top_p together, so none of them is needed: most of a vocabulary.
  const double floor = (1 - top_p) * sum / static_cast<double>(candidates.size());
  std::erase_if(candidates, [floor](const Candidate& candidate) { return candidate.weight < floor; });
  // A heap gives the best few without sorting the rest; they gather at the end of the list.
  const auto worse = [](const Candidate& a, const Candidate& b) { return better(b, a); };
  std::make_heap(candidates.begin(), candidates.end(), worse);
  auto kept = candidates.end();
  double reached = 0;
  do {
    std::pop_heap(candidates.begin(), kept, worse);
    reached += (--kept)->weight;
  } while (kept != candidates.begin() && reached < top_p * sum);
  candidates.erase(candidates.begin(), kept);
}

void keep_min_p(std::vector<Candidate>& candidates, double min_p) {
  weigh(candidates, 1);
  std::erase_if(candidates, [min_p](const Candidate& candidate) { return candidate.weight < min_p; });
}

/// One token by its weight at `temperature`. The standard's distributions differ between libraries; this does not.
int32_t draw(std::vector<Candidate>& candidates, double temperature, uint64_t random) {
  const double sum = weigh(candidates, temperature);
  double left = static_cast<double>(random >> 11) * 0x1p-53 * sum;
  const Candidate* last = nullptr;  // where rounding leaves a rest, the last token that could be drawn
  for (const Candidate& candidate : candidates) {
    if (candidate.weight <= 0) continue;
    last = &candidate;
    left -= candidate.weight;
    if (left < 0) break;
  }
  WINNOW_ASSERT(last != nullptr);
  return last->token;
}

}  // namespace

Sampler::Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {
  check("temperature", options.temperature, 0, 100);
  check("top_k", options.top_k, 0, INT32_MAX);
  check("top_p", options.top_p, 0, 1);
  check("min_p", options.min_p, 0, 1);
  check("repeat_penalty", options.repeat_penalty, 0.01, 100);
  check("repeat_last", options.repeat_last, 0, INT32_MAX);
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> recent) {
  WINNOW_ASSERT(!logits.empty());
  if (options_.temperature == 0 && options_.repeat_penalty == 1) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  std::vector<Candidate> candidates;
  candidates.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) candidates.push_back({logits[i], static_cast<int32_t>(i)});
  if (options_.repeat_penalty != 1) {
    const auto last = recent.last(std::min(recent.size(), static_cast<size_t>(options_.repeat_last)));
    for (const int32_t token : std::unordered_set<int32_t>(last.begin(), last.end())) {
      WINNOW_ASSERT(token >= 0 && static_cast<size_t>(token) < candidates.size());
      double& logit = candidates[static_cast<size_t>(token)].logit;
      logit = logit > 0 ? logit / options_.repeat_penalty : logit * options_.repeat_penalty;
    }
  }
  if (options_.temperature == 0) return std::min_element(candidates.begin(), candidates.end(), better)->token;
  if (options_.top_k > 0) keep_top_k(candidates, static_cast<size_t>(options_.top_k));
  if (options_.top_p < 1) keep_top_p(candidates, options_.top_p);
  if (options_.min_p > 0) keep_min_p(candidates, options_.min_p);
  return draw(candidates, options_.temperature, random_());
}

}  // namespace winnow
