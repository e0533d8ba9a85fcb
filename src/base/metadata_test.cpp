// Facts of a model file: kinds that pass for another, and refusals that name the key.
#include "base/metadata.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace winnow {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

Metadata sample() {
  Metadata facts;
  facts.set("whole", int64_t{7});
  facts.set("real", 0.5);
  facts.set("flag", true);
  facts.set("text", std::string("gpt2"));
  facts.set("texts", std::vector<std::string>{"a", "b"});
  facts.set("wholes", std::vector<int64_t>{1, 2});
  facts.set("reals", std::vector<double>{0.5});
  return facts;
}

TEST(Metadata, FactsAreReadBack) {
  const Metadata facts = sample();
  EXPECT_EQ(facts.integer("whole"), 7);
  EXPECT_EQ(facts.real("real"), 0.5);
  EXPECT_TRUE(facts.boolean("flag"));
  EXPECT_EQ(facts.text("text"), "gpt2");
  EXPECT_THAT(facts.texts("texts"), ElementsAre("a", "b"));
  EXPECT_THAT(facts.integers("wholes"), ElementsAre(1, 2));
  EXPECT_THAT(facts.reals("reals"), ElementsAre(0.5));
}

TEST(Metadata, WholeNumbersPassAsReals) {
  const Metadata facts = sample();
  EXPECT_EQ(facts.real("whole"), 7.0);
  EXPECT_THAT(facts.reals("wholes"), ElementsAre(1.0, 2.0));
  EXPECT_THROW(facts.integer("real"), Error);  // not the other way round
}

TEST(Metadata, AMissingFactIsNamed) {
  EXPECT_THAT([] { sample().integer("llama.block_count"); }, ThrowsMessage<Error>(HasSubstr("\"llama.block_count\"")));
}

TEST(Metadata, AFactOfAnotherKindIsNamedWithTheKindWanted) {
  const Metadata facts = sample();
  EXPECT_THAT([&] { facts.integer("text"); }, ThrowsMessage<Error>(AllOf(HasSubstr("\"text\""), HasSubstr("whole"))));
  EXPECT_THROW(facts.boolean("whole"), Error);
  EXPECT_THROW(facts.text("texts"), Error);
  EXPECT_THROW(facts.texts("text"), Error);
  EXPECT_THROW(facts.integers("reals"), Error);
  EXPECT_THROW(facts.reals("texts"), Error);
  EXPECT_THROW(facts.real("flag"), Error);
}

TEST(Metadata, OtherwiseHoldsForMissingFactsOnly) {
  const Metadata facts = sample();
  EXPECT_EQ(facts.integer_or("whole", 1), 7);
  EXPECT_EQ(facts.integer_or("absent", 1), 1);
  EXPECT_EQ(facts.real_or("absent", 0.25), 0.25);
  EXPECT_TRUE(facts.boolean_or("absent", true));
  EXPECT_EQ(facts.text_or("absent", "none"), "none");
  EXPECT_THROW(facts.integer_or("text", 1), Error);
}

TEST(Metadata, TheLastValueSetStands) {
  Metadata facts = sample();
  facts.set("whole", std::string("seven"));
  EXPECT_EQ(facts.text("whole"), "seven");
  EXPECT_FALSE(facts.has("missing"));
}

}  // namespace
}  // namespace winnow
