#include <gmock/gmock.h>

#include <cmath>

#include "selected.h"

namespace winnow {
namespace {

using test::blocks_of;
using test::make_method;
using test::ref_ops;
using test::select;
using test::SiteFixture;
using test::SiteShape;

constexpr float kFrequency[] = {1, 0.1F, 0.01F, 0.001F};
constexpr int32_t kDim = 8;

// Weights and biases of one layer's router, from out to in, row-vector convention turned into y = W x + b.
struct Router {
  GivenWeights given;

  explicit Router(uint32_t seed, int64_t dim = kDim) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, 0.3F);
    for (const WeightTensor& tensor : find_method("flux_attention").weights({1, 2, 1, static_cast<int32_t>(dim)})) {
      int64_t n = 1;
      for (const int64_t extent : tensor.shape) n *= extent;
      std::vector<float>& values = given["blk.0." + tensor.name];
      for (int64_t i = 0; i < n; ++i) values.push_back(normal(random));
    }
  }
  std::vector<float>& last_bias() { return given["blk.0.router.4.bias"]; }

  // The two numbers, by the paper's formulas.
  std::vector<double> operator()(std::vector<double> x) const {
    for (int step = 0; step < 5; ++step) {
      const std::vector<float>& w = given.at(fmt::format("blk.0.router.{}.weight", step));
      std::vector<double> y;
      for (const float b : given.at(fmt::format("blk.0.router.{}.bias", step))) {
        double sum = double{b};
        for (size_t i = 0; i < x.size(); ++i) sum += double{w[y.size() * x.size() + i]} * x[i];
        const bool silu = step == 0 || step == 2 || step == 3;
        y.push_back(silu ? sum / (1 + std::exp(-sum)) : sum);
      }
      x = y;
    }
    return x;
  }
};

// The mean of the first and last p rows and of all heads.
std::vector<double> ends(SiteFixture& fixture, int32_t p) {
  const SiteShape& shape = fixture.shape();
  const int32_t n = std::min(p, shape.n_q);
  std::vector<double> mean(static_cast<size_t>(shape.head_dim));
  for (int32_t i = 0; i < 2 * n; ++i) {
    const int32_t row = i < n ? i : shape.n_q - 2 * n + i;
    for (int32_t head = 0; head < shape.n_head; ++head) {
      for (size_t d = 0; d < mean.size(); ++d) {
        mean[d] += double{fixture.query(row, head)[d]} / (2.0 * n * shape.n_head);
      }
    }
  }
  return mean;
}

// A method with this router, at a path of its own.
Method method_with(const Router& router, const std::string& rest, SiteFixture& fixture) {
  const std::string path = temporary_path("flux-attention.gguf");
  write_weights(path, find_method("flux_attention"), fixture.method_shape(), router.given);
  return make_method(fmt::format("flux_attention({}, weights={})", rest, path), fixture.method_shape());
}

// A router that says sparse, or full, to everything.
Router always(bool sparse) {
  Router router(1);
  for (float& weight : router.given["blk.0.router.4.weight"]) weight = 0;
  router.last_bias() = sparse ? std::vector<float>{1, 0} : std::vector<float>{0, 1};
  return router;
}

TEST(FluxAttention, RoutesByThePapersFormulas) {
  for (const SiteShape& shape : {SiteShape{.n_q = 700, .n_k = 700, .n_head = 4, .n_head_kv = 2, .head_dim = kDim},
                                 SiteShape{.n_q = 150, .n_k = 900, .n_head = 2, .n_head_kv = 1, .head_dim = kDim}}) {
    SiteFixture fixture(shape, 3);
    Router router(4);
    const std::vector<double> u = ends(fixture, 100);
    fixture.turn({kDim, kDim, true, 1.2F, kFrequency});
    router.last_bias() = {0, 0};
    const std::vector<double> o = router(u);
    for (const double margin : {-1e-4, 1e-4}) {
      router.last_bias() = {static_cast<float>(o[1] - o[0] + margin), 0};
      const Method method = method_with(router, "local=128, pool=100", fixture);
      EXPECT_EQ(!method.selector->select(fixture.site(ref_ops())).everything(), margin > 0) << shape.text();
    }
  }
}

