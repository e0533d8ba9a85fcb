#include "text/sampler.h"

#include <gmock/gmock.h>

#include <cmath>
#include <map>

#include "base/error.h"

namespace winnow {
namespace {

using ::testing::HasSubstr;

constexpr int kDraws = 20000;

/// Share of each token over many draws.
std::map<int32_t, double> shares(const SamplerOptions& options, const std::vector<float>& logits) {
  Sampler sampler(options);
  std::map<int32_t, double> shares;
  for (int i = 0; i < kDraws; ++i) shares[sampler.sample(logits, {})] += 1.0 / kDraws;
  return shares;
}

std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  logits.reserve(probabilities.size());
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

const std::vector<double> kProbabilities = {0.1, 0.4, 0.05, 0.25, 0.2};

TEST(Sampler, GreedyTakesTheBestAndTheLowerOnATie) {
  Sampler sampler({});
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, 2, 3}, {}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{-5}, {}), 0);
}

TEST(Sampler, DrawsByProbability) {
  const auto drawn = shares({.temperature = 1, .seed = 7}, logits_of(kProbabilities));
  for (size_t i = 0; i < kProbabilities.size(); ++i) {
    // Four standard deviations of a share over kDraws draws.
    const double bound = 4 * std::sqrt(kProbabilities[i] * (1 - kProbabilities[i]) / kDraws);
    EXPECT_NEAR(drawn.at(static_cast<int32_t>(i)), kProbabilities[i], bound) << i;
  }
}

TEST(Sampler, TemperatureSharpens) {
  const auto drawn = shares({.temperature = 0.5, .seed = 1}, logits_of(kProbabilities));
  double sum = 0;
  for (const double p : kProbabilities) sum += p * p;
  EXPECT_NEAR(drawn.at(1), 0.16 / sum, 0.015);
}

TEST(Sampler, TopK) {
  const auto drawn = shares({.temperature = 1, .top_k = 2, .seed = 3}, logits_of(kProbabilities));
  EXPECT_EQ(drawn.size(), 2U);
  EXPECT_NEAR(drawn.at(1), 0.4 / 0.65, 0.015);
  EXPECT_NEAR(drawn.at(3), 0.25 / 0.65, 0.015);
}

TEST(Sampler, TopKKeepsTheLowerIdsOfEquals) {
  const auto drawn = shares({.temperature = 1, .top_k = 2, .seed = 3}, {1, 1, 1, 1});
  EXPECT_EQ(drawn.size(), 2U);
  EXPECT_TRUE(drawn.contains(0) && drawn.contains(1));
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  EXPECT_EQ(shares({.temperature = 1, .top_p = 0.39}, logits_of(kProbabilities)).size(), 1U);
  EXPECT_EQ(shares({.temperature = 1, .top_p = 0.6}, logits_of(kProbabilities)).size(), 2U);
  EXPECT_EQ(shares({.temperature = 1, .top_p = 0.7}, logits_of(kProbabilities)).size(), 3U);
  EXPECT_EQ(shares({.temperature = 1, .top_p = 0}, logits_of(kProbabilities)).size(), 1U);
}

TEST(Sampler, MinPIsAShareOfTheBest) {
  const auto drawn = shares({.temperature = 1, .min_p = 0.45}, logits_of(kProbabilities));
  EXPECT_EQ(drawn.size(), 3U);
  EXPECT_FALSE(drawn.contains(0));
  EXPECT_FALSE(drawn.contains(2));
}

TEST(Sampler, SameSeedSameTokens) {
  // The engine and the draw are fixed to the bit, so these hold on every machine and with every standard library.
  const std::vector<float> logits = logits_of({0.25, 0.25, 0.25, 0.25});
  Sampler sampler({.temperature = 1, .seed = 42});
  std::mt19937_64 random(42);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(sampler.sample(logits, {}), static_cast<int32_t>(random() >> 62));
  }
}

