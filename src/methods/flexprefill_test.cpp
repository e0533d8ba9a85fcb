#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "selected.h"

namespace winnow {
namespace {

using test::blocks_of;
using test::keys;
using test::make_method;
using test::queries;
using test::select;
using test::SiteFixture;
using test::SiteShape;

using Matrix = std::vector<std::vector<double>>;

// The paper's formulas for one head, in plain loops: what the method must agree with.
struct Reference {
  int block;
  double gamma, tau;
  int b_min = 1, b_max = 1 << 20;

  // Results.
  std::vector<double> vertical{}, slash{}, by_block{}, estimate{};
  double distance = 0;
  bool query_aware = false;
  std::set<int> columns{}, distances{};
  std::vector<std::set<int>> rows{};  // by query block

  double dot(const std::vector<double>& a, const std::vector<double>& b) const {
    double sum = 0;
    for (size_t d = 0; d < a.size(); ++d) sum += a[d] * b[d];
    return sum / std::sqrt(static_cast<double>(a.size()));
  }

  static void normalise(std::vector<double>& x) {
    const double top = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (double& value : x) sum += value = std::exp(value - top);
    for (double& value : x) value /= sum;
  }

  static Matrix pool(const Matrix& x, int block) {
    Matrix pooled;
    for (size_t i = 0; i < x.size(); i += static_cast<size_t>(block)) {
      const size_t end = std::min(x.size(), i + static_cast<size_t>(block));
      std::vector<double> mean(x[0].size());
      for (size_t j = i; j < end; ++j) {
        for (size_t d = 0; d < mean.size(); ++d) mean[d] += x[j][d] / static_cast<double>(end - i);
      }
      pooled.push_back(mean);
    }
    return pooled;
  }

  static double root_divergence(const std::vector<double>& p, const std::vector<double>& q) {
    double sum = 0;
    for (size_t i = 0; i < p.size(); ++i) {
      const double mean = (p[i] + q[i]) / 2;
      if (p[i] > 0) sum += p[i] * std::log(p[i] / mean) / 2;
      if (q[i] > 0) sum += q[i] * std::log(q[i] / mean) / 2;
    }
    return std::sqrt(sum);
  }

  int cover(std::vector<double> mass) const {
    std::sort(mass.rbegin(), mass.rend());
    int covered = 1;
    double sum = 0;
    for (const double value : mass) covered += (sum += value) <= gamma ? 1 : 0;
    return covered;
  }

  static std::set<int> best(const std::vector<double>& scores, int k) {
    std::vector<int> index(scores.size());
    for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int>(i);
    std::stable_sort(index.begin(), index.end(),
                     [&](int a, int b) { return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)]; });
    return {index.begin(), index.begin() + std::min<std::ptrdiff_t>(k, std::ssize(index))};
  }

  void run(const Matrix& q, const Matrix& k) {
    const auto n_q = static_cast<int>(q.size()), n = static_cast<int>(k.size());
    const int n_block = (n + block - 1) / block, n_probe = std::min(block, n_q), first = n - n_q;
    vertical.assign(static_cast<size_t>(n), 0);
    slash.assign(static_cast<size_t>(n), 0);
    std::vector<double> mean(q[0].size());
    for (int t = n_q - n_probe; t < n_q; ++t) {
      std::vector<double> p;
      for (int j = 0; j <= first + t; ++j) p.push_back(dot(q[static_cast<size_t>(t)], k[static_cast<size_t>(j)]));
      normalise(p);
      for (int j = 0; j <= first + t; ++j) {
        const int delta = first + t - j;
        vertical[static_cast<size_t>(j)] += p[static_cast<size_t>(j)] / n_probe;
        slash[static_cast<size_t>(n - 1 - delta)] += p[static_cast<size_t>(j)] / n_probe;
      }
      for (size_t d = 0; d < mean.size(); ++d) mean[d] += q[static_cast<size_t>(t)][d] / n_probe;
    }
    by_block.assign(static_cast<size_t>(n_block), 0);
    std::vector<double> by_distance(static_cast<size_t>(n_block));
    for (int j = 0; j < n; ++j) {
      by_block[static_cast<size_t>(j / block)] += vertical[static_cast<size_t>(j)];
      by_distance[static_cast<size_t>(j / block)] += slash[static_cast<size_t>(j)];
    }
    const Matrix pooled_k = pool(k, block), pooled_q = pool(q, block);
    estimate.clear();
    for (const auto& key : pooled_k) estimate.push_back(dot(mean, key));
    normalise(estimate);
    distance = root_divergence(by_block, estimate);
    query_aware = distance < tau;

    const auto count = [&](const std::vector<double>& mass) {
      return query_aware ? b_min : std::min(std::max(cover(mass) / block + 1, b_min), std::min(b_max, n_block));
    };
    std::vector<double> forced = by_block;
    forced.front() = INFINITY;
    columns = best(forced, count(vertical));
    by_distance.back() = INFINITY;
    distances.clear();
    for (const int i : best(by_distance, count(slash))) distances.insert(n_block - 1 - i);
    make_rows(n_q, first, pooled_q, pooled_k);
  }

