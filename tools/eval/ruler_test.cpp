// RULER's six offline tasks and RULER v2's two, checked by a reader of their lines and a scorer that were written from
// the published rules (scripts/data/synthetic, scripts/eval/synthetic at c3f5e3b) and share no code with the tasks.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "base/error.h"
#include "eval/draw.h"
#include "eval/score.h"
#include "eval/task.h"

namespace winnow::eval {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

/// A tokenizer that anybody can follow: a token for each word or punctuation mark or digit.
int64_t count_tokens(std::string_view text) {
  int64_t n = 0;
  bool in_word = false;
  for (const char c : text) {
    const bool letter = std::isalpha(static_cast<unsigned char>(c)) != 0;
    if (!letter && c != ' ') ++n;
    if (letter && !in_word) ++n;
    in_word = letter;
  }
  return n;
}

constexpr int64_t kTemplateTokens = 20;

Request request_of(int64_t length, uint64_t seed = 42) {
  return {.length = length, .seed = seed, .n_tokens = [](const Sample& sample) {
            return count_tokens(sample.input() + sample.answer_prefix) + kTemplateTokens;
          }};
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream stream(text);
  return {std::istream_iterator<std::string>(stream), {}};
}

/// The text between two others; fails the test where they do not stand in it.
std::string between(const std::string& text, const std::string& from, const std::string& to) {
  const size_t begin = text.find(from);
  const size_t end = text.rfind(to);
  EXPECT_NE(begin, std::string::npos) << from;
  EXPECT_NE(end, std::string::npos) << to;
  if (begin == std::string::npos || end == std::string::npos) return {};
  return text.substr(begin + from.size(), end - begin - from.size());
}

constexpr const char* kNoiseLine =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
const std::string kWordForm = "[a-z]+-[a-z]+", kNumberForm = "[1-9][0-9]{6}",
                  kUuidForm = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}";

/// Every sample fits its length, is as long as one more step allows, and comes out the same a second time.
void expect_lengths(const char* name, int64_t length, int64_t slack) {
  const TaskInfo& task = find_task(name);
  const Request request = request_of(length);
  const auto generator = task.make(request), again = task.make(request);
  for (const int64_t index : {7, 0, 3}) {
    const Sample sample = generator->sample(index);
    const int64_t total = request.n_tokens(sample) + (task.reserves ? task.n_gen : 0);
    EXPECT_LE(total, length) << name;
    EXPECT_GT(total, length - slack) << name;
    EXPECT_EQ(sample.input(), again->sample(index).input());
    EXPECT_EQ(sample.outputs, again->sample(index).outputs);
  }
  EXPECT_NE(generator->sample(0).input(), generator->sample(1).input());
  EXPECT_NE(generator->sample(0).outputs, task.make(request_of(length, 43))->sample(0).outputs);
}

TEST(Ruler, PromptsFillTheirLength) {
  for (const int64_t length : {2048, 4096, 16384}) {
    for (const char* name : {"niah_single_1", "niah_multikey_2", "niah_multikey_3", "mk_niah_basic", "mv_niah_basic"}) {
      expect_lengths(name, length, 2000);
    }
    expect_lengths("vt", length, 700);
    expect_lengths("cwe", length, 900);
    expect_lengths("fwe", length, length / 32 * 12);
  }
}

TEST(Ruler, TooShortALengthIsRefused) {
  for (const TaskInfo* task : task_roster()) {
    try {
      task->make(request_of(64))->sample(0);
      FAIL() << task->name;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(task->name));
      EXPECT_THAT(error.what(), HasSubstr("64 tokens are too few"));
    }
  }
}

struct NiahRule {
  const char* task;
  bool noise;  // otherwise every line is a needle
  std::string key, value, kind;
  size_t n_values = 1;
  bool version2 = false;
};

