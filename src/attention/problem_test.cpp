#include "attention/problem.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "attention/drawn_lines.h"
#include "base/error.h"

namespace winnow {
namespace {

TEST(ParseProblem, TakesTheKeys) {
  const Problem p = parse_problem("prefill rows=8192 heads=12  kv=2 dim=128 type=q8_0 vtype=f16 density=0.1 window=7");
  EXPECT_EQ(p.rows, 8192);
  EXPECT_EQ(p.n_slots(), 8192);
  EXPECT_EQ(p.heads, 12);
  EXPECT_EQ(p.kv, 2);
  EXPECT_EQ(p.dim, 128);
  EXPECT_EQ(p.k_type, Type::q8_0);
  EXPECT_EQ(p.v_type, Type::f16);
  EXPECT_EQ(parse_problem("decode type=fp8 vtype=f16 dim=40").k_type, Type::fp8);
  EXPECT_EQ(p.density, 0.1);
  EXPECT_EQ(p.window, 7);
  EXPECT_TRUE(p.sparse());
}

TEST(ParseProblem, DecodeIsOneRowOfALongCache) {
  const Problem p = parse_problem("decode");
  EXPECT_EQ(p.rows, 1);
  EXPECT_EQ(p.n_slots(), 32768);
  EXPECT_FALSE(p.sparse());
}

TEST(ParseProblem, NamesWhatIsWrong) {
  struct Case {
    const char* text;
    const char* named;
  };
  for (const Case& c :
       {Case{"", "neither with prefill nor with decode"}, Case{"training", "training"},
        Case{"prefill depth=3", "depth=3"}, Case{"prefill rows", "rows"}, Case{"prefill rows=0", "from 1 to"},
        Case{"prefill rows=4x", "4x"}, Case{"prefill rows=99999999999999999999", "from 1 to"},
        Case{"prefill density=1.5", "1.5"}, Case{"prefill density=nan", "nan"}, Case{"prefill type=q4_0", "q4_0"},
        Case{"prefill heads=5 kv=2", "heads=5"}, Case{"prefill dim=20", "dim=20"},
        Case{"prefill dim=40 type=q8_0", "q8_0"}, Case{"prefill block_k=96", "96"},
        Case{"prefill rows=9 slots=8", "rows=9"}, Case{"prefill verticals=9", "verticals=9"},
        Case{"prefill slashes=9 density=0.5", "slashes=9"}}) {
    try {
      parse_problem(c.text);
      ADD_FAILURE() << "accepted: " << c.text;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr(c.named));
    }
  }
}

TEST(ProblemData, SelectionHasTheDensityAndTheDiagonal) {
  const Problem problem = parse_problem("prefill rows=4096 heads=2 kv=1 dim=8 density=0.25");
  const ProblemData data(problem);
  const Selection& s = data.selection();
  ASSERT_EQ(s.n_block_q, 64);
  int64_t chosen = 0;
  for (int32_t head = 0; head < 2; ++head) {
    for (int32_t block = 0; block < s.n_block_q; ++block) {
      const auto list = static_cast<size_t>(s.list(head, block));
      ASSERT_GT(s.block_ptr[list + 1], s.block_ptr[list]);
      EXPECT_EQ(s.block_begin[static_cast<size_t>(s.block_ptr[list + 1] - 1)], block * 64);
      chosen += s.block_ptr[list + 1] - s.block_ptr[list];
    }
  }
  EXPECT_NEAR(static_cast<double>(chosen) / (64 * 65), 0.25, 0.02);
}

// As bench/minference_peer.py draws them.
TEST(ProblemData, LinesAreThoseOfTheRule) {
  const Lines lines = draw_lines(parse_problem("prefill verticals=33 slashes=20 runs=4"), 1, 5000);
  EXPECT_THAT(lines.verticals, testing::SizeIs(33));
  EXPECT_THAT(std::vector(lines.verticals.begin() + 28, lines.verticals.end()),
              testing::ElementsAre(28, 29, 590, 2465, 3519));
  EXPECT_THAT(lines.slashes, testing::ElementsAre(3765, 3764, 3763, 3762, 3761, 239, 238, 237, 236, 235, 52, 51, 50, 49,
                                                  48, 4, 3, 2, 1, 0));
  EXPECT_THAT(draw_lines(parse_problem("prefill verticals=33 slashes=20"), 0, 7).slashes,
              testing::ElementsAre(6, 5, 4, 3, 2, 1, 0));
}

TEST(ProblemData, ListsCoverTheLines) {
  const Problem problem = parse_problem("prefill rows=700 slots=900 heads=2 kv=1 dim=8 verticals=40 slashes=60 runs=5");
  const ProblemData data(problem);
  const Selection& s = data.selection();
  for (int32_t head = 0; head < 2; ++head) {
    const Lines lines = draw_lines(problem, head, 900);
    const std::set<int32_t> columns(lines.verticals.begin(), lines.verticals.end());
    const std::set<int32_t> distances(lines.slashes.begin(), lines.slashes.end());
    for (int32_t row = 0; row < 700; ++row) {
      const auto list = static_cast<size_t>(s.list(head, row / 64));
      std::vector<bool> held(1200);
      for (int32_t i = s.block_ptr[list]; i < s.block_ptr[list + 1]; ++i) {
        std::fill_n(held.begin() + s.block_begin[static_cast<size_t>(i)], 64, true);
      }
      for (int32_t i = s.column_ptr[list]; i < s.column_ptr[list + 1]; ++i) {
        held[static_cast<size_t>(s.column[static_cast<size_t>(i)])] = true;
      }
      for (int32_t slot = 0; slot <= row + 200; ++slot) {
        if (columns.count(slot) + distances.count(row + 200 - slot) > 0) {
          ASSERT_TRUE(held[static_cast<size_t>(slot)]) << "head " << head << " row " << row << " slot " << slot;
        }
      }
    }
  }
}

TEST(ProblemData, TheSeedDecidesTheNumbers) {
  const auto first_query = [](const char* text) {
    const ProblemData data(parse_problem(text));
    return data.args().q.data[0];
  };
  EXPECT_EQ(first_query("decode slots=9 seed=4"), first_query("decode slots=9 seed=4"));
  EXPECT_NE(first_query("decode slots=9 seed=4"), first_query("decode slots=9 seed=5"));
}

TEST(RunProblem, ComparesWithRef) {
  const auto device = make_device("cpu", 1);
  for (const char* text : {"prefill rows=150 dim=64 density=0.5 columns=5", "decode slots=500"}) {
    const ProblemResult result = run_problem(*device, parse_problem(text), 0);
    EXPECT_LT(result.max_error, 0.02) << text;
    EXPECT_GT(result.rows_checked, 0) << text;
    EXPECT_GT(result.gflops, 0) << text;
    EXPECT_GT(result.peak_gflops, 0) << text;
    EXPECT_GT(result.read_gb_second, 0) << text;
  }
}

TEST(RunProblem, TimesTheEstimateOfLines) {
  const auto device = make_device("cpu", 1);
  const ProblemResult result =
      run_problem(*device, parse_problem("prefill rows=600 verticals=20 slashes=60 runs=3"), 0);
  EXPECT_LT(result.max_error, 0.02);
  EXPECT_LT(result.counts.density(), 0.9);
  EXPECT_GT(result.estimate_seconds, 0);
  EXPECT_GT(result.estimate_density, 0.05);
  EXPECT_LT(result.estimate_density, 0.9);
}

}  // namespace
}  // namespace winnow
