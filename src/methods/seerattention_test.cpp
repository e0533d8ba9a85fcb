#include <gmock/gmock.h>

#include <cmath>

#include "selected.h"

namespace winnow {
namespace {

using test::blocks_of;
using test::keys;
using test::make_method;
using test::queries;
using test::ref_ops;
using test::select;
using test::SiteFixture;
using test::SiteShape;

using Matrix = std::vector<std::vector<double>>;
constexpr size_t kBlock = 64;
constexpr float kFrequency[] = {1, 0.1F, 0.01F, 0.001F};

// A file with this gate in every layer, at a path of its own. gate: [n_head * dim, 3 * dim]
std::string write_gate(const MethodShape& shape, const std::vector<float>& gate) {
  std::string path = temporary_path("seerattention.gguf");
  GivenWeights given;
  for (int32_t layer = 0; layer < shape.n_layer; ++layer) given[fmt::format("blk.{}.gate_k.weight", layer)] = gate;
  write_weights(path, find_method("seerattention"), shape, given);
  return path;
}

std::string spec(const std::string& path, const std::string& rest) {
  return fmt::format("seerattention({}, weights={})", rest, path);
}

// The gate's softmax rows for one head, by the paper's formulas; q and k before RoPE, `turn` turns by a position.
template <typename Turn>
Matrix gate_rows(const Matrix& q, const Matrix& k, const float* gate, int first_position, const Turn& turn) {
  const size_t dim = q.front().size();
  const auto turned = [&](const std::vector<double>& row, int position) {
    std::vector<float> values(row.begin(), row.end());
    turn(values.data(), position);
    return values;
  };
  Matrix gate_keys;
  for (size_t begin = 0; begin < k.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, k.size());
    std::vector<double> pooled(3 * dim), row(dim);
    for (size_t d = 0; d < dim; ++d) {
      pooled[d] = pooled[dim + d] = k[begin][d];
      for (size_t j = begin; j < end; ++j) {
        pooled[d] = std::max(pooled[d], k[j][d]);
        pooled[dim + d] = std::min(pooled[dim + d], k[j][d]);
        pooled[2 * dim + d] += k[j][d] / static_cast<double>(end - begin);
      }
    }
    for (size_t d = 0; d < dim; ++d) {
      for (size_t i = 0; i < 3 * dim; ++i) row[d] += pooled[i] * double{gate[d * 3 * dim + i]};
    }
    const std::vector<float> at = turned(row, static_cast<int>(begin));
    gate_keys.emplace_back(at.begin(), at.end());
  }
  Matrix rows;
  for (size_t begin = 0; begin < q.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, q.size());
    std::vector<double> mean(dim), p;
    for (size_t i = begin; i < end; ++i) {
      for (size_t d = 0; d < dim; ++d) mean[d] += q[i][d] / static_cast<double>(end - begin);
    }
    const std::vector<float> query = turned(mean, first_position + static_cast<int>(begin));
    double sum = 0;
    for (size_t x = 0; x * kBlock < static_cast<size_t>(first_position) + end; ++x) {
      double z = 0;
      for (size_t d = 0; d < dim; ++d) z += double{query[d]} * gate_keys[x][d];
      sum += std::exp(z / std::sqrt(static_cast<double>(dim)));
      p.push_back(std::exp(z / std::sqrt(static_cast<double>(dim))));
    }
    for (double& value : p) value /= sum;
    rows.push_back(p);
  }
  return rows;
}

// The blocks that a row of the gate keeps, its own and, where they are dense, all among them.
std::set<int> above(const std::vector<double>& row, int own, double threshold, bool dense) {
  std::set<int> kept;
  for (int x = 0; x < static_cast<int>(row.size()); ++x) {
    if (dense || x >= own || row[static_cast<size_t>(x)] > threshold) kept.insert(x);
  }
  return kept;
}

const SiteShape kShapes[] = {{.n_q = 700, .n_k = 700, .n_head = 4, .n_head_kv = 2, .head_dim = 8},
                             {.n_q = 640, .n_k = 640, .n_head = 2, .n_head_kv = 1, .head_dim = 8, .contrast = 4},
                             {.n_q = 300, .n_k = 620, .n_head = 2, .n_head_kv = 2, .head_dim = 8},   // behind a prefix
                             {.n_q = 300, .n_k = 777, .n_head = 2, .n_head_kv = 1, .head_dim = 8}};  // not aligned