TEST(FluxAttention, WorkedExampleOfTheMean) {
  SiteFixture fixture({.n_q = 6, .n_k = 6, .n_head = 2, .n_head_kv = 1, .head_dim = 2}, 1);
  const float q[6][4] = {{1, 0, 0, 1}, {3, 2, 0, 1}, {9, 9, 9, 9}, {9, 9, 9, 9}, {-1, 0, 1, 0}, {1, 2, -1, 2}};
  for (int32_t row = 0; row < 6; ++row) {
    for (int32_t i = 0; i < 4; ++i) fixture.query(row, 0)[i] = q[row][i];
  }
  EXPECT_EQ(ends(fixture, 2), (std::vector<double>{.5, 1}));
}

TEST(FluxAttention, MiddleTokensDoNotMatter) {
  SiteFixture fixture({.n_q = 700, .n_k = 700, .head_dim = kDim}, 3);
  Router router(4);
  router.last_bias() = {0, 0};
  const std::vector<double> o = router(ends(fixture, 100));
  for (const double margin : {-1e-4, 1e-4}) {
    router.last_bias() = {static_cast<float>(o[1] - o[0] + margin), 0};
    SiteFixture other({.n_q = 700, .n_k = 700, .head_dim = kDim}, 3);
    for (int32_t row = 100; row < 600; ++row) {
      for (int32_t i = 0; i < 2 * kDim; ++i) other.query(row, 0)[i] = 50;
    }
    const Method method = method_with(router, "local=128, pool=100", other);
    EXPECT_EQ(!method.selector->select(other.site(ref_ops())).everything(), margin > 0);
  }
}

TEST(FluxAttention, RouterSizeAndUntrainedRouter) {
  int64_t n = 0;
  for (const WeightTensor& tensor : find_method("flux_attention").weights({1, 2, 1, 128})) {
    n += tensor.shape.size() == 2 ? tensor.shape[0] * tensor.shape[1] : tensor.shape[0];
  }
  EXPECT_EQ(n, 592002);
  SiteFixture fixture({.n_q = 500, .n_k = 500, .head_dim = kDim}, 5);
  Router untrained = always(true);
  for (const float equal : {0.0F, 4.5F}) {
    untrained.last_bias() = {0, equal};  // a tie is full, too
    const Method method = method_with(untrained, "local=128", fixture);
    EXPECT_TRUE(method.selector->select(fixture.site(ref_ops())).everything());
  }
}

TEST(FluxAttention, SinksAndWindowAreBlocksOf128) {
  for (const int32_t prefix : {0, 70, 128}) {
    SiteFixture fixture({.n_q = 1100, .n_k = 1100 + prefix, .head_dim = kDim}, 5);
    for (const bool last_rows : {false, true}) {
      const Method method =
          method_with(always(true), fmt::format("sinks=200, local=300, mode={}", last_rows ? 2 : 0), fixture);
      const Site site = fixture.site(ref_ops());
      const Selection selection = method.selector->select(site);
      ASSERT_EQ(test::malformed(selection, site), "");
      for (int32_t m = 0; m < selection.n_block_q; ++m) {
        const int32_t own = (prefix + m * 128) / 128, last = (prefix + std::min(1100, (m + 1) * 128) - 1) / 128;
        std::set<int> want;
        for (int x = 0; x <= last; ++x) {
          const bool dense = last_rows && std::min(1100, (m + 1) * 128) > 1100 - 128;
          if (dense || x < 2 || x > own - 3) want.insert(x);
        }
        EXPECT_EQ(blocks_of(selection, 0, m), want) << prefix << " " << m;
      }
    }
  }
}

