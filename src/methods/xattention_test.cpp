#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
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

using Matrix = std::vector<std::vector<double>>;

// The paper's algorithm for one head in plain loops: mean antidiagonals, softmax over tiles, block sums.
Matrix block_scores(SiteFixture& fixture, int32_t head, int stride, int block) {
  const SiteShape& shape = fixture.shape();
  const int first = shape.n_k - shape.n_q;
  const auto groups = [stride](int n) { return (n + stride - 1) / stride; };
  Matrix sums(static_cast<size_t>((shape.n_q + block - 1) / block),
              std::vector<double>(static_cast<size_t>((shape.n_k + block - 1) / block)));
  for (int a = 0; a < groups(shape.n_q); ++a) {
    const int last_slot = first + std::min(shape.n_q, (a + 1) * stride) - 1;
    std::vector<double> p;
    for (int c = 0; c * stride <= last_slot; ++c) {
      double sum = 0;
      for (int i = 0; i < stride; ++i) {
        const int row = a * stride + i, slot = c * stride + stride - 1 - i;
        if (row >= shape.n_q || slot >= shape.n_k) continue;
        for (int d = 0; d < shape.head_dim; ++d) {
          sum += double{fixture.query(row, head)[d]} * double{fixture.key(fixture.kv_of(head), slot)[d]};
        }
      }
      p.push_back(std::exp(sum / stride / std::sqrt(static_cast<double>(shape.head_dim))));
    }
    const double total = std::accumulate(p.begin(), p.end(), 0.0);
    for (size_t c = 0; c < p.size(); ++c) {
      sums[static_cast<size_t>(a * stride / block)][c * static_cast<size_t>(stride) / static_cast<size_t>(block)] +=
          p[c] / total;
    }
  }
  return sums;
}

// The fewest blocks that hold the threshold, those that are always there first.
std::set<int> choose(const std::vector<double>& scores, int own_begin, int own_end, double threshold) {
  std::set<int> taken = {0};
  for (int c = own_begin; c <= own_end; ++c) taken.insert(c);
  const double total = std::accumulate(scores.begin(), scores.end(), 0.0);
  double mass = 0;
  for (const int c : taken) mass += scores[static_cast<size_t>(c)];
  while (mass < threshold * total) {
    int best = -1;
    for (int c = 0; c < own_begin; ++c) {
      if (taken.contains(c)) continue;
      if (best < 0 || scores[static_cast<size_t>(c)] > scores[static_cast<size_t>(best)]) best = c;
    }
    if (best < 0) break;
    taken.insert(best);
    mass += scores[static_cast<size_t>(best)];
  }
  return taken;
}

std::string spec(double threshold, int stride, int block) {
  return fmt::format("xattention(threshold={}, stride={}, block={})", threshold, stride, block);
}

const SiteShape kShapes[] = {{.n_q = 700, .n_k = 700, .n_head = 4, .n_head_kv = 2, .head_dim = 16},
                             {.n_q = 640, .n_k = 640, .n_head = 2, .n_head_kv = 2, .head_dim = 8, .contrast = 4},
                             {.n_q = 300, .n_k = 812, .n_head = 2, .n_head_kv = 1, .head_dim = 16},   // aligned
                             {.n_q = 333, .n_k = 1000, .n_head = 2, .n_head_kv = 1, .head_dim = 16},  // not aligned
                             {.n_q = 40, .n_k = 600, .n_head = 2, .n_head_kv = 1, .head_dim = 16}};

TEST(Antidiagonals, ScoresAreThoseOfThePlainFormulas) {
  for (const SiteShape& shape : kShapes) {
    SiteFixture fixture(shape, 41);
    const Site site = fixture.site(ref_ops());
    const ProbeArgs rows = {.q = site.q, .kv = site.kv, .limit = site.limit.data(), .scale = site.scale};
    for (const auto& [stride, block] : {std::pair{16, 128}, {8, 64}, {1, 64}, {64, 64}}) {
      std::vector<std::vector<float>> all;
      ref_ops().antidiagonal_scores({rows, stride, block}, all);
      for (int32_t head = 0; head < shape.n_head; ++head) {
        const std::vector<float>& scores = all[static_cast<size_t>(head)];
        const Matrix expected = block_scores(fixture, head, stride, block);
        ASSERT_EQ(scores.size(), expected.size() * expected[0].size());
        for (size_t i = 0; i < scores.size(); ++i) {
          ASSERT_NEAR(scores[i], expected[i / expected[0].size()][i % expected[0].size()], 1e-4)
              << shape.text() << " stride " << stride << " head " << head << " at " << i;
        }
      }
    }
  }
}

// With one row and slot a tile, the scores are the attention itself.
TEST(Antidiagonals, StrideOneIsTheAttentionOfBlocks) {
  SiteFixture fixture({.n_q = 130, .n_k = 200}, 42);
  const Site site = fixture.site(ref_ops());
  std::vector<std::vector<float>> all;
  ref_ops().antidiagonal_scores({{.q = site.q, .kv = site.kv, .limit = site.limit.data(), .scale = site.scale}, 1, 64},
                                all);
  const std::vector<float>& scores = all[1];
  std::vector<double> expected(3 * 4);
  for (int32_t row = 0; row < 130; ++row) {
    const std::vector<double> p = fixture.probabilities(row, 1);
    for (size_t slot = 0; slot < p.size(); ++slot) expected[static_cast<size_t>(row / 64 * 4) + slot / 64] += p[slot];
  }
  ASSERT_EQ(scores.size(), expected.size());
  for (size_t i = 0; i < scores.size(); ++i) EXPECT_NEAR(scores[i], expected[i], 1e-4);
}

