// Every attention kernel that this machine can run, against ref.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <string_view>

#include "attention/problem.h"
#include "kernels/cpu/attend_lists.h"
#include "kernels/cpu/attention.h"
#include "kernels/ref/attention.h"

namespace winnow::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Result {
  std::vector<float> o, lse;
  AttnCounts counts;
};

/// The result of `attend` on a problem, in memory of its own.
template <typename Attend>
Result result_of(AttnArgs args, const Attend& attend) {
  Result result;
  result.o.assign(static_cast<size_t>(args.q.n_rows * args.o.stride), 7);  // stale values must not survive
  result.lse.assign(static_cast<size_t>(args.q.n_rows * args.q.n_head), 7);
  args.o.data = result.o.data();
  args.lse = result.lse.data();
  args.counts = &result.counts;
  attend(args);
  return result;
}

Result by_ref(const AttnArgs& args) {
  return result_of(args, [](const AttnArgs& a) { ref::attend(a); });
}

class AttendKernelTest : public testing::TestWithParam<const AttendKernel*> {
 protected:
  void SetUp() override {
    if (!GetParam()->runs_on(machine_features())) GTEST_SKIP() << "this processor cannot run " << GetParam()->name;
  }

  Result by_kernel(const AttnArgs& args, int n_threads = 1) {
    ThreadPool pool(n_threads);
    MemoryMeter memory;
    CpuContext context{pool, memory, machine_features()};
    Result result = result_of(args, [&](const AttnArgs& a) { attend_with(*GetParam(), context, a); });
    EXPECT_EQ(memory.held(), static_cast<int64_t>(context.unpacked.bytes()));
    return result;
  }

  double tolerance() const {
    if (GetParam()->product == Type::bf16) return 2e-2;  // 8 bits of mantissa
    return std::string_view(GetParam()->name) == "avx2_int16" ? 2e-3 : 2e-5;
  }

  void expect_near(const Result& actual, const Result& expected) {
    ASSERT_EQ(actual.o.size(), expected.o.size());
    double worst = 0;
    for (size_t i = 0; i < actual.o.size(); ++i) {
      const double difference = std::abs(static_cast<double>(actual.o[i]) - expected.o[i]);
      worst = std::isnan(difference) ? kInfinity : std::max(worst, difference);
    }
    EXPECT_LT(worst, tolerance());
    for (size_t i = 0; i < actual.lse.size(); ++i) {
      if (expected.lse[i] == -kInfinity) {
        EXPECT_EQ(actual.lse[i], -kInfinity);
      } else {
        EXPECT_NEAR(actual.lse[i], expected.lse[i], tolerance() * (1 + std::abs(expected.lse[i])));
      }
    }
    EXPECT_EQ(actual.counts.permitted, expected.counts.permitted);
    EXPECT_EQ(actual.counts.computed, expected.counts.computed);
  }

  void check(const std::string& text) {
    SCOPED_TRACE(text);
    const ProblemData data(parse_problem(text));
    expect_near(by_kernel(data.args()), by_ref(data.args()));
  }
};

std::vector<const AttendKernel*> kernels() {
  const auto all = all_attend_kernels();
  return {all.begin(), all.end()};
}

INSTANTIATE_TEST_SUITE_P(Cpu, AttendKernelTest, testing::ValuesIn(kernels()),
                         [](const auto& kernel) { return std::string(kernel.param->name); });

TEST_P(AttendKernelTest, HeadSizes) {
  for (const int dim : {8, 16, 24, 40, 56, 64, 72, 80, 96, 120, 128, 256}) {
    check(fmt::format("prefill rows=70 dim={} heads=2 kv=1 type=f16", dim));
    check(fmt::format("decode slots=70 dim={} heads=2 kv=1 type=bf16", dim));
  }
}

TEST_P(AttendKernelTest, StorageTypes) {
  for (const char* type : {"f32", "f16", "bf16", "q8_0", "fp8"}) {
    for (const int dim : {32, 64, 96}) {
      check(fmt::format("prefill rows=65 slots=150 dim={} type={}", dim, type));
      check(fmt::format("decode slots=150 dim={} type={}", dim, type));
    }
  }
  check("prefill rows=65 dim=64 ktype=q8_0 vtype=f16");
  check("decode slots=65 dim=64 ktype=f32 vtype=q8_0");
  for (const int dim : {8, 24, 40, 72, 128}) {
    check(fmt::format("prefill rows=65 slots=150 dim={} ktype=fp8 vtype=f16", dim));
    check(fmt::format("decode slots=150 dim={} ktype=f16 vtype=fp8", dim));
  }
}

