#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "site_fixture.h"

namespace winnow {
namespace {

using test::computed;
using test::make_method;
using test::malformed;
using test::ref_ops;
using test::SiteFixture;
using test::SiteShape;

constexpr int kBlock = 64;

// The reconstruction's formulas in plain loops.
std::vector<double> proportions(int b, double mu, double sigma) {
  std::vector<double> p;
  for (int k = 1; k <= b; k *= 2) p.push_back(std::exp(-std::pow(std::log2(k) - mu, 2) / (2 * sigma * sigma)));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= sum;
  return p;
}

// How many of n blocks get each budget: block r goes where (r + 1/2) / n falls among the cumulative proportions.
std::vector<int> counts(const std::vector<double>& p, int n) {
  std::vector<int> c(p.size());
  for (int rank = 0; rank < n; ++rank) {
    double sum = 0;
    size_t i = 0;
    while (i + 1 < p.size() && (sum += p[i]) <= (rank + 0.5) / n) ++i;
    ++c[i];
  }
  return c;
}

std::vector<double> simpson(const std::vector<double>& s, int b) {
  std::vector<double> h;
  for (size_t begin = 0; begin + static_cast<size_t>(b) <= s.size(); begin += static_cast<size_t>(b)) {
    double sum = 0, squares = 0;
    for (size_t i = begin; i < begin + static_cast<size_t>(b); ++i) {
      sum += s[i];
      squares += s[i] * s[i];
    }
    h.push_back(squares / (sum * sum));
  }
  return h;
}

std::vector<int> core(const std::vector<double>& s, int b, const std::vector<double>& p, int sinks) {
  const std::vector<double> h = simpson(s, b);
  std::vector<size_t> order(h.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t c) { return h[a] > h[c]; });
  const std::vector<int> c = counts(p, static_cast<int>(h.size()));
  std::vector<bool> kept(s.size());
  size_t next = 0;
  for (size_t i = 0; i < c.size(); ++i) {
    for (int n = 0; n < c[i]; ++n) {
      const int begin = static_cast<int>(order[next++]) * b;
      std::vector<int> tokens(static_cast<size_t>(b));
      std::iota(tokens.begin(), tokens.end(), begin);
      std::stable_sort(tokens.begin(), tokens.end(),
                       [&](int x, int y) { return s[static_cast<size_t>(x)] > s[static_cast<size_t>(y)]; });
      for (int t = 0; t < 1 << i; ++t) kept[static_cast<size_t>(tokens[static_cast<size_t>(t)])] = true;
    }
  }
  for (int j = 0; j < sinks && !h.empty(); ++j) kept[static_cast<size_t>(j)] = true;
  std::vector<int> result;
  for (size_t j = 0; j < h.size() * static_cast<size_t>(b); ++j) {
    if (kept[j]) result.push_back(static_cast<int>(j));
  }
  return result;
}

void expect_near(const std::vector<double>& a, const std::vector<double>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-4) << i;
}

TEST(TcaFormulas, ProportionsOfTheSpecification) {
  expect_near(proportions(16, 2, 1), {.0545, .2442, .4026, .2442, .0545});
  expect_near(proportions(64, 4, 1), {.0001, .0045, .0542, .2431, .4008, .2431, .0542});
  expect_near(proportions(64, 3, 1.5), {.0366, .1113, .2167, .2707, .2167, .1113, .0366});
}

TEST(TcaFormulas, WorkedExample) {
  const std::vector<double> s = {.20, .01, .01, .01, .05, .05, .05, .05, .10, .10, .01, .01, .02, .03, .05, .25};
  expect_near(proportions(4, 1, 1), {.2741, .4519, .2741});
  EXPECT_EQ(counts(proportions(4, 1, 1), 4), (std::vector<int>{1, 2, 1}));
  expect_near(simpson(s, 4), {.7618, .2500, .4174, .5412});
  EXPECT_EQ(core(s, 4, proportions(4, 1, 1), 0), (std::vector<int>{0, 4, 5, 6, 7, 8, 9, 14, 15}));
}

// The last row's votes for one kv head.
std::vector<double> votes(SiteFixture& fixture, int32_t kv) {
  std::vector<double> s(static_cast<size_t>(fixture.n_slots(kv)));
  for (int32_t head = 0; head < fixture.shape().n_head; ++head) {
    if (fixture.kv_of(head) != kv) continue;
    const std::vector<double> p = fixture.probabilities(fixture.shape().n_q - 1, head);
    for (size_t i = 0; i < s.size(); ++i) s[i] += p[i];
  }
  return s;
}

