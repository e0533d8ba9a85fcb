#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "selected.h"

namespace winnow {
namespace {

using test::blocks_of;
using test::make_method;
using test::ref_ops;
using test::select;
using test::SiteFixture;
using test::SiteShape;

constexpr int kBlock = 64;

// The paper's rule in plain loops: what a row spends on sink and local keys, and what others weigh beside that.
struct Spent {
  double most, sum;

  explicit Spent(const std::vector<double>& logits) : most(*std::max_element(logits.begin(), logits.end())), sum(0) {
    for (const double x : logits) sum += std::exp(x - most);
  }
  double relative(double logit) const { return std::exp(logit - most) / sum; }
  double threshold(double tau) const { return most + std::log(tau * sum); }
};

TEST(SaleFormulas, WorkedExampleB) {
  const Spent rows[] = {Spent({4, 3, 1}), Spent({2, 2, 0})};
  EXPECT_NEAR(rows[0].sum, 1.41767, 1e-5);
  EXPECT_NEAR(rows[1].sum, 2.13534, 1e-5);
  EXPECT_NEAR(rows[0].threshold(.008), -.47930, 1e-5);
  EXPECT_NEAR(rows[1].threshold(.008), -2.06969, 1e-5);
  const double middle[2][3][2] = {{{-.5, -2}, {-1, -3}, {-.3, -5}}, {{-3, -2.9}, {-1.5, -4}, {-2.2, -3}}};
  const double want[2][3] = {{.00784, .00475, .00957}, {.00349, .01414, .00702}};
  bool kept[3] = {};
  for (int r = 0; r < 2; ++r) {
    for (int b = 0; b < 3; ++b) {
      const double best = std::max(middle[r][b][0], middle[r][b][1]);
      EXPECT_NEAR(rows[r].relative(best), want[r][b], 1e-5);
      EXPECT_EQ(rows[r].relative(best) > .008, best > rows[r].threshold(.008));
      kept[b] |= best > rows[r].threshold(.008);
    }
  }
  EXPECT_FALSE(kept[0]);
  EXPECT_TRUE(kept[1] && kept[2]);
}

double logit(SiteFixture& fixture, int32_t row, int32_t head, int32_t slot) {
  double sum = 0;
  const int32_t dim = fixture.shape().head_dim;
  for (int32_t d = 0; d < dim; ++d) {
    sum += double{fixture.query(row, head)[d]} * double{fixture.key(fixture.kv_of(head), slot)[d]};
  }
  return sum / std::sqrt(static_cast<double>(dim));
}

struct Options {
  double tau = 0.008;
  int sinks = 32, local = 128, step = 8;
  std::string spec() const { return fmt::format("sale(tau={}, sinks={}, local={}, step={})", tau, sinks, local, step); }
};

// Compares one block of rows; blocks within the estimate's error of the threshold may go either way.
void expect_block(SiteFixture& fixture, const Options& o, const Selection& selection, int32_t head, int32_t block) {
  const int n_q = fixture.shape().n_q, prefix = fixture.shape().n_k - n_q;
  const int begin = block * kBlock, end = std::min(begin + kBlock, n_q);
  const int sink = (o.sinks + kBlock - 1) / kBlock, last = (prefix + end - 1) / kBlock;
  const int local = std::max(0, (prefix + begin) / kBlock - (o.local + kBlock - 1) / kBlock);
  std::vector<double> best(static_cast<size_t>(last) + 1);
  for (int row = end - 1; row >= begin; row -= o.step) {
    std::vector<double> near;
    for (int slot = 0; slot <= prefix + row; ++slot) {
      if (slot / kBlock < sink || slot / kBlock >= local) near.push_back(logit(fixture, row, head, slot));
    }
    const Spent spent(near);
    for (int slot = sink * kBlock; slot < local * kBlock; ++slot) {
      double& of_block = best[static_cast<size_t>(slot / kBlock)];
      of_block = std::max(of_block, spent.relative(logit(fixture, row, head, slot)));
    }
  }
  const std::set<int> kept = blocks_of(selection, head, block);
  for (int c = 0; c <= last; ++c) {
    const bool fixed = c < sink || c >= local;
    const double weight = best[static_cast<size_t>(c)];
    if (fixed || weight > o.tau * 1.25) {
      EXPECT_TRUE(kept.contains(c)) << o.spec() << ' ' << block << ' ' << c;
    }
    if (!fixed && weight < o.tau / 1.25) {
      EXPECT_FALSE(kept.contains(c)) << o.spec() << ' ' << block << ' ' << c;
    }
  }
  EXPECT_LE(*kept.rbegin(), last);
}

TEST(Sale, KeepsTheBlocksThatThePlainFormulasKeep) {
  size_t n_kept = 0, n_list = 0;
  for (const SiteShape& shape : {SiteShape{.n_q = 700, .n_k = 700, .n_head = 4, .n_head_kv = 2},
                                 SiteShape{.n_q = 333, .n_k = 1000, .n_head = 2, .n_head_kv = 1},
                                 SiteShape{.n_q = 640, .n_k = 700, .n_head = 2, .n_head_kv = 2, .contrast = 5}}) {
    SiteFixture fixture(shape, 41);
    for (const Options& o : {Options{}, Options{.tau = 0.05}, Options{.tau = 0.3, .sinks = 0, .local = 64, .step = 1},
                             Options{.tau = 0.5, .sinks = 100, .local = 0, .step = 64}}) {
      const Selection selection = select(o.spec(), fixture);
      ASSERT_FALSE(selection.everything());
      for (int32_t head = 0; head < shape.n_head; ++head) {
        for (int32_t block = 0; block < selection.n_block_q; ++block) {
          expect_block(fixture, o, selection, head, block);
          n_kept += blocks_of(selection, head, block).size();
          n_list += static_cast<size_t>(fixture.limit(std::min(shape.n_q, (block + 1) * kBlock) - 1) / kBlock) + 1;
        }
      }
    }
  }
  EXPECT_LT(n_kept, n_list * 95 / 100);  // something was left out
}

TEST(Sale, RaisingTauOnlyClearsBlocks) {
  SiteFixture fixture({.n_q = 900, .n_k = 900, .n_head = 4, .n_head_kv = 2, .contrast = 5}, 42);
  Selection before = select("sale(tau=0.0001)", fixture);
  const size_t most = before.block_begin.size();
  for (const double tau : {0.001, 0.008, 0.03, 0.1, 0.3, 1.0}) {
    const Selection after = select(fmt::format("sale(tau={})", tau), fixture);
    for (int32_t head = 0; head < 4; ++head) {
      for (int32_t block = 0; block < after.n_block_q; ++block) {
        const std::set<int> more = blocks_of(before, head, block), less = blocks_of(after, head, block);
        EXPECT_TRUE(std::includes(more.begin(), more.end(), less.begin(), less.end())) << tau;
      }
    }
    before = after;
  }
  EXPECT_LT(before.block_begin.size(), most);
}

TEST(Sale, TauOfZeroAndShortPromptsAreDense) {
  SiteFixture fixture({.n_q = 700, .n_k = 700}, 43);
  EXPECT_TRUE(select("sale(tau=0)", fixture).everything());
  EXPECT_FALSE(select("sale", fixture).everything());
  SiteFixture near({.n_q = 256, .n_k = 256}, 43);
  EXPECT_TRUE(select("sale", near).everything());
  SiteFixture decode({.n_q = 1, .n_k = 700}, 43);
  EXPECT_TRUE(select("sale", decode).everything());
}

// One key among 64 is lost in their mean, but not in an estimate of its own.
TEST(Sale, FindsAKeyThatPoolingBlursAway) {
  SiteFixture fixture({.n_q = 1024, .n_k = 1024, .contrast = 1}, 44);
  for (int32_t d = 0; d < 16; ++d) {
    fixture.key(0, 330)[d] = fixture.query(1023, 0)[d] * 2;
    for (int32_t slot = 320; slot < 384; ++slot) fixture.key(0, slot)[d] -= fixture.query(1023, 0)[d] / 20;
  }
  fixture.store();
  const Selection selection = select("sale(tau=0.3)", fixture);
  const std::set<int> kept = blocks_of(selection, 0, 15);
  ASSERT_TRUE(kept.contains(5));
  std::vector<float> q, k, scores;
  const Site site = fixture.site(ref_ops());
  site.ops.pool_queries(site.q, 0, kBlock, q);
  site.ops.pool_keys(site.kv, 0, kBlock, k);
  site.ops.score_blocks(q, k, 16, site.scale, scores);
  const std::vector<int32_t> best = top_k(std::span(scores).subspan(15 * 16, 16), std::ssize(kept));
  EXPECT_FALSE(std::binary_search(best.begin(), best.end(), 5)) << "pooling found it, too";
}

std::string calibrate(SiteFixture& fixture, const std::string& text) {
  const Spec spec = parse_spec(text);
  const MethodInfo& info = find_method("sale");
  const auto calibration = info.calibrate(resolve(spec, info.params, info.texts), fixture.method_shape());
  calibration->observe(fixture.site(ref_ops()));
  return calibration->result();
}

class SaleFile : public testing::Test {
 protected:
  std::string write(const std::string& text) const {
    std::ofstream(path_) << text;
    return path_;
  }
  void TearDown() override { std::filesystem::remove(path_); }