  void make_rows(int n_q, int first, const Matrix& pooled_q, const Matrix& pooled_k) {
    rows.assign(pooled_q.size(), {});
    std::vector<std::tuple<double, int, int>> map;
    for (int b = 0; b < static_cast<int>(rows.size()); ++b) {
      auto& row = rows[static_cast<size_t>(b)];
      const int begin = (first + b * block) / block, end = (first + std::min(n_q, (b + 1) * block) - 1) / block;
      for (int r = begin; r <= end; ++r) {
        for (int c = 0; c <= r; ++c) {
          if (columns.contains(c) || distances.contains(r - c)) row.insert(c);
        }
      }
      std::vector<double> p;
      for (int c = 0; c <= end; ++c)
        p.push_back(dot(pooled_q[static_cast<size_t>(b)], pooled_k[static_cast<size_t>(c)]));
      normalise(p);
      for (int c = 0; c <= end; ++c) map.emplace_back(-p[static_cast<size_t>(c)], b, c);
    }
    if (!query_aware) return;
    std::sort(map.begin(), map.end());
    double sum = 0;
    for (const auto& [p, b, c] : map) {
      if ((sum -= p) > gamma * static_cast<double>(rows.size())) break;
      rows[static_cast<size_t>(b)].insert(c);
    }
  }
};

std::string spec(int block, double gamma, double tau, int min_budget) {
  return fmt::format("flexprefill(block={}, gamma={}, tau={}, min_budget={})", block, gamma, tau, min_budget);
}

void expect_near(const std::vector<double>& a, const std::vector<double>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-4) << i;
}

using Rows = std::vector<std::set<int>>;

TEST(FlexPrefillFormulas, RootDivergenceOfTheSpecification) {
  EXPECT_NEAR(Reference::root_divergence({.5, .25, .25}, {.4, .4, .2}), 0.113612, 1e-6);
  EXPECT_NEAR(Reference::root_divergence({.6, .2, .2}, {.2, .2, .6}), 0.323496, 1e-6);
}

TEST(FlexPrefillFormulas, WorkedExampleA) {
  const Matrix q = {{1, 0}, {1, 0}, {0, 1}, {0, 1}, {1, 1}, {1, 1}, {2, 0}, {2, 0}};
  const Matrix k = {{3, 0}, {0, 0}, {0, 1}, {0, 1}, {0, 2}, {0, 0}, {1, 0}, {1, 0}};
  Reference reference{.block = 2, .gamma = 0.8, .tau = 0.1};
  reference.run(q, k);
  expect_near(reference.vertical, {.8623, .0124, .0124, .0124, .0124, .0124, .0510, .0248});
  expect_near(reference.slash, {.4201, .4481, .0124, .0124, .0124, .0124, .0312, .0510});
  EXPECT_EQ(reference.cover(reference.vertical), 1);
  EXPECT_EQ(reference.cover(reference.slash), 2);
  expect_near(reference.by_block, {.8746, .0248, .0248, .0758});
  expect_near(reference.estimate, {.5771, .0692, .0692, .2845});
  EXPECT_NEAR(reference.distance, .24182, 1e-5);
  EXPECT_EQ(reference.columns, (std::set<int>{0}));
  EXPECT_EQ(reference.distances, (std::set<int>{0, 3}));
  EXPECT_EQ(reference.rows, (Rows{{0}, {0, 1}, {0, 2}, {0, 3}}));
}

TEST(FlexPrefillFormulas, WorkedExampleB) {
  const Matrix q = {{1, 0}, {1, 0}, {0, 1}, {0, 1}, {1, 1}, {1, 1}, {2, 0}, {2, 0}};
  const Matrix k = {{2, 0}, {2, 0}, {0, 1}, {0, 1}, {-1, 2}, {-1, 2}, {1, 0}, {1, 0}};
  Reference reference{.block = 2, .gamma = 0.9, .tau = 0.2};
  reference.run(q, k);
  EXPECT_NEAR(reference.distance, .03965, 1e-5);
  EXPECT_TRUE(reference.query_aware);
  EXPECT_EQ(reference.rows, (Rows{{0}, {0, 1}, {0, 1, 2}, {0, 3}}));
}

