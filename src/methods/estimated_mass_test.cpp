// What methods take their selections to keep, against plain sums of probabilities.
#include <gtest/gtest.h>

#include "attention/lines.h"
#include "methods/lists.h"
#include "selected.h"

namespace winnow {
namespace {

using test::blocks_of;
using test::computed;
using test::ref_ops;
using test::select;
using test::SiteFixture;
using test::SiteShape;

// The mean over the last `n_rows` rows and all heads of the probability that the selection computes.
double kept_by_last_rows(const Selection& selection, SiteFixture& fixture, int32_t n_rows) {
  const SiteShape& shape = fixture.shape();
  double kept = 0;
  for (int32_t row = shape.n_q - n_rows; row < shape.n_q; ++row) {
    for (int32_t head = 0; head < shape.n_head; ++head) {
      const std::vector<double> p = fixture.probabilities(row, head);
      const std::vector<bool> mask = computed(selection, fixture, row, head);
      for (size_t slot = 0; slot < p.size(); ++slot) kept += mask[slot] ? p[slot] : 0;
    }
  }
  return kept / (n_rows * shape.n_head);
}

// Probes that are the last block of rows: the estimate is exact for them.
TEST(EstimatedMass, OfProbesIsWhatTheyKeep) {
  SiteFixture fixture({.n_q = 512, .n_k = 600, .n_head = 4, .n_head_kv = 2}, 51);
  const std::pair<const char*, int32_t> methods[] = {{"flexprefill(gamma=0.5, tau=0, min_budget=64, block=64)", 64},
                                                     {"proxyattn(gamma=0.6, min_budget=64, block=64)", 64},
                                                     {"tca_attention(window=128, votes=1, mu=2)", 1}};
  for (const auto& [spec, n_rows] : methods) {
    const Selection selection = select(spec, fixture);
    ASSERT_FALSE(selection.everything()) << spec;
    const double want = kept_by_last_rows(selection, fixture, n_rows);
    EXPECT_LT(want, 0.999) << spec;
    EXPECT_NEAR(selection.estimated_mass.value(), want, 1e-4) << spec;
  }
}

// minference counts the lines themselves, of which the computed blocks hold more.
TEST(EstimatedMass, OfLinesIsWhatTheProbePaysThem) {
  SiteFixture fixture({.n_q = 700, .n_k = 900, .n_head = 2, .n_head_kv = 1}, 52);
  const Site site = fixture.site(ref_ops());
  const Selection selection = select("minference(v_size=40, s_size=110)", fixture);
  const ProbeArgs probe = last_rows(site, 64);
  double kept = 0;
  for (int32_t head = 0; head < 2; ++head) {
    std::vector<float> probabilities;
    const LineMass mass = line_mass(site.ops, probe, head, probabilities);
    const Lines lines = choose_lines(mass, {40, 110, 30, 100});
    for (int32_t row = 636; row < 700; ++row) {
      const std::vector<double> p = fixture.probabilities(row, head);
      for (int32_t slot = 0; slot <= fixture.limit(row); ++slot) {
        const bool vertical = std::ranges::count(lines.verticals, slot) > 0;
        const bool slash = std::ranges::count(lines.slashes, fixture.limit(row) - slot) > 0;
        kept += vertical || slash ? p[static_cast<size_t>(slot)] / (2 * 64) : 0;
      }
    }
  }
  EXPECT_LT(kept, 0.999);
  EXPECT_NEAR(selection.estimated_mass.value(), kept, 1e-4);
  EXPECT_LE(kept, kept_by_last_rows(selection, fixture, 64) + 1e-4);
}

TEST(EstimatedMass, OfAntidiagonalsIsTheirShareOfTheScores) {
  SiteFixture fixture({.n_q = 300, .n_k = 700, .n_head = 2, .n_head_kv = 1}, 53);
  const Site site = fixture.site(ref_ops());
  const Selection selection = select("xattention(threshold=0.8, stride=8, block=64)", fixture);
  std::vector<std::vector<float>> all;
  ref_ops().antidiagonal_scores({last_rows(site, 300), 8, 64}, all);
  double kept = 0;
  for (int32_t head = 0; head < 2; ++head) {
    const std::vector<float>& scores = all[static_cast<size_t>(head)];
    for (int32_t block = 0; block < 5; ++block) {
      double total = 0, chosen = 0;
      for (int c = 0; c < 11; ++c) total += double{scores[static_cast<size_t>(block * 11 + c)]};
      for (const int c : blocks_of(selection, head, block))
        chosen += double{scores[static_cast<size_t>(block * 11 + c)]};
      EXPECT_GE(chosen / total, 0.8 - 1e-6);
      kept += chosen / total / 10;
    }
  }
  EXPECT_NEAR(selection.estimated_mass.value(), kept, 1e-5);
}

// Where the pooled map is trusted: what it gives to the blocks that are computed.
TEST(EstimatedMass, OfPooledMapsIsTheirShare) {
  SiteFixture fixture({.n_q = 512, .n_k = 512, .n_head = 2, .n_head_kv = 1, .contrast = 1}, 54);
  const Site site = fixture.site(ref_ops());
  const Selection selection = select("flexprefill(gamma=0.6, tau=1, min_budget=64, block=64)", fixture);
  std::vector<float> keys, queries, scores;
  ref_ops().pool_keys(site.kv, 0, 64, keys);
  double kept = 0;
  for (int32_t head = 0; head < 2; ++head) {
    ref_ops().pool_queries(site.q, head, 64, queries);
    ref_ops().score_blocks(queries, keys, 16, site.scale, scores);
    for (int32_t block = 0; block < 8; ++block) {
      double total = 0, chosen = 0;
      for (int c = 0; c <= block; ++c) total += std::exp(double{scores[static_cast<size_t>(block * 8 + c)]});
      for (const int c : blocks_of(selection, head, block)) {
        chosen += std::exp(double{scores[static_cast<size_t>(block * 8 + c)]});
      }
      kept += chosen / total / 16;
    }
  }
  EXPECT_LT(kept, 0.999);
  EXPECT_NEAR(selection.estimated_mass.value(), kept, 1e-4);
}

TEST(EstimatedMass, IsNotToldWhereNothingWasEstimated) {
  SiteFixture fixture({.n_q = 700, .n_k = 700, .n_head = 2, .n_head_kv = 1}, 55);
  for (const char* spec : {"streaming_llm(window=128)", "powerattention(window=1, block=64, full=0)",
                           "dhsa(budget=256, recent=128)", "hip(k=64, window=64, dense_layers=0)", "sale(tau=0.1)"}) {
    const Selection selection = select(spec, fixture);
    ASSERT_FALSE(selection.everything()) << spec;
    EXPECT_FALSE(selection.estimated_mass.has_value()) << spec;
  }
  EXPECT_FALSE(select("xattention(threshold=1)", fixture).estimated_mass.has_value());
}

}  // namespace
}  // namespace winnow
