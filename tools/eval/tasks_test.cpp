// The tasks that are not RULER's, against hand-made readings of their rules.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "base/error.h"
#include "eval/prose.h"
#include "eval/score.h"
#include "eval/task.h"

namespace winnow::eval {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

/// Four characters are a token.
Request request_of(int64_t length) {
  return {.length = length, .seed = 42, .n_tokens = [](const Sample& sample) {
            return static_cast<int64_t>(sample.input().size() + sample.answer_prefix.size()) / 4 + 20;
          }};
}

Sample sample_of(const char* task, int64_t index = 0, int64_t length = 4096) {
  return find_task(task).make(request_of(length))->sample(index);
}

TEST(Tasks, NamesMetricsAndPromptsAreWhole) {
  std::set<std::string_view> names;
  for (const TaskInfo* task : task_roster()) {
    SCOPED_TRACE(task->name);
    EXPECT_TRUE(names.insert(task->name).second);
    EXPECT_FALSE(task->title.empty());
    EXPECT_FALSE(task->source.empty());
    const Request request = request_of(4096);
    const Sample sample = task->make(request)->sample(2), again = task->make(request)->sample(2);
    EXPECT_EQ(sample.input(), again.input());
    EXPECT_EQ(sample.outputs, again.outputs);
    EXPECT_NE(sample.input(), task->make(request)->sample(3).input());
    if (task->kind != TaskKind::answer) {
      EXPECT_GE(request.n_tokens(sample), 4096);
      continue;
    }
    EXPECT_NO_THROW(find_metric(task->metric));
    EXPECT_GT(task->n_gen, 0);
    EXPECT_FALSE(sample.question.empty());
    EXPECT_LE(request.n_tokens(sample) + (task->reserves ? task->n_gen : 0), 4096);
    EXPECT_GT(request.n_tokens(sample), 2000);
    EXPECT_LE(sample.depth, 1);
    // The right answer scores 1, no answer 0.
    std::string right;
    for (const std::string& output : sample.outputs) right += (right.empty() ? "" : ", ") + output;
    EXPECT_EQ(find_metric(task->metric).score(right, sample.outputs), 1);
    EXPECT_EQ(find_metric(task->metric).score("", sample.outputs), 0);
  }
  EXPECT_GE(names.size(), 22U);
}

TEST(InfiniteBench, HiddenFacts) {
  for (int64_t index = 0; index < 5; ++index) {
    const Sample key = sample_of("passkey", index);
    ASSERT_TRUE(std::regex_match(key.outputs.at(0), std::regex("[0-9]{5}")));
    EXPECT_THAT(key.context, HasSubstr("\nThe pass key is " + key.outputs[0] + ". Remember it. " + key.outputs[0] +
                                       " is the pass key.\n"));
    EXPECT_THAT(key.question, HasSubstr("What is the pass key?"));
    const double share =
        static_cast<double>(key.context.find("The pass key is")) / static_cast<double>(key.context.size());
    EXPECT_NEAR(key.depth, share, 0.03);

    // Ten digits: five were drawn, then five times a digit was put beside its like.
    const std::string digits = sample_of("number_string", index).outputs.at(0);
    ASSERT_TRUE(std::regex_match(digits, std::regex("[0-9]{10}")));
    int n_pairs = 0;
    for (size_t i = 1; i < digits.size(); ++i) n_pairs += digits[i] == digits[i - 1] ? 1 : 0;
    EXPECT_GE(n_pairs, 5);
  }
}

TEST(InfiniteBench, KeysAndValues) {
  for (int64_t index = 0; index < 3; ++index) {
    const Sample sample = sample_of("kv_retrieval", index);
    EXPECT_THAT(sample.context, StartsWith("Extract the value corresponding to the specified key in the JSON object "
                                           "below.\n\nJSON data:\n{\""));
    const std::string uuid = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}";
    std::map<std::string, std::string> pairs;
    const std::regex pair(fmt::format("\"({0})\": \"({0})\"", uuid));
    for (std::sregex_iterator at(sample.context.begin(), sample.context.end(), pair), end; at != end; ++at) {
      pairs[(*at)[1]] = (*at)[2];
    }
    std::smatch asked;
    ASSERT_TRUE(
        std::regex_match(sample.question, asked,
                         std::regex("\n\nKey: \"(" + uuid + ")\"\nThe value associated with the specified key is: ")));
    EXPECT_EQ(sample.outputs, std::vector<std::string>{pairs.at(asked[1])});
    EXPECT_GT(pairs.size(), 50U);
  }
}

