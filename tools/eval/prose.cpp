#include "eval/prose.h"

#include "base/error.h"
#include "eval/draw.h"
#include "eval/essay.h"

namespace winnow::eval {
namespace {

constexpr int64_t kShortest = 256;  // parts of the text need some tokens each

class Prose : public Generator {
 public:
  explicit Prose(Request request) : request_(std::move(request)) {}

  Sample sample(int64_t index) override {
    // The same text whatever the length: a shorter sample is the beginning of a longer one.
    const uint64_t seed = Draw(request_.seed, "prose", 0, index).bits();
    Sample sample;
    for (int64_t n_words = request_.length;; n_words *= 2) {
      sample.context = fmt::format("{}", fmt::join(essay_sentences(n_words, seed), " "));
      if (request_.n_tokens(sample) >= request_.length) return sample;
    }
  }

 private:
  Request request_;
};

}  // namespace

std::unique_ptr<Generator> make_prose(std::string_view name, const Request& request) {
  if (request.length < kShortest) {
    fail("task {}: {} tokens are too few; it needs at least {}", name, request.length, kShortest);
  }
  return std::make_unique<Prose>(request);
}

}  // namespace winnow::eval
