// RULER's frequent words extraction (scripts/data/synthetic/freq_words_extraction.py): made-up words whose counts fall
// with the square of their rank; the first of them is written as dots, name the three after it.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>

#include "base/error.h"
#include "eval/draw.h"
#include "eval/task.h"

namespace winnow::roster {
namespace {

using eval::Draw;
using eval::Request;
using eval::Sample;

constexpr std::string_view kName = "fwe";
constexpr int32_t kTokens = 50;
constexpr size_t kWordLetters = 6;

class FrequentWords : public eval::Generator {
 public:
  explicit FrequentWords(Request request)
      : request_(std::move(request)), n_vocabulary_((request_.length - kTokens) / 50), step_(request_.length / 32) {}

  Sample sample(int64_t index) override {
    if (n_words_ == 0) n_words_ = most_words();
    int64_t n_words = n_words_;
    Sample sample = build(index, n_words);
    for (; !fits(sample); sample = build(index, n_words)) {
      n_words -= step_;
      if (n_words < step_) too_short(sample);
    }
    return sample;
  }

 private:
  static constexpr int64_t kSearch = -1;  // the index whose draws the search uses

  bool fits(const Sample& sample) const { return request_.n_tokens(sample) + kTokens <= request_.length; }

  [[noreturn]] void too_short(const Sample& sample) const {
    fail("task {}: {} tokens are too few; a prompt needs {}, the answer included", kName, request_.length,
         request_.n_tokens(sample) + kTokens);
  }

  /// From length / 6 in steps of length / 32 until it is too long, less one step.
  int64_t most_words() const {
    if (n_vocabulary_ < 4) fail("task {}: {} tokens are too few; it needs at least 256", kName, request_.length);
    int64_t n_words = request_.length / static_cast<int64_t>(kWordLetters);
    while (fits(build(kSearch, n_words))) n_words += step_;
    return n_words - step_;
  }

  Sample build(int64_t index, int64_t n_words) const {
    Draw draw(request_.seed, kName, request_.length, index);
    std::set<std::string> distinct;
    while (std::ssize(distinct) < n_vocabulary_)
      distinct.insert(draw.letters("abcdefghijklmnopqrstuvwxyz", kWordLetters));
    std::vector<std::string> vocabulary(distinct.begin(), distinct.end());
    Draw(request_.seed).shuffle(vocabulary);
    vocabulary.front() = "...";
    constexpr double kZeta2 = std::numbers::pi * std::numbers::pi / 6;
    std::vector<std::string> words;
    for (size_t k = 1; k <= vocabulary.size(); ++k) {
      const double share = 1 / (static_cast<double>(k) * static_cast<double>(k) * kZeta2);
      words.insert(words.end(), static_cast<size_t>(static_cast<double>(n_words) * share), vocabulary[k - 1]);
    }
    Draw(request_.seed).shuffle(words);
    Sample sample;
    sample.outputs.assign(vocabulary.begin() + 1, vocabulary.begin() + 4);
    sample.context = fmt::format(
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
        "appeared coded words. {}",
        fmt::join(words, " "));
    sample.question =
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
        "appeared words in the above coded text?";
    sample.answer_prefix = " Answer: According to the coded text above, the three most frequently appeared words are:";
    return sample;
  }

  Request request_;
  int64_t n_vocabulary_, step_;
  int64_t n_words_ = 0;  // 0: not yet looked for
};

}  // namespace

const eval::TaskInfo& task_fwe() {
  static const eval::TaskInfo kInfo = {.name = kName,
                                       .title = "the three words that stand most often in a coded text",
                                       .source = "RULER, arXiv 2404.06654",
                                       .metric = "all",
                                       .n_gen = kTokens,
                                       .make = [](const Request& request) -> std::unique_ptr<eval::Generator> {
                                         return std::make_unique<FrequentWords>(request);
                                       }};
  return kInfo;
}

}  // namespace winnow::roster
