// LazyLLM's choice against the plain formula: the mean over heads of what the last row pays, the lowest share dropped.
#include <gmock/gmock.h>

#include "site_fixture.h"

namespace winnow {
namespace {

using test::make_method;
using test::ref_ops;
using test::SiteFixture;
using testing::ElementsAre;

// One row whose attention to slot i is in proportion to share[i], the same in all heads.
SiteFixture fixture_of(const std::vector<double>& share) {
  const auto n = static_cast<int32_t>(share.size());
  SiteFixture fixture({.n_q = 1, .n_k = n, .n_head = 2, .n_head_kv = 1, .head_dim = 4}, 1);
  for (int32_t head = 0; head < 2; ++head) {
    for (int32_t d = 0; d < 4; ++d) fixture.query(0, head)[d] = d == 0 ? 2.0F : 0.0F;  // 2 / sqrt(4) = 1
  }
  for (int32_t slot = 0; slot < n; ++slot) {
    fixture.key(0, slot)[0] = static_cast<float>(std::log(share[static_cast<size_t>(slot)]));
  }
  fixture.store();
  return fixture;
}

std::vector<int32_t> all_of(const SiteFixture& fixture) {
  std::vector<int32_t> candidate;
  candidate.reserve(static_cast<size_t>(fixture.n_slots(0)));
  for (int32_t slot = 0; slot < fixture.n_slots(0); ++slot) candidate.push_back(fixture.position(0, slot));
  return candidate;
}

TEST(LazyLlm, PercentileRuleOfTheSpecification) {
  SiteFixture fixture = fixture_of({.30, .02, .05, .01, .20, .03, .10, .04, .15, .001});
  const Method method = make_method("lazyllm(prune=0.3, every=0.5)", fixture.method_shape(2));
  EXPECT_THAT(method.pruner->prune(fixture.site(ref_ops()), all_of(fixture)), ElementsAre(0, 2, 4, 6, 7, 8, 9));
}

TEST(LazyLlm, OfEqualScoresTheOlderGoes) {
  SiteFixture fixture = fixture_of({.1, .1, .1, .1, .1, .1});
  const Method method = make_method("lazyllm(prune=0.5, every=0.5)", fixture.method_shape(2));
  EXPECT_THAT(method.pruner->prune(fixture.site(ref_ops()), all_of(fixture)), ElementsAre(3, 4, 5));
}

// Only candidates count: slots that sleep neither win a place nor lend weight to a head.
TEST(LazyLlm, ScoresAreSharesOfTheCandidates) {
  SiteFixture fixture({.n_q = 1, .n_k = 200, .n_head = 6, .n_head_kv = 2, .head_dim = 16}, 3);
  std::vector<int32_t> candidate;
  for (int32_t position = 0; position < 200; ++position) {
    if (position % 3 != 1 || position == 199) candidate.push_back(position);
  }
  std::vector<std::pair<double, int32_t>> score;
  for (size_t i = 0; i < candidate.size(); ++i) score.emplace_back(0.0, static_cast<int32_t>(i));
  for (int32_t head = 0; head < 6; ++head) {
    const std::vector<double> p = fixture.probabilities(0, head);
    double sum = 0;
    for (const int32_t position : candidate) sum += p[static_cast<size_t>(position)];
    for (size_t i = 0; i < candidate.size(); ++i) score[i].first += p[static_cast<size_t>(candidate[i])] / sum / 6;
  }
  score.back().first = INFINITY;
  std::sort(score.begin(), score.end());
  std::vector<int32_t> want;
  for (size_t i = candidate.size() * 4 / 10; i < score.size(); ++i) want.push_back(score[i].second);
  std::sort(want.begin(), want.end());
  const Method method = make_method("lazyllm(prune=0.4, every=0.5)", fixture.method_shape(2));
  EXPECT_EQ(method.pruner->prune(fixture.site(ref_ops()), candidate), want);
}

TEST(LazyLlm, PrunesAfterLayers9And19And28Of32) {
  SiteFixture fixture = fixture_of(std::vector<double>(20, 0.05));
  const Method method = make_method("lazyllm", fixture.method_shape(32));
  for (int step = 0; step < 2; ++step) {  // a step begins with layer 0
    std::vector<int32_t> places;
    for (int32_t layer = 0; layer < 31; ++layer) {
      if (!method.pruner->prune(fixture.site(ref_ops(), layer), all_of(fixture)).empty()) places.push_back(layer + 1);
    }
    EXPECT_THAT(places, ElementsAre(9, 19, 28));
  }
}

TEST(LazyLlm, APlaceOnASlidingWindowMovesUp) {
  SiteFixture fixture = fixture_of(std::vector<double>(20, 0.05));
  const Method method = make_method("lazyllm(every=0.5)", fixture.method_shape(8));
  std::vector<int32_t> places;
  for (int32_t layer = 0; layer < 7; ++layer) {
    Site site = fixture.site(ref_ops(), layer);
    site.window = layer % 6 == 5 ? 0 : 16;
    if (!method.pruner->prune(site, all_of(fixture)).empty()) places.push_back(layer);
  }
  EXPECT_THAT(places, ElementsAre(5));
}

}  // namespace
}  // namespace winnow
