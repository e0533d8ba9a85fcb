#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "site_fixture.h"

namespace winnow {
namespace {

using test::attend;
using test::computed;
using test::make_method;
using test::malformed;
using test::ref_ops;
using test::SiteFixture;
using test::SiteShape;

using Matrix = std::vector<std::vector<double>>;

// The paper's equations for probe rows `a` [n_probe][n] and how many slots each of them sees.
struct Reference {
  std::vector<double> sum, average;
  std::vector<int> seen;
  int p = 0;
  std::set<int> important;

  Reference(const Matrix& a, const std::vector<int>& n_seen, double tau, int n)
      : sum(static_cast<size_t>(n)), average(sum), seen(sum.size()) {
    for (size_t r = 0; r < a.size(); ++r) {
      for (int j = 0; j < n_seen[r]; ++j) {
        sum[static_cast<size_t>(j)] += a[r][static_cast<size_t>(j)];
        ++seen[static_cast<size_t>(j)];
      }
    }
    std::vector<double> sorted = sum;
    std::sort(sorted.rbegin(), sorted.rend());
    double reached = 0;
    while (p < n && reached < tau * static_cast<double>(a.size()) * (1 - 1e-6))
      reached += sorted[static_cast<size_t>(p++)];
    std::vector<int> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    for (size_t j = 0; j < sum.size(); ++j) average[j] = seen[j] > 0 ? sum[j] / seen[j] : 0;
    std::stable_sort(order.begin(), order.end(), [&](int x, int y) {
      return average[static_cast<size_t>(x)] > average[static_cast<size_t>(y)] + 1e-9;
    });
    important = {order.begin(), order.begin() + p};
    important.insert(n - 1);
  }
};

const Matrix kExample = {
    {1}, {.7, .3}, {.6, .1, .3}, {.5, .05, .05, .4}, {.45, .02, .03, .2, .3}, {.4, .02, .03, .25, .1, .2}};

void expect_near(const std::vector<double>& a, const std::vector<double>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-3) << i;
}

TEST(ZipVlFormulas, WorkedExample) {
  const std::vector<int> all = {1, 2, 3, 4, 5, 6};
  const Reference at_80(kExample, all, .8, 6);
  expect_near(at_80.sum, {3.65, .49, .41, .85, .40, .20});
  EXPECT_EQ(at_80.seen, (std::vector<int>{6, 5, 4, 3, 2, 1}));
  expect_near(at_80.average, {.6083, .098, .1025, .2833, .2, .2});
  EXPECT_EQ(at_80.p, 3);
  EXPECT_EQ(at_80.important, (std::set<int>{0, 3, 4, 5}));
  EXPECT_EQ(Reference(kExample, all, .9, 6).important, (std::set<int>{0, 3, 4, 5}));
  EXPECT_EQ(Reference(kExample, all, .96, 6).important, (std::set<int>{0, 2, 3, 4, 5}));
  EXPECT_EQ(Reference(kExample, all, .975, 6).p, 6);
  const Reference few({kExample[1], kExample[4], kExample[5]}, {2, 5, 6}, .9, 6);
  expect_near(few.sum, {1.55, .34, .06, .45, .4, .2});
  EXPECT_EQ(few.seen, (std::vector<int>{3, 3, 2, 2, 2, 1}));
  EXPECT_EQ(few.p, 4);
  EXPECT_EQ(few.important, (std::set<int>{0, 3, 4, 5}));
}

// The probes' attention, averaged over heads [first, first + n).
Reference reference(SiteFixture& fixture, const std::vector<int>& rows, double tau, int first, int n) {
  Matrix a;
  std::vector<int> seen;
  const int n_slots = fixture.n_slots(fixture.kv_of(first));
  for (const int row : rows) {
    a.emplace_back(static_cast<size_t>(n_slots));
    for (int head = first; head < first + n; ++head) {
      const std::vector<double> p = fixture.probabilities(row, head);
      for (size_t j = 0; j < p.size(); ++j) a.back()[j] += p[j] / n;
    }
    int visible = 0;
    while (visible < n_slots && fixture.position(fixture.kv_of(first), visible) <= fixture.limit(row)) ++visible;
    seen.push_back(visible);
  }
  return Reference(a, seen, tau, n_slots);
}

std::vector<int> probe_rows(int n_rows, int n) {
  std::vector<int> rows;
  if (n_rows > 2 * n) {
    const int step = (n_rows - n) / n;
    for (int i = 0; i < n; ++i) rows.push_back(step / 2 + i * step);
    for (int row = n_rows - n; row < n_rows; ++row) rows.push_back(row);
  } else {
    rows.resize(static_cast<size_t>(n_rows));
    std::iota(rows.begin(), rows.end(), 0);
  }
  return rows;
}

// Rows that the selection names: those whose own token any of the sets holds, and the last `n_wanted`.
void expect_rows(const Selection& selection, SiteFixture& fixture, const std::vector<std::set<int>>& sets,
                 int n_wanted = 1) {
  std::vector<int32_t> want;
  for (int row = 0; row < fixture.shape().n_q; ++row) {
    bool attends = row >= fixture.shape().n_q - n_wanted;
    for (size_t kv = 0; kv < sets.size(); ++kv) {
      for (const int slot : sets[kv]) {
        attends = attends || fixture.position(static_cast<int>(kv), slot) == fixture.limit(row);
      }
    }
    if (attends) want.push_back(row);
  }
  EXPECT_LT(std::ssize(want), fixture.shape().n_q);
  EXPECT_EQ(selection.rows, want);
}

// A row that attends sees the important tokens and those of its block of 128 rows that attend; others see nothing.
void expect_selection(const Selection& selection, SiteFixture& fixture, int head, const std::set<int>& important) {
  const int kv = fixture.kv_of(head);
  for (int32_t row = 0; row < fixture.shape().n_q; row += 7) {
    const std::vector<bool> mask = computed(selection, fixture, row, head);
    std::set<int> seen;
    const auto at = std::lower_bound(selection.rows.begin(), selection.rows.end(), row);
    if (at != selection.rows.end() && *at == row) {
      seen = important;
      for (auto near = selection.rows.begin() + (at - selection.rows.begin()) / 128 * 128; near <= at; ++near) {
        int own = 0;
        while (fixture.position(kv, own) < fixture.limit(*near)) ++own;
        seen.insert(own);
      }
    }
    for (int32_t slot = 0; slot < fixture.n_slots(kv); ++slot) {
      if (fixture.position(kv, slot) > fixture.limit(row)) break;
      ASSERT_EQ(mask[static_cast<size_t>(slot)], seen.contains(slot)) << row << ' ' << slot;
    }
  }
}

// With all_rows=1.
void expect_all_rows(const Selection& selection, SiteFixture& fixture, int head, const std::set<int>& important) {
  EXPECT_TRUE(selection.rows.empty());
  for (int32_t row = 0; row < fixture.shape().n_q; row += 41) {
    const std::vector<bool> mask = computed(selection, fixture, row, head);
    int own_block = 0;
    while (fixture.position(fixture.kv_of(head), own_block) < fixture.limit(row / 128 * 128)) ++own_block;
    for (int32_t slot = 0; slot < fixture.n_slots(fixture.kv_of(head)); ++slot) {
      if (fixture.position(fixture.kv_of(head), slot) > fixture.limit(row)) break;
      ASSERT_EQ(mask[static_cast<size_t>(slot)], slot >= own_block || important.contains(slot)) << row << ' ' << slot;
    }
  }
}

TEST(ZipVl, RowsSeeTheImportantTokensOfThePlainFormulas) {
  for (const SiteShape& shape : {SiteShape{.n_q = 700, .n_k = 700, .n_head = 4, .n_head_kv = 2},
                                 SiteShape{.n_q = 100, .n_k = 100, .n_head = 4, .n_head_kv = 2},
                                 SiteShape{.n_q = 333, .n_k = 1000, .n_head = 2, .n_head_kv = 1, .contrast = 3}}) {
    SiteFixture fixture(shape, 71);
    for (const double tau : {0.3, 0.8, 0.96}) {
      const Site site = fixture.site(ref_ops());
      const Method method =
          make_method(fmt::format("zipvl(tau={}, probes=60, all_rows=0)", tau), fixture.method_shape());
      const Selection selection = method.selector->select(site);
      ASSERT_EQ(malformed(selection, site), "");
      EXPECT_EQ(selection.n_head, 1);
      const Reference want = reference(fixture, probe_rows(shape.n_q, 60), tau, 0, shape.n_head);
      EXPECT_LT(want.p, shape.n_k);
      expect_rows(selection, fixture, {want.important});
      double kept = 0;
      for (const int slot : want.important) kept += want.sum[static_cast<size_t>(slot)];
      EXPECT_NEAR(selection.estimated_mass.value(), kept / std::accumulate(want.sum.begin(), want.sum.end(), 0.0),
                  1e-4);
      expect_selection(selection, fixture, 0, want.important);
      const std::string all_rows = fmt::format("zipvl(tau={}, probes=60, all_rows=1)", tau);
      expect_all_rows(make_method(all_rows, fixture.method_shape()).selector->select(site), fixture, 0, want.important);
      const KvEdit edit = method.compressor->compress(site, true);
      for (const KvEdit::Head& head : edit.head) {
        EXPECT_EQ(head.keep, std::vector<int32_t>(want.important.begin(), want.important.end()));
      }
    }
  }
}

TEST(ZipVl, KvHeadsWithDifferentSlotsHaveSetsOfTheirOwn) {
  SiteFixture fixture({.n_q = 200, .n_k = 500, .n_head = 4, .n_head_kv = 2}, 72);
  std::vector<int32_t> kept;
  for (int32_t slot = 0; slot < 500; ++slot) {
    if (slot % 3 == 0 || slot >= 300) kept.push_back(slot);
  }
  fixture.keep(1, kept);
  const Selection selection = make_method("zipvl(tau=0.8, probes=60, all_rows=0)", fixture.method_shape())
                                  .selector->select(fixture.site(ref_ops()));
  ASSERT_EQ(selection.n_head * selection.group, 4);
  std::vector<std::set<int>> sets;
  for (const int head : {0, 1, 2, 3}) {
    const Reference want = reference(fixture, probe_rows(200, 60), 0.8, head / 2 * 2, 2);
    expect_selection(selection, fixture, head, want.important);
    if (head % 2 == 0) sets.push_back(want.important);
  }
  EXPECT_NE(sets[0].size(), sets[1].size());
  expect_rows(selection, fixture, sets);
}

// The paper's step 8: attention among the important tokens is that of a sequence of these alone, and the others get 0.
TEST(ZipVl, ImportantTokensAttendAmongThemselves) {
  SiteFixture fixture({.n_q = 500, .n_k = 500, .n_head = 2, .n_head_kv = 1, .head_dim = 16}, 76);
  const Site site = fixture.site(ref_ops());
  const Selection selection = make_method("zipvl(tau=0.8, all_rows=0)", fixture.method_shape()).selector->select(site);
  ASSERT_LT(selection.rows.size(), 400U);
  ASSERT_GT(selection.rows.size(), 10U);
  const std::vector<float> o = attend(site, selection);
  std::vector<double> want(o.size());
  for (const int row : selection.rows) {
    for (int head = 0; head < 2; ++head) {
      const std::vector<double> p = fixture.probabilities(row, head);
      double sum = 0;
      for (const int slot : selection.rows) sum += slot <= row ? p[static_cast<size_t>(slot)] : 0;
      for (const int slot : selection.rows) {
        if (slot > row) break;
        for (int d = 0; d < 16; ++d) {
          want[static_cast<size_t>((row * 2 + head) * 16 + d)] +=
              p[static_cast<size_t>(slot)] / sum * double{fixture.value(0, slot)[d]};
        }
      }
    }
  }
  for (size_t i = 0; i < o.size(); ++i) ASSERT_NEAR(o[i], want[i], 1e-4) << i;
}

TEST(ZipVl, RowsWhoseLogitsAreWantedAttend) {
  SiteFixture fixture({.n_q = 700, .n_k = 700, .n_head = 2, .n_head_kv = 1}, 77);
  Site site = fixture.site(ref_ops());
  const Method method = make_method("zipvl(tau=0.5, all_rows=0)", fixture.method_shape());
  const std::set<int> important = reference(fixture, probe_rows(700, 64), 0.5, 0, 2).important;
  for (const int n_wanted : {0, 1, 90}) {
    site.n_wanted = n_wanted;
    const Selection selection = method.selector->select(site);
    ASSERT_EQ(malformed(selection, site), "");
    expect_rows(selection, fixture, {important}, n_wanted);
    expect_selection(selection, fixture, 0, important);
    const KvEdit edit = method.compressor->compress(site, true);  // wanted or not, keys are kept that are important
    EXPECT_EQ(edit.head.front().keep, std::vector<int32_t>(important.begin(), important.end()));
  }
  site.n_wanted = 700;
  EXPECT_TRUE(method.selector->select(site).rows.empty());
}

TEST(ZipVl, MoreMassNeedsMoreTokensAndAllOfItIsDense) {
  SiteFixture fixture({.n_q = 600, .n_k = 600}, 73);
  size_t before = 0;
  for (const double tau : {0.0, 0.3, 0.6, 0.9, 0.96, 0.99}) {
    const Method method = make_method(fmt::format("zipvl(tau={})", tau), fixture.method_shape());
    const KvEdit edit = method.compressor->compress(fixture.site(ref_ops()), true);
    const KvEdit::Head& head = edit.head.front();
    const size_t n = head.all ? 600 : head.keep.size();
    EXPECT_GE(n, before);
    EXPECT_EQ(head.keep.back(), 599);
    before = n;
  }
  EXPECT_GT(before, 1U);
  const Method all = make_method("zipvl(tau=1)", fixture.method_shape());
  EXPECT_TRUE(all.selector->select(fixture.site(ref_ops())).everything());
  EXPECT_TRUE(all.compressor->compress(fixture.site(ref_ops()), true).head.empty());
}

TEST(ZipVl, ProtectedTokensAreImportant) {
  SiteFixture fixture({.n_q = 600, .n_k = 600}, 74);
  const Method method = make_method("zipvl(tau=0.1, protect=70)", fixture.method_shape());
  const KvEdit edit = method.compressor->compress(fixture.site(ref_ops()), true);
  for (int32_t slot = 0; slot < 70; ++slot) EXPECT_EQ(edit.head.front().keep[static_cast<size_t>(slot)], slot);
}

TEST(ZipVl, DecodedRowsAreJudgedAtEachInterval) {
  std::vector<int32_t> kept(200);
  std::iota(kept.begin(), kept.end(), 0);
  const Method method = make_method("zipvl(tau=0.5, interval=20)", {1, 2, 1, 16});
  int n_edit = 0;
  for (int32_t n = 201; n <= 260; ++n) {  // token n - 1 was just added
    kept.push_back(n - 1);
    SiteFixture fixture({.n_q = 1, .n_k = n}, 75);
    fixture.keep(0, kept);
    const KvEdit edit = method.compressor->compress(fixture.site(ref_ops()), false);
    ASSERT_EQ(edit.head.empty(), (n - 200) % 20 != 0) << n;
    if (edit.head.empty()) continue;
    ++n_edit;
    // The last 20 slots in the newest row's eyes.
    std::vector<double> p(kept.size());
    for (const int head : {0, 1}) {
      const std::vector<double> of_head = fixture.probabilities(0, head);
      for (size_t j = 0; j < p.size(); ++j) p[j] += of_head[j] / 2;
    }
    std::vector<double> recent(p.end() - 20, p.end());
    const double sum = std::accumulate(recent.begin(), recent.end(), 0.0);
    for (double& x : recent) x /= sum;
    std::vector<int32_t> left(kept.begin(), kept.end() - 20);
    for (const int j : Reference({recent}, {20}, 0.5, 20).important)
      left.push_back(kept[kept.size() - 20 + static_cast<size_t>(j)]);
    std::vector<int32_t> got;
    for (const int32_t slot : edit.head.front().keep) got.push_back(kept[static_cast<size_t>(slot)]);
    ASSERT_EQ(got, left);
    kept = got;
  }
  EXPECT_EQ(n_edit, 3);
}

TEST(ZipVl, WithoutTheCacheItOnlySelects) {
  EXPECT_EQ(make_method("zipvl(cache=0)", {1, 2, 1, 16}).compressor, nullptr);
  EXPECT_NE(make_method("zipvl", {1, 2, 1, 16}).compressor, nullptr);
}

}  // namespace
}  // namespace winnow