TEST_P(AttendKernelTest, EveryCodeOfFp8IsReadExactly) {
  std::vector<std::byte> codes(256);
  std::vector<float> expected(256), sum(256), weight(kTileSlots);
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<std::byte>((i & 0x7f) == 0x7f ? 0 : i);  // but for NaN
    expected[i] = fp8_to_f32(static_cast<uint8_t>(codes[i]));
  }
  weight[0] = 1;
  const std::byte* row = codes.data();
  GetParam()->mix_rows({&row, nullptr, 1}, Type::fp8, 256, weight.data(), kTileSlots, 1, sum.data(), nullptr);
  EXPECT_EQ(sum, expected);
}

/// Decode is bound by memory and need not round as prefill does.
TEST_P(AttendKernelTest, DecodeIsExact) {
  for (const char* type : {"f32", "f16", "bf16", "q8_0", "fp8"}) {
    for (const int dim : {64, 128, 192}) {
      for (const int heads : {1, 2, 5, 6, 7, 14}) {
        const std::string text =
            fmt::format("decode slots={} dim={} heads={} kv=1 type={}", 61 + dim, dim, heads, type);
        SCOPED_TRACE(text);
        const ProblemData data(parse_problem(text));
        const Result actual = by_kernel(data.args());
        const Result expected = by_ref(data.args());
        for (size_t i = 0; i < actual.o.size(); ++i) ASSERT_NEAR(actual.o[i], expected.o[i], 2e-4);
      }
    }
  }
}

TEST_P(AttendKernelTest, RowCounts) {
  for (const int rows : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 257}) {
    check(fmt::format("prefill rows={} dim=16 heads=3 kv=1", rows));
    check(fmt::format("prefill rows={} slots=300 dim=16 heads=3 kv=1 window=40", rows));
  }
}

TEST_P(AttendKernelTest, SlotCounts) {
  for (const int slots : {1, 2, 63, 64, 65, 511, 512, 513, 1100}) {
    check(fmt::format("decode slots={} dim=24 heads=4 kv=2", slots));
  }
}

TEST_P(AttendKernelTest, Groups) {
  for (int group = 1; group <= 14; ++group) {
    check(fmt::format("prefill rows=40 dim=16 kv=2 heads={}", 2 * group));
    check(fmt::format("decode rows={} slots=90 dim=16 kv=2 heads={}", 1 + group % 3, 2 * group));
  }
}

/// All features at random.
std::string random_problem(std::mt19937& random) {
  const auto one_of = [&random](auto... values) {
    const std::array all{values...};
    return all[random() % all.size()];
  };
  const int kv = one_of(1, 2, 3);
  const int rows = one_of(1, 1, 2, 5, 30, 64, 100, 200);
  return fmt::format(
      "prefill rows={} slots={} kv={} heads={} dim={} ktype={} vtype={} density={} block_q={} block_k={} columns={} "
      "unaligned={} shared={} window={} softcap={} bias={} holes={} skip={} seed={}",
      rows, rows + static_cast<int>(random() % 200) * one_of(0, 1, 3), kv, kv * one_of(1, 2, 5), one_of(32, 64, 96),
      one_of("f32", "f16", "bf16", "q8_0", "fp8"), one_of("f32", "f16", "bf16", "q8_0", "fp8"),
      one_of(1.0, 0.5, 0.1, 0.0), one_of(64, 128), one_of(64, 128), one_of(0, 3, 90), one_of(0, 1), one_of(0, 1),
      one_of(0, 0, 1, 70, 300), one_of(0, 0, 5), one_of(0, 1), one_of(0.0, 0.0, 0.3), one_of(0.0, 0.0, 0.2, 0.6),
      random() % 1000);
}

TEST_P(AttendKernelTest, RandomProblems) {
  std::mt19937 random(11);
  for (int i = 0; i < 150 && !HasFailure(); ++i) check(random_problem(random));
}

