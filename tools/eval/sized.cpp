#include "eval/sized.h"

#include <algorithm>

#include "base/error.h"

namespace winnow::eval {
namespace {

constexpr int64_t kSearch = -1;  // the index whose draws the search uses

bool fits(const Request& request, const Sized& sized, const Sample& sample) {
  return request.n_tokens(sample) + sized.reserve <= request.length;
}

[[noreturn]] void too_short(const Request& request, const Sized& sized, const Sample& sample) {
  fail("task {}: {} tokens are too few; its shortest prompt needs {}, the answer included", sized.name, request.length,
       request.n_tokens(sample) + sized.reserve);
}

}  // namespace

int64_t largest_size(const Request& request, const Sized& sized) {
  const auto build = [&](int64_t size) {
    Draw draw(request.seed, sized.name, request.length, kSearch);
    return sized.build(draw, size);
  };
  const int64_t probe = std::max(sized.probe, sized.step);
  const double tokens_each = static_cast<double>(request.n_tokens(build(probe))) / static_cast<double>(probe);
  const auto estimate =
      static_cast<int64_t>(static_cast<double>(request.length) / tokens_each * static_cast<double>(sized.slack));
  int64_t low = sized.step, high = std::max(estimate, 2 * sized.step), best = 0;
  while (low <= high) {
    const int64_t middle = (low + high) / 2;
    if (fits(request, sized, build(middle))) {
      best = middle;
      low = middle + 1;
    } else {
      high = middle - 1;
    }
  }
  if (best == 0) too_short(request, sized, build(sized.step));
  return best;
}

Sample SizedGenerator::sample(int64_t index) {
  if (size_ == 0) size_ = largest_size(request_, sized_);
  for (int64_t size = size_;; size -= sized_.step) {
    size = std::max(size, sized_.step);
    Draw draw(request_.seed, sized_.name, request_.length, index);
    Sample sample = sized_.build(draw, size);
    if (fits(request_, sized_, sample)) return sample;
    if (size == sized_.step) too_short(request_, sized_, sample);
  }
}

std::unique_ptr<Generator> make_sized(const Request& request, Sized sized) {
  return std::make_unique<SizedGenerator>(request, std::move(sized));
}

}  // namespace winnow::eval
