// Covering blocks on the GPU against the same verb on the host, which asks the GPU for scores only.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "attention/cover.h"
#include "attention/problem.h"
#include "kernels/cuda/gpu_fixture.h"

namespace winnow {
namespace {

using CudaCover = test::GpuTest;

struct Case {
  int rows, slots, heads, kv, dim, block;
  double share = 0.9, distance = 0.1;
  int least = 2, most = 1 << 20;
  double softcap = 0;
  bool flat = false;  // all logits are 0
};

/// Shares of the lists that differ, and of all blocks that the host's lists hold.
struct Compared {
  double differ, density;
};

Compared compare(const Selection& actual, const Selection& expected) {
  std::vector<int32_t> difference;
  size_t n_differ = 0;
  for (size_t list = 0; list + 1 < expected.block_ptr.size(); ++list) {
    const auto part = [list](const Selection& from) {
      return std::span(from.block_begin)
          .subspan(static_cast<size_t>(from.block_ptr[list]),
                   static_cast<size_t>(from.block_ptr[list + 1] - from.block_ptr[list]));
    };
    difference.clear();
    std::ranges::set_symmetric_difference(part(actual), part(expected), std::back_inserter(difference));
    n_differ += difference.size();
  }
  const auto n = static_cast<double>(expected.block_begin.size());
  const double all = 0.5 * expected.n_head * expected.n_block_q * (expected.n_block_q + 1);
  return {static_cast<double>(n_differ) / n, n / all};
}

Compared check(Device& device, const Case& one) {
  const std::string text = fmt::format("prefill rows={} slots={} heads={} kv={} dim={} type=bf16 softcap={}", one.rows,
                                       one.slots, one.heads, one.kv, one.dim, one.softcap);
  SCOPED_TRACE(text + fmt::format(" block={} share={} distance={}", one.block, one.share, one.distance));
  const ProblemData data(parse_problem(text));
  ProblemOn on_gpu(device, data);
  const AttnArgs args = on_gpu.args();
  const std::span<const int32_t> limit(args.limit, static_cast<size_t>(args.q.n_rows));
  const int64_t n_probe = std::min<int64_t>(one.block, args.q.n_rows);
  const CoverArgs cover = {.probe = {.q = args.q.rows(args.q.n_rows - n_probe, n_probe),
                                     .kv = args.kv,
                                     .limit = limit.last(static_cast<size_t>(n_probe)).data(),
                                     .scale = one.flat ? 0 : args.scale,
                                     .softcap = args.softcap},
                           .q = args.q,
                           .limit = limit,
                           .block = one.block,
                           .share = one.share,
                           .distance = one.distance,
                           .least = one.least,
                           .most = one.most};
  const Selection made = device.select_cover(cover);
  EXPECT_NE(made.on_device, nullptr) << "the lists were made on the host";
  const Selection actual = device.on_host(made);
  const Selection expected = device.Ops::select_cover(cover);
  EXPECT_EQ(actual.n_head, expected.n_head);
  EXPECT_EQ(actual.n_block_q, expected.n_block_q);
  EXPECT_EQ(actual.block_q, expected.block_q);
  EXPECT_EQ(actual.block_ptr.size(), expected.block_ptr.size());
  EXPECT_EQ(actual.column_ptr, expected.column_ptr);
  if (actual.block_ptr.size() != expected.block_ptr.size()) return {1, 1};
  // Sums in another order may exchange blocks of nearly equal mass at a border: that moves few entries.
  const Compared result = compare(actual, expected);
  EXPECT_LE(result.differ, 0.01);
  return result;
}

TEST_F(CudaCover, IsThatOfTheHostByLines) {  // no head's distance is below 0
  for (const int block : {64, 128}) {
    check(device(), {300, 300, 4, 2, 64, block, 0.9, 0});
    check(device(), {1000, 1000, 6, 2, 128, block, 0.5, 0});
    check(device(), {700, 3000, 4, 1, 128, block, 0.3, 0});  // behind a cached prefix
    check(device(), {5000, 5000, 2, 2, 96, block, 0.8, 0, 1, 1 << 20, 5});
    check(device(), {65, 2100, 2, 1, 256, block, 0.9, 0, 3, 8});
    check(device(), {17, 900, 2, 1, 64, block, 0.9, 0});  // fewer rows than a probe
  }
}

TEST_F(CudaCover, IsThatOfTheHostByPooledMaps) {  // every head's distance is below 1
  for (const int block : {64, 128}) {
    check(device(), {1000, 1000, 6, 2, 128, block, 0.5, 1});
    check(device(), {700, 3000, 4, 1, 128, block, 0.3, 1});
    const Compared result = check(device(), {5000, 5000, 2, 2, 64, block, 0.4, 1, 1});
    EXPECT_LT(result.density, 0.9);
  }
}

TEST_F(CudaCover, TakesEqualBlocksByTheirOrder) {  // of a query block all probabilities are the same
  for (const int block : {64, 128}) {
    const Compared result = check(device(), {5000, 5000, 2, 2, 64, block, 0.41, 1, 1, 1 << 20, 0, true});
    EXPECT_EQ(result.differ, 0);
    EXPECT_LT(result.density, 0.5);
  }
}

TEST_F(CudaCover, TakesEverythingWhereItMust) {
  EXPECT_DOUBLE_EQ(check(device(), {1280, 1280, 4, 2, 64, 128, 1.01, 0, 1}).density, 1);
  EXPECT_DOUBLE_EQ(check(device(), {1280, 1280, 4, 2, 64, 128, 1.01, 1, 1}).density, 1);
  EXPECT_DOUBLE_EQ(check(device(), {256, 256, 4, 2, 64, 128, 0.1, 0, 1}).density, 1);  // too short for a choice
}

}  // namespace
}  // namespace winnow
