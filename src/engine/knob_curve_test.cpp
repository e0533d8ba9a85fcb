#include "engine/knob_curve.h"

#include <gmock/gmock.h>

#include "methods/density.h"
#include "methods/recall.h"
#include "methods/roster.h"
#include "tiny_engine.h"

namespace winnow {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string error_of(const std::function<void()>& work) {
  try {
    work();
    return "no error";
  } catch (const Error& error) {
    return error.what();
  }
}

// Of a text of 1,000 tokens whose dense prefill takes 4 s, half of them attention.
KnobCurve plain_curve() {
  KnobCurve curve{.n_tokens = 1000, .rest_s = 2, .attend_s = 2, .points = {}};
  for (int i = 0; i < 9; ++i) {
    const double place = i / 8.0;
    curve.points.push_back({.place = place,
                            .value = 0,
                            .density = 0.8 - 0.6 * place,
                            .recall = 0.99 - 0.2 * place,
                            .seconds = 2 * (0.9 - 0.6 * place)});
  }
  return curve;
}

TEST(KnobCurve, ARecallIsMetByTheSparsestSettingThatHasIt) {
  const MethodInfo& info = find_method("tca_attention");  // mu: 6 to 0, straight
  const KnobSetting setting = choose_setting(plain_curve(), info, {.recall = 0.91}, 1000);
  EXPECT_NEAR(setting.value, 6 * 0.6, 1e-9);  // place 0.4
  EXPECT_NEAR(setting.recall, 0.91, 1e-9);
  EXPECT_NEAR(setting.density, 0.56, 1e-9);
  EXPECT_NEAR(setting.dense_s, 4, 1e-9);
  EXPECT_NEAR(setting.speedup, 4 / (2 + 2 * 0.66), 1e-9);
  EXPECT_EQ(choose_setting(plain_curve(), info, {.recall = 0.5}, 1000).value, 0);  // the sparse end
  // A dip below is passed from its dense side.
  KnobCurve dip = plain_curve();
  dip.points[2].recall = 0.5;
  EXPECT_GT(choose_setting(dip, info, {.recall = 0.9}, 1000).value, 6 * 0.75);
}

TEST(KnobCurve, ASpeedupIsMetByTheDensestSettingThatHasIt) {
  const MethodInfo& info = find_method("tca_attention");
  // 4 / (2 + s) = 1.25 needs s = 1.2, which place 0.5 has.
  EXPECT_NEAR(choose_setting(plain_curve(), info, {.speedup = 1.25}, 1000).value, 3, 1e-2);
  // Four times as long: products take 8 s and attention 32.
  const KnobSetting longer = choose_setting(plain_curve(), info, {.speedup = 1.25}, 4000);
  EXPECT_NEAR(longer.dense_s, 40, 1e-9);
  EXPECT_NEAR(longer.speedup, 1.25, 1e-3);
  EXPECT_GT(longer.value, 4);
  EXPECT_EQ(choose_setting(plain_curve(), info, {.speedup = 1}, 1000).value, 6);  // the dense end is fast enough
}

TEST(KnobCurve, WhatCannotBeReachedIsToldWithWhatCan) {
  const MethodInfo& info = find_method("xattention");
  const auto ask = [&](const KnobAim& aim) {
    return error_of([&] { choose_setting(plain_curve(), info, aim, 1000); });
  };
  EXPECT_THAT(ask({.recall = 0.995}), AllOf(HasSubstr("0.995 is beyond xattention"), HasSubstr("0.9900")));
  EXPECT_THAT(ask({.speedup = 3}), AllOf(HasSubstr("cannot be had at 1000 tokens"), HasSubstr("bring 2.00")));
  EXPECT_THAT(ask({.speedup = 1.9}), AllOf(HasSubstr("beyond xattention"), HasSubstr("reaches 1.54")));
}

TEST(KnobCurve, MeasuresWhatARunOfTheSettingReports) {
  // Of two layers the last computes only a few rows, so that the first tells all.
  const TinyEngine tiny("qwen2", {}, "cpu", 2, {.n_layer = 2});
  const std::vector<int32_t> tokens = random_tokens(900);
  const std::vector<std::string> specs = {"streaming_llm(min_len=0, sinks=2, cache=0)"};
  AttnCounts counts;
  Recall recall;
  int64_t n_shown = 0;
  tiny->on_selection = [&](const Site& site, const Selection& selection) {
    ++n_shown;
    if (site.layer != 0) return;
    recall = sample_recall(site, selection, 16);
    counts = {};
    for (const AttnCounts& head : count_selected(site, selection)) {
      counts.permitted += head.permitted;
      counts.computed += head.computed;
    }
  };
  const KnobCurve curve = measure_knob(*tiny.engine, specs, tokens);
  EXPECT_EQ(n_shown, 0);
  ASSERT_EQ(curve.points.size(), 9U);
  EXPECT_EQ(curve.n_tokens, 900);
  EXPECT_GT(curve.rest_s, 0);
  EXPECT_EQ(curve.points.front().density, 1);
  EXPECT_LT(curve.points.back().density, 0.5);
  const KnobOwner owner = find_knob(specs);
  for (const KnobPoint& point : curve.points) {
    Sequence sequence = tiny.start(with_knob(specs, owner, point.value));
    tiny->prefill(sequence, tokens);
    EXPECT_NEAR(counts.density(), point.density, 1e-9) << point.value;
    EXPECT_NEAR(recall.sum / static_cast<double>(recall.n), point.recall, 1e-6) << point.value;
    EXPECT_GT(point.seconds, 0);
  }
  EXPECT_EQ(n_shown, 18);  // the hook is back
}

TEST(KnobCurve, EverySelectorCanBeMeasuredInEveryModel) {
  const std::vector<int32_t> tokens = random_tokens(600);
  for (const std::string& architecture : tiny_architectures()) {
    const TinyEngine tiny(architecture);
    for (const MethodInfo* info : method_roster()) {
      if (info->knob.param.empty()) continue;
      const std::vector<std::string> specs = {with_weights(std::string(info->name), tiny->method_shape())};
      for (const KnobPoint& point : measure_knob(*tiny.engine, specs, tokens).points) {
        EXPECT_GE(point.recall, 0) << info->name;
        EXPECT_LE(point.recall, 1 + 1e-6) << info->name;
        EXPECT_GT(point.density, 0) << info->name;
        EXPECT_LE(point.density, 1) << info->name;
      }
    }
  }
}

TEST(KnobCurve, AMethodThatSelectsNothingIsRefused) {
  const TinyEngine tiny("qwen2");
  const std::vector<std::string> specs = {"streaming_llm(prefill=0)"};
  EXPECT_THAT(error_of([&] { measure_knob(*tiny.engine, specs, random_tokens(300)); }),
              HasSubstr("selects nothing in prefill"));
}

}  // namespace
}  // namespace winnow
