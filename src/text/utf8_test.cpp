#include "text/utf8.h"

#include <gtest/gtest.h>

#include "text/tokenizer.h"

namespace winnow {
namespace {

TEST(Utf8, StepsOverWellFormedCharactersOfEveryLength) {
  for (const std::string text : {"a", "\u00E9", "\u20AC", "\U0001F600", "\uD7FF", "\uE000", "\U0010FFFF"}) {
    const Utf8Step step = utf8_step(text + "z");
    EXPECT_EQ(step.kind, Utf8Kind::kWhole) << text;
    EXPECT_EQ(step.length, text.size()) << text;
  }
}

TEST(Utf8, MalformedInItsLongestPart) {
  const std::pair<std::string, size_t> cases[] = {{"\x80", 1},         {"\xC0\x80", 1},     {"\xC1\xBF", 1},
                                                  {"\xE0\x9F\xBF", 1}, {"\xED\xA0\x80", 1}, {"\xF0\x8F\xBF", 1},
                                                  {"\xF4\x90\x80", 1}, {"\xF5", 1},         {"\xFF", 1},
                                                  {"\xE2\x82z", 2},    {"\xF0\x9F\x98z", 3}};
  for (const auto& [text, length] : cases) {
    const Utf8Step step = utf8_step(text);
    EXPECT_EQ(step.kind, Utf8Kind::kMalformed);
    EXPECT_EQ(step.length, length);
  }
  EXPECT_EQ(utf8_step("\xF0\x9F\x98").kind, Utf8Kind::kCut);
  EXPECT_EQ(utf8_masked("a\xE2\x82\xC3\xA9\xF0", '?'), "a??\xC3\xA9?");
}

TEST(Utf8Stream, NeverCutsACharacter) {
  const std::string text = "a\u00E9\u20AC\U0001F600 \U0001F469\u200D\U0001F680z";
  for (size_t portion = 1; portion <= 5; ++portion) {
    Utf8Stream stream;
    std::string shown;
    for (size_t at = 0; at < text.size(); at += portion) {
      const std::string now = stream.push(std::string_view(text).substr(at, portion));
      EXPECT_EQ(utf8_masked(now, '\x01').find('\x01'), std::string::npos) << "a cut character was shown";
      shown += now;
    }
    EXPECT_EQ(shown + stream.finish(), text);
  }
}

TEST(Utf8Stream, ShowsAtOnceWhatIsWhole) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("ab\xE2"), "ab");
  EXPECT_EQ(stream.push("\x82"), "");
  EXPECT_EQ(stream.push("\xAC!"), "\xE2\x82\xAC!");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, MalformedBytesAreMarked) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("\xE2\x82z\xFF"), "\uFFFDz\uFFFD");
  EXPECT_EQ(stream.push("\xF0\x9F"), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
}

}  // namespace
}  // namespace winnow