TEST(Sampler, RepetitionPenalty) {
  const std::vector<float> logits = {2.0F, 1.9F, -1.0F};
  const std::vector<int32_t> recent = {0, 2, 1};
  Sampler two({.repeat_penalty = 1.5, .repeat_last = 3});
  EXPECT_EQ(two.sample(logits, recent), 0);  // all three were said: 1.33, 1.27, -1.5
  Sampler last({.repeat_penalty = 1.5, .repeat_last = 2});
  EXPECT_EQ(last.sample(logits, recent), 0);
  const std::vector<int32_t> only_first = {0, 0};
  EXPECT_EQ(last.sample(logits, only_first), 1);  // 1.33 once, however often it was said
  const std::vector<float> negative = {-1.0F, -1.2F};
  EXPECT_EQ(last.sample(negative, only_first), 1);  // a penalty lowers negative logits, too
  Sampler none({.repeat_penalty = 1.5, .repeat_last = 0});
  EXPECT_EQ(none.sample(logits, only_first), 0);
}

TEST(Sampler, MinusInfinityIsNeverDrawn) {
  const float out = -std::numeric_limits<float>::infinity();
  const auto drawn = shares({.temperature = 2, .top_p = 0.999}, {out, 0, out, 0, out});
  EXPECT_EQ(drawn.size(), 2U);
  EXPECT_TRUE(drawn.contains(1) && drawn.contains(3));
}

TEST(Sampler, RefusesValuesOutOfRange) {
  const std::pair<SamplerOptions, const char*> cases[] = {{{.temperature = -1}, "temperature"},
                                                          {{.top_k = -1}, "top_k"},
                                                          {{.top_p = 1.5}, "top_p"},
                                                          {{.min_p = -0.1}, "min_p"},
                                                          {{.repeat_penalty = 0}, "repeat_penalty"},
                                                          {{.repeat_last = -1}, "repeat_last"},
                                                          {{.temperature = std::nan("")}, "temperature"}};
  for (const auto& [options, name] : cases) {
    try {
      const Sampler sampler(options);
      ADD_FAILURE() << name << " was taken";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(name));
    }
  }
}

TEST(StopStrings, CutAcrossPortions) {
  for (size_t portion = 1; portion <= 6; ++portion) {
    StopStrings stops({"END", "\n\n"});
    const std::string text = "some EN text ENEND more";
    std::string shown;
    for (size_t at = 0; at < text.size() && !stops.stopped(); at += portion)
      shown += stops.push(text.substr(at, portion));
    EXPECT_TRUE(stops.stopped());
    EXPECT_EQ(shown + stops.finish(), "some EN text EN") << portion;
    EXPECT_EQ(stops.push("later"), "");
  }
}

TEST(StopStrings, HoldsBackOnlyWhatMayBeAStart) {
  StopStrings stops({"stop"});
  EXPECT_EQ(stops.push("a st"), "a ");
  EXPECT_EQ(stops.push("o"), "");
  EXPECT_EQ(stops.push("re"), "store");
  EXPECT_EQ(stops.push("sto"), "");
  EXPECT_EQ(stops.finish(), "sto");
  EXPECT_FALSE(stops.stopped());
}

TEST(StopStrings, TheFirstToBeCompleteWinsHoweverTheTextComes) {
  StopStrings whole({"abcd", "bc"});
  EXPECT_EQ(whole.push("xabcd"), "xa");
  StopStrings parts({"abcd", "bc"});
  EXPECT_EQ(parts.push("xab"), "x");
  EXPECT_EQ(parts.push("cd"), "a");
  StopStrings longest({"c", "abc"});
  EXPECT_EQ(longest.push("xabc"), "x");
}

TEST(StopStrings, NoneAndEmpty) {
  StopStrings none({});
  EXPECT_EQ(none.push("anything"), "anything");
  EXPECT_THROW(StopStrings({""}), Error);
}

}  // namespace
}  // namespace winnow
