#include "eval/draw.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <regex>
#include <set>

#include "eval/essay.h"
#include "eval/words.h"

namespace winnow::eval {
namespace {

TEST(Draw, IsTheSameOnEveryMachine) {
  Draw draw(42, "niah_single_1", 4096, 0);
  const uint64_t first = draw.bits();
  EXPECT_EQ(Draw(42, "niah_single_1", 4096, 0).bits(), first);
  for (Draw other : {Draw(43, "niah_single_1", 4096, 0), Draw(42, "vt", 4096, 0), Draw(42, "niah_single_1", 8192, 0),
                     Draw(42, "niah_single_1", 4096, 1)}) {
    EXPECT_NE(other.bits(), first);
  }
  // The standard fixes the engine's 10000th value.
  Draw plain(5489);
  for (int i = 1; i < 10000; ++i) plain.bits();
  EXPECT_EQ(plain.bits(), 9981545732273789042ULL);
  EXPECT_EQ(hash64(""), 0xcbf29ce484222325ULL);  // FNV-1a's own examples
  EXPECT_EQ(hash64("a"), 0xaf63dc4c8601ec8cULL);
  EXPECT_EQ(hash64("foobar"), 0x85944171f73967e8ULL);
}

TEST(Draw, CoversItsRangeEvenly) {
  Draw draw(1);
  std::vector<int> counts(7);
  for (int i = 0; i < 7000; ++i) ++counts[static_cast<size_t>(draw.between(-3, 3) + 3)];
  for (const int n : counts) EXPECT_NEAR(n, 1000, 150);
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1000, 3}, {10, 10}, {10, 9}, {1, 1}}) {
    const std::vector<int64_t> drawn = draw.sample(n, k);
    EXPECT_EQ(std::set<int64_t>(drawn.begin(), drawn.end()).size(), static_cast<size_t>(k));
    EXPECT_GE(*std::min_element(drawn.begin(), drawn.end()), 0);
    EXPECT_LT(*std::max_element(drawn.begin(), drawn.end()), n);
  }
}

TEST(Draw, NumbersAndUuids) {
  Draw draw(2);
  const std::regex uuid("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}");
  for (int i = 0; i < 200; ++i) {
    EXPECT_TRUE(std::regex_match(draw.uuid(), uuid));
    EXPECT_TRUE(std::regex_match(draw.number(7), std::regex("[1-9][0-9]{6}")));
    EXPECT_TRUE(std::regex_match(draw.letters("AB", 3), std::regex("[AB]{3}")));
  }
}

TEST(Words, AreDistinct) {
  for (const auto* list : {&nouns(), &adjectives(), &verbs(), &pair_words()}) {
    EXPECT_TRUE(std::is_sorted(list->begin(), list->end()));
    EXPECT_EQ(std::adjacent_find(list->begin(), list->end()), list->end());
  }
  EXPECT_EQ(pair_words().size(), nouns().size() * adjectives().size());
  const std::vector<std::string> many = distinct_words(20000), few = distinct_words(100);
  EXPECT_EQ(std::set<std::string>(many.begin(), many.end()).size(), many.size());
  EXPECT_TRUE(std::equal(few.begin(), few.end(), many.begin()));
  for (const std::string& word : many) EXPECT_TRUE(std::regex_match(word, std::regex("[a-z]+"))) << word;
}

TEST(Essay, HasSoManyWordsAndEndsItsSentences) {
  for (const int64_t n : {1, 7, 500, 5000}) {
    const std::vector<std::string> sentences = essay_sentences(n);
    int64_t n_words = 0;
    for (size_t i = 0; i < sentences.size(); ++i) {
      const std::string& text = sentences[i];
      n_words += std::count(text.begin(), text.end(), ' ') + 1;
      EXPECT_TRUE(text.front() >= 'A' && text.front() <= 'Z') << text;
      EXPECT_EQ(text.find_first_of("{}"), std::string::npos) << text;
      if (i + 1 < sentences.size()) {
        EXPECT_EQ(text.find('.'), text.size() - 1) << text;
      }
    }
    EXPECT_EQ(n_words, n);
  }
  const std::vector<std::string> some = essay_sentences(5000);
  EXPECT_GT(std::set<std::string>(some.begin(), some.end()).size(), some.size() * 99 / 100);  // hardly any twice
  EXPECT_NE(essay_sentences(50, 1), essay_sentences(50, 2));
}

}  // namespace
}  // namespace winnow::eval
