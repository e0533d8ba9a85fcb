#include "methods/boundaries.h"

#include <gmock/gmock.h>

#include <cmath>

#include "selected.h"

namespace winnow {
namespace {

using test::ref_ops;
using test::SiteFixture;
using test::SiteShape;
using testing::ElementsAre;

using Matrix = std::vector<std::vector<double>>;

TEST(Boundaries, WorkedExampleOfTheRules) {
  const std::vector<float> logits = {-100, 2, 1.5F, .3F, 3, 2.9F, .1F, 1.2F, 1.6F, .2F, 4, -100};
  BoundaryRules rules = {.least = 1.1, .apart = 1, .last_rows = 2, .most = 100};
  EXPECT_THAT(pick_boundaries(logits, rules), ElementsAre(0, 2, 5, 9, 11, 12));
  rules.most = 3;
  EXPECT_THAT(pick_boundaries(logits, rules), ElementsAre(0, 2, 5, 11, 12));
  EXPECT_THAT(pick_boundaries(logits, {.least = 1.1, .apart = 0, .last_rows = 0, .most = 100}),
              ElementsAre(0, 2, 3, 5, 6, 8, 9, 11, 12));
}

TEST(Boundaries, WhereNoneCountsTheLastRowsAreAChunk) {
  const std::vector<float> logits(40, 1);
  EXPECT_THAT(pick_boundaries(logits, {.least = 1.1, .apart = 8, .last_rows = 10, .most = 100}),
              ElementsAre(0, 30, 40));
  EXPECT_THAT(pick_boundaries(logits, {.least = 1.1, .apart = 8, .last_rows = 0, .most = 100}), ElementsAre(0, 40));
}

// One linear layer of the file in plain loops.
struct Linear {
  std::vector<float> weight, bias;
  Linear(const WeightsFile& file, const std::string& name)
      : weight(file.values("boundary." + name + ".weight")), bias(file.values("boundary." + name + ".bias")) {}
  std::vector<double> operator()(const std::vector<double>& x) const {
    std::vector<double> y;
    for (const float b : bias) {
      double sum = double{b};
      for (size_t i = 0; i < x.size(); ++i) sum += double{weight[y.size() * x.size() + i]} * x[i];
      y.push_back(sum);
    }
    return y;
  }
};

// The predictor's logit for the gap in the middle of a window's tokens [8][C], by its formulas.
double plain_logit(const Matrix& window, const WeightsFile& file, size_t n_heads) {
  const Linear wq(file, "attn_q"), wk(file, "attn_k"), wv(file, "attn_v"), wo(file, "attn_out");
  const std::vector<float> gain = file.values("boundary.norm.weight"), shift = file.values("boundary.norm.bias");
  const size_t n = window.front().size(), dim = n / n_heads;
  Matrix q, k, v;
  for (const std::vector<double>& x : window) {
    q.push_back(wq(x));
    k.push_back(wk(x));
    v.push_back(wv(x));
  }
  std::vector<double> l(n), r(n);
  for (size_t i = 0; i < 8; ++i) {
    std::vector<double> o(n);
    for (size_t h = 0; h < n_heads; ++h) {
      double p[8], sum = 0;
      for (size_t j = 0; j < 8; ++j) {
        double dot = 0;
        for (size_t d = h * dim; d < (h + 1) * dim; ++d) dot += q[i][d] * k[j][d];
        sum += p[j] = std::exp(dot / std::sqrt(static_cast<double>(dim)));
      }
      for (size_t j = 0; j < 8; ++j) {
        for (size_t d = h * dim; d < (h + 1) * dim; ++d) o[d] += p[j] / sum * v[j][d];
      }
    }
    std::vector<double> y = wo(o);
    double mean = 0, variance = 0;
    for (const double x : y) mean += x / static_cast<double>(n);
    for (const double x : y) variance += (x - mean) * (x - mean) / static_cast<double>(n);
    for (size_t d = 0; d < n; ++d) {
      const double z = (y[d] - mean) / std::sqrt(variance + 1e-5) * double{gain[d]} + double{shift[d]};
      (i < 4 ? l : r)[d] += z / 4;
    }
  }
  std::vector<double> sides = l;
  sides.insert(sides.end(), r.begin(), r.end());
  double dot = 0, l2 = 0, r2 = 0;
  for (size_t d = 0; d < n; ++d) sides.push_back(std::abs(l[d] - r[d]));
  for (size_t d = 0; d < n; ++d) {
    sides.push_back(l[d] * r[d]);
    dot += l[d] * r[d];
    l2 += l[d] * l[d];
    r2 += r[d] * r[d];
  }
  sides.push_back(dot / std::sqrt(l2 * r2));
  std::vector<double> hidden = Linear(file, "hidden")(sides);
  for (double& x : hidden) x = std::max(x, 0.0);
  return Linear(file, "output")(hidden).front();
}

TEST(Boundaries, LogitsAreThoseOfTheNetwork) {
  for (const SiteShape& shape : {SiteShape{.n_q = 300, .n_k = 300, .n_head = 4, .n_head_kv = 2, .head_dim = 8},
                                 SiteShape{.n_q = 9, .n_k = 9, .n_head = 1, .n_head_kv = 1, .head_dim = 24}}) {
    SiteFixture fixture(shape, 4);
    const MethodShape of = fixture.method_shape();
    const std::string path = temporary_path("boundaries.gguf");
    write_weights(path, find_method("dhsa"), of);
    const WeightsFile file(path, "dhsa", of, boundary_weights(of));
    const std::vector<float> logits = boundary_logits(fixture.site(ref_ops()), file, 4);
    ASSERT_EQ(std::ssize(logits), shape.n_k);
    for (int32_t j = 0; j < shape.n_k; ++j) {
      if (j < 3 || j >= shape.n_k - 4) {
        EXPECT_EQ(logits[static_cast<size_t>(j)], kNoBoundary) << j;
        continue;
      }
      if (j % 7 != 0 && j != 3 && j != shape.n_k - 5 && j != 258 && j != 259) continue;
      Matrix window;
      for (int32_t slot = j - 3; slot <= j + 4; ++slot) {
        std::vector<double>& token = window.emplace_back();
        for (int32_t kv = 0; kv < shape.n_head_kv; ++kv) {
          for (int32_t d = 0; d < shape.head_dim; ++d) token.push_back(double{fixture.key(kv, slot)[d]});
        }
      }
      EXPECT_NEAR(logits[static_cast<size_t>(j)], plain_logit(window, file, 4), 1e-4) << j;
    }
  }
}

TEST(Boundaries, TooFewTokensHaveNone) {
  SiteFixture fixture({.n_q = 7, .n_k = 7, .n_head = 1, .n_head_kv = 1, .head_dim = 8}, 4);
  const MethodShape of = fixture.method_shape();
  const std::string path = temporary_path("boundaries.gguf");
  write_weights(path, find_method("dhsa"), of);
  const WeightsFile file(path, "dhsa", of, boundary_weights(of));
  EXPECT_EQ(boundary_logits(fixture.site(ref_ops()), file, 1), std::vector<float>(7, kNoBoundary));
}

}  // namespace
}  // namespace winnow
