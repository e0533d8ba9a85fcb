#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <span>

#include "methods/boundaries.h"
#include "methods/last_rows.h"
#include "methods/roster.h"
#include "selected.h"

namespace winnow {
namespace {

using test::computed;
using test::make_method;
using test::select;
using test::SiteFixture;
using test::SiteShape;

using Matrix = std::vector<std::vector<double>>;

// The formulas of the specification in plain loops, with boundaries anywhere.
std::vector<double> token_scores(const Matrix& queries, const Matrix& keys, const std::vector<int>& boundaries) {
  const size_t dim = keys.front().size();
  std::vector<double> query(dim), scores;
  for (const auto& q : queries) {
    for (size_t d = 0; d < dim; ++d) query[d] += q[d] / static_cast<double>(queries.size());
  }
  for (size_t c = 0; c + 1 < boundaries.size(); ++c) {
    const int length = boundaries[c + 1] - boundaries[c];
    double score = 0;
    for (int j = boundaries[c]; j < boundaries[c + 1]; ++j) {
      for (size_t d = 0; d < dim; ++d) score += query[d] * keys[static_cast<size_t>(j)][d];
    }
    scores.insert(scores.end(), static_cast<size_t>(length), score / std::sqrt(length));
  }
  return scores;
}

std::set<int> chosen(const std::vector<double>& scores, int n_allowed, int budget, int recent, int sinks) {
  const int n = std::min(budget, n_allowed), n_recent = std::min(recent, n);
  std::vector<int> order(static_cast<size_t>(n_allowed - n_recent));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)] + 1e-6;
  });
  std::vector<int> list(order.begin(), order.begin() + (n - n_recent));
  for (int j = n_allowed - n_recent; j < n_allowed; ++j) list.push_back(j);
  std::sort(list.begin(), list.end());
  for (int j = 0; j < std::min(sinks, n); ++j) list[static_cast<size_t>(j)] = j;
  return {list.begin(), list.end()};
}

TEST(DhsaFormulas, WorkedExample) {
  const Matrix keys = {{2, 0}, {0, 1}, {0, 1}, {0, 1}, {1, 1}, {1, -1}, {.5, 0}, {.5, 0}};
  const std::vector<int> boundaries = {0, 1, 4, 6, 8};
  const std::vector<double> first = token_scores(Matrix(4, {1, 0}), keys, boundaries);
  const std::vector<double> second = token_scores(Matrix(4, {0, 1}), keys, boundaries);
  const double want[2][4] = {{4, 0, 2.8284, 1.4142}, {0, 3.4641, 0, 0}};
  for (size_t c = 0; c < 4; ++c) {
    // The specification's block mean is times the root of the block's length, 2.
    EXPECT_NEAR(2 * first[static_cast<size_t>(boundaries[c])], want[0][c], 1e-4);
    EXPECT_NEAR(2 * second[static_cast<size_t>(boundaries[c])], want[1][c], 1e-4);
  }
  EXPECT_EQ(chosen(first, 4, 4, 2, 0), (std::set<int>{0, 1, 2, 3}));
  EXPECT_EQ(chosen(second, 8, 4, 2, 0), (std::set<int>{1, 2, 6, 7}));
}

TEST(DhsaFormulas, LongerChunksOfEqualKeysScoreByTheRootOfTheirLength) {
  const std::vector<double> scores = token_scores({{3}}, {{2}, {2}, {2}, {2}, {2}}, {0, 1, 5});
  EXPECT_NEAR(scores[0], 6, 1e-9);
  EXPECT_NEAR(scores[1], 12, 1e-9);
}

struct Options {
  int budget = 256, block = 128, chunk = 64, sinks = 64, recent = 128, last_rows = 30;
  bool shared = false;
  std::string spec() const {
    return fmt::format("dhsa(budget={}, block={}, chunk={}, sinks={}, recent={}, shared={:d})", budget, block, chunk,
                       sinks, recent, shared);
  }
};

