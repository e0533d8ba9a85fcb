// RULER: scripts/eval/synthetic/constants.py and evaluate.py. InfiniteBench: src/compute_scores.py. LongBench: qa_f1.
#include "eval/score.h"

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "base/error.h"

namespace winnow::eval {
namespace {

using Outputs = std::span<const std::string>;

bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f);
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

std::string_view strip(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

std::string lowered(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(), lower);
  return result;
}

std::vector<std::string> words_without(std::string_view text, std::string_view dropped) {
  std::vector<std::string> words(1);
  for (const char c : text) {
    if (is_space(c) || dropped.find(c) != std::string_view::npos) {
      if (!words.back().empty()) words.emplace_back();
    } else {
      words.back() += c;
    }
  }
  if (words.back().empty()) words.pop_back();
  return words;
}

/// The runs of digits in order.
std::vector<std::string> numbers(std::string_view text) {
  std::vector<std::string> found(1);
  for (const char c : text) {
    if (is_digit(c)) {
      found.back() += c;
    } else if (!found.back().empty()) {
      found.emplace_back();
    }
  }
  if (found.back().empty()) found.pop_back();
  return found;
}

bool contains(const std::string& text, std::string_view reference) {
  return text.find(lowered(reference)) != std::string::npos;
}

double score_all(std::string_view answer, Outputs outputs) {
  const std::string text = lowered(clean_answer(answer));
  const auto found =
      std::count_if(outputs.begin(), outputs.end(), [&](const auto& ref) { return contains(text, ref); });
  return static_cast<double>(found) / static_cast<double>(outputs.size());
}

double score_any(std::string_view answer, Outputs outputs) {
  const std::string text = lowered(clean_answer(answer));
  return std::any_of(outputs.begin(), outputs.end(), [&](const auto& ref) { return contains(text, ref); }) ? 1 : 0;
}

double score_exact(std::string_view answer, Outputs outputs) {
  const std::string text = lowered(strip(answer));
  return std::any_of(outputs.begin(), outputs.end(), [&](const auto& ref) { return text == lowered(strip(ref)); }) ? 1
                                                                                                                   : 0;
}

double score_first_number(std::string_view answer, Outputs outputs) {
  const std::vector<std::string> found = numbers(answer);
  return !found.empty() && std::find(outputs.begin(), outputs.end(), found.front()) != outputs.end() ? 1 : 0;
}

/// As a value: "007" is 7; "7.5" is no whole number's.
double score_first_value(std::string_view answer, Outputs outputs) {
  const auto begin = std::find_if(answer.begin(), answer.end(), is_digit);
  const auto end = std::find_if_not(begin, answer.end(), is_digit);
  if (begin == end) return 0;
  if (end != answer.end() && *end == '.' && end + 1 != answer.end() && is_digit(*(end + 1))) return 0;
  std::string value(begin, end);
  value.erase(0, std::min(value.find_first_not_of('0'), value.size() - 1));
  return std::find(outputs.begin(), outputs.end(), value) != outputs.end() ? 1 : 0;
}

double score_word(std::string_view answer, Outputs outputs) {
  const std::vector<std::string> words = words_without(answer, "\n:\"'.,?!{}");
  const auto there = [&](const std::string& ref) { return std::find(words.begin(), words.end(), ref) != words.end(); };
  return std::any_of(outputs.begin(), outputs.end(), there) ? 1 : 0;
}

/// Python's int() of a word, as text without leading zeros; nothing where it is no whole number.
std::optional<std::string> whole_number(std::string_view word) {
  const bool minus = word.starts_with('-');
  if (minus || word.starts_with('+')) word.remove_prefix(1);
  if (word.empty() || !std::all_of(word.begin(), word.end(), is_digit)) return std::nullopt;
  while (word.size() > 1 && word.front() == '0') word.remove_prefix(1);
  return (minus && word != "0" ? "-" : "") + std::string(word);
}

double score_last_number(std::string_view answer, Outputs outputs) {
  const std::vector<std::string> words = words_without(answer, "\n.`'\":");
  if (words.empty()) return 0;
  const std::optional<std::string> value = whole_number(words.back());
  return value && std::find(outputs.begin(), outputs.end(), *value) != outputs.end() ? 1 : 0;
}

double score_run(std::string_view answer, Outputs outputs) {
  const std::vector<std::string> found = numbers(answer);
  size_t n = 0;
  while (n < found.size() && n < outputs.size() && whole_number(found[n]) == whole_number(outputs[n])) ++n;
  return static_cast<double>(n) / static_cast<double>(outputs.size());
}

double score_first_line(std::string_view answer, Outputs outputs) {
  const std::string_view text = strip(answer);
  return score_exact(text.substr(0, text.find('\n')), outputs);
}

std::map<std::string, int> bag(std::string_view text) {
  std::string kept;
  for (const char c : lowered(text)) {
    const bool punctuation = static_cast<unsigned char>(c) < 0x80 && c > ' ' && !is_digit(c) && !(c >= 'a' && c <= 'z');
    if (!punctuation) kept += c;
  }
  std::map<std::string, int> counts;
  for (const std::string& word : words_without(kept, "")) {
    if (word != "a" && word != "an" && word != "the") ++counts[word];
  }
  return counts;
}

double f1(const std::map<std::string, int>& got, const std::map<std::string, int>& want) {
  int n_got = 0, n_want = 0, n_same = 0;
  for (const auto& [word, n] : want) n_want += n;
  for (const auto& [word, n] : got) {
    n_got += n;
    const auto there = want.find(word);
    if (there != want.end()) n_same += std::min(n, there->second);
  }
  return n_same == 0 ? 0 : 2.0 * n_same / (n_got + n_want);
}

double score_f1(std::string_view answer, Outputs outputs) {
  const std::map<std::string, int> got = bag(answer);
  double best = 0;
  for (const std::string& output : outputs) best = std::max(best, f1(got, bag(output)));
  return best;
}

constexpr Metric kMetrics[] = {
    {"all", "share of the references that stand in the answer, capitals aside (RULER's recall)", score_all},
    {"any", "1 where a reference stands in the answer, capitals aside", score_any},
    {"exact", "1 where the answer is a reference, capitals and space around it aside", score_exact},
    {"first_line", "1 where the answer's first line is a reference", score_first_line},
    {"first_number", "1 where the answer's first run of digits is a reference, digit by digit", score_first_number},
    {"first_value", "1 where the answer's first number has a reference's value", score_first_value},
    {"last_number", "1 where the answer's last word is a reference's number", score_last_number},
    {"word", "1 where a reference is one of the answer's words", score_word},
    {"run", "share of the references that the answer's numbers equal in order, up to the first that differs",
     score_run},
    {"f1", "best F1 of the words over the references, articles and punctuation aside", score_f1},
};

}  // namespace

std::string clean_answer(std::string_view answer) {
  std::string text(strip(answer));
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20) c = '\n';
  }
  return std::string(strip(text));
}

std::span<const Metric> metrics() {
  return kMetrics;
}

const Metric& find_metric(std::string_view name) {
  std::string known;
  for (const Metric& metric : kMetrics) {
    if (metric.name == name) return metric;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", metric.name);
  }
  fail("there is no metric \"{}\"; known: {}", name, known);
}

}  // namespace winnow::eval
