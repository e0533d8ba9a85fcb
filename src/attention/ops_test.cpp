#include "attention/ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

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

}  // namespace
}  // namespace winnow