// Means over all heads where they choose together.
Matrix queries(SiteFixture& fixture, const Options& o, int32_t head, int begin, int end) {
  Matrix q;
  const int first = o.shared ? 0 : head, n = o.shared ? fixture.shape().n_head : 1;
  for (int row = begin; row < end; ++row) {
    q.emplace_back(static_cast<size_t>(fixture.shape().head_dim));
    for (int h = first; h < first + n; ++h) {
      for (size_t d = 0; d < q.back().size(); ++d) q.back()[d] += double{fixture.query(row, h)[d]} / n;
    }
  }
  return q;
}

Matrix keys(SiteFixture& fixture, const Options& o, int32_t head) {
  Matrix k;
  const int first = o.shared ? 0 : fixture.kv_of(head), n = o.shared ? fixture.shape().n_head_kv : 1;
  for (int slot = 0; slot < fixture.n_slots(first); ++slot) {
    k.emplace_back(static_cast<size_t>(fixture.shape().head_dim));
    for (int h = first; h < first + n; ++h) {
      for (size_t d = 0; d < k.back().size(); ++d) k.back()[d] += double{fixture.key(h, slot)[d]} / n;
    }
  }
  return k;
}

TEST(Dhsa, SelectsWhatThePlainFormulasSelect) {
  for (const SiteShape& shape : {SiteShape{.n_q = 700, .n_k = 700, .n_head = 4, .n_head_kv = 2},
                                 SiteShape{.n_q = 333, .n_k = 1000, .n_head = 2, .n_head_kv = 1}}) {
    SiteFixture fixture(shape, 51);
    for (const Options& o : {Options{}, Options{.shared = true}, Options{.block = 64, .chunk = 32},
                             Options{.budget = 300, .chunk = 50, .sinks = 7, .recent = 150, .last_rows = 0}}) {
      const Selection selection = with_full_rows(select(o.spec(), fixture), fixture.site(test::ref_ops()), o.last_rows);
      ASSERT_FALSE(selection.everything());
      for (int32_t head = 0; head < shape.n_head; ++head) {
        const Matrix k = keys(fixture, o, head);
        std::vector<int> boundaries;
        for (int j = 0; j < shape.n_k; j += o.chunk) boundaries.push_back(j);
        boundaries.push_back(shape.n_k);
        for (int begin = 0; begin < shape.n_q; begin += o.block) {
          const int end = std::min(begin + o.block, shape.n_q), n_allowed = shape.n_k - shape.n_q + end;
          const bool dense = end > shape.n_q - o.last_rows;
          const std::set<int> want = chosen(token_scores(queries(fixture, o, head, begin, end), k, boundaries),
                                            n_allowed, dense ? n_allowed : o.budget, o.recent, o.sinks);
          for (const int row : {begin, end - 1}) {
            const std::vector<bool> mask = computed(selection, fixture, row, head);
            for (int slot = 0; slot <= fixture.limit(row); ++slot) {
              ASSERT_EQ(mask[static_cast<size_t>(slot)], want.contains(slot))
                  << shape.text() << ' ' << o.spec() << " head " << head << " row " << row << " slot " << slot;
            }
          }
        }
      }
    }
  }
}

TEST(Dhsa, ChunksBeginAtPredictedBoundaries) {
  const SiteShape shape = {.n_q = 700, .n_k = 900, .n_head = 4, .n_head_kv = 2};
  SiteFixture fixture(shape, 54);
  const std::string path = temporary_path("dhsa.gguf");
  write_weights(path, find_method("dhsa"), fixture.method_shape());
  const WeightsFile file(path, "dhsa", fixture.method_shape(), boundary_weights(fixture.method_shape()));
  const std::vector<int32_t> boundaries = pick_boundaries(boundary_logits(fixture.site(test::ref_ops()), file, 8),
                                                          {.least = 0, .apart = 5, .last_rows = 30, .most = 56});
  ASSERT_GT(boundaries.size(), 20U);
  for (const Options& o : {Options{}, Options{.shared = true}}) {
    std::string spec = o.spec();
    spec.insert(spec.size() - 1, fmt::format(", last_rows=30, boundary=0, apart=5, weights={}", path));
    const Selection selection = select(spec, fixture);
    for (int32_t head = 0; head < shape.n_head; ++head) {
      const Matrix k = keys(fixture, o, head);
      for (int begin = 0; begin < shape.n_q; begin += o.block) {
        const int end = std::min(begin + o.block, shape.n_q), n_allowed = shape.n_k - shape.n_q + end;
        const std::set<int> want = chosen(token_scores(queries(fixture, o, head, begin, end), k, boundaries), n_allowed,
                                          o.budget, o.recent, o.sinks);
        const std::vector<bool> mask = computed(selection, fixture, end - 1, head);
        for (int slot = 0; slot < n_allowed; ++slot) {
          ASSERT_EQ(mask[static_cast<size_t>(slot)], want.contains(slot)) << head << ' ' << begin << ' ' << slot;
        }
      }
    }
  }
}