std::vector<int64_t> numbers_in(const std::string& text) {
  std::vector<int64_t> numbers;
  const std::regex form("[0-9]+");
  for (std::sregex_iterator at(text.begin(), text.end(), form), end; at != end; ++at)
    numbers.push_back(std::stoll(at->str()));
  return numbers;
}

TEST(InfiniteBench, OrderStatistics) {
  std::set<std::string> asked;
  for (int64_t index = 0; index < 30; ++index) {
    const Sample sample = sample_of("math_find", index, 2048);
    std::smatch what;
    ASSERT_TRUE(std::regex_search(sample.context, what, std::regex("^Find the ([a-z ]+) number from the list below:")));
    std::vector<int64_t> numbers = numbers_in(sample.context);
    std::sort(numbers.begin(), numbers.end());
    std::vector<int64_t> distinct = numbers;
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    const std::map<std::string, int64_t> answers = {{"largest", distinct.back()},
                                                    {"second largest", *(distinct.end() - 2)},
                                                    {"third largest", *(distinct.end() - 3)},
                                                    {"smallest", distinct[0]},
                                                    {"second smallest", distinct[1]},
                                                    {"third smallest", distinct[2]},
                                                    {"median", numbers[numbers.size() / 2]}};
    EXPECT_EQ(sample.outputs.at(0), std::to_string(answers.at(what[1])));
    EXPECT_EQ(numbers.size() % 2, 1U);
    EXPECT_THAT(sample.question, HasSubstr("The " + what[1].str() + " number of the list is: "));
    asked.insert(what[1]);
  }
  EXPECT_EQ(asked.size(), 7U);
}

TEST(InfiniteBench, RunningSums) {
  const Sample sample = sample_of("math_calc");
  const std::string sum = sample.context.substr(sample.context.rfind("Expression: ") + 12);
  std::istringstream stream(sum);
  int64_t value = 0;
  stream >> value;
  std::vector<std::string> values = {std::to_string(value)};
  char sign = 0;
  for (int64_t term = 0; stream >> sign >> term;) {
    value += sign == '-' ? -term : term;
    EXPECT_GE(value, 0);
    values.push_back(std::to_string(value));
  }
  ASSERT_GT(values.size(), 500U);
  values.resize(48);
  EXPECT_EQ(sample.outputs, values);
}

TEST(InfiniteBench, ChainsOfFunctions) {
  for (int64_t index = 0; index < 10; ++index) {
    const Sample sample = sample_of("code_run", index);
    std::map<std::string, std::pair<std::string, int64_t>> functions;
    const std::regex form("def (func_[0-9]+)\\(x\\):\n    return (func_[0-9]+|x)(?:\\(x\\))? ([+-]) ([0-9]+)");
    for (std::sregex_iterator at(sample.context.begin(), sample.context.end(), form), end; at != end; ++at) {
      functions[(*at)[1]] = {(*at)[2], std::stoll((*at)[4]) * ((*at)[3] == "-" ? -1 : 1)};
    }
    std::smatch call;
    ASSERT_TRUE(std::regex_search(sample.question, call, std::regex("return value of (func_[0-9]+)\\(([0-9]+)\\)\\.")));
    int64_t value = std::stoll(call[2]);
    int n_calls = 0;
    for (std::string name = call[1]; name != "x"; name = functions.at(name).first, ++n_calls) {
      ASSERT_TRUE(functions.contains(name));
      value += functions.at(name).second;
    }
    EXPECT_EQ(sample.outputs, std::vector<std::string>{std::to_string(value)});
    EXPECT_GE(n_calls, 2);
    EXPECT_LE(n_calls, 10);
    EXPECT_GT(functions.size(), 50U);
  }
}

