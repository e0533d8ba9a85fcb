#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "selected.h"

namespace winnow {
namespace {

using test::blocks_of;
using test::keys;
using test::make_method;
using test::queries;
using test::SiteFixture;
using test::SiteShape;

using Matrix = std::vector<std::vector<double>>;
using Rows = std::vector<std::vector<double>>;

// The paper's steps 1 to 3 in plain loops. q: [heads][rows][dim], k: [kv heads][slots][dim]; rows are the last of the
// slots. -> [block rows][blocks], 0 where nothing is seen.
Matrix proxy_scores(const std::vector<Rows>& q, const std::vector<Rows>& k, double scale, int block, int stride) {
  const int n_q = static_cast<int>(q[0].size()), n = static_cast<int>(k[0].size()), first = n - n_q;
  const auto mean = [](const std::vector<Rows>& heads, int i) {
    std::vector<double> sum(heads[0][0].size());
    for (const Rows& head : heads) {
      for (size_t d = 0; d < sum.size(); ++d) {
        sum[d] += head[static_cast<size_t>(i)][d] / static_cast<double>(heads.size());
      }
    }
    return sum;
  };
  Matrix scores(static_cast<size_t>((n_q + block - 1) / block),
                std::vector<double>(static_cast<size_t>((n + block - 1) / block)));
  for (int t = 0; t < n_q; t += stride) {
    const std::vector<double> query = mean(q, t);
    std::vector<double> p;
    for (int u = 0; u <= first + t; u += stride) {
      const std::vector<double> key = mean(k, u);
      p.push_back(std::exp(scale * std::inner_product(query.begin(), query.end(), key.begin(), 0.0)));
    }
    const double total = std::accumulate(p.begin(), p.end(), 0.0);
    for (size_t u = 0; u < p.size(); ++u) {
      double& score =
          scores[static_cast<size_t>(t / block)][u * static_cast<size_t>(stride) / static_cast<size_t>(block)];
      score = std::max(score, p[u] / total);
    }
  }
  return scores;
}

// Step 4: how many of the largest shares reach gamma.
int blocks_needed(std::vector<double> mass, double gamma) {
  std::sort(mass.rbegin(), mass.rend());
  const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
  int k = 0;
  for (double sum = 0; sum < (gamma - 1e-6) * total && k < static_cast<int>(mass.size()); ++k) {
    sum += mass[static_cast<size_t>(k)];
  }
  return k;
}

// Step 5: the count of a row of blocks that sees m + 1.
int row_count(int k, int n_block, int m, int least, bool literal) {
  const int wanted = literal ? k : (k * (m + 1) + n_block - 1) / n_block;
  return std::min(m + 1, std::max(least, wanted));
}

std::set<int> choose(const std::vector<double>& scores, int own_begin, int own_end, int count) {
  std::set<int> taken = {0};
  for (int c = own_begin; c <= own_end; ++c) taken.insert(c);
  while (static_cast<int>(taken.size()) < count) {
    int best = -1;
    for (int c = 0; c < own_begin; ++c) {
      if (taken.contains(c)) continue;
      if (best < 0 || scores[static_cast<size_t>(c)] > scores[static_cast<size_t>(best)]) best = c;
    }
    taken.insert(best);
  }
  return taken;
}

// Mass of the last block of rows by block of slots.
std::vector<double> last_mass(SiteFixture& fixture, int32_t head, int block) {
  const SiteShape& shape = fixture.shape();
  std::vector<double> mass(static_cast<size_t>((shape.n_k + block - 1) / block));
  for (int32_t row = std::max(0, shape.n_q - block); row < shape.n_q; ++row) {
    const std::vector<double> p = fixture.probabilities(row, head);
    for (size_t slot = 0; slot < p.size(); ++slot) mass[slot / static_cast<size_t>(block)] += p[slot];
  }
  return mass;
}

struct Setting {
  int groups, stride, block, min_budget;
  double gamma;
  bool literal = false;