TEST(FlexPrefill, SelectsWhatThePlainFormulasSelect) {
  int n_query_aware = 0, n_head = 0;
  const SiteShape shapes[] = {{.n_q = 700, .n_k = 700, .n_head = 4, .n_head_kv = 2, .head_dim = 16},
                              {.n_q = 640, .n_k = 640, .n_head = 2, .n_head_kv = 2, .head_dim = 8, .contrast = 4},
                              {.n_q = 300, .n_k = 812, .n_head = 2, .n_head_kv = 1, .head_dim = 16},   // aligned prefix
                              {.n_q = 333, .n_k = 1000, .n_head = 2, .n_head_kv = 1, .head_dim = 16},  // not aligned
                              {.n_q = 40, .n_k = 600, .n_head = 2, .n_head_kv = 1, .head_dim = 16},    // short probe
                              {.n_q = 700, .n_k = 700, .n_head = 2, .n_head_kv = 1, .head_dim = 16, .contrast = 0.3F}};
  for (const SiteShape& shape : shapes) {
    SiteFixture fixture(shape, 31);
    for (const int block : {64, 128}) {
      for (const auto& [gamma, tau] : {std::pair{0.9, 0.1}, {0.6, 0.25}, {0.3, 0.0}, {0.95, 0.4}, {0.5, 1.0}}) {
        const Selection selection = select(spec(block, gamma, tau, 100), fixture);
        ASSERT_FALSE(selection.everything());
        for (int32_t head = 0; head < shape.n_head; ++head) {
          Reference reference{.block = block, .gamma = gamma, .tau = tau, .b_min = (100 + block - 1) / block};
          reference.run(queries(fixture, head), keys(fixture, fixture.kv_of(head)));
          for (int32_t b = 0; b < selection.n_block_q; ++b) {
            ASSERT_EQ(blocks_of(selection, head, b), reference.rows[static_cast<size_t>(b)])
                << shape.text() << " block=" << block << " gamma=" << gamma << " tau=" << tau << " head=" << head
                << " row block " << b;
          }
          n_query_aware += reference.query_aware ? 1 : 0;
          ++n_head;
        }
      }
    }
  }
  EXPECT_GT(n_query_aware, n_head / 10);  // both kinds of head were compared
  EXPECT_LT(n_query_aware, n_head * 9 / 10);
}

TEST(FlexPrefill, BypassesShortPromptsAndFullBudgets) {
  for (const int32_t n : {1, 64, 128, 255, 256, 257}) {
    SiteFixture fixture({.n_q = n, .n_k = n}, 32);
    EXPECT_EQ(select(spec(128, 0.3, 0.1, 1), fixture).everything(), n <= 256) << n;
  }
  SiteFixture fixture({.n_q = 700, .n_k = 700}, 33);
  EXPECT_TRUE(select(spec(128, 0.3, 0.1, 700), fixture).everything());
  EXPECT_FALSE(select(spec(128, 0.3, 0.1, 600), fixture).everything());
  SiteFixture decode({.n_q = 1, .n_k = 700}, 34);
  EXPECT_TRUE(select(spec(128, 0.3, 0.1, 1), decode).everything());
}

TEST(FlexPrefill, GammaAboveOneComputesEveryCausalBlock) {
  for (const double tau : {0.0, 1.0}) {
    for (const int block : {64, 128}) {
      SiteFixture fixture({.n_q = 700, .n_k = 700, .n_head = 4, .n_head_kv = 2}, 35);
      const Selection selection = select(spec(block, 1.01, tau, 1), fixture);
      for (int32_t head = 0; head < 4; ++head) {
        for (int32_t b = 0; b < selection.n_block_q; ++b) {
          EXPECT_EQ(blocks_of(selection, head, b).size(), static_cast<size_t>(b) + 1);
        }
      }
    }
  }
}

TEST(FlexPrefill, FirstAndDiagonalBlocksAreAlwaysThereAndMoreBudgetNeverComputesLess) {
  SiteFixture fixture({.n_q = 900, .n_k = 900, .n_head = 4, .n_head_kv = 2}, 36);
  for (const double tau : {0.0, 0.15, 1.0}) {
    size_t before = 0;
    for (const double gamma : {0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.01}) {
      const Selection selection = select(spec(64, gamma, tau, 64), fixture);
      for (int32_t head = 0; head < 4; ++head) {
        for (int32_t b = 0; b < selection.n_block_q; ++b) {
          const std::set<int> blocks = blocks_of(selection, head, b);
          EXPECT_TRUE(blocks.contains(0) && blocks.contains(b));
          EXPECT_LE(*blocks.rbegin(), b);
        }
      }
      EXPECT_GE(selection.block_begin.size(), before) << gamma;
      before = selection.block_begin.size();
    }
    before = 0;
    for (const int min_budget : {1, 64, 65, 200, 400, 800}) {
      const size_t n = select(spec(64, 0.5, tau, min_budget), fixture).block_begin.size();
      EXPECT_GE(n, before) << min_budget;
      before = n;
    }
  }
}

TEST(FlexPrefill, MaxBudgetCapsVerticalsAndSlashes) {
  SiteFixture fixture({.n_q = 900, .n_k = 900, .contrast = 0.3F}, 37);
  const Selection selection = select("flexprefill(block=64, tau=0, min_budget=64, max_budget=128)", fixture);
  for (int32_t b = 0; b < selection.n_block_q; ++b) EXPECT_LE(blocks_of(selection, 0, b).size(), 4U);
}

TEST(FlexPrefill, RefusesOtherBlockSizesAndCrossedBudgets) {
  EXPECT_THROW(make_method("flexprefill(block=96)", {1, 2, 1, 16}), Error);
  EXPECT_THROW(make_method("flexprefill(min_budget=512, max_budget=256)", {1, 2, 1, 16}), Error);
}

}  // namespace
}  // namespace winnow