void check_niah(const NiahRule& rule, const Sample& sample) {
  const bool one = rule.n_values == 1;
  const std::string kind = one ? rule.kind.substr(0, rule.kind.size() - 1) : rule.kind;
  const std::string head = (one ? "A special magic " + kind + " is" : "Some special magic " + kind + " are") +
                           " hidden within the following text. Make sure to memorize " +
                           (rule.version2 && !one ? "them" : "it") + ". I will quiz you about the " + kind +
                           " afterwards.\n";
  const std::string text = sample.input();
  EXPECT_THAT(text, StartsWith(head));
  std::smatch found;
  const std::string prefix_rule =
      " The special magic " + kind + " for (" + rule.key + ") mentioned in the provided text " + (one ? "is" : "are");
  const std::string question_rule = "\nWhat " + std::string(one ? "is" : "are all") + " the special magic " + kind +
                                    " for (" + rule.key + ") mentioned in the provided text\\?";
  const std::regex whole(question_rule + (rule.version2 ? prefix_rule : ""));
  ASSERT_TRUE(std::regex_match(sample.question, found, whole)) << sample.question;
  const std::string key = found[1];
  if (!rule.version2) {
    ASSERT_TRUE(std::regex_match(sample.answer_prefix, found, std::regex(prefix_rule)));
    EXPECT_EQ(found[1], key);
  } else {
    EXPECT_EQ(sample.answer_prefix, "");
  }
  const std::regex needle("One of the special magic " + rule.kind + " for (" + rule.key + ") is: (" + rule.value +
                          ")\\.");
  std::map<std::string, std::set<std::string>> values;
  size_t n_noise = 0, n_needles = 0;
  for (const std::string& line : lines_of(between(text, head, "\nWhat"))) {
    if (line == kNoiseLine) {
      ++n_noise;
      continue;
    }
    ASSERT_TRUE(std::regex_match(line, found, needle)) << line;
    values[found[1]].insert(found[2]);
    ++n_needles;
  }
  EXPECT_EQ(n_noise > 0, rule.noise);
  EXPECT_EQ(n_needles == 1, rule.noise);
  EXPECT_EQ(sample.outputs.size(), rule.n_values);
  for (const std::string& output : sample.outputs) EXPECT_TRUE(values[key].contains(output)) << key;
  if (rule.version2 && !one) {  // the distractors' keys have as many values each, the last ones fewer
    size_t n_full = 0;
    for (const auto& [name, list] : values) n_full += list.size() == rule.n_values ? 1 : 0;
    EXPECT_GT(n_full, values.size() / 2);
  }
}

TEST(Ruler, NeedlesFollowTheRules) {
  const std::vector<NiahRule> rules = {
      {"niah_single_1", true, kWordForm, kNumberForm, "numbers"},
      {"niah_multikey_2", false, kWordForm, kNumberForm, "numbers"},
      {"niah_multikey_3", false, kUuidForm, kUuidForm, "uuids"},
      {"mk_niah_basic", false, kWordForm, "[1-9][0-9]{9}", "numbers", 1, true},
      {"mv_niah_basic", false, kWordForm, "[1-9][0-9]{9}", "numbers", 4, true},
  };
  for (const NiahRule& rule : rules) {
    SCOPED_TRACE(rule.task);
    const auto generator = find_task(rule.task).make(request_of(4096));
    for (int64_t index = 0; index < 5; ++index) check_niah(rule, generator->sample(index));
  }
}

TEST(Ruler, TheNeedleStandsAtItsDepth) {
  const auto generator = find_task("niah_single_1").make(request_of(4096));
  std::vector<double> depths;
  for (int64_t index = 0; index < 20; ++index) {
    const Sample sample = generator->sample(index);
    const double share =
        static_cast<double>(sample.context.find("One of the special")) / static_cast<double>(sample.context.size());
    EXPECT_NEAR(sample.depth, share, 0.05);
    depths.push_back(sample.depth);
  }
  std::sort(depths.begin(), depths.end());
  EXPECT_LT(depths[3], 0.4);  // they are spread over the text
  EXPECT_GT(depths[16], 0.6);
}

/// The five names of a chain in `text`, from the statement with `value` on; fails where the chain breaks.
std::vector<std::string> follow_chain(const std::string& text, const std::string& value, const std::string& letters) {
  std::map<std::string, std::string> next;
  std::string first;
  std::smatch found;
  for (const std::string& line : lines_of(text)) {
    if (line == kNoiseLine) continue;
    if (std::regex_match(line, found, std::regex("VAR (" + letters + ") = ([0-9]{5})"))) {
      EXPECT_EQ(first, "") << "a second value";
      EXPECT_EQ(found[2], value);
      first = found[1];
    } else if (std::regex_match(line, found, std::regex(fmt::format("VAR ({0}) = VAR ({0}) ", letters)))) {
      next[found[2]] = found[1];
    } else {
      ADD_FAILURE() << line;
    }
  }
  std::vector<std::string> names = {first};
  while (next.contains(names.back())) names.push_back(next[names.back()]);
  return names;
}

