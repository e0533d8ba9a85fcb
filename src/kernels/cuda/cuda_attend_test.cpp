// Attention and the verbs on the GPU against ref, by Hopper's kernels and by the portable ones.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <random>

#include "attention/lists.h"
#include "attention/problem.h"
#include "attention/sets.h"
#include "kernels/cuda/gpu_fixture.h"
#include "kernels/ref/attention.h"

namespace winnow {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kTolerance = 2e-2;  // 8 bits of mantissa

struct Result {
  std::vector<float> o, lse;
  AttnCounts counts;
};

/// By plain loops, with queries rounded as the GPU's activations are.
Result by_ref(AttnArgs args) {
  Result result;
  const auto n = static_cast<size_t>(args.q.n_rows * args.q.n_head);
  std::vector<float> q(args.q.data, args.q.data + n * static_cast<size_t>(args.q.head_dim));
  test::round_to_bf16(q);
  result.o.resize(q.size());
  result.lse.resize(n);
  args.q.data = q.data();
  args.o.data = result.o.data();
  args.lse = result.lse.data();
  args.counts = &result.counts;
  ref::attend(args);
  return result;
}

void expect_near(const Result& actual, const Result& expected) {
  ASSERT_EQ(actual.o.size(), expected.o.size());
  double worst = 0;
  for (size_t i = 0; i < actual.o.size(); ++i) {
    const double difference = std::abs(static_cast<double>(actual.o[i]) - expected.o[i]);
    worst = std::isnan(difference) ? kInfinity : std::max(worst, difference);
  }
  EXPECT_LT(worst, kTolerance);
  for (size_t i = 0; i < actual.lse.size(); ++i) {
    if (expected.lse[i] == -kInfinity) {
      ASSERT_EQ(actual.lse[i], -kInfinity) << i;
    } else {
      ASSERT_NEAR(actual.lse[i], expected.lse[i], kTolerance * (1 + std::abs(expected.lse[i]))) << i;
    }
  }
  EXPECT_EQ(actual.counts.permitted, expected.counts.permitted);
  EXPECT_EQ(actual.counts.computed, expected.counts.computed);
}

class CudaAttend : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (gpu().device == nullptr) GTEST_SKIP() << gpu().why_not;
  }
  static const test::Gpu& gpu() { return test::gpu(GetParam()); }
  static Device& device() { return *gpu().device; }

  static Result by_gpu(const ProblemData& data, AttnArgs args, ProblemOn& on_gpu) {
    const AttnArgs memory = on_gpu.args();
    args.q = memory.q;
    args.kv.heads = memory.kv.heads;
    args.o = memory.o;
    args.lse = memory.lse;
    Result result;
    args.counts = &result.counts;
    // Stale values must not survive.
    const std::vector<float> stale(static_cast<size_t>(data.args().q.n_rows * args.o.stride), 7);
    device().upload({args.o.data, args.o.n_rows, args.o.n_head * args.o.head_dim, args.o.stride, args.o.type},
                    stale.data());
    device().attend(args);
    device().sync();
    on_gpu.download(result.o, result.lse);
    return result;
  }
  static Result by_gpu(const ProblemData& data) {
    ProblemOn on_gpu(device(), data);
    return by_gpu(data, data.args(), on_gpu);
  }

  static void check(const std::string& text) {
    SCOPED_TRACE(text);
    const ProblemData data(parse_problem(text));
    expect_near(by_gpu(data), by_ref(data.args()));
  }
};

INSTANTIATE_TEST_SUITE_P(Kernels, CudaAttend, testing::Values("hopper", "portable"),
                         [](const auto& kernels) { return kernels.param; });

TEST_P(CudaAttend, HeadSizes) {
  for (const int dim : {8, 16, 24, 40, 56, 64, 72, 80, 96, 120, 128, 192, 256}) {
    check(fmt::format("prefill rows=70 dim={} heads=2 kv=1 type=f16", dim));
    check(fmt::format("decode slots=70 dim={} heads=2 kv=1 type=bf16", dim));
  }
}