  std::string spec() const {
    return fmt::format("proxyattn(groups={}, stride={}, block={}, min_budget={}, gamma={}, literal={})", groups, stride,
                       block, min_budget, gamma, literal ? 1 : 0);
  }
};

Selection select_with(const Setting& setting, SiteFixture& fixture) {
  return test::select(setting.spec(), fixture);
}

TEST(ProxyAttnFormulas, WorkedExampleOfScores) {
  const auto column = [](std::initializer_list<double> values) {
    Rows rows;
    for (const double value : values) rows.push_back({value});
    return rows;
  };
  const Matrix scores = proxy_scores(
      {column({1, 0, 2, 0, 1, 0, 1, 0, 2, 0, 1, 0}), column({1, 0, 0, 0, 3, 0, 1, 0, 0, 0, 3, 0})},
      {column({0, 9, 2, 9, -1, 9, 0, 9, 1, 9, 0, 9}), column({2, 9, 0, 9, 1, 9, 0, 9, -1, 9, 2, 9})}, 1, 4, 2);
  const Matrix expected = {{1, 0, 0}, {.4683, .1345, 0}, {.3222, .1185, .2936}};
  for (size_t m = 0; m < 3; ++m) {
    for (size_t x = 0; x < 3; ++x) EXPECT_NEAR(scores[m][x], expected[m][x], 1e-4) << m << " " << x;
  }
  EXPECT_EQ(choose(scores[2], 2, 2, 2), (std::set<int>{0, 2}));
}

TEST(ProxyAttnFormulas, WorkedExamplesOfBudgets) {
  const std::vector<double> mass = {.05, .5, .1, .02, .03, .05, .05, .2};
  EXPECT_EQ(blocks_needed(mass, .9), 5);
  EXPECT_EQ(blocks_needed(mass, .95), 6);
  EXPECT_EQ(blocks_needed(std::vector<double>(8, .125), .95), 8);
  EXPECT_EQ(blocks_needed({.92, .05, .03}, .95), 2);
  EXPECT_EQ(blocks_needed({.4, .25, .35}, .95), 3);
  std::vector<int> five, two;
  for (int m = 0; m < 8; ++m) {
    five.push_back(row_count(5, 8, m, 1, false));
    two.push_back(row_count(2, 8, m, 1, false));
  }
  EXPECT_EQ(five, (std::vector<int>{1, 2, 2, 3, 4, 4, 5, 5}));
  EXPECT_EQ(two, (std::vector<int>{1, 1, 1, 1, 2, 2, 2, 2}));
}

const SiteShape kShapes[] = {{.n_q = 700, .n_k = 700, .n_head = 4, .n_head_kv = 2, .head_dim = 16},
                             {.n_q = 640, .n_k = 640, .n_head = 8, .n_head_kv = 4, .head_dim = 8, .contrast = 4},
                             {.n_q = 300, .n_k = 812, .n_head = 4, .n_head_kv = 2, .head_dim = 16},
                             {.n_q = 333, .n_k = 1000, .n_head = 2, .n_head_kv = 2, .head_dim = 16},
                             {.n_q = 70, .n_k = 600, .n_head = 2, .n_head_kv = 2, .head_dim = 16}};

TEST(ProxyAttn, SelectsWhatThePlainFormulasSelect) {
  for (const SiteShape& shape : kShapes) {
    SiteFixture fixture(shape, 61);
    const int first = shape.n_k - shape.n_q, per_kv = shape.n_head / shape.n_head_kv;
    for (const Setting& setting : {Setting{1, 4, 128, 128, .8}, Setting{2, 4, 64, 64, .95}, Setting{2, 1, 64, 200, .5},
                                   Setting{1, 16, 64, 64, .9, true}}) {
      const Selection selection = select_with(setting, fixture);
      const int block = setting.block, n_kv = shape.n_head_kv / setting.groups;
      for (int group = 0; group < setting.groups; ++group) {
        std::vector<Rows> q, k;
        for (int h = 0; h < n_kv; ++h) k.push_back(keys(fixture, group * n_kv + h));
        for (int h = 0; h < n_kv * per_kv; ++h) q.push_back(queries(fixture, group * n_kv * per_kv + h));
        const Matrix scores =
            proxy_scores(q, k, 1 / std::sqrt(static_cast<double>(shape.head_dim)), block, setting.stride);
        for (int head = group * n_kv * per_kv; head < (group + 1) * n_kv * per_kv; ++head) {
          const int k_head = blocks_needed(last_mass(fixture, head, block), setting.gamma);
          const int n_block = (shape.n_k + block - 1) / block, least = (setting.min_budget + block - 1) / block;
          for (int32_t b = 0; b < selection.n_block_q; ++b) {
            const int begin = (first + b * block) / block;
            const int end = (first + std::min(shape.n_q, (b + 1) * block) - 1) / block;
            const int count = row_count(k_head, n_block, end, least, setting.literal);
            ASSERT_EQ(blocks_of(selection, head, b), choose(scores[static_cast<size_t>(b)], begin, end, count))
                << shape.text() << " " << setting.spec() << " head " << head << " block " << b;
          }
        }
      }
    }
  }
}

TEST(ProxyAttn, HeadsOfAGroupTakeSubsetsOfOneRanking) {
  SiteFixture fixture({.n_q = 900, .n_k = 900, .n_head = 4, .n_head_kv = 2, .head_dim = 16}, 62);
  const Selection selection = select_with({1, 4, 64, 128, .8}, fixture);
  for (int32_t b = 0; b < selection.n_block_q; ++b) {
    for (int32_t i = 0; i < 4; ++i) {
      const std::set<int> one = blocks_of(selection, i, b);
      EXPECT_TRUE(one.contains(0) && one.contains(b));
      EXPECT_GE(static_cast<int>(one.size()), std::min(b + 1, 2));
      EXPECT_LE(*one.rbegin(), b);
      for (int32_t j = 0; j < 4; ++j) {
        const std::set<int> other = blocks_of(selection, j, b);
        if (one.size() > other.size()) continue;
        EXPECT_TRUE(std::includes(other.begin(), other.end(), one.begin(), one.end())) << i << " " << j << " " << b;
      }
    }
  }
}

// A group of one head and every token: the block maxima of the head's own attention.
TEST(ProxyAttn, AProxyOfOneHeadIsThatHead) {
  SiteFixture fixture({.n_q = 400, .n_k = 400, .n_head = 2, .n_head_kv = 2, .head_dim = 16}, 63);
  const Setting setting{2, 1, 64, 64, .7};
  const Selection selection = select_with(setting, fixture);
  for (int32_t head = 0; head < 2; ++head) {
    const int k = blocks_needed(last_mass(fixture, head, 64), setting.gamma);
    for (int32_t b = 0; b < selection.n_block_q; ++b) {
      std::vector<double> best(7);
      for (int32_t row = b * 64; row < std::min(400, b * 64 + 64); ++row) {
        const std::vector<double> p = fixture.probabilities(row, head);
        for (size_t j = 0; j < p.size(); ++j) best[j / 64] = std::max(best[j / 64], p[j]);
      }
      EXPECT_EQ(blocks_of(selection, head, b), choose(best, b, b, row_count(k, 7, b, 1, false))) << head << " " << b;
    }
  }
}

TEST(ProxyAttn, EqualHeadsGetEqualBudgets) {
  SiteFixture fixture({.n_q = 640, .n_k = 640, .n_head = 2, .n_head_kv = 2, .head_dim = 16}, 64);
  for (int32_t slot = 0; slot < 640; ++slot) {
    std::copy_n(fixture.key(0, slot), 16, fixture.key(1, slot));
    std::copy_n(fixture.query(slot, 0), 16, fixture.query(slot, 1));
  }
  fixture.store();
  const Selection together = select_with({1, 4, 64, 64, .8}, fixture), apart = select_with({2, 4, 64, 64, .8}, fixture);
  for (int32_t b = 0; b < together.n_block_q; ++b) {
    EXPECT_EQ(blocks_of(together, 0, b), blocks_of(together, 1, b));
    EXPECT_EQ(blocks_of(together, 0, b), blocks_of(apart, 0, b));
  }
}

TEST(ProxyAttn, IsDenseWhereTheBudgetReaches) {
  SiteFixture fixture({.n_q = 640, .n_k = 640, .n_head_kv = 1}, 65);
  EXPECT_TRUE(select_with({1, 4, 64, 640, .8}, fixture).everything());
  EXPECT_FALSE(select_with({1, 4, 64, 600, .8}, fixture).everything());
  EXPECT_TRUE(select_with({1, 4, 64, 64, 1}, fixture).everything());
  EXPECT_THROW(make_method("proxyattn(groups=3)", {1, 8, 4, 16}), Error);
  EXPECT_THROW(make_method("proxyattn(stride=3)", {1, 8, 4, 16}), Error);
}

}  // namespace
}  // namespace winnow