TEST(SeerAttention, SelectsByThePapersFormulas) {
  for (const SiteShape& shape : kShapes) {
    for (const bool neox : {true, false}) {
      SiteFixture fixture(shape, 5);
      std::vector<Matrix> q, k;
      for (int32_t head = 0; head < shape.n_head; ++head) {
        q.push_back(queries(fixture, head));
        k.push_back(keys(fixture, fixture.kv_of(head)));
      }
      fixture.turn({8, neox ? 8 : 6, neox, 1.1F, kFrequency});
      std::mt19937 random(9);
      std::normal_distribution<float> normal(0, 0.4F);
      std::vector<float> gate(static_cast<size_t>(shape.n_head) * 8 * 24);
      for (float& value : gate) value = normal(random);
      const std::string path = write_gate(fixture.method_shape(), gate);
      int n_left_out = 0;
      for (const double threshold : {0.02, 0.1}) {
        const Selection selection = select(spec(path, fmt::format("threshold={}", threshold)), fixture);
        const int first = shape.n_k - shape.n_q;
        for (int32_t head = 0; head < shape.n_head; ++head) {
          const Matrix rows = gate_rows(q[static_cast<size_t>(head)], k[static_cast<size_t>(head)],
                                        gate.data() + static_cast<size_t>(head) * 8 * 24, first,
                                        [&](float* values, int position) { fixture.turn(values, position); });
          ASSERT_EQ(static_cast<size_t>(selection.n_block_q), rows.size());
          for (int32_t m = 0; m < selection.n_block_q; ++m) {
            const std::vector<double>& row = rows[static_cast<size_t>(m)];
            const std::set<int> got = blocks_of(selection, head, m);
            const bool dense = m + 2 >= selection.n_block_q;
            const int own = (first + m * 64) / 64;
            EXPECT_TRUE(got == above(row, own, threshold * (1 + 1e-4), dense) ||
                        got == above(row, own, threshold * (1 - 1e-4), dense))
                << shape.text() << " head " << head << " block " << m;
            n_left_out += static_cast<int>(row.size() - got.size());
          }
        }
      }
      EXPECT_GT(n_left_out, 20) << shape.text();
    }
  }
}

// The specification's example has blocks of two tokens; each is written 32 times here, which changes no pooling.
SiteFixture worked_example() {
  SiteFixture fixture({.n_q = 192, .n_k = 192, .n_head = 1, .n_head_kv = 1, .head_dim = 2}, 1);
  const float q[6][2] = {{1, 0}, {1, 2}, {0, 1}, {2, 1}, {1, 1}, {3, -1}};
  const float k[6][2] = {{1, 0}, {0, 1}, {2, 2}, {1, -1}, {0, 3}, {1, 1}};
  for (int32_t row = 0; row < 192; ++row) {
    for (int32_t d = 0; d < 2; ++d) {
      fixture.query(row, 0)[d] = q[row / 32][d];
      fixture.key(0, row)[d] = k[row / 32][d];
    }
  }
  fixture.store();
  return fixture;
}

TEST(SeerAttention, WorkedExample) {
  SiteFixture fixture = worked_example();
  const std::string path = write_gate(fixture.method_shape(), {1, 0, .5F, 0, .5F, 0, 0, 1, 0, .5F, 0, .5F});
  const auto kept = [&](double threshold) {
    const Selection selection = select(spec(path, fmt::format("threshold={}, last_dense=0", threshold)), fixture);
    return std::vector<std::set<int>>{blocks_of(selection, 0, 0), blocks_of(selection, 0, 1),
                                      blocks_of(selection, 0, 2)};
  };
  using Rows = std::vector<std::set<int>>;
  // G = [1], [.14582, .85418], [.05286, .89429, .05286]; a row's own block comes on top.
  EXPECT_EQ(kept(.2), (Rows{{0}, {1}, {1, 2}}));
  EXPECT_EQ(kept(.14581), (Rows{{0}, {0, 1}, {1, 2}}));
  EXPECT_EQ(kept(.14583), (Rows{{0}, {1}, {1, 2}}));
  EXPECT_EQ(kept(.05285), (Rows{{0}, {0, 1}, {0, 1, 2}}));
  EXPECT_EQ(kept(.05287), (Rows{{0}, {0, 1}, {1, 2}}));
  EXPECT_EQ(kept(.89428), (Rows{{0}, {1}, {1, 2}}));
  EXPECT_EQ(kept(.8943), (Rows{{0}, {1}, {2}}));
}

