// Hand-made examples of each metric's published rule.
#include "eval/score.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace winnow::eval {
namespace {

double score(std::string_view metric, std::string_view answer, const std::vector<std::string>& outputs) {
  return find_metric(metric).score(answer, outputs);
}

TEST(Score, Substrings) {
  EXPECT_DOUBLE_EQ(score("all", "A, b", {"a", "B", "c"}), 2.0 / 3);
  EXPECT_EQ(score("any", "it is Paris.", {"paris", "rome"}), 1);
  EXPECT_EQ(score("any", "it is Berlin.", {"paris", "rome"}), 0);
  EXPECT_EQ(score("exact", " Paris\n", {"paris"}), 1);
  EXPECT_EQ(score("exact", "Paris!", {"paris"}), 0);
  EXPECT_EQ(score("first_line", "paris\nrome", {"Paris"}), 1);
  EXPECT_EQ(score("first_line", "rome\nparis", {"Paris"}), 0);
  EXPECT_EQ(clean_answer(" a\x01z\t "), "a\nz");
}

TEST(Score, InfiniteBenchNumbers) {
  EXPECT_EQ(score("first_number", "The pass key is 71432. 71432 is", {"71432"}), 1);
  EXPECT_EQ(score("first_number", "007", {"7"}), 0);  // a key is a text
  EXPECT_EQ(score("first_number", "one", {"1"}), 0);
  EXPECT_EQ(score("first_value", "It is 07.", {"7"}), 1);
  EXPECT_EQ(score("first_value", "It is 7.5", {"7"}), 0);
  EXPECT_EQ(score("first_value", "0", {"0"}), 1);
  EXPECT_EQ(score("last_number", "The value is -12.", {"-12"}), 1);
  EXPECT_EQ(score("last_number", "`func(3)` gives: 41", {"41"}), 1);
  EXPECT_EQ(score("last_number", "41 it is", {"41"}), 0);
  EXPECT_EQ(score("last_number", "", {"41"}), 0);
  EXPECT_DOUBLE_EQ(score("run", "[1, 4, 9, 16]", {"1", "4", "8", "16"}), 0.5);  // counts up to the first that differs
  EXPECT_EQ(score("run", "", {"1"}), 0);
}

TEST(Score, Words) {
  EXPECT_EQ(score("word", "\"ab-1\".", {"ab-1"}), 1);
  EXPECT_EQ(score("word", "xab-1", {"ab-1"}), 0);
  EXPECT_DOUBLE_EQ(score("f1", "The cat sat, on a mat!", {"cat on mat"}), 6.0 / 7);  // 3 of 4 and 3 of 3
  EXPECT_EQ(score("f1", "dog", {"cat", "Dog."}), 1);
  EXPECT_EQ(score("f1", "", {"cat"}), 0);
}

TEST(Score, UnknownMetric) {
  try {
    find_metric("bleu");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("no metric \"bleu\"; known: all, any"));
  }
}

}  // namespace
}  // namespace winnow::eval
