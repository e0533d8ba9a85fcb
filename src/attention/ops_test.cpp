#include "attention/ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "site_fixture.h"

namespace winnow {
namespace {

using testing::ElementsAre;
using testing::FloatEq;
using testing::IsEmpty;

TEST(TopK, TakesTheLargestAscendingByIndex) {
  const std::vector<float> scores{0.5F, 3, -1, 2, 3, 2};
  EXPECT_THAT(top_k(scores, 1), ElementsAre(1));
  EXPECT_THAT(top_k(scores, 3), ElementsAre(1, 3, 4));  // of the two twos the lower index
  EXPECT_THAT(top_k(scores, 5), ElementsAre(0, 1, 3, 4, 5));
}

TEST(TopK, IsClampedToTheSize) {
  const std::vector<float> scores{2, 1};
  EXPECT_THAT(top_k(scores, 9), ElementsAre(0, 1));
  EXPECT_THAT(top_k(scores, 0), IsEmpty());
  EXPECT_THAT(top_k(scores, -1), IsEmpty());
  EXPECT_THAT(top_k({}, 3), IsEmpty());
}

void expect_what_sorting_takes(const std::vector<float>& scores) {
  const auto n = static_cast<int>(scores.size());
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::greater<>(), [&](int32_t i) { return scores[static_cast<size_t>(i)]; });
  for (int k = 0; k <= n; k += 1 + n / 20) {
    std::vector<int32_t> expected(order.begin(), order.begin() + k);
    std::ranges::sort(expected);
    EXPECT_EQ(top_k(scores, k), expected) << k << " of " << n;
  }
}

TEST(TopK, OfManyWithTiesIsWhatSortingTakes) {
  std::mt19937 random(3);
  for (const int n : {1, 2, 50, 1000}) {
    std::vector<float> scores(static_cast<size_t>(n));
    for (float& score : scores) score = static_cast<float>(random() % 40) - 20;
    expect_what_sorting_takes(scores);
  }
}

TEST(TopK, OfScoresOfAnySizeIsWhatSortingTakes) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (const float size : {1.0F, 1e-44F, 1e-38F, 1e38F}) {  // steps between them: usual, too small, too large
    std::vector<float> scores(700);
    for (float& score : scores) score = normal(random) * size;
    expect_what_sorting_takes(scores);
    scores[5] = scores[600] = kInfinity;
    expect_what_sorting_takes(scores);
    scores[0] = scores[7] = -kInfinity;
    expect_what_sorting_takes(scores);
    for (float& score : scores) score = std::exp(30 * score / size);  // nearly all in the lowest step
    expect_what_sorting_takes(scores);
  }
  expect_what_sorting_takes(std::vector<float>(300, 0.25F));
}

TEST(TopPCount, CountsUntilTheMassIsExceeded) {
  const std::vector<float> scores{0.125F, 0.5F, 0.125F, 0.25F};
  EXPECT_EQ(top_p_count(scores, -1), 1);
  EXPECT_EQ(top_p_count(scores, 0.4), 1);
  EXPECT_EQ(top_p_count(scores, 0.5), 2);  // reached is not exceeded
  EXPECT_EQ(top_p_count(scores, 0.8), 3);
  EXPECT_EQ(top_p_count(scores, 1.0), 4);
  EXPECT_EQ(top_p_count({}, 0.5), 0);
}

TEST(AvgPool, DividesByTheWidthAtTheBordersToo) {
  std::vector<float> scores{3, 6, 9, 12};
  avg_pool(scores, 3);
  EXPECT_THAT(scores, ElementsAre(FloatEq(3), FloatEq(6), FloatEq(9), FloatEq(7)));
}

TEST(AvgPool, WiderThanTheScores) {
  std::vector<float> scores{5, 10};
  avg_pool(scores, 5);
  EXPECT_THAT(scores, ElementsAre(FloatEq(3), FloatEq(3)));
}

TEST(MaxPool, TakesTheLargestNeighbour) {
  std::vector<float> scores{1, 5, 2, -3, -4, -5};
  max_pool(scores, 3);
  EXPECT_THAT(scores, ElementsAre(5, 5, 5, 2, -3, -4));
}

TEST(MaxPool, OfAnyWidth) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (const int n : {1, 2, 6, 100}) {
    std::vector<float> scores(static_cast<size_t>(n));
    for (float& score : scores) score = normal(random);
    for (const int width : {1, 3, 7, 13, 255}) {
      std::vector<float> pooled = scores, expected;
      for (int i = 0; i < n; ++i) {
        expected.push_back(*std::max_element(scores.begin() + std::max(0, i - width / 2),
                                             scores.begin() + std::min(n, i + width / 2 + 1)));
      }
      max_pool(pooled, width);
      EXPECT_EQ(pooled, expected) << n << " scores, width " << width;
    }
  }
}

TEST(Pools, OfWidthOneChangeNothing) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> scores(40);
  for (float& score : scores) score = normal(random);
  std::vector<float> pooled = scores;
  max_pool(pooled, 1);
  EXPECT_EQ(pooled, scores);
  avg_pool(pooled, 1);
  for (size_t i = 0; i < scores.size(); ++i) EXPECT_NEAR(pooled[i], scores[i], 1e-6);
}

TEST(WindowMass, IsWhatTheRowsOfEachHeadPay) {
  test::SiteFixture fixture({.n_q = 70, .n_k = 150, .n_head = 6, .n_head_kv = 2}, 5);
  std::vector<int32_t> kept;
  for (int32_t slot = 0; slot < 150; ++slot) {
    if (slot % 3 != 0 || slot >= 80) kept.push_back(slot);
  }
  fixture.keep(1, kept);
  test::RefOps ops(3);
  const Site site = fixture.site(ops);
  for (const int32_t n : {0, 1, 70}) {
    std::vector<std::vector<float>> mass = {{1, 2, 3}};  // stale values must not survive
    ops.window_mass({site.q.rows(70 - n, n), site.kv, site.limit.data() + 70 - n, site.scale}, mass);
    ASSERT_EQ(mass.size(), 6U);
    for (int32_t head = 0; head < 6; ++head) {
      std::vector<double> expected(static_cast<size_t>(fixture.n_slots(fixture.kv_of(head))));
      for (int32_t row = 70 - n; row < 70; ++row) {
        const std::vector<double> p = fixture.probabilities(row, head);
        for (size_t slot = 0; slot < p.size(); ++slot) expected[slot] += p[slot];
      }
      EXPECT_THAT(mass[static_cast<size_t>(head)], testing::Pointwise(testing::DoubleNear(1e-5), expected));
    }
  }
}

}  // namespace
}  // namespace winnow
