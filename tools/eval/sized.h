// Prompts that grow with one size (lines, words, pairs), made as long as a length allows by RULER's rule: a binary
// search for the largest size that fits, then, for a sample that came out too long, smaller sizes.
#pragma once

#include <functional>

#include "eval/draw.h"
#include "eval/task.h"

namespace winnow::eval {

struct Sized {
  std::string_view name;                               // the task's: part of what draws depend on
  std::function<Sample(Draw&, int64_t size)> build{};  // equal draws and size give equal samples
  int64_t step = 25;    // the smallest size, and what a sample that is too long is made smaller by
  int64_t probe = 100;  // the size, at least step, whose tokens estimate the upper bound of the search
  int64_t slack = 3;    // the upper bound is this many times the estimate
  int64_t reserve = 0;  // tokens kept for the answer
};

/// What RULER calls incremental: sizes of tasks made of lines grow by 25, below 4096 tokens by 5.
inline int64_t line_step(const Request& request) {
  return request.length < 4096 ? 5 : 25;
}

/// The largest size found; throws Error where even `step` does not fit.
int64_t largest_size(const Request& request, const Sized& sized);

std::unique_ptr<Generator> make_sized(const Request& request, Sized sized);

/// A generator that needs no more than the draws of one sample. `index` is at least 0.
class SizedGenerator : public Generator {
 public:
  SizedGenerator(Request request, Sized sized) : request_(std::move(request)), sized_(std::move(sized)) {}
  Sample sample(int64_t index) override;

 private:
  Request request_;
  Sized sized_;
  int64_t size_ = 0;  // 0: not yet looked for
};

}  // namespace winnow::eval