// Scores grow with the block: a row of blocks then takes its last ones, its own among them.
SiteFixture growing(int32_t n_block) {
  const int32_t n = n_block * 64;
  SiteFixture fixture({.n_q = n, .n_k = n, .n_head = 1, .n_head_kv = 1, .head_dim = 2}, 1);
  for (int32_t row = 0; row < n; ++row) {
    const int32_t block = row / 64;
    for (int32_t d = 0; d < 2; ++d) {
      fixture.query(row, 0)[d] = 1;
      fixture.key(0, row)[d] = static_cast<float>(block) / 64;
    }
  }
  fixture.store();
  return fixture;
}

TEST(SeerAttention, TheShareOfBlocksIsThatOfTheTriangle) {
  const int want[4][5] = {{16, 1, 1, 2, 4}, {32, 1, 3, 5, 9}, {64, 3, 6, 10, 18}, {128, 6, 13, 20, 37}};
  const double ratios[] = {.1, .2, .3, .5};
  for (const auto& row : want) {
    SiteFixture fixture = growing(row[0]);
    const std::string path = write_gate(fixture.method_shape(), {0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1});
    for (size_t i = 0; i < 4; ++i) {
      const Selection selection = select(spec(path, fmt::format("ratio={}, last_dense=0", ratios[i])), fixture);
      int64_t n = 0;
      for (int m = 0; m < row[0]; ++m) {
        const std::set<int> got = blocks_of(selection, 0, m);
        ASSERT_EQ(static_cast<int>(got.size()), std::min(m + 1, row[i + 1])) << row[0] << " " << ratios[i];
        ASSERT_EQ(*got.rbegin(), m);
        n += std::ssize(got);
      }
      const double density = static_cast<double>(n) / (row[0] * (row[0] + 1) / 2.0);
      if (row[0] == 64 && i == 3) {
        EXPECT_NEAR(density, .48029, 1e-5);
      }
      if (row[0] == 64 && i == 1) {
        EXPECT_NEAR(density, .17740, 1e-5);
      }
    }
  }
}

TEST(SeerAttention, LaterTokensChangeNothing) {
  SiteFixture fixture({.n_q = 640, .n_k = 640, .n_head = 2, .n_head_kv = 1, .head_dim = 8}, 6);
  fixture.turn({8, 8, true, 1, kFrequency});
  const Site site = fixture.site(ref_ops());
  const Site some = {.layer = 0,
                     .q = site.q.rows(0, 320),
                     .kv = site.kv,
                     .limit = site.limit.first(320),
                     .scale = site.scale,
                     .softcap = 0,
                     .window = 0,
                     .rope = site.rope,
                     .ops = site.ops};
  const std::string text = "seerattention(threshold=0.1, last_dense=0)";
  const Selection whole = make_method(text, fixture.method_shape()).selector->select(site);
  const Selection part = make_method(text, fixture.method_shape()).selector->select(some);
  for (int32_t head = 0; head < 2; ++head) {
    for (int32_t m = 0; m < 5; ++m) EXPECT_EQ(blocks_of(whole, head, m), blocks_of(part, head, m));
  }
}

TEST(SeerAttention, DenseWhereItMust) {
  SiteFixture two({.n_q = 128, .n_k = 128}, 2), more({.n_q = 500, .n_k = 500}, 2);
  EXPECT_TRUE(select("seerattention(threshold=0)", more).everything());
  const Site site = two.site(ref_ops());
  AttnCounts counts;
  test::attend(site, select("seerattention(threshold=1)", two), nullptr, &counts);
  EXPECT_EQ(counts.density(), 1);  // the last two blocks of rows are all there are
  EXPECT_FALSE(select("seerattention(threshold=1)", more).everything());
  EXPECT_FALSE(select("seerattention(threshold=0, ratio=0.5)", more).everything());
}

TEST(SeerAttention, RefusesWithoutAFile) {
  const MethodInfo& info = find_method("seerattention");
  const Params params = resolve(parse_spec("seerattention"), info.params, info.texts);
  try {
    info.make(params, {1, 2, 1, 16});
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("give them as seerattention(weights=PATH)"));
  }
}

}  // namespace
}  // namespace winnow