TEST(Ruler, ChainsOfVariables) {
  const std::string head = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n";
  const std::string ask = "\nQuestion: Find all variables that are assigned the value ";
  const std::string answer =
      " Answer: According to the chain(s) of variable assignment in the text above, 5 variables are "
      "assigned the value ";
  const auto generator = find_task("vt").make(request_of(4096));
  std::set<std::string> examples;
  for (int64_t index = 0; index < 5; ++index) {
    const Sample sample = generator->sample(index);
    // The solved example, and right after it the task.
    ASSERT_THAT(sample.context, StartsWith(head));
    const size_t cut = sample.context.rfind(head);
    ASSERT_GT(cut, 0U);
    const std::string example = sample.context.substr(0, cut), text = sample.context.substr(cut + head.size());
    const std::string value = sample.question.substr(ask.size(), 5);
    EXPECT_EQ(sample.question, ask + value + " in the text above.");
    EXPECT_EQ(sample.answer_prefix, answer + value + ", they are: ");
    EXPECT_EQ(follow_chain(text, value, "[A-Z]{5}"), sample.outputs);
    EXPECT_EQ(sample.outputs.size(), 5U);

    const std::string shown = between(example, head, ask);
    const std::string shown_value = between(example, ask, " in the text above.");
    const std::string said = between(example, shown_value + ", they are: ", "\n\n");
    EXPECT_EQ(follow_chain(shown, shown_value, "[A-Z]{3}"), words_of(said));
    EXPECT_LE(count_tokens(example), 500);
    examples.insert(said);
  }
  EXPECT_EQ(examples.size(), 5U);  // its names are drawn anew for each sample
}

std::map<std::string, int> count_list(const std::string& text) {
  std::map<std::string, int> counts;
  const std::vector<std::string> parts = words_of(text);
  for (size_t i = 0; i + 1 < parts.size(); i += 2) {
    EXPECT_EQ(parts[i], std::to_string(i / 2 + 1) + ".");
    ++counts[parts[i + 1]];
  }
  return counts;
}

void check_cwe_list(const std::map<std::string, int>& counts, const std::vector<std::string>& common, int often,
                    int rare) {
  EXPECT_EQ(common.size(), 10U);
  for (const auto& [word, n] : counts) {
    const bool is_common = std::find(common.begin(), common.end(), word) != common.end();
    EXPECT_EQ(n, is_common ? often : rare) << word;
  }
  for (const std::string& word : common) EXPECT_TRUE(counts.contains(word));
}

void check_cwe(int64_t length, size_t n_example, std::pair<int, int> example_repeats, std::pair<int, int> repeats) {
  const std::string head =
      "Below is a numbered list of words. In these words, some appear more often than others. Memorize "
      "the ones that appear most often.\n";
  const std::string ask = "\nQuestion: What are the 10 most common words in the above list?";
  const std::string answer = " Answer: The top 10 words that appear most often in the list are:";
  const auto generator = find_task("cwe").make(request_of(length));
  for (int64_t index = 0; index < 3; ++index) {
    const Sample sample = generator->sample(index);
    const size_t cut = sample.context.rfind("\n" + head);
    ASSERT_NE(cut, std::string::npos);
    const std::string example = sample.context.substr(0, cut);
    EXPECT_EQ(sample.question, ask);
    EXPECT_EQ(sample.answer_prefix, answer);
    check_cwe_list(count_list(sample.context.substr(cut + 1 + head.size())), sample.outputs, repeats.first,
                   repeats.second);
    std::vector<std::string> solved;
    const std::vector<std::string> said = words_of(example.substr(example.find(answer) + answer.size()));
    for (size_t i = 1; i < said.size(); i += 2) solved.push_back(said[i]);
    EXPECT_EQ(said[0], "1.");
    const auto shown = count_list(between(example, head, ask));
    EXPECT_EQ(shown.size(), n_example);
    check_cwe_list(shown, solved, example_repeats.first, example_repeats.second);
  }
}

TEST(Ruler, CommonWords) {
  check_cwe(4096, 40, {10, 3}, {30, 3});
  check_cwe(2048, 20, {3, 1}, {6, 1});
  check_cwe(65536, 40, {10, 3}, {30, 3});  // more words than the lists hold
}

