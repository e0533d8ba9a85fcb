#include "methods/roster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "random_weights.h"

namespace winnow {
namespace {

using ::testing::HasSubstr;

constexpr MethodShape kShape = {.n_layer = 2, .n_head = 4, .n_head_kv = 2, .head_dim = 16};

std::string error_of(const std::vector<std::string>& specs) {
  try {
    const Policy policy(specs, kShape);
    return "no error: " + policy.name();
  } catch (const Error& error) {
    return error.what();
  }
}

std::string name_of(const std::vector<std::string>& specs) {
  return Policy(specs, kShape).name();
}

TEST(Roster, HoldsTheMethodsOfTheFolderByName) {
  EXPECT_EQ(find_method("dense").name, "dense");
  EXPECT_EQ(find_method("streaming_llm").name, "streaming_llm");
  for (const MethodInfo* info : method_roster()) EXPECT_EQ(&find_method(info->name), info);
}

TEST(Roster, AnUnknownNameIsAnsweredWithTheKnownOnes) {
  EXPECT_THAT(error_of({"streamingllm"}), HasSubstr("streaming_llm"));
  EXPECT_THAT(error_of({"streamingllm"}), HasSubstr("no method \"streamingllm\""));
}

TEST(Policy, WithoutSpecsIsDense) {
  const Policy none;
  EXPECT_EQ(none.name(), "dense");
  EXPECT_EQ(none.break_even(), 0);
  EXPECT_TRUE(none.make().empty());
  EXPECT_EQ(name_of({}), "dense");
}

TEST(Policy, NamesWhatTheUserGaveInOneForm) {
  EXPECT_EQ(name_of({"streaming_llm"}), "streaming_llm");
  EXPECT_EQ(name_of({" streaming_llm( window = 64,sinks=2 ) "}), "streaming_llm(sinks=2, window=64)");
  EXPECT_EQ(name_of({"dense", "streaming_llm(prefill=0)"}), "dense + streaming_llm(prefill=0)");
}

TEST(Policy, MakesFreshMethodsInTheOrderGiven) {
  const std::vector<std::string> specs = {"dense", "streaming_llm(prefill=0)"};
  const Policy policy(specs, kShape);
  const std::vector<Method> a = policy.make(), b = policy.make();
  ASSERT_EQ(a.size(), 2U);
  EXPECT_EQ(a[0].selector, nullptr);
  EXPECT_EQ(a[1].selector, nullptr);
  ASSERT_NE(a[1].compressor, nullptr);
  EXPECT_NE(a[1].compressor, b[1].compressor);
}

TEST(Policy, BreakEvenIsTheSelectorsMinLen) {
  const std::vector<std::string> both = {"streaming_llm(min_len=777)"};
  EXPECT_EQ(Policy(both, kShape).break_even(), 777);
  MethodShape gpu = kShape;
  gpu.on_gpu = true;
  const auto on_gpu = [&](const std::string& spec) { return Policy(std::vector{spec}, gpu).break_even(); };
  EXPECT_EQ(on_gpu("flexprefill"), find_method("flexprefill").gpu_min_len);
  EXPECT_EQ(on_gpu("zipvl"), kNeverGains);
  EXPECT_EQ(on_gpu("zipvl(min_len=777)"), 777);
  EXPECT_EQ(on_gpu("streaming_llm(min_len=0)"), 0);
  const std::vector<std::string> cache_only = {"streaming_llm(prefill=0, min_len=777)"};
  EXPECT_EQ(Policy(cache_only, kShape).break_even(), 0);
}

TEST(Policy, PrunersHaveABreakEvenOfTheirOwn) {
  const std::vector<std::string> both = {"streaming_llm(min_len=777)", "lazyllm(revive=0, min_len=55)"};
  EXPECT_EQ(Policy(both, kShape).break_even(), 777);
  EXPECT_EQ(Policy(both, kShape).prune_break_even(), 55);
}

TEST(Policy, SkippingHasABreakEvenOfItsOwn) {
  const std::vector<std::string> both = {"streaming_llm(min_len=777)", "blasst(min_len=55)"};
  EXPECT_EQ(Policy(both, kShape).break_even(), 777);
  EXPECT_EQ(Policy(both, kShape).skip_break_even(), 55);
  MethodShape gpu = kShape;
  gpu.on_gpu = true;
  EXPECT_EQ(Policy(std::vector<std::string>{"blasst"}, kShape).skip_break_even(), 0);
  EXPECT_EQ(Policy(std::vector<std::string>{"blasst"}, gpu).skip_break_even(), kNeverGains);
}

TEST(Policy, RefusesWhatCannotWorkTogether) {
  EXPECT_THAT(error_of({"dense", "dense"}), HasSubstr("dense is named twice"));
  EXPECT_THAT(error_of({"dense", "streaming_llm"}), HasSubstr("dense computes all of attention and streaming_llm"));
  EXPECT_THAT(error_of({"streaming_llm(window=0)"}), HasSubstr("window=0"));
  EXPECT_THAT(error_of({"streaming_llm(prefill=0, cache=0)"}), HasSubstr("nothing to do"));
  EXPECT_THAT(error_of({"streaming_llm(size=3)"}), HasSubstr("no parameter \"size\""));
}

TEST(Policy, APrunerThatRevivesNeedsACacheThatKeeps) {
  EXPECT_THAT(error_of({"lazyllm", "snapkv"}), HasSubstr("lazyllm takes tokens up again that snapkv removes"));
  EXPECT_THAT(error_of({"dense", "lazyllm"}), HasSubstr("dense computes all of attention and lazyllm"));
  EXPECT_EQ(name_of({"lazyllm(revive=0)", "snapkv"}), "lazyllm(revive=0) + snapkv");
  EXPECT_EQ(name_of({"lazyllm", "flexprefill"}), "lazyllm + flexprefill");
}

TEST(Policy, RefusesTwoSelectorsWithBothNames) {
  std::vector<std::string> selectors;
  for (const MethodInfo* info : method_roster()) {
    if (info->parts.starts_with("selector")) selectors.emplace_back(info->name);
  }
  for (size_t i = 1; i < selectors.size(); ++i) {
    const std::string error = error_of({with_weights(selectors[0], kShape), with_weights(selectors[i], kShape)});
    EXPECT_THAT(error, HasSubstr(selectors[0]));
    EXPECT_THAT(error, HasSubstr(selectors[i] + " both"));
  }
}

}  // namespace
}  // namespace winnow