TEST_P(AttendKernelTest, SkipSoftmaxDropsTiles) {
  for (const char* text :
       {"prefill rows=300 slots=900 dim=32 heads=4 kv=2 skip=0.3", "prefill rows=64 slots=900 skip=0.8",
        "prefill rows=300 slots=900 dim=32 density=0.7 columns=100 unaligned=1 skip=0.3",
        "decode slots=3000 heads=2 kv=2 skip=0.5", "decode slots=3000 skip=0.9",
        "decode slots=3000 heads=4 kv=1 density=0.5 columns=70 skip=0.5",
        "decode rows=2 slots=3000 heads=2 kv=1 skip=0.7"}) {
    SCOPED_TRACE(text);
    const Problem problem = parse_problem(text);
    const ProblemData data(problem);
    AttnArgs args = data.args();
    // Tiles that differ in weight, as those of real keys do; random logits hardly ever let 64 rows agree.
    std::mt19937 random(5);
    std::normal_distribution<float> normal(0, 3);
    std::vector<float> bias;
    while (static_cast<int64_t>(bias.size()) < problem.n_slots()) {
      bias.insert(bias.end(), kVoteSlots, normal(random));
    }
    std::vector<KvHead> heads(args.kv.heads.begin(), args.kv.heads.end());
    for (KvHead& head : heads) head.bias = bias.data();
    args.kv.heads = heads;
    const Result expected = by_ref(args);
    expect_near(by_kernel(args), expected);
    args.skip = nullptr;
    EXPECT_LT(expected.counts.computed, by_ref(args).counts.computed);
  }
}

TEST_P(AttendKernelTest, SkipSoftmaxOffIsDense) {
  for (const char* text : {"prefill rows=200 dim=32", "decode slots=1000 dim=32"}) {
    const ProblemData data(parse_problem(text));
    AttnArgs args = data.args();
    const Result dense = by_kernel(args);
    const std::vector<float> off(static_cast<size_t>(args.q.n_head), -kInfinity);
    args.skip = off.data();
    EXPECT_EQ(by_kernel(args).o, dense.o);
    const std::vector<float> tiny(static_cast<size_t>(args.q.n_head), -87.0F);
    args.skip = tiny.data();
    EXPECT_EQ(by_kernel(args).o, dense.o);
  }
}

TEST_P(AttendKernelTest, ThreadCountsChangeNothing) {
  for (const char* text : {"prefill rows=300 dim=64 heads=6 kv=2 density=0.4 columns=5 unaligned=1",
                           "prefill rows=300 dim=64 heads=6 kv=2 skip=0.5", "decode slots=3000 dim=64 heads=6 kv=2",
                           "decode rows=4 slots=3000 dim=64 heads=6 kv=2 skip=0.5"}) {
    SCOPED_TRACE(text);
    const ProblemData data(parse_problem(text));
    const Result one = by_kernel(data.args(), 1);
    for (const int n_threads : {2, 3}) {
      const Result more = by_kernel(data.args(), n_threads);
      EXPECT_EQ(more.o, one.o);
      EXPECT_EQ(more.lse, one.lse);
      EXPECT_EQ(more.counts.computed, one.counts.computed);
    }
  }
}

/// A selection of all blocks, written out.
Selection everything(int64_t rows, int32_t slots, int32_t n_head, int32_t block) {
  Selection all;
  all.block_q = all.block_k = block;
  all.n_head = n_head;
  all.n_block_q = static_cast<int32_t>((rows + block - 1) / block);
  all.block_ptr = {0};
  for (int32_t list = 0; list < all.n_head * all.n_block_q; ++list) {
    for (int32_t begin = 0; begin < slots; begin += block) all.block_begin.push_back(begin);
    all.block_ptr.push_back(static_cast<int32_t>(all.block_begin.size()));
  }
  all.column_ptr.assign(all.block_ptr.size(), 0);
  return all;
}

TEST_P(AttendKernelTest, SelectionOfEverythingIsDense) {
  for (const char* text :
       {"prefill rows=300 dim=64 heads=4 kv=2 skip=0.5", "prefill rows=100 slots=333 dim=32 heads=4 kv=2 window=90",
        "decode slots=1000 dim=64 heads=4 kv=2 skip=0.7", "decode rows=3 slots=1000 dim=64 heads=4 kv=2"}) {
    SCOPED_TRACE(text);
    const Problem problem = parse_problem(text);
    const ProblemData data(problem);
    const Result dense = by_kernel(data.args());
    for (const int32_t n_head : {1, 4}) {
      for (const int32_t block : {64, 128}) {
        const Selection all = everything(problem.rows, static_cast<int32_t>(problem.n_slots()), n_head, block);
        AttnArgs args = data.args();
        args.selection = &all;
        const Result same = by_kernel(args);
        EXPECT_EQ(same.o, dense.o);
        EXPECT_EQ(same.lse, dense.lse);
        EXPECT_EQ(same.counts.computed, dense.counts.computed);
      }
    }
  }
}