TEST(FluxAttention, LastRowsOfModeTwoAreExact) {
  SiteFixture fixture({.n_q = 1000, .n_k = 1000, .head_dim = kDim}, 6);
  const Site site = fixture.site(ref_ops());
  const Method method = method_with(always(true), "sinks=128, local=128, mode=2", fixture);
  const std::vector<float> sparse = test::attend(site, method.selector->select(site)), dense = test::attend(site, {});
  double differ = 0;
  for (size_t i = 0; i < dense.size(); ++i) {
    if (i >= static_cast<size_t>(1000 - 128) * 2 * kDim) {
      ASSERT_NEAR(sparse[i], dense[i], 1e-6);
    } else {
      differ = std::max(differ, std::abs(double{sparse[i]} - double{dense[i]}));
    }
  }
  EXPECT_GT(differ, 1e-2);
}

TEST(FluxAttention, ModeTwoCountsRowsFromThePromptsEnd) {
  SiteFixture fixture({.n_q = 1000, .n_k = 1000, .head_dim = kDim}, 6);
  Site chunk = fixture.site(ref_ops());
  const auto blocks = [&](const std::string& mode) {
    return method_with(always(true), "sinks=128, local=128, mode=" + mode, fixture).selector->select(chunk).block_begin;
  };
  EXPECT_NE(blocks("2"), blocks("0"));
  chunk.n_later = 128;
  EXPECT_EQ(blocks("2"), blocks("0"));
}

TEST(FluxAttention, ModeOneIsXAttention) {
  SiteFixture fixture({.n_q = 900, .n_k = 900, .n_head = 4, .n_head_kv = 2, .head_dim = kDim, .contrast = 4}, 6);
  const Method method = method_with(always(true), "mode=1", fixture);
  const Selection got = method.selector->select(fixture.site(ref_ops()));
  const Selection want = select("xattention(threshold=0.9, stride=16, block=128)", fixture);
  EXPECT_FALSE(got.everything());
  EXPECT_EQ(got.block_begin, want.block_begin);
  EXPECT_EQ(got.block_ptr, want.block_ptr);
}

TEST(FluxAttention, DecodeKeepsTheRoute) {
  SiteFixture prompt({.n_q = 900, .n_k = 900, .head_dim = kDim}, 7), token({.n_q = 1, .n_k = 901, .head_dim = kDim}, 8);
  for (const bool sparse : {true, false}) {
    const Method method = method_with(always(sparse), "sinks=128, local=256, decode=1", prompt);
    EXPECT_TRUE(method.selector->in_decode());
    EXPECT_TRUE(method.selector->select(token.site(ref_ops())).everything()) << "nothing was routed yet";
    method.selector->select(prompt.site(ref_ops()));
    for (int i = 0; i < 3; ++i) {
      const Selection selection = method.selector->select(token.site(ref_ops()));
      EXPECT_EQ(selection.everything(), !sparse);
      if (sparse) {
        EXPECT_EQ(blocks_of(selection, 0, 0), (std::set<int>{0, 6, 7}));
      }
    }
  }
  EXPECT_FALSE(method_with(always(true), "local=256", prompt).selector->in_decode());
}

// A second prompt of the sequence, or a second chunk, does not change it either.
TEST(FluxAttention, TheFirstRouteHolds) {
  SiteFixture first({.n_q = 700, .n_k = 700, .head_dim = kDim}, 3),
      second({.n_q = 700, .n_k = 700, .head_dim = kDim}, 9);
  Router router(4);
  router.last_bias() = {0, 0};
  const std::vector<double> a = router(ends(first, 100)), b = router(ends(second, 100));
  const double between = (a[1] - a[0] + b[1] - b[0]) / 2;
  router.last_bias() = {static_cast<float>(between), 0};
  const auto is_sparse = [&](const Method& method, SiteFixture& fixture) {
    return !method.selector->select(fixture.site(ref_ops())).everything();
  };
  const Method one = method_with(router, "local=128", first), other = method_with(router, "local=128", first);
  const bool route = is_sparse(one, first);
  EXPECT_EQ(is_sparse(other, second), !route);
  EXPECT_EQ(is_sparse(one, second), route);
}

TEST(FluxAttention, RefusesWithoutAFile) {
  const MethodInfo& info = find_method("flux_attention");
  const Params params = resolve(parse_spec("flux_attention"), info.params, info.texts);
  try {
    info.make(params, {1, 2, 1, 16});
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("give them as flux_attention(weights=PATH)"));
  }
}

}  // namespace
}  // namespace winnow
