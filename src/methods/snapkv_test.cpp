#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "site_fixture.h"

namespace winnow {
namespace {

using test::make_method;
using test::ref_ops;
using test::SiteFixture;
using test::SiteShape;

struct Options {
  int budget, window = 32, kernel = 7;
  bool max_pool = true, adaptive = true;
  double floor = 0.2;

  std::string spec() const {
    return fmt::format("snapkv(budget={}, window={}, kernel={}, max_pool={:d}, adaptive={:d}, floor={})", budget,
                       window, kernel, max_pool, adaptive, floor);
  }
};

KvEdit compress(const std::string& spec, SiteFixture& fixture) {
  return make_method(spec, fixture.method_shape()).compressor->compress(fixture.site(ref_ops()), true);
}

std::vector<int32_t> kept(const KvEdit& edit, SiteFixture& fixture, int32_t kv) {
  if (!edit.head.empty() && !edit.head[static_cast<size_t>(kv)].all) return edit.head[static_cast<size_t>(kv)].keep;
  std::vector<int32_t> all(static_cast<size_t>(fixture.n_slots(kv)));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// The papers' formulas in plain loops: votes of one kv head for the slots before the window, pooled.
std::vector<double> votes(SiteFixture& fixture, int32_t kv, const Options& options) {
  const int n = fixture.n_slots(kv) - options.window, n_q = fixture.shape().n_q;
  std::vector<double> sums(static_cast<size_t>(std::max(n, 0))), pooled;
  for (int32_t head = 0; head < fixture.shape().n_head; ++head) {
    if (fixture.kv_of(head) != kv) continue;
    for (int32_t row = std::max(0, n_q - options.window); row < n_q; ++row) {
      const std::vector<double> p = fixture.probabilities(row, head);
      for (size_t slot = 0; slot < sums.size(); ++slot) sums[slot] += p[slot];
    }
  }
  for (int slot = 0; slot < n; ++slot) {
    double sum = 0, top = 0;
    for (int i = std::max(0, slot - options.kernel / 2); i <= std::min(n - 1, slot + options.kernel / 2); ++i) {
      sum += sums[static_cast<size_t>(i)];
      top = std::max(top, sums[static_cast<size_t>(i)]);
    }
    pooled.push_back(options.max_pool ? top : sum / options.kernel);
  }
  return pooled;
}

// How many slots with a larger vote than this one there are, neighbours that share a maximum told apart by place.
size_t rank(const std::vector<double>& scores, size_t slot) {
  size_t better = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    // Equal votes differ by rounding between the two computations of them.
    const bool equal = std::abs(scores[i] - scores[slot]) <= 1e-6 * scores[slot];
    better += equal ? (i < slot ? 1 : 0) : (scores[i] > scores[slot] ? 1 : 0);
  }
  return better;
}

std::vector<size_t> shares(const std::vector<std::vector<double>>& all, const Options& options) {
  const auto even = static_cast<size_t>(options.budget - options.window);
  if (!options.adaptive) return std::vector<size_t>(all.size(), even);
  std::vector<double> joined;
  for (const auto& of_head : all) joined.insert(joined.end(), of_head.begin(), of_head.end());
  std::vector<size_t> share;
  size_t begin = 0;
  for (const auto& of_head : all) {
    size_t won = 0;
    for (size_t slot = 0; slot < of_head.size(); ++slot) won += rank(joined, begin + slot) < even * all.size() ? 1 : 0;
    begin += of_head.size();
    share.push_back(static_cast<size_t>(options.floor * static_cast<double>(even) +
                                        (1 - options.floor) * static_cast<double>(won) + 1e-6));
  }
  return share;
}

TEST(SnapKv, KeepsWhatThePlainFormulasKeep) {
  const SiteShape shapes[] = {{.n_q = 200, .n_k = 200, .n_head = 4, .n_head_kv = 2, .contrast = 1},
                              {.n_q = 200, .n_k = 200, .n_head = 3, .n_head_kv = 3, .contrast = 1.5F},
                              {.n_q = 60, .n_k = 240, .n_head = 6, .n_head_kv = 2, .contrast = 1},   // after a prefix
                              {.n_q = 10, .n_k = 200, .n_head = 2, .n_head_kv = 1, .contrast = 1}};  // fewer than vote
  for (const SiteShape& shape : shapes) {
    SiteFixture fixture(shape, 71);
    for (const Options& options : {Options{.budget = 100}, Options{.budget = 60, .adaptive = false},
                                   Options{.budget = 64, .window = 16, .kernel = 5, .max_pool = false},
                                   Options{.budget = 40, .kernel = 1, .floor = 0.5}}) {
      const KvEdit edit = compress(options.spec(), fixture);
      ASSERT_EQ(edit.head.size(), static_cast<size_t>(shape.n_head_kv));
      std::vector<std::vector<double>> all;
      all.reserve(static_cast<size_t>(shape.n_head_kv));
      for (int32_t kv = 0; kv < shape.n_head_kv; ++kv) all.push_back(votes(fixture, kv, options));
      const std::vector<size_t> share = shares(all, options);
      for (int32_t kv = 0; kv < shape.n_head_kv; ++kv) {
        const std::vector<double>& scores = all[static_cast<size_t>(kv)];
        std::vector<int32_t> expected;
        for (size_t slot = 0; slot < scores.size(); ++slot) {
          if (rank(scores, slot) < share[static_cast<size_t>(kv)]) expected.push_back(static_cast<int32_t>(slot));
        }
        for (auto slot = static_cast<int32_t>(scores.size()); slot < shape.n_k; ++slot) expected.push_back(slot);
        EXPECT_EQ(kept(edit, fixture, kv), expected) << shape.text() << ' ' << options.spec() << " kv head " << kv;
      }
    }
  }
}

TEST(SnapKv, AHeadThatLooksWidelyGetsMoreOfTheBudget) {
  SiteFixture fixture({.n_q = 400, .n_k = 400, .n_head = 2, .n_head_kv = 2}, 72);
  for (int32_t row = 0; row < 400; ++row) {
    for (int32_t d = 0; d < 16; ++d) {
      fixture.query(row, 0)[d] = 0;  // looks everywhere
      fixture.query(row, 1)[d] = fixture.key(1, 50)[d] * 10;
    }
  }
  const KvEdit edit = compress("snapkv(budget=132, window=32)", fixture);
  const size_t wide = kept(edit, fixture, 0).size(), narrow = kept(edit, fixture, 1).size();
  EXPECT_GT(wide, 200U);
  EXPECT_GE(narrow, 32U + 20U);  // the window and the floor
  EXPECT_LE(wide + narrow, 264U);
  const std::vector<int32_t> slots = kept(edit, fixture, 1);
  for (int32_t slot = 47; slot <= 53; ++slot) EXPECT_TRUE(std::binary_search(slots.begin(), slots.end(), slot)) << slot;
}

TEST(SnapKv, AFloorOfOneIsAnEvenBudget) {
  SiteFixture fixture({.n_q = 300, .n_k = 300, .n_head = 4, .n_head_kv = 2}, 73);
  const KvEdit a = compress("snapkv(budget=90, floor=1)", fixture),
               b = compress("snapkv(budget=90, adaptive=0)", fixture);
  for (int32_t kv = 0; kv < 2; ++kv) {
    EXPECT_EQ(kept(a, fixture, kv), kept(b, fixture, kv));
    EXPECT_EQ(kept(a, fixture, kv).size(), 90U);
  }
}

TEST(SnapKv, NeverKeepsMoreThanTheBudgetNorLosesTheWindow) {
  for (int32_t n = 1; n <= 257; n += 8) {
    for (const int budget : {2, 33, 64, 200}) {
      for (const int window : {1, 32}) {
        if (window >= budget) continue;
        SiteFixture fixture({.n_q = n, .n_k = n, .n_head = 4, .n_head_kv = 2, .head_dim = 4}, 74);
        const KvEdit edit = compress(fmt::format("snapkv(budget={}, window={})", budget, window), fixture);
        EXPECT_EQ(edit.head.empty(), n <= budget) << n << ' ' << budget;
        size_t total = 0;
        for (int32_t kv = 0; kv < 2; ++kv) {
          const std::vector<int32_t> slots = kept(edit, fixture, kv);
          total += slots.size();
          for (int32_t slot = std::max(0, n - window); slot < n; ++slot) {
            EXPECT_TRUE(std::binary_search(slots.begin(), slots.end(), slot));
          }
        }
        EXPECT_LE(total, static_cast<size_t>(2 * std::min(budget, n)));
      }
    }
  }
}

TEST(SnapKv, CompressesARaggedCacheAgain) {
  SiteFixture fixture({.n_q = 50, .n_k = 300, .n_head = 4, .n_head_kv = 2}, 75);
  std::vector<int32_t> slots;
  for (int32_t slot = 0; slot < 300; ++slot) {
    if (slot % 5 == 0 || slot >= 250) slots.push_back(slot);
  }
  fixture.keep(1, slots);  // 100 of 300
  const KvEdit edit = compress("snapkv(budget=120)", fixture);
  const size_t n0 = kept(edit, fixture, 0).size(), n1 = kept(edit, fixture, 1).size();
  EXPECT_LE(n0 + n1, 240U);
  EXPECT_LE(n1, 100U);
  EXPECT_EQ(kept(edit, fixture, 0).back(), 299);
  EXPECT_EQ(kept(edit, fixture, 1).back(), 99);
}

// Makes what is asked for while the host goes on.
class WorksBeside final : public test::RefOps {
 public:
  WorksBeside() : RefOps(1) {}
  std::unique_ptr<PendingMass> begin_window_mass(const ProbeArgs& args) override {
    struct Made final : PendingMass {
      std::vector<std::vector<float>> made;
      void get(std::vector<std::vector<float>>& mass) override { mass = made; }
    };
    auto pending = std::make_unique<Made>();
    window_mass(args, pending->made);
    return pending;
  }
};

TEST(SnapKv, KeepsWhatWasBegunAskedLater) {
  WorksBeside ops;
  SiteFixture fixture({.n_q = 200, .n_k = 300, .n_head = 4, .n_head_kv = 2}, 76), other({.n_q = 200, .n_k = 300}, 77);
  const std::string spec = "snapkv(budget=100)";
  const KvEdit want = compress(spec, fixture);
  const Method method = make_method(spec, fixture.method_shape());
  ASSERT_TRUE(method.compressor->begin(other.site(ops)));  // and never asked: its run was stopped
  ASSERT_TRUE(method.compressor->begin(fixture.site(ops)));
  const KvEdit begun = method.compressor->compress(fixture.site(ops), true),
               again = method.compressor->compress(fixture.site(ref_ops()), true);
  for (int32_t kv = 0; kv < 2; ++kv) {
    EXPECT_EQ(kept(begun, fixture, kv), kept(want, fixture, kv));
    EXPECT_EQ(kept(again, fixture, kv), kept(want, fixture, kv));
  }
  EXPECT_FALSE(method.compressor->begin(fixture.site(ref_ops())));
  EXPECT_FALSE(make_method("snapkv(budget=300)", fixture.method_shape()).compressor->begin(fixture.site(ops)));
}

TEST(SnapKv, LeavesDecodeAlone) {
  SiteFixture fixture({.n_q = 1, .n_k = 300}, 8);
  const Method method = make_method("snapkv(budget=64)", fixture.method_shape());
  EXPECT_TRUE(method.compressor->compress(fixture.site(ref_ops()), false).head.empty());
}

TEST(SnapKv, RefusesABudgetWithoutRoomAndAnEvenKernel) {
  EXPECT_THROW(make_method("snapkv(budget=32)", {1, 2, 1, 16}), Error);
  EXPECT_THROW(make_method("snapkv(kernel=4)", {1, 2, 1, 16}), Error);
  EXPECT_NO_THROW(make_method("snapkv(budget=33)", {1, 2, 1, 16}));
}

}  // namespace
}  // namespace winnow
