#include "methods/knob.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "methods/roster.h"

namespace winnow {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr MethodShape kShape = {.n_layer = 2, .n_head = 4, .n_head_kv = 2, .head_dim = 16};

std::string error_of(const std::vector<std::string>& specs) {
  try {
    find_knob(specs);
    return "no error";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(Knob, EveryMethodTakesItsKnobFromEndToEnd) {
  for (const MethodInfo* info : method_roster()) {
    if (info->knob.param.empty()) continue;
    const std::vector<std::string> specs = {std::string(info->name)};
    const KnobOwner owner = find_knob(specs);
    EXPECT_EQ(owner.info, info);
    EXPECT_EQ(knob_value(*info, 0), info->knob.dense) << info->name;
    EXPECT_EQ(knob_value(*info, 1), info->knob.sparse) << info->name;
    double last = info->knob.dense;
    for (const double place : {0.0, 0.2, 0.5, 0.99, 1.0}) {
      const double value = knob_value(*info, place);
      EXPECT_NO_THROW(Policy(with_knob(specs, owner, value), kShape)) << info->name << " " << value;
      EXPECT_LE((value - last) * (info->knob.dense - info->knob.sparse), 0) << info->name;
      last = value;
    }
  }
}

TEST(Knob, ValuesBetweenTheEndsAreRoundedTheWayThatIsAsked) {
  const MethodInfo& share = find_method("xattention");  // 0.99 to 0.5
  EXPECT_DOUBLE_EQ(knob_value(share, 0.3333333), 0.8267);
  EXPECT_DOUBLE_EQ(knob_value(share, 0.3333333, false), 0.8266);
  const MethodInfo& budget = find_method("streaming_llm");  // 32768 to 128 in equal ratios, whole
  EXPECT_EQ(knob_value(budget, 0.5), 2048);
  EXPECT_EQ(knob_value(budget, 0.51), 1938);
  EXPECT_EQ(knob_value(budget, 0.51, false), 1937);
  const MethodInfo& rising = find_method("sale");  // 0.0001 computes most, 0.2 least
  EXPECT_DOUBLE_EQ(knob_value(rising, 0.5), 0.004472);
  EXPECT_DOUBLE_EQ(knob_value(rising, 0.5, false), 0.004473);
}

TEST(Knob, IsSetBesideWhatTheUserGave) {
  const std::vector<std::string> specs = {"snapkv(budget=512)", " flexprefill ( tau = 0.2 ) "};
  const KnobOwner owner = find_knob(specs);
  EXPECT_EQ(owner.spec, 1U);
  const std::vector<std::string> set = with_knob(specs, owner, 0.75);
  EXPECT_EQ(Policy(set, kShape).name(), "snapkv(budget=512) + flexprefill(gamma=0.75, tau=0.2)");
  const std::vector<std::string> bare = {"xattention"}, empty = {"xattention()"};
  EXPECT_EQ(with_knob(bare, find_knob(bare), 0.9).front(), "xattention(threshold=0.9)");
  EXPECT_EQ(with_knob(empty, find_knob(empty), 0.9).front(), "xattention(threshold=0.9)");
}

TEST(Knob, Refusals) {
  EXPECT_THAT(error_of({"snapkv"}),
              AllOf(HasSubstr("snapkv has no knob"), HasSubstr("flexprefill"), Not(HasSubstr("lazyllm"))));
  EXPECT_THAT(error_of({}), HasSubstr("dense attention has no knob"));
  EXPECT_THAT(error_of({"xattention(threshold=0.8)"}), HasSubstr("threshold=0.8 is given"));
}

}  // namespace
}  // namespace winnow