TEST_P(CudaAttend, StorageTypes) {
  for (const char* type : {"f32", "f16", "bf16", "q8_0", "fp8"}) {
    for (const int dim : {32, 64, 96, 128}) {
      check(fmt::format("prefill rows=65 slots=150 dim={} type={}", dim, type));
      check(fmt::format("decode slots=150 dim={} type={}", dim, type));
    }
  }
  check("prefill rows=65 dim=64 ktype=q8_0 vtype=f16");
  check("decode slots=65 dim=64 ktype=f32 vtype=q8_0");
  for (const int dim : {8, 16, 24, 40, 72, 120, 192, 256}) {  // fp8 rows of any multiple of 8 bytes
    check(fmt::format("prefill rows=65 slots=150 dim={} type=fp8", dim));
    check(fmt::format("decode slots=150 dim={} heads=4 kv=1 type=fp8", dim));
    check(fmt::format("decode slots=150 dim={} ktype=fp8 vtype=f16 holes=0.3", dim));
  }
}

TEST_P(CudaAttend, RowCounts) {
  for (const int rows : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 257}) {
    check(fmt::format("prefill rows={} dim=16 heads=3 kv=1", rows));
    check(fmt::format("prefill rows={} slots=300 dim=16 heads=3 kv=1 window=40", rows));
  }
}

TEST_P(CudaAttend, SlotCounts) {
  for (const int slots : {1, 2, 63, 64, 65, 511, 512, 513, 1100, 9000}) {
    check(fmt::format("decode slots={} dim=24 heads=4 kv=2", slots));
  }
}

TEST_P(CudaAttend, Groups) {
  for (int group = 1; group <= 14; ++group) {
    check(fmt::format("prefill rows=40 dim=16 kv=2 heads={}", 2 * group));
    check(fmt::format("decode rows={} slots=90 dim=16 kv=2 heads={}", 1 + group % 3, 2 * group));
  }
}

/// All features at random, but for skip-softmax: its votes are cast by logits that rounding moves.
std::string random_problem(std::mt19937& random) {
  const auto one_of = [&random](auto... values) {
    const std::array all{values...};
    return all[random() % all.size()];
  };
  const int kv = one_of(1, 2, 3);
  const int rows = one_of(1, 1, 2, 5, 30, 64, 100, 200);
  return fmt::format(
      "prefill rows={} slots={} kv={} heads={} dim={} ktype={} vtype={} density={} block_q={} block_k={} columns={} "
      "unaligned={} shared={} window={} softcap={} bias={} holes={} seed={}",
      rows, rows + static_cast<int>(random() % 200) * one_of(0, 1, 3), kv, kv * one_of(1, 2, 5), one_of(32, 64, 96),
      one_of("f32", "f16", "bf16", "q8_0", "fp8"), one_of("f32", "f16", "bf16", "q8_0", "fp8"),
      one_of(1.0, 0.5, 0.1, 0.0), one_of(64, 128), one_of(64, 128), one_of(0, 3, 90), one_of(0, 1), one_of(0, 1),
      one_of(0, 0, 1, 70, 300), one_of(0, 0, 5), one_of(0, 1), one_of(0.0, 0.0, 0.3), random() % 1000);
}

TEST_P(CudaAttend, RandomProblems) {
  std::mt19937 random(11);
  for (int i = 0; i < 150 && !HasFailure(); ++i) check(random_problem(random));
}

/// Neighbouring blocks of 64 rows whose lists have everything, something or nothing in common, one much longer than the
/// other, or empty: Hopper's kernels walk through the lists of two of them at a time.
TEST_P(CudaAttend, NeighboursNeedNotWantTheSame) {
  const auto every = [](int32_t step, int32_t first) {
    std::vector<int32_t> blocks;
    for (int32_t slot = first; slot + 64 <= 2496; slot += step * 64) blocks.push_back(slot);
    return blocks;
  };
  const std::vector<std::vector<int32_t>> lists = {every(1, 0), every(2, 0),  every(2, 64), {},
                                                   {0, 2432},   every(1, 17), every(13, 0), {2432}};
  for (const char* text : {"dim=64", "dim=128", "dim=256", "dim=128 softcap=5 bias=1"}) {
    const ProblemData data(parse_problem(fmt::format("prefill rows=320 slots=2500 heads=12 kv=2 type=bf16 {}", text)));
    ProblemOn on_gpu(device(), data);
    std::mt19937 random(3);
    std::vector<HeadLists> heads(12);
    for (HeadLists& head : heads) {
      for (int block = 0; block < 5; ++block) {
        const std::vector<int32_t>& blocks = lists[random() % lists.size()];
        head.block_begin.insert(head.block_begin.end(), blocks.begin(), blocks.end());
        head.end_block();
      }
    }
    const Selection selection = join_lists(heads, 64, 64);
    AttnArgs args = data.args();
    args.selection = &selection;
    SCOPED_TRACE(text);
    expect_near(by_gpu(data, args, on_gpu), by_ref(args));
  }
}