TEST(Dhsa, ABudgetOfTheLengthAndLastRowsOfAllAreDense) {
  SiteFixture fixture({.n_q = 700, .n_k = 700}, 52);
  EXPECT_TRUE(select("dhsa(budget=700)", fixture).everything());
  EXPECT_FALSE(select("dhsa(budget=699)", fixture).everything());
  EXPECT_TRUE(with_full_rows(select("dhsa(budget=256)", fixture), fixture.site(test::ref_ops()), 700).everything());
  SiteFixture decode({.n_q = 1, .n_k = 700}, 52);
  EXPECT_TRUE(select("dhsa(budget=256)", decode).everything());
}

TEST(Dhsa, EveryBlockSeesSinksAndRecentTokensWithinTheBudget) {
  SiteFixture fixture({.n_q = 900, .n_k = 900, .n_head = 2, .n_head_kv = 2}, 53);
  for (const int budget : {256, 300, 511}) {
    const Selection selection = select(fmt::format("dhsa(budget={})", budget), fixture);
    for (int row = 127; row < 900; row += 128) {
      const std::vector<bool> mask = computed(selection, fixture, row, 1);
      EXPECT_EQ(std::count(mask.begin(), mask.end(), true), std::min(budget, row + 1));
      for (int slot = 0; slot < 128; ++slot) {
        EXPECT_TRUE(mask[static_cast<size_t>(slot)] && mask[static_cast<size_t>(row - slot)]);
      }
    }
  }
}

TEST(Dhsa, LastRowsAreThePromptsAndNotTheChunks) {
  SiteFixture fixture({.n_q = 900, .n_k = 900}, 5);
  Site chunk = fixture.site(test::ref_ops());
  const auto rows = [&](int last_rows) {
    const Selection selection = with_full_rows(select("dhsa(budget=256, sinks=64)", fixture), chunk, last_rows);
    std::vector<std::vector<bool>> masks(900);
    for (size_t row = 0; row < masks.size(); ++row) {
      masks[row] = computed(selection, fixture, static_cast<int32_t>(row), 0);
    }
    return masks;
  };
  const auto of_30 = rows(30), of_none = rows(0);
  EXPECT_NE(of_30, of_none);
  chunk.n_later = 70;
  EXPECT_EQ(rows(100), of_30);
  chunk.n_later = 100;
  EXPECT_EQ(rows(100), of_none);
}

TEST(Dhsa, TheEngineLetsLastRowsSeeEverything) {
  for (const auto& [spec, n] : {std::pair<std::string, int>{"dhsa", 64}, {"dhsa(last_rows=0)", 0}}) {
    EXPECT_EQ(Policy(std::span(&spec, 1), {1, 2, 1, 16}).last_rows(), n);
  }
}

TEST(Dhsa, RefusesOtherBlocksAndBudgetsWithoutRoom) {
  EXPECT_THROW(make_method("dhsa(block=96)", {1, 2, 1, 16}), Error);
  EXPECT_THROW(make_method("dhsa(budget=300, sinks=200)", {1, 2, 1, 16}), Error);
  EXPECT_NO_THROW(make_method("dhsa(budget=300, sinks=172)", {1, 2, 1, 16}));
}

}  // namespace
}  // namespace winnow