TEST(TcaAttention, RowsSeeTheCoreOfThePlainFormulasAndTheWindow) {
  for (const SiteShape& shape : {SiteShape{.n_q = 700, .n_k = 700, .n_head = 4, .n_head_kv = 2, .contrast = 1},
                                 SiteShape{.n_q = 333, .n_k = 1000, .n_head = 2, .n_head_kv = 1, .contrast = 1}}) {
    SiteFixture fixture(shape, 61);
    for (const auto& [mu, sigma, window, sinks] :
         {std::tuple{4.0, 1.0, 128, 4}, {2.0, 0.5, 200, 0}, {5.5, 1.0, 128, 30}}) {
      const Site site = fixture.site(ref_ops());
      const Method method = make_method(
          fmt::format("tca_attention(mu={}, sigma={}, window={}, sinks={}, cache=1)", mu, sigma, window, sinks),
          fixture.method_shape());
      const Selection selection = method.selector->select(site);
      ASSERT_EQ(malformed(selection, site), "");
      for (int32_t head = 0; head < shape.n_head; ++head) {
        const std::vector<int> want =
            core(votes(fixture, fixture.kv_of(head)), kBlock, proportions(64, mu, sigma), sinks);
        for (int32_t row = 0; row < shape.n_q; row += 37) {
          const std::vector<bool> mask = computed(selection, fixture, row, head);
          const int first = fixture.limit(row / 128 * 128);
          const int cover = std::max(0, first + 1 - window) / kBlock * kBlock;
          for (int32_t slot = 0; slot <= fixture.limit(row); ++slot) {
            const bool expected = slot >= cover || std::binary_search(want.begin(), want.end(), slot);
            ASSERT_EQ(mask[static_cast<size_t>(slot)], expected) << shape.text() << ' ' << row << ' ' << slot;
            ASSERT_TRUE(expected || fixture.limit(row) - slot >= window);
          }
        }
      }
      const KvEdit edit = method.compressor->compress(site, true);
      for (int32_t kv = 0; kv < shape.n_head_kv; ++kv) {
        std::vector<int32_t> kept;
        const int rest = std::max(0, shape.n_k - window) / kBlock * kBlock;
        for (const int slot : core(votes(fixture, kv), kBlock, proportions(64, mu, sigma), sinks)) {
          if (slot < rest) kept.push_back(slot);
        }
        for (int slot = rest; slot < shape.n_k; ++slot) kept.push_back(slot);
        ASSERT_EQ(edit.head[static_cast<size_t>(kv)].keep, kept);
      }
    }
  }
}

TEST(TcaAttention, AWindowOfTheLengthIsDense) {
  SiteFixture fixture({.n_q = 500, .n_k = 500}, 62);
  const Method method = make_method("tca_attention(window=500, cache=1)", fixture.method_shape());
  EXPECT_TRUE(method.selector->select(fixture.site(ref_ops())).everything());
  EXPECT_TRUE(method.compressor->compress(fixture.site(ref_ops()), true).head.empty());
}

// A needle of eight tokens of which the last row looks for the first one, as at the start of an answer that will copy
// one after the other.
TEST(TcaAttention, TheDefaultsKeepWhatTheLastRowDidNotLookForInTheCache) {
  SiteFixture fixture({.n_q = 900, .n_k = 900, .n_head = 2, .n_head_kv = 1}, 66);
  const int32_t needle = 200;
  for (int32_t head = 0; head < 2; ++head) {
    for (int32_t d = 0; d < 16; ++d) {
      fixture.query(899, head)[d] = 4 * fixture.key(0, needle)[d];
    }
  }
  const Site site = fixture.site(ref_ops());
  const Method lossy = make_method("tca_attention(window=128, cache=1)", fixture.method_shape());
  const std::vector<int32_t> kept = lossy.compressor->compress(site, true).head[0].keep;
  const auto in_needle =
      std::count_if(kept.begin(), kept.end(), [&](int32_t slot) { return slot >= needle && slot < needle + 8; });
  EXPECT_LT(in_needle, 8);
  EXPECT_EQ(make_method("tca_attention(window=128)", fixture.method_shape()).compressor, nullptr);
}