TEST(Ruler, FrequentWords) {
  for (const int64_t length : {1024, 4096, 16384}) {
    const auto generator = find_task("fwe").make(request_of(length));
    for (int64_t index = 0; index < 3; ++index) {
      const Sample sample = generator->sample(index);
      const std::string head =
          "Read the following coded text and track the frequency of each coded word. Find the three most "
          "frequently appeared coded words. ";
      ASSERT_THAT(sample.context, StartsWith(head));
      std::map<std::string, int64_t> counts;
      for (const std::string& word : words_of(sample.context.substr(head.size()))) ++counts[word];
      EXPECT_EQ(sample.question,
                "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
                "three most frequently appeared words in the above coded text?");
      EXPECT_EQ(sample.answer_prefix,
                " Answer: According to the coded text above, the three most frequently appeared words are:");
      std::vector<int64_t> ranked;
      for (const auto& [word, n] : counts) {
        ranked.push_back(n);
        EXPECT_TRUE(word == "..." || std::regex_match(word, std::regex("[a-z]{6}"))) << word;
      }
      std::sort(ranked.begin(), ranked.end(), std::greater<>());
      ASSERT_EQ(sample.outputs.size(), 3U);
      EXPECT_EQ(counts["..."], ranked[0]);
      for (size_t k = 0; k < 3; ++k) EXPECT_EQ(counts[sample.outputs[k]], ranked[k + 1]);
      // Rank k's count is floor(N / k^2 / zeta(2)): all counts follow from one N, and of length / 50 - 1 words those
      // appear whose count is at least one.
      const double zeta = 1.6449340668482264;
      const double n_low = static_cast<double>(ranked[0]) * zeta, n_high = static_cast<double>(ranked[0] + 1) * zeta;
      for (size_t k = 1; k <= ranked.size(); ++k) {
        const double share = 1 / (static_cast<double>(k * k) * zeta);
        EXPECT_GE(ranked[k - 1], static_cast<int64_t>(n_low * share));
        EXPECT_LE(ranked[k - 1], static_cast<int64_t>(n_high * share));
      }
      EXPECT_LE(std::ssize(ranked), (length - 50) / 50);
    }
  }
}

/// RULER's evaluate.py, line by line: postprocess_pred, then string_match_all.
double independent_score(std::string prediction, const std::vector<std::string>& references) {
  const auto strip = [](std::string& text) {
    const std::string spaces = " \t\n\r\v\f\x1c\x1d\x1e\x1f";
    text.erase(0, std::min(text.find_first_not_of(spaces), text.size()));
    text.erase(text.find_last_not_of(spaces) + 1);
  };
  strip(prediction);
  for (char& c : prediction) c = c >= 0 && c < 32 ? '\n' : c;
  strip(prediction);
  std::string small;
  for (const char c : prediction) small += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  double sum = 0;
  for (std::string reference : references) {
    for (char& c : reference) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    sum += std::search(small.begin(), small.end(), reference.begin(), reference.end()) != small.end() ? 1.0 : 0.0;
  }
  return sum / static_cast<double>(references.size());
}

TEST(Ruler, AnIndependentScorerAgrees) {
  Draw draw(3);
  double total = 0;
  for (const char* name : {"niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe"}) {
    const TaskInfo& task = find_task(name);
    const auto generator = task.make(request_of(2048));
    for (int64_t index = 0; index < 20; ++index) {
      const std::vector<std::string> outputs = generator->sample(index).outputs;
      std::string answer = draw.below(2) == 0 ? " \n" : "They are: ";
      for (const std::string& output : outputs) {
        if (draw.below(3) == 0) continue;  // forgotten
        std::string said = output;
        if (draw.below(4) == 0) said.back() = '#';  // wrong at its end
        if (draw.below(2) == 0) {
          std::transform(said.begin(), said.end(), said.begin(), [](unsigned char c) { return std::toupper(c); });
        }
        answer += said + (draw.below(2) == 0 ? ", " : "\x01");
      }
      const double score = find_metric(task.metric).score(answer, outputs);
      EXPECT_DOUBLE_EQ(score, independent_score(answer, outputs)) << answer;
      total += score;
    }
  }
  EXPECT_GT(total, 30);  // of 120: right and wrong answers were both among them
  EXPECT_LT(total, 90);
}

TEST(Ruler, AHandMadeExample) {
  // evaluate.py scores these predictions 100, 50 and 0.
  const std::vector<std::string> outputs = {"1234567", "VALUE"};
  const Metric& metric = find_metric("all");
  EXPECT_EQ(metric.score("\n The value 1234567. ", outputs), 1);
  EXPECT_EQ(metric.score("1234567", outputs), 0.5);
  EXPECT_EQ(metric.score("123456 7", outputs), 0);
  EXPECT_EQ(metric.score("", outputs), 0);
}

}  // namespace
}  // namespace winnow::eval
