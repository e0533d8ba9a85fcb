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

class GivenProse : public Generator {
 public:
  GivenProse(std::string path, std::string text, Request request)
      : path_(std::move(path)), text_(std::move(text)), request_(std::move(request)) {
    Sample whole;
    whole.context = text_;
    n_tokens_ = request_.n_tokens(whole);
  }

  Sample sample(int64_t index) override {
    if ((index + 1) * request_.length > n_tokens_) {
      fail("{}: the text has {} tokens; sample {} of {} needs {}", path_, n_tokens_, index + 1, request_.length,
           (index + 1) * request_.length);
    }
    const double bytes_each = static_cast<double>(text_.size()) / static_cast<double>(n_tokens_);
    // Dense places may make this piece's tokens fewer than the mean tells: it ends later, the last one begins earlier.
    auto begin = static_cast<size_t>(static_cast<double>(index * request_.length) * bytes_each);
    auto n_bytes = static_cast<size_t>(static_cast<double>(request_.length) * bytes_each);
    Sample sample;
    while (true) {
      begin = character_begin(std::min(begin, text_.size() - std::min(n_bytes, text_.size())));
      sample.context = text_.substr(begin, n_bytes);
      if (request_.n_tokens(sample) >= request_.length || n_bytes >= text_.size()) break;
      n_bytes += n_bytes / 8 + 1;
    }
    return sample;
  }

 private:
  size_t character_begin(size_t at) const {
    while (at > 0 && (static_cast<unsigned char>(text_[at]) & 0xc0) == 0x80) --at;
    return at;
  }

  std::string path_, text_;
  Request request_;
  int64_t n_tokens_ = 0;
};

}  // namespace

std::unique_ptr<Generator> make_prose_from(const std::string& path, std::string text, const Request& request) {
  return std::make_unique<GivenProse>(path, std::move(text), request);
}

std::unique_ptr<Generator> make_prose(std::string_view name, const Request& request) {
  if (request.length < kShortest) {
    fail("task {}: {} tokens are too few; it needs at least {}", name, request.length, kShortest);
  }
  return std::make_unique<Prose>(request);
}

}  // namespace winnow::eval
