// RULER's common words extraction (scripts/data/synthetic/common_words_extraction.py): a numbered list in which ten
// words stand far more often than the others; name the ten. One solved example stands before the task.
#include <fmt/format.h>

#include "eval/sized.h"
#include "eval/words.h"

namespace winnow::roster {
namespace {

using eval::Draw;
using eval::Request;
using eval::Sample;

constexpr std::string_view kName = "cwe";
constexpr size_t kCommon = 10;
constexpr int32_t kTokens = 120;
constexpr size_t kRealWords = 1800;  // about as many as winnow's lists hold: below, only real words are drawn
constexpr std::string_view kPrefix = " Answer: The top 10 words that appear most often in the list are:";

struct Repeats {
  int common = 30, other = 3;
};

/// "1. word 2. word ..."
std::string numbered(const std::vector<std::string>& words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) text += fmt::format("{}{}. {}", i == 0 ? "" : " ", i + 1, words[i]);
  return text;
}

Sample task(Draw& draw, uint64_t seed, size_t n_words, Repeats repeats) {
  const size_t n_pool = n_words <= kRealWords ? kRealWords : 2 * n_words;
  const std::vector<std::string> pool = eval::distinct_words(n_pool);
  std::vector<std::string> words;
  Sample sample;
  for (const int64_t at : draw.sample(static_cast<int64_t>(n_pool), static_cast<int64_t>(n_words))) {
    const std::string& word = pool[static_cast<size_t>(at)];
    const bool common = sample.outputs.size() < kCommon;
    if (common) sample.outputs.push_back(word);
    words.insert(words.end(), static_cast<size_t>(common ? repeats.common : repeats.other), word);
  }
  Draw(seed).shuffle(words);
  sample.context =
      "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
      "appear most often.\n" +
      numbered(words);
  sample.question = "\nQuestion: What are the 10 most common words in the above list?";
  sample.answer_prefix = kPrefix;
  return sample;
}

std::unique_ptr<eval::Generator> make(const Request& request) {
  const bool small = request.length < 4096;
  const auto build = [small, seed = request.seed](Draw& draw, int64_t n_words) {
    const Sample solved = task(draw, seed, small ? 20 : 40, small ? Repeats{3, 1} : Repeats{10, 3});
    Sample sample = task(draw, seed, static_cast<size_t>(n_words), small ? Repeats{6, 1} : Repeats{30, 3});
    sample.context =
        fmt::format("{}{} {}\n{}", solved.input(), solved.answer_prefix, numbered(solved.outputs), sample.context);
    return sample;
  };
  constexpr int64_t kProbe = 4096;  // words
  return eval::make_sized(request,
                          {.name = kName, .build = build, .step = 10, .probe = kProbe, .slack = 2, .reserve = kTokens});
}

}  // namespace

const eval::TaskInfo& task_cwe() {
  static const eval::TaskInfo kInfo = {
      .name = kName,
      .title = "the ten words that stand most often in a list",
      .source = "RULER, arXiv 2404.06654; words from winnow's own list, made-up ones where it is too short",
      .metric = "all",
      .n_gen = kTokens,
      .make = make};
  return kInfo;
}

}  // namespace winnow::roster