TEST_P(CudaAttend, SkipSoftmaxDropsTiles) {
  for (const char* text :
       {"prefill rows=300 slots=900 dim=32 heads=4 kv=2 skip=0.3", "prefill rows=64 slots=900 skip=0.8",
        "prefill rows=300 slots=900 dim=32 density=0.7 columns=100 unaligned=1 skip=0.3",
        "prefill rows=300 slots=900 dim=64 density=0.7 columns=100 unaligned=1 block_q=128 skip=0.3",
        "decode slots=3000 heads=2 kv=2 skip=0.5", "decode slots=3000 skip=0.9",
        "decode slots=3000 heads=4 kv=1 density=0.5 columns=70 skip=0.5",
        "decode rows=2 slots=3000 heads=2 kv=1 skip=0.7"}) {
    SCOPED_TRACE(text);
    const Problem problem = parse_problem(std::string(text) + " type=bf16");
    const ProblemData data(problem);
    AttnArgs args = data.args();
    // Tiles that differ in weight, as those of real keys do; random logits hardly ever let 64 rows agree.
    std::mt19937 random(5);
    std::normal_distribution<float> normal(0, 3);
    std::vector<float> bias;
    while (static_cast<int64_t>(bias.size()) < problem.n_slots()) {
      bias.insert(bias.end(), kVoteSlots, normal(random));
    }
    ProblemOn on_gpu(device(), data);
    std::vector<KvHead> heads(args.kv.heads.begin(), args.kv.heads.end());
    for (KvHead& head : heads) head.bias = bias.data();
    args.kv.heads = heads;
    const Result expected = by_ref(args);
    std::vector<KvHead> there(on_gpu.args().kv.heads.begin(), on_gpu.args().kv.heads.end());
    for (KvHead& head : there) head.bias = bias.data();
    AttnArgs gpu_args = on_gpu.args();
    gpu_args.kv.heads = there;
    Result actual;
    gpu_args.counts = &actual.counts;
    device().attend(gpu_args);
    device().sync();
    on_gpu.download(actual.o, actual.lse);
    expect_near(actual, expected);
    args.skip = nullptr;
    EXPECT_LT(expected.counts.computed, by_ref(args).counts.computed);
  }
}

TEST_P(CudaAttend, ChunksOfRowsAreTheWhole) {
  const ProblemData data(parse_problem("prefill rows=320 dim=32 heads=4 kv=2 density=0.5 columns=9 unaligned=1"));
  ProblemOn on_gpu(device(), data);
  const Result whole = by_gpu(data, data.args(), on_gpu);
  for (const int64_t chunk : {64, 128, 256}) {
    Result parts;
    for (int64_t begin = 0; begin < 320; begin += chunk) {
      AttnArgs args = on_gpu.args();
      const int64_t n = std::min<int64_t>(chunk, 320 - begin);
      args.q = args.q.rows(begin, n);
      args.o = args.o.rows(begin, n);
      args.lse += begin * args.q.n_head;
      args.limit += begin;
      args.first_row = begin;
      device().attend(args);
    }
    on_gpu.download(parts.o, parts.lse);
    if (GetParam() == "portable") {
      EXPECT_EQ(parts.o, whole.o) << chunk;
      EXPECT_EQ(parts.lse, whole.lse) << chunk;
      continue;
    }
    // Hopper's kernels work on two lists at a time, and a chunk pairs them otherwise: sums come in another order. lse
    // is float32, outputs are rounded to bf16 afterwards.
    for (size_t i = 0; i < whole.lse.size(); ++i) {
      if (parts.lse[i] == whole.lse[i]) continue;  // both -infinity, too
      ASSERT_NEAR(parts.lse[i], whole.lse[i], 1e-5 * (1 + std::abs(whole.lse[i]))) << i << " of chunks of " << chunk;
    }
    for (size_t i = 0; i < whole.o.size(); ++i) {
      ASSERT_NEAR(parts.o[i], whole.o[i], 8e-3 * std::abs(whole.o[i]) + 1e-5) << i << " of chunks of " << chunk;
    }
  }
}