TEST(TcaAttention, DecodePrunesABlockWheneverOneHasLeftTheWindow) {
  const int32_t n_prompt = 400, n_end = 700;
  std::vector<int32_t> kept(n_prompt);
  std::iota(kept.begin(), kept.end(), 0);
  const Method method = make_method("tca_attention(window=128, mu=3, cache=1)", {1, 2, 1, 16});
  size_t most = 0, n_edit = 0;
  for (int32_t n = n_prompt; n <= n_end; ++n) {  // token n - 1 was just added
    const bool prefill = n == n_prompt;
    SiteFixture fixture({.n_q = prefill ? n : 1, .n_k = n}, 63);
    if (!prefill) kept.push_back(n - 1);
    fixture.keep(0, kept);
    const KvEdit edit = method.compressor->compress(fixture.site(ref_ops()), prefill);
    if (edit.head.empty()) continue;
    ++n_edit;
    std::vector<int32_t> left;
    for (const int32_t slot : edit.head[0].keep) left.push_back(kept[static_cast<size_t>(slot)]);
    for (int32_t position = n - 128; position < n; ++position) {
      ASSERT_TRUE(std::binary_search(left.begin(), left.end(), position)) << "the window has holes";
    }
    ASSERT_LT(left.size(), kept.size());
    kept = left;
    most = std::max(most, kept.size());
  }
  EXPECT_GE(n_edit, 4U);
  EXPECT_LT(most, 128U + 64 + static_cast<size_t>(n_end) / 2);
  std::map<int32_t, int> per_block;  // every block of 64 positions that was
                                     // pruned left a token at least
  for (const int32_t position : kept) ++per_block[position / kBlock];
  for (int32_t block = 0; block < 256 / kBlock; ++block) EXPECT_GE(per_block[block], 1);
}

std::string calibrate(SiteFixture& fixture, double recall) {
  const MethodInfo& info = find_method("tca_attention");
  const Spec spec = parse_spec(fmt::format("tca_attention(window=128, recall={})", recall));
  const auto calibration = info.calibrate(resolve(spec, info.params, info.texts), fixture.method_shape());
  calibration->observe(fixture.site(ref_ops()));
  return calibration->result();
}

double share_of(const nlohmann::json& shares) {
  double sum = 0;
  for (size_t i = 0; i < shares.size(); ++i) sum += shares[i].get<double>() * std::pow(2, i) / kBlock;
  return sum;
}

TEST(TcaAttention, CalibrationKeepsMoreForAHigherRecallAndForFlatterHeads) {
  SiteFixture fixture({.n_q = 900, .n_k = 900, .n_head = 4, .n_head_kv = 2, .contrast = 1}, 64);
  for (int32_t row = 0; row < 900; ++row) {
    for (int32_t d = 0; d < 16; ++d) fixture.query(row, 0)[d] = fixture.query(row, 1)[d] = 0;  // look everywhere
  }
  double before[2] = {0, 0};
  for (const double recall : {0.0, 0.6, 0.8, 0.9, 0.95, 1.0}) {
    const auto file = nlohmann::json::parse(calibrate(fixture, recall));
    const double flat = share_of(file.at("layers").at(0).at(0)), sharp = share_of(file.at("layers").at(0).at(1));
    EXPECT_GE(flat, before[0]);
    EXPECT_GE(sharp, before[1]);
    if (recall >= 0.8 && recall < 1) {
      EXPECT_GT(flat, sharp);
    }
    before[0] = flat;
    before[1] = sharp;
  }
  EXPECT_GT(before[0], 0.9);
}

TEST(TcaAttention, FilesGiveEachKvHeadItsBudgetsAndAreCheckedFirst) {
  SiteFixture fixture({.n_q = 700, .n_k = 700, .n_head = 4, .n_head_kv = 2}, 65);
  const std::string path = temporary_path("tca_attention.json");
  nlohmann::json file = nlohmann::json::parse(calibrate(fixture, 0.9));
  const auto make = [&](const nlohmann::json& layers, const std::string& rest = "") {
    file["layers"] = layers;
    std::ofstream(path) << file.dump();
    return make_method(fmt::format("tca_attention(window=128, sinks=0, cache=1, calibration={}{})", path, rest),
                       fixture.method_shape());
  };
  const nlohmann::json one = {1, 0, 0, 0, 0, 0, 0}, all = {0, 0, 0, 0, 0, 0, 1};
  const KvEdit edit = make({{one, all}}).compressor->compress(fixture.site(ref_ops()), true);
  EXPECT_EQ(edit.head[0].keep.size(),
            8U + 700 - 512);  // of the 8 blocks before the window a token each
  EXPECT_TRUE(edit.head[1].all);
  EXPECT_THROW(make({{one}}), Error);
  EXPECT_THROW(make({{one, {1, 0}}}), Error);
  EXPECT_THROW(make({{one, {2, 0, 0, 0, 0, 0, 0}}}), Error);
  EXPECT_THROW(make({{one, all}}, ", mu=3"), Error);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace winnow
