#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "selected.h"
#include "tiny_engine.h"

namespace winnow {
namespace {

using test::computed;
using test::make_method;
using test::malformed;
using test::ref_ops;
using test::select;
using test::SiteFixture;

std::string spec(int k, int key_block, int window, int sinks, const std::string& rest = "") {
  return fmt::format("hip(k={}, key_block={}, window={}, sinks={}, dense_layers=0{})", k, key_block, window, sinks,
                     rest);
}

// One decoded row behind keys whose scores are `profile`; the window is the row itself. -> what the search found
std::vector<int> found_in(const std::vector<double>& profile, int k) {
  const auto n = static_cast<int32_t>(profile.size());
  SiteFixture fixture({.n_q = 1, .n_k = n + 1, .n_head = 1, .n_head_kv = 1, .head_dim = 8}, 71);
  for (int32_t d = 0; d < 8; ++d) fixture.query(0, 0)[d] = d == 0 ? 1.0F : 0.0F;
  for (int32_t slot = 0; slot < n; ++slot) {
    fixture.key(0, slot)[0] = static_cast<float>(profile[static_cast<size_t>(slot)]);
  }
  fixture.store();
  const Selection selection = select(spec(k, 1, 1, 0), fixture);
  EXPECT_EQ(selection.block_begin, (std::vector<int32_t>{n}));
  return {selection.column.begin(), selection.column.end()};
}

std::vector<int> best_of(const std::vector<double>& profile, int k) {
  std::vector<int> index(profile.size());
  std::iota(index.begin(), index.end(), 0);
  std::stable_sort(index.begin(), index.end(),
                   [&](int a, int b) { return profile[static_cast<size_t>(a)] > profile[static_cast<size_t>(b)]; });
  index.resize(static_cast<size_t>(k));
  std::sort(index.begin(), index.end());
  return index;
}

double recall(const std::vector<double>& profile, int k) {
  const std::vector<int> found = found_in(profile, k), best = best_of(profile, k);
  std::vector<int> both;
  std::set_intersection(found.begin(), found.end(), best.begin(), best.end(), std::back_inserter(both));
  return static_cast<double>(both.size()) / k;
}

TEST(Hip, WorkedTraceOfTheSpecification) {
  const std::vector<double> profile = {1, 2, 2, 5, 6, 5, 3, 1, 0, 0, 1, 2, 3, 9, 2, 1};
  EXPECT_EQ(found_in(profile, 2), (std::vector<int>{3, 4}));  // the true best, 13, is lost in the first round
  EXPECT_EQ(found_in(profile, 4), (std::vector<int>{3, 4, 5, 13}));
}

TEST(Hip, FindsTheBestOfMonotoneAndUnimodalProfiles) {
  for (const int k : {8, 16, 32}) {
    for (const int peak : {0, 100, 128, 255}) {
      std::vector<double> profile(256);
      for (int i = 0; i < 256; ++i) profile[static_cast<size_t>(i)] = -std::abs(i - peak + 0.25) / 100;
      EXPECT_EQ(found_in(profile, k), best_of(profile, k)) << "k " << k << " peak " << peak;
    }
  }
}

TEST(Hip, RecallFollowsTheLocalityOfScores) {
  const std::pair<double, std::vector<double>> expected[] = {{.98, {.914, .972, .989}}, {0, {.054, .121, .233}}};
  std::mt19937 random(72);
  std::normal_distribution<double> normal;
  for (const auto& [coefficient, recalls] : expected) {
    std::vector<double> sums(3);
    for (int trial = 0; trial < 200; ++trial) {
      std::vector<double> profile = {normal(random)};
      const double noise = std::sqrt(1 - coefficient * coefficient);
      while (profile.size() < 1024) profile.push_back(coefficient * profile.back() + noise * normal(random));
      for (size_t i = 0; i < 3; ++i) sums[i] += recall(profile, 16 << i) / 200;
    }
    for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(sums[i], recalls[i], .02) << coefficient << " k " << (16 << i);
  }
}

// The search in plain loops for one block of rows: key blocks [begin, end), products with every sampled row.
std::set<int> plain_search(SiteFixture& fixture, int32_t head, int32_t row, int begin, int end, int k, int key_block) {
  const int n_rows = std::min(64, fixture.shape().n_q - row);
  const auto score = [&](int block) {
    double best = -INFINITY;
    for (int r = 0; r < n_rows; r += 2) {
      for (int slot = begin + block * key_block; slot < std::min(end, begin + (block + 1) * key_block); ++slot) {
        double product = 0;
        for (int d = 0; d < fixture.shape().head_dim; ++d) {
          product += double{fixture.query(row + r, head)[d]} * double{fixture.key(fixture.kv_of(head), slot)[d]};
        }
        best = std::max(best, product);
      }
    }
    return best;
  };
  const int n_block = (end - begin + key_block - 1) / key_block, n_keep = k / key_block;
  std::vector<std::pair<int, int>> chunks;  // [first, last)
  chunks.reserve(static_cast<size_t>(n_keep));
  for (int j = 0; j < n_keep; ++j) chunks.emplace_back(j * n_block / n_keep, (j + 1) * n_block / n_keep);
  for (bool wide = true; wide;) {
    std::vector<std::tuple<double, int, int>> halves;  // minus the score, so that sorting puts the best first
    for (const auto& [a, b] : chunks) {
      const int middle = (a + b) / 2;
      for (const auto& [x, y] : {std::pair{a, middle}, {middle, b}}) {
        if (x < y) halves.emplace_back(-score((x + y) / 2), x, y);
      }
    }
    std::sort(halves.begin(), halves.end());
    halves.resize(static_cast<size_t>(n_keep));
    chunks.clear();
    wide = false;
    for (const auto& [s, x, y] : halves) {
      chunks.emplace_back(x, y);
      wide = wide || y - x > 1;
    }
    std::sort(chunks.begin(), chunks.end());
  }
  std::set<int> slots;
  for (const auto& [a, b] : chunks) {
    for (int slot = begin + a * key_block; slot < std::min(end, begin + (a + 1) * key_block); ++slot)
      slots.insert(slot);
  }
  return slots;
}

TEST(Hip, SelectsWhatAPlainSearchSelects) {
  for (const auto& [n_q, n_k] : {std::pair{600, 600}, {130, 701}}) {
    SiteFixture fixture({.n_q = n_q, .n_k = n_k, .n_head = 4, .n_head_kv = 2, .head_dim = 16}, 73);
    for (const auto& [k, key_block] : {std::pair{64, 2}, {32, 1}, {60, 4}}) {
      const int window = 40, sinks = 5;
      const Selection selection = select(spec(k, key_block, window, sinks), fixture);
      for (int32_t head = 0; head < 4; ++head) {
        for (int32_t row = 0; row < n_q; row += 64) {
          const int first = n_k - n_q + row, begin_window = std::max(0, first + 1 - window);
          const int begin = std::min(sinks, begin_window);
          std::set<int> expected;
          if (begin_window - begin <= k) {
            for (int slot = begin; slot < begin_window; ++slot) expected.insert(slot);
          } else {
            expected = plain_search(fixture, head, row, begin, begin_window, k, key_block);
          }
          for (int slot = 0; slot < begin; ++slot) expected.insert(slot);
          const auto list = static_cast<size_t>(selection.list(head, row / 64));
          const std::set<int> actual(selection.column.begin() + selection.column_ptr[list],
                                     selection.column.begin() + selection.column_ptr[list + 1]);
          ASSERT_EQ(actual, expected) << n_k << " k " << k << " head " << head << " row " << row;
          ASSERT_EQ(selection.block_begin[static_cast<size_t>(selection.block_ptr[list])], begin_window);
        }
      }
    }
  }
}

TEST(Hip, EveryRowSeesSinksAndWindowAndAtMostKMore) {
  SiteFixture fixture({.n_q = 500, .n_k = 900, .n_head = 2, .n_head_kv = 1}, 74);
  const Selection selection = select(spec(64, 2, 100, 7), fixture);
  for (int32_t row = 0; row < 500; ++row) {
    const std::vector<bool> mask = computed(selection, fixture, row, 1);
    const int own = fixture.limit(row), first = fixture.limit(row / 64 * 64);
    int n_more = 0;
    for (int slot = 0; slot <= own; ++slot) {
      const bool wanted = slot < 7 || slot > own - 100;
      ASSERT_TRUE(mask[static_cast<size_t>(slot)] || !wanted) << row << " " << slot;
      n_more += mask[static_cast<size_t>(slot)] && slot >= 7 && slot <= first - 100 ? 1 : 0;
    }
    EXPECT_EQ(n_more, 64);
  }
}

TEST(Hip, IsDenseWhereEverythingFitsAndInEarlyLayers) {
  SiteFixture fixture({.n_q = 300, .n_k = 300}, 75);
  EXPECT_TRUE(select(spec(200, 2, 90, 10), fixture).everything());
  EXPECT_FALSE(select(spec(200, 2, 90, 9), fixture).everything());
  const Method method = make_method("hip(k=20, window=20)", fixture.method_shape(5));
  for (int32_t layer = 0; layer < 5; ++layer) {
    EXPECT_EQ(method.selector->select(fixture.site(ref_ops(), layer)).everything(), layer < 3) << layer;
  }
  EXPECT_THROW(make_method("hip(k=3, key_block=4)", fixture.method_shape()), Error);
}

// Decoded row at `position` of a fixture whose rows are all its slots.
Selection decode(Selector& selector, SiteFixture& fixture, int32_t position) {
  const Site all = fixture.site(ref_ops());
  std::vector<KvHead> heads(all.kv.heads.begin(), all.kv.heads.end());
  for (KvHead& head : heads) head.n_slots = position + 1;
  Site row = fixture.site(ref_ops());
  row.q = all.q.rows(position, 1);
  row.limit = all.limit.subspan(static_cast<size_t>(position), 1);
  row.kv.heads = heads;
  Selection selection = selector.select(row);
  EXPECT_EQ(malformed(selection, row), "");
  return selection;
}

TEST(Hip, DecodeReusesWhatItFoundAndLosesNoKeyMeanwhile) {
  SiteFixture fixture({.n_q = 400, .n_k = 400, .n_head = 2, .n_head_kv = 1}, 76);
  const Method method = make_method(spec(32, 2, 20, 4, ", refresh=5"), fixture.method_shape());
  ASSERT_TRUE(method.selector->in_decode());
  for (int32_t at = 300; at < 320; ++at) {
    const int32_t searched = at - (at - 300) % 5;  // the last row that searched
    const Method fresh = make_method(spec(32, 2, 20, 4), fixture.method_shape());
    const Selection expected = decode(*fresh.selector, fixture, searched);
    const Selection selection = decode(*method.selector, fixture, at);
    EXPECT_EQ(selection.column, expected.column) << at;
    EXPECT_EQ(selection.block_begin.front(), searched + 1 - 20) << at;
    EXPECT_GT(selection.block_begin.back() + 64, at) << "every slot from there to the row";
  }
  decode(*method.selector, fixture, 320);
  decode(*method.selector, fixture, 350);  // slots came or went otherwise: a new search
  const Method fresh = make_method(spec(32, 2, 20, 4), fixture.method_shape());
  EXPECT_EQ(decode(*method.selector, fixture, 351).column, decode(*fresh.selector, fixture, 350).column);
  EXPECT_FALSE(make_method("hip(decode=0)", fixture.method_shape()).selector->in_decode());
}

std::vector<float> decoded(const TinyEngine& tiny, const std::string& text, double* density = nullptr) {
  Sequence sequence = tiny.start({text});
  std::vector<float> logits = tiny->prefill(sequence, random_tokens(300));
  for (int32_t i = 0; i < 12; ++i) logits = tiny->decode(sequence, i);
  if (density != nullptr) *density = sequence.stats().decode_counts.density();
  return logits;
}

TEST(Hip, RunsInTheEngineWhateverTheThreads) {
  const std::string text = spec(32, 2, 30, 4, ", min_len=0");
  double density = 1;
  const std::vector<float> one = decoded(TinyEngine("llama", {}, "cpu", 1), text, &density);
  EXPECT_EQ(one, decoded(TinyEngine("llama", {}, "cpu", 3), text));
  EXPECT_LT(density, 0.35);
  double dense = 0;
  decoded(TinyEngine("llama"), spec(32, 2, 30, 4), &dense);  // below the break-even
  EXPECT_EQ(dense, 1);
}

}  // namespace
}  // namespace winnow