TEST(XAttention, SelectsWhatThePlainFormulasSelect) {
  for (const SiteShape& shape : kShapes) {
    SiteFixture fixture(shape, 43);
    const int first = shape.n_k - shape.n_q;
    for (const auto& [stride, block] : {std::pair{16, 128}, {8, 64}, {16, 64}}) {
      for (const double threshold : {0.3, 0.6, 0.9, 0.97}) {
        const Selection selection = select(spec(threshold, stride, block), fixture);
        for (int32_t head = 0; head < shape.n_head; ++head) {
          const Matrix scores = block_scores(fixture, head, stride, block);
          for (int32_t b = 0; b < selection.n_block_q; ++b) {
            const int begin = (first + b * block) / block;
            const int end = (first + std::min(shape.n_q, (b + 1) * block) - 1) / block;
            ASSERT_EQ(blocks_of(selection, head, b), choose(scores[static_cast<size_t>(b)], begin, end, threshold))
                << shape.text() << " " << spec(threshold, stride, block) << " head " << head << " block " << b;
          }
        }
      }
    }
  }
}

TEST(XAttention, FindsABlockThatAllLaterRowsLookAt) {
  // Rows of the last block look at one slot each, all of key block 2, along a diagonal: no row or column is hot alone.
  SiteFixture fixture({.n_q = 640, .n_k = 640, .n_head = 1, .n_head_kv = 1, .head_dim = 16, .contrast = 0}, 44);
  for (int32_t row = 576; row < 640; ++row) {
    for (int32_t d = 0; d < 16; ++d) fixture.query(row, 0)[d] = 6 * fixture.key(0, row - 576 + 128 + (row % 2))[d];
  }
  const Selection selection = select(spec(0.5, 16, 64), fixture);
  EXPECT_TRUE(blocks_of(selection, 0, 9).contains(2));
  EXPECT_LE(blocks_of(selection, 0, 9).size(), 5U);
}

TEST(XAttention, ALowerThresholdComputesASubset) {
  SiteFixture fixture({.n_q = 900, .n_k = 900, .n_head = 4, .n_head_kv = 2}, 45);
  Selection before = select(spec(0, 16, 64), fixture);
  for (int32_t b = 0; b < before.n_block_q; ++b) EXPECT_EQ(blocks_of(before, 0, b), (std::set<int>{0, b}));
  for (const double threshold : {0.2, 0.5, 0.8, 0.9, 0.99, 0.999}) {
    const Selection selection = select(spec(threshold, 16, 64), fixture);
    for (int32_t head = 0; head < 4; ++head) {
      for (int32_t b = 0; b < selection.n_block_q; ++b) {
        const std::set<int> more = blocks_of(selection, head, b), less = blocks_of(before, head, b);
        EXPECT_TRUE(std::includes(more.begin(), more.end(), less.begin(), less.end()));
      }
    }
    before = selection;
  }
}

// Chunks of whole blocks after a prefix of whole blocks: the lists of the whole prompt.
TEST(XAttention, ChunksOfWholeBlocksSelectTheSame) {
  SiteFixture fixture({.n_q = 700, .n_k = 700, .n_head = 2, .n_head_kv = 1}, 46);
  for (const int block : {64, 128}) {
    const std::string text = spec(0.4, 16, block);
    const Selection whole = select(text, fixture);
    Site chunk = fixture.site(ref_ops());
    std::vector<KvHead> heads(chunk.kv.heads.begin(), chunk.kv.heads.end());
    for (int32_t begin = 0; begin < 700; begin += 256) {
      const int32_t n = std::min(256, 700 - begin);
      const Site all = fixture.site(ref_ops());
      chunk.q = all.q.rows(begin, n);
      chunk.limit = all.limit.subspan(static_cast<size_t>(begin), static_cast<size_t>(n));
      for (KvHead& head : heads) head.n_slots = begin + n;
      chunk.kv.heads = heads;
      const Selection part = make_method(text, fixture.method_shape()).selector->select(chunk);
      for (int32_t row = begin; row < begin + n; row += 10) {
        for (const int32_t head : {0, 1}) {
          const int32_t b = row / block, first = begin / block;
          EXPECT_EQ(blocks_of(part, head, b - first), blocks_of(whole, head, b)) << row;
        }
      }
    }
  }
}

TEST(XAttention, RefusesWhatDoesNotFit) {
  const MethodShape shape = {1, 2, 1, 16};
  EXPECT_THROW(make_method("xattention(stride=24)", shape), Error);
  EXPECT_THROW(make_method("xattention(block=96)", shape), Error);
  EXPECT_NO_THROW(make_method("xattention(stride=8, block=64)", shape));
}

}  // namespace
}  // namespace winnow