TEST_P(CudaAttend, OutputMayBeTheQueriesOrTheHost) {
  for (const char* text : {"prefill rows=200 dim=64 heads=4 kv=2", "decode slots=1000 dim=64 heads=4 kv=2"}) {
    const ProblemData data(parse_problem(text));
    ProblemOn on_gpu(device(), data);
    const Result apart = by_gpu(data, data.args(), on_gpu);
    AttnArgs args = on_gpu.args();
    std::vector<float> o(apart.o.size());
    AttnCounts counts;
    args.o = {o.data(), args.q.n_rows, args.q.n_head, args.q.head_dim, int64_t{args.q.n_head} * args.q.head_dim};
    args.lse = nullptr;
    args.counts = &counts;
    device().attend(args);  // float32 where the other is rounded
    for (size_t i = 0; i < o.size(); ++i) ASSERT_NEAR(o[i], apart.o[i], 1e-2 * (1e-2 + std::abs(o[i]))) << i;
    EXPECT_EQ(counts.computed, apart.counts.computed);
    args.o = args.q;
    device().attend(args);
    const int64_t width = int64_t{args.q.n_head} * args.q.head_dim;
    device().download(o.data(), {args.q.data, args.q.n_rows, width, args.q.stride, args.q.type});
    EXPECT_EQ(o, apart.o) << text;
  }
}

TEST_P(CudaAttend, FloatQueries) {
  for (const char* text : {"prefill rows=100 dim=64 heads=4 kv=2", "decode slots=300 dim=96 heads=4 kv=2"}) {
    const ProblemData data(parse_problem(text));
    ProblemOn on_gpu(device(), data);
    AttnArgs args = on_gpu.args();
    const int64_t width = int64_t{args.q.n_head} * args.q.head_dim;
    const Scratch q = device().scratch(args.q.n_rows, width);
    device().upload(q, data.args().q.data);
    args.q = q->heads(args.q.head_dim);
    Result result;
    args.counts = &result.counts;
    device().attend(args);
    device().sync();
    on_gpu.download(result.o, result.lse);
    expect_near(result, by_ref(data.args()));
  }
}

/// Lists that a kv head's query heads share are those that each of them has.
TEST_P(CudaAttend, HeadsOfAGroupMayShareLists) {
  const ProblemData data(parse_problem("prefill rows=300 heads=4 kv=2 dim=64 density=0.3 columns=20"));
  const Selection& apart = *data.args().selection;
  ASSERT_EQ(apart.n_head, 4);
  std::vector<HeadLists> shared(2), each(4);
  for (size_t kv = 0; kv < 2; ++kv) {
    for (int32_t block = 0; block < apart.n_block_q; ++block) {
      const auto list = static_cast<size_t>(apart.list(static_cast<int32_t>(2 * kv), block));
      const auto add = [list](std::vector<int32_t>& to, const std::vector<int32_t>& from, const auto& ptr) {
        to.insert(to.end(), from.begin() + ptr[list], from.begin() + ptr[list + 1]);
      };
      add(shared[kv].block_begin, apart.block_begin, apart.block_ptr);
      add(shared[kv].column, apart.column, apart.column_ptr);
      shared[kv].end_block();
    }
    each[2 * kv] = each[2 * kv + 1] = shared[kv];
  }
  Selection by_group = join_lists(shared, apart.block_q, apart.block_k);
  by_group.group = 2;
  const Selection by_head = join_lists(each, apart.block_q, apart.block_k);
  ProblemOn on_gpu(device(), data);
  AttnArgs args = data.args();
  args.selection = &by_head;
  const Result expected = by_ref(args);
  expect_near(by_gpu(data, args, on_gpu), expected);
  for (const Selection& selection : {by_group, device().on_device(by_group)}) {
    args.selection = &selection;
    expect_near(by_gpu(data, args, on_gpu), expected);
  }
}

