// "name(key=value, ...)": what is taken, and what every refusal says.
#include "base/spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "base/error.h"

namespace winnow {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;
using testing::ThrowsMessage;

constexpr std::array<ParamInfo, 3> kInfos{{
    {"gamma", "share of the mass to keep", 0.9, 0, 1, false},
    {"budget", "tokens kept", 2048, 1, 1 << 20, true},
    {"exact", "use the exact scores", 0, 0, 1, true},
}};
constexpr std::array<std::string_view, 1> kTexts{"file"};

Params read(std::string_view text) {
  return resolve(parse_spec(text), kInfos, kTexts);
}

TEST(Spec, IsTakenApart) {
  const Spec spec = parse_spec("  flex-prefill_2 ( gamma = 0.5 ,budget=7 ) ");
  EXPECT_EQ(spec.name, "flex-prefill_2");
  EXPECT_THAT(spec.arguments, ElementsAre(Pair("gamma", "0.5"), Pair("budget", "7")));
  EXPECT_THAT(parse_spec("dense").arguments, ElementsAre());
  EXPECT_THAT(parse_spec("dense()").arguments, ElementsAre());
  EXPECT_THAT(parse_spec("a(file=x y=z)").arguments, ElementsAre(Pair("file", "x y=z")));
}

TEST(Spec, RefusesWhatIsNotOfTheForm) {
  for (const char* text :
       {"", "  ", "()", "a b", "a(b)", "a(=1)", "a(b=1", "a(b=1)c", "a)", "ä(b=1)", "a((b=1)", "a(b=1,,c=2)"}) {
    EXPECT_THROW(parse_spec(text), Error) << text;
  }
  EXPECT_THAT([] { parse_spec("a(b=1"); }, ThrowsMessage<Error>(HasSubstr("parenthesis")));
  EXPECT_THAT([] { parse_spec("a(b)"); }, ThrowsMessage<Error>(HasSubstr("key=value")));
}

TEST(Params, InitialValuesStandWhereNoneIsGiven) {
  const Params params = read("m");
  EXPECT_EQ(params.number("gamma"), 0.9);
  EXPECT_EQ(params.whole("budget"), 2048);
  EXPECT_FALSE(params.flag("exact"));
  EXPECT_EQ(params.text("file"), "");
}

TEST(Params, GivenValuesReplaceThem) {
  const Params params = read("m(gamma=1e-3, exact=1, budget=1048576, file=heads.json)");
  EXPECT_EQ(params.number("gamma"), 1e-3);
  EXPECT_TRUE(params.flag("exact"));
  EXPECT_EQ(params.whole("budget"), 1 << 20);
  EXPECT_EQ(params.text("file"), "heads.json");
}

TEST(Params, TheBoundsAreAllowed) {
  EXPECT_EQ(read("m(gamma=0)").number("gamma"), 0);
  EXPECT_EQ(read("m(gamma=1)").number("gamma"), 1);
  EXPECT_EQ(read("m(budget=1)").whole("budget"), 1);
}

TEST(Params, ARefusalNamesTheThingTheValueAndWhatIsAllowed) {
  EXPECT_THAT([] { read("m(gamma=1.01)"); },
              ThrowsMessage<Error>(AllOf(HasSubstr("m: gamma=1.01"), HasSubstr("from 0 to 1"))));
  EXPECT_THAT([] { read("m(budget=2.5)"); }, ThrowsMessage<Error>(HasSubstr("whole number from 1 to 1048576")));
  EXPECT_THAT([] { read("m(bugdet=2)"); },
              ThrowsMessage<Error>(AllOf(HasSubstr("bugdet"), HasSubstr("gamma, budget, exact, file"))));
  EXPECT_THAT([] { resolve(parse_spec("dense(x=1)"), {}, {}); }, ThrowsMessage<Error>(HasSubstr("it takes none")));
}

TEST(Params, OnlyNumbersAreNumbers) {
  for (const char* text : {"", "x", "1x", "nan", "inf", "-inf", "1e999", "0x1", "1 2", "+1", "1)"}) {
    EXPECT_THROW(read(fmt::format("m(gamma={})", text)), Error) << text;
  }
}

TEST(Params, AskingForAnUnknownNameIsOurBug) {
  EXPECT_DEATH(static_cast<void>(read("m").number("nothing")), "internal error");
}

}  // namespace
}  // namespace winnow