TEST(Tasks, TheGridGoesThroughElevenDepths) {
  const auto generator = find_task("needle_grid").make(request_of(4096));
  for (int64_t index = 0; index < 12; ++index) {
    const Sample sample = generator->sample(index);
    EXPECT_DOUBLE_EQ(sample.depth, static_cast<double>(index % 11) / 10);
    const size_t text = sample.context.find('\n') + 1;
    const double share = static_cast<double>(sample.context.find("One of the special magic numbers for") - text) /
                         static_cast<double>(sample.context.size() - text);
    EXPECT_NEAR(sample.depth, share, 0.03);
    EXPECT_LE(request_of(4096).n_tokens(sample), 4096 - 200);
  }
}

TEST(Tasks, NeedlesInEssays) {
  const Sample values = sample_of("niah_multivalue_own_essays"), queries = sample_of("niah_multiquery_own_essays");
  const std::regex needle("One of the special magic numbers for ([a-z]+-[a-z]+) is: ([0-9]{7})\\.");
  std::map<std::string, std::set<std::string>> found;
  for (std::sregex_iterator at(values.context.begin(), values.context.end(), needle), end; at != end; ++at) {
    found[(*at)[1]].insert((*at)[2]);
  }
  ASSERT_EQ(found.size(), 1U);  // one key, four values
  EXPECT_EQ(std::set<std::string>(values.outputs.begin(), values.outputs.end()), found.begin()->second);
  EXPECT_THAT(values.question,
              HasSubstr("What are all the special magic numbers for " + found.begin()->first + " mentioned"));

  std::string list;
  std::map<std::string, std::string> pairs;
  for (std::sregex_iterator at(queries.context.begin(), queries.context.end(), needle), end; at != end; ++at) {
    pairs[(*at)[1]] = (*at)[2];
  }
  EXPECT_EQ(pairs.size(), 4U);
  const std::regex query("for ([a-z-]+), ([a-z-]+), ([a-z-]+), and ([a-z-]+) mentioned in the provided text\\?$");
  std::smatch asked;
  ASSERT_TRUE(std::regex_search(queries.question, asked, query)) << queries.question;
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(queries.outputs.at(i), pairs.at(asked[i + 1]));
  EXPECT_THAT(queries.answer_prefix, EndsWith(" mentioned in the provided text are"));
  EXPECT_THAT(sample_of("niah_single_3_own_essays").question, HasSubstr("What is the special magic uuid for "));
}

TEST(Tasks, ATextOfTheUsersIsCutIntoPieces) {
  std::string text;
  for (int i = 0; i < 4000; ++i) text += "w\xc3\xa4rd" + std::to_string(i) + " ";
  const Request request = request_of(1024);
  const auto generator = make_prose_from("own.txt", text, request);
  size_t end = 0;
  for (int64_t index = 0; index < 5; ++index) {
    const Sample sample = generator->sample(index);
    EXPECT_GE(request.n_tokens(sample), 1024);
    const size_t begin = text.find(sample.context);
    ASSERT_NE(begin, std::string::npos);
    EXPECT_GE(begin + 200, end);  // the pieces lie side by side, about
    EXPECT_NE(sample.context.front(), '\xa4');
    end = begin + sample.context.size();
  }
  try {
    generator->sample(100);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("own.txt: the text has "));
  }
}

TEST(Tasks, ManyShotLabelsAreLearnable) {
  const Sample sample = sample_of("many_shot");
  std::set<std::string> labels;
  const std::regex form("\nText: [A-Z][^\n]*\\.\nLabel: ([0-9]{2})\n");
  int n_shots = 0;
  for (std::sregex_iterator at(sample.context.begin(), sample.context.end(), form), end; at != end; ++at, ++n_shots) {
    labels.insert((*at)[1]);
  }
  EXPECT_GT(n_shots, 100);
  EXPECT_EQ(labels.size(), 8U);
  EXPECT_TRUE(labels.contains(sample.outputs.at(0)));
}

}  // namespace
}  // namespace winnow::eval