 private:
  std::string path_ = temporary_path("sale_") + testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(SaleFile, CalibrationHalvesTauUntilTheErrorFits) {
  SiteFixture fixture({.n_q = 900, .n_k = 900, .n_head = 2, .n_head_kv = 1, .contrast = 1}, 45);
  std::vector<double> before = {1, 1};
  for (const double theta : {0.9, 0.2, 0.1, 0.05, 0.0}) {
    const auto file = nlohmann::json::parse(calibrate(fixture, fmt::format("sale(theta={})", theta)));
    const auto tau = file.at("layers").at(0).get<std::vector<double>>();
    for (size_t head = 0; head < 2; ++head) {
      EXPECT_LE(tau[head], before[head]);
      EXPECT_TRUE(tau[head] == 0 || tau[head] > 1e-4);
      EXPECT_NEAR(std::remainder(std::log2(std::max(tau[head], 1e-9) / 0.008), 1), 0, tau[head] == 0 ? 1 : 1e-9);
    }
    if (theta == 0.9) {
      EXPECT_EQ(tau, (std::vector<double>{0.008, 0.008}));
    }
    if (theta == 0.0) {
      EXPECT_EQ(tau, (std::vector<double>{0, 0}));
    }
    before = tau;
  }
}

TEST_F(SaleFile, EachHeadHasItsOwnTau) {
  SiteFixture fixture({.n_q = 900, .n_k = 900, .n_head = 2, .n_head_kv = 1}, 46);
  nlohmann::json file = nlohmann::json::parse(calibrate(fixture, "sale"));
  file["layers"] = {{0, 0.1}};
  const Selection selection = select(fmt::format("sale(calibration={})", write(file.dump())), fixture);
  const Selection second = select("sale(tau=0.1)", fixture);
  for (int32_t block = 0; block < selection.n_block_q; ++block) {
    EXPECT_EQ(blocks_of(selection, 0, block).size(), static_cast<size_t>(block) + 1);
    EXPECT_EQ(blocks_of(selection, 1, block), blocks_of(second, 1, block));
  }
}

TEST_F(SaleFile, RefusesFilesAndParametersThatDoNotFit) {
  SiteFixture fixture({.n_q = 700, .n_k = 700}, 47);
  const nlohmann::json good = nlohmann::json::parse(calibrate(fixture, "sale"));
  const auto with = [&](nlohmann::json layers) {
    nlohmann::json file = good;
    file["layers"] = std::move(layers);
    make_method(fmt::format("sale(calibration={})", write(file.dump())), fixture.method_shape());
  };
  EXPECT_NO_THROW(with({{0.1, 0}}));
  EXPECT_THROW(with({{0.1}}), Error);
  EXPECT_THROW(with({{0.1, 0}, {0.1, 0}}), Error);
  EXPECT_THROW(with({{0.1, 2}}), Error);
  EXPECT_THROW(make_method(fmt::format("sale(tau=0.1, calibration={})", write(good.dump())), fixture.method_shape()),
               Error);
  EXPECT_THROW(make_method("sale(step=3)", fixture.method_shape()), Error);
}

}  // namespace
}  // namespace winnow