TEST_P(AttendKernelTest, ChunksOfRowsAreTheWhole) {
  const ProblemData data(parse_problem("prefill rows=320 dim=32 heads=4 kv=2 density=0.5 columns=9 unaligned=1"));
  const Result whole = by_kernel(data.args());
  for (const int64_t chunk : {64, 128, 256}) {
    for (int64_t begin = 0; begin < 320; begin += chunk) {
      AttnArgs args = data.args();
      const int64_t n = std::min<int64_t>(chunk, 320 - begin);
      args.q = args.q.rows(begin, n);
      args.o = args.o.rows(begin, n);
      args.limit += begin;
      args.first_row = begin;
      const Result part = by_kernel(args);
      const auto stride = static_cast<size_t>(args.o.stride);
      const std::vector<float> expected(whole.o.begin() + begin * args.o.stride,
                                        whole.o.begin() + begin * args.o.stride + static_cast<int64_t>(part.o.size()));
      EXPECT_EQ(part.o, expected) << "chunk " << chunk << " at " << begin << ", stride " << stride;
    }
  }
}

TEST_P(AttendKernelTest, OutputMayBeTheQueries) {
  for (const char* text : {"prefill rows=200 dim=64 heads=4 kv=2", "decode slots=1000 dim=64 heads=4 kv=2"}) {
    const ProblemData data(parse_problem(text));
    const Result apart = by_kernel(data.args());
    AttnArgs args = data.args();
    const std::vector<float> q(args.q.data, args.q.data + args.q.n_rows * args.q.stride);
    std::vector<float> q_and_o = q;
    ThreadPool pool(2);
    MemoryMeter memory;
    CpuContext context{pool, memory, machine_features()};
    args.q.data = args.o.data = q_and_o.data();
    attend_with(*GetParam(), context, args);
    EXPECT_EQ(q_and_o, apart.o) << text;
  }
}

TEST_P(AttendKernelTest, RowsThatSeeNothingAreZero) {
  for (const int rows : {1, 3, 100}) {
    ProblemData data(parse_problem(fmt::format("prefill rows={} dim=64 heads=4 kv=2", rows)));
    AttnArgs args = data.args();
    const std::vector<int32_t> limit(static_cast<size_t>(rows), -1);
    args.limit = limit.data();
    const Result result = by_kernel(args);
    EXPECT_EQ(result.o, std::vector<float>(result.o.size(), 0.0F));
    EXPECT_EQ(result.lse, std::vector<float>(result.lse.size(), -kInfinity));
    EXPECT_EQ(result.counts.permitted, 0);
  }
}

TEST_P(AttendKernelTest, LargeLogitsStayFinite) {
  for (const char* text : {"prefill rows=100 dim=64 heads=2 kv=1", "decode slots=700 dim=64 heads=2 kv=1"}) {
    const ProblemData data(parse_problem(text));
    AttnArgs args = data.args();
    args.scale = 300;  // logits in the thousands: one key wins
    for (const float x : by_kernel(args).o) ASSERT_TRUE(std::isfinite(x)) << text;
  }
}

/// The same keys in two selections that share nothing, merged, and in one.
TEST_P(AttendKernelTest, MergeOfHalvesIsTheWhole) {
  for (const int rows : {1, 130}) {
    const ProblemData data(parse_problem(fmt::format("prefill rows={} slots=400 dim=64 heads=4 kv=2", rows)));
    AttnArgs args = data.args();
    const Result whole = by_kernel(args);
    Result half[2];
    for (size_t side = 0; side < 2; ++side) {
      Selection selection = everything(rows, 400, 1, 64);
      std::vector<int32_t> begins;
      for (int32_t list = 0; list < selection.n_block_q; ++list) {
        selection.block_ptr[static_cast<size_t>(list)] = static_cast<int32_t>(begins.size());
        for (int32_t begin = 0; begin < 400; begin += 64) {
          if (begin / 64 % 2 == static_cast<int32_t>(side)) begins.push_back(begin);
        }
      }
      selection.block_ptr.back() = static_cast<int32_t>(begins.size());
      selection.block_begin = begins;
      args.selection = &selection;
      half[side] = by_kernel(args);
    }
    ThreadPool pool(1);
    MemoryMeter memory;
    CpuContext context{pool, memory, machine_features()};
    HeadsView into = args.o;
    into.data = half[0].o.data();
    HeadsView from = args.o;
    from.data = half[1].o.data();
    cpu::merge(context, into, half[0].lse.data(), {from, half[1].lse.data()}, 1);
    half[0].counts = whole.counts;
    expect_near(half[0], whole);
  }
}

}  // namespace
}  // namespace winnow::cpu
