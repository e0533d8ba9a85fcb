#include <gtest/gtest.h>

#include <set>

#include "site_fixture.h"
#include "tiny_engine.h"

namespace winnow {
namespace {

using test::computed;
using test::make_method;
using test::malformed;
using test::ref_ops;
using test::SiteFixture;

std::string spec(int block, int window, int sinks = 1, const std::string& rest = ", full=0") {
  return fmt::format("powerattention(block={}, window={}, sinks={}{})", block, window, sinks, rest);
}

Selection select(const std::string& text, SiteFixture& fixture, int32_t layer = 0) {
  return make_method(text, fixture.method_shape()).selector->select(fixture.site(ref_ops(), layer));
}

// The paper's mask for one pair of positions.
bool promised(int i, int j, int block, int window, int sinks) {
  const int delta = i / block - j / block;
  return j <= i && (delta < window || (delta & (delta - 1)) == 0 || j / block < sinks);
}

// Blocks that one row at `position` selects, without any queries: a site of one row with a cache of no content.
std::set<int> blocks_seen(int position, int block, int window) {
  const std::vector<int32_t> limit = {position};
  const KvHead head = {.k = {}, .v = {}, .n_slots = position + 1};
  const Site site{.layer = 0,
                  .q = {nullptr, 1, 1, 8, 8},
                  .kv = {Type::f32, Type::f32, 8, {&head, 1}},
                  .limit = limit,
                  .ops = ref_ops()};
  const Selection selection = make_method(spec(block, window), {1, 1, 1, 8}).selector->select(site);
  std::set<int> blocks;
  for (const int32_t begin : selection.block_begin) blocks.insert(begin / block);
  return blocks;
}

TEST(PowerAttention, BlockListsOfTheSpecification) {
  EXPECT_EQ(blocks_seen(127 * 256, 256, 5), (std::set<int>{0, 63, 95, 111, 119, 123, 124, 125, 126, 127}));
  EXPECT_EQ(blocks_seen(20 * 256 + 255, 256, 5), (std::set<int>{0, 4, 12, 16, 17, 18, 19, 20}));
  EXPECT_EQ(blocks_seen(511 * 256 + 7, 256, 5).size(), 12U);
}

// The fewest layers after which the last of `n` blocks has heard of all others.
int hops(int n, int window) {
  std::set<int> reached = {n - 1};
  for (int hop = 0;; ++hop) {
    if (static_cast<int>(reached.size()) == n) return hop;
    std::set<int> next;
    for (const int block : reached) {
      if (block >= window) next.merge(blocks_seen(block * 64, 64, window));
      for (int b = 0; b <= block && block < window; ++b) next.insert(b);
    }
    reached = next;
  }
}

TEST(PowerAttention, EveryBlockIsReachedWithinLogarithmicallyManyLayers) {
  EXPECT_EQ(hops(64, 5), 5);
  EXPECT_EQ(hops(128, 5), 6);
  EXPECT_EQ(hops(256, 5), 7);
}

TEST(PowerAttention, ComputesThePapersMask) {
  for (const auto& [block, window, sinks] : {std::tuple{64, 1, 1}, {64, 2, 0}, {128, 1, 1}, {192, 1, 2}}) {
    for (const auto& [n_q, n_k] : {std::pair{1000, 1000}, {192, 1000}, {1, 1000}, {384, 960}}) {
      SiteFixture fixture({.n_q = n_q, .n_k = n_k, .n_head = 4, .n_head_kv = 2, .head_dim = 8}, 51);
      const Selection selection = select(spec(block, window, sinks), fixture);
      ASSERT_FALSE(selection.everything());
      EXPECT_EQ(selection.n_head, 1);
      EXPECT_EQ(malformed(selection, fixture.site(ref_ops())), "");
      const bool exact = (n_k - n_q) % selection.block_q == 0 || n_q == 1;
      for (int32_t row = 0; row < n_q; row += 13) {
        const std::vector<bool> mask = computed(selection, fixture, row, 1);
        for (int32_t slot = 0; slot <= fixture.limit(row); ++slot) {
          const bool wanted = promised(fixture.limit(row), slot, block, window, sinks);
          ASSERT_TRUE(mask[static_cast<size_t>(slot)] || !wanted) << row << " " << slot;
          ASSERT_TRUE(!exact || mask[static_cast<size_t>(slot)] == wanted) << row << " " << slot << " block " << block;
        }
      }
    }
  }
}

TEST(PowerAttention, FollowsPositionsInARaggedCache) {
  SiteFixture fixture({.n_q = 128, .n_k = 900, .n_head = 2, .n_head_kv = 2, .head_dim = 8}, 52);
  std::vector<int32_t> kept;
  for (int32_t slot = 0; slot < 900; ++slot) {
    if (slot % 3 == 0 || slot >= 772) kept.push_back(slot);
  }
  fixture.keep(1, kept);
  const Selection selection = select(spec(64, 1), fixture);
  EXPECT_EQ(malformed(selection, fixture.site(ref_ops())), "");
  for (int32_t row = 0; row < 128; ++row) {
    const std::vector<bool> mask = computed(selection, fixture, row, 1);
    for (int32_t slot = 0; slot < fixture.n_slots(1); ++slot) {
      ASSERT_TRUE(mask[static_cast<size_t>(slot)] ||
                  !promised(fixture.limit(row), fixture.position(1, slot), 64, 1, 1));
    }
  }
}

TEST(PowerAttention, IsDenseInsideTheWindowAndInFullLayers) {
  SiteFixture fixture({.n_q = 640, .n_k = 640, .head_dim = 8}, 53);
  EXPECT_TRUE(select(spec(64, 10), fixture).everything());
  EXPECT_FALSE(select(spec(64, 9), fixture).everything());
  for (int32_t layer = 0; layer < 15; ++layer) {
    EXPECT_EQ(select(spec(64, 2, 1, ", full=2, of=7"), fixture, layer).everything(), layer % 7 < 2) << layer;
    EXPECT_TRUE(select(spec(64, 2, 1, ", full=7, of=7"), fixture, layer).everything());
  }
  EXPECT_THROW(make_method("powerattention(block=100)", {1, 2, 1, 16}), Error);
}

// The pattern depends on absolute positions alone: reading on by single tokens gives what one prefill gives.
TEST(PowerAttention, PrefillThenDecodeEqualsOnePrefill) {
  const TinyEngine tiny("llama", {.kv_type = Type::f32}, "ref");
  const std::vector<int32_t> tokens = random_tokens(420);
  const std::string text = spec(64, 1);
  Sequence whole = tiny.start({text}), parts = tiny.start({text}), dense = tiny.start({});
  const std::vector<float> want = tiny->prefill(whole, tokens);
  tiny->prefill(parts, std::span(tokens).first(410));
  std::vector<float> got;
  for (size_t i = 410; i < tokens.size(); ++i) got = tiny->decode(parts, tokens[i]);
  EXPECT_LT(relative_distance(got, want), 1e-3);
  EXPECT_GT(relative_distance(want, tiny->prefill(dense, tokens)), 1e-2);
  EXPECT_LT(parts.stats().decode_counts.density(), 0.9);
}

}  // namespace
}  // namespace winnow