/// Lists may end anywhere in columns that they share, for many rows and for few.
TEST_P(CudaAttend, ListsMayShareColumns) {
  for (const char* text :
       {"prefill rows=300 slots=500 heads=4 kv=2 dim=64", "prefill rows=3 slots=200 heads=4 kv=2 dim=64"}) {
    SCOPED_TRACE(text);
    const ProblemData data(parse_problem(text));
    std::vector<int32_t> set;
    for (int32_t slot = 0; slot < data.args().kv.heads[0].n_slots; ++slot) {
      if (slot % 3 == 0 || (slot > 90 && slot < 190)) set.push_back(slot);
    }
    const std::vector<std::vector<int32_t>> sets = {set, {5, 17, 130, 180}};
    const Selection joined = join_sets(data.args().kv, sets, std::vector<double>{1, 1});
    const SetArgs set_args = {.kv = data.args().kv,
                              .limit = {data.args().limit, static_cast<size_t>(data.args().q.n_rows)},
                              .n_head = 4,
                              .sets = &joined,
                              .window = 20};
    const Selection lists = device().Ops::select_sets(set_args);
    ASSERT_FALSE(lists.column_end.empty());
    ProblemOn on_gpu(device(), data);
    AttnArgs args = data.args();
    args.selection = &lists;
    const Result expected = by_ref(args);
    for (const Selection& selection : {lists, device().on_device(lists)}) {
      args.selection = &selection;
      expect_near(by_gpu(data, args, on_gpu), expected);
    }
  }
}

TEST_P(CudaAttend, RowsThatSeeNothingAreZero) {
  for (const int rows : {1, 3, 100}) {
    const ProblemData data(parse_problem(fmt::format("prefill rows={} dim=64 heads=4 kv=2", rows)));
    ProblemOn on_gpu(device(), data);
    AttnArgs args = data.args();
    const std::vector<int32_t> limit(static_cast<size_t>(rows), -1);
    args.limit = limit.data();
    const Result result = by_gpu(data, args, on_gpu);
    EXPECT_EQ(result.o, std::vector<float>(result.o.size(), 0.0F));
    EXPECT_EQ(result.lse, std::vector<float>(result.lse.size(), -kInfinity));
    EXPECT_EQ(result.counts.permitted, 0);
  }
}

TEST_P(CudaAttend, LargeLogitsStayFinite) {
  for (const char* text : {"prefill rows=100 dim=64 heads=2 kv=1", "decode slots=700 dim=64 heads=2 kv=1"}) {
    const ProblemData data(parse_problem(text));
    ProblemOn on_gpu(device(), data);
    AttnArgs args = data.args();
    args.scale = 300;  // logits in the thousands: one key wins
    for (const float x : by_gpu(data, args, on_gpu).o) ASSERT_TRUE(std::isfinite(x)) << text;
  }
}

TEST_P(CudaAttend, CountsAddUpUntilSync) {
  const ProblemData data(parse_problem("prefill rows=100 dim=32 heads=4 kv=2 density=0.5"));
  ProblemOn on_gpu(device(), data);
  const Result expected = by_ref(data.args());
  std::array<AttnCounts, 3> counts;
  for (int i = 0; i < 9; ++i) {
    AttnArgs args = on_gpu.args();
    args.counts = &counts[static_cast<size_t>(i % 3)];
    device().attend(args);
  }
  device().sync();
  for (const AttnCounts& sum : counts) {
    EXPECT_EQ(sum.permitted, 3 * expected.counts.permitted);
    EXPECT_EQ(sum.computed, 3 * expected.counts.computed);
  }
}

}  // namespace
}  // namespace winnow
