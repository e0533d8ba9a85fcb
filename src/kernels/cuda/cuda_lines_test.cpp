// Vertical and slash lines on the GPU against the same verb on the host, which asks the GPU for the probe's
// probabilities only.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "attention/lines.h"
#include "attention/problem.h"
#include "kernels/cuda/gpu_fixture.h"

namespace winnow {
namespace {

using CudaLines = test::GpuTest;

struct Case {
  int rows, slots, heads, kv, dim;
  LineBudget budget;
  double softcap = 0;
};

int64_t differing(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  std::vector<int32_t> difference;
  std::set_symmetric_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(difference));
  return std::ssize(difference);
}

/// Entries of one list.
std::vector<int32_t> part(const std::vector<int32_t>& ptr, const std::vector<int32_t>& all, size_t list) {
  return {all.begin() + ptr[list], all.begin() + ptr[list + 1]};
}

void check(Device& device, const Case& one) {
  const std::string text = fmt::format("prefill rows={} slots={} heads={} kv={} dim={} type=bf16 softcap={}", one.rows,
                                       one.slots, one.heads, one.kv, one.dim, one.softcap);
  SCOPED_TRACE(text);
  const ProblemData data(parse_problem(text));
  ProblemOn on_gpu(device, data);
  const AttnArgs args = on_gpu.args();
  const std::span<const int32_t> limit(args.limit, static_cast<size_t>(args.q.n_rows));
  const int64_t n_probe = std::min<int64_t>(64, args.q.n_rows);
  const std::vector<LineBudget> budget(static_cast<size_t>(one.heads), one.budget);
  const LineArgs lines = {.probe = {.q = args.q.rows(args.q.n_rows - n_probe, n_probe),
                                    .kv = args.kv,
                                    .limit = limit.last(static_cast<size_t>(n_probe)).data(),
                                    .scale = args.scale,
                                    .softcap = args.softcap},
                          .limit = limit,
                          .budget = budget};
  const Selection made = device.select_lines(lines);
  ASSERT_NE(made.on_device, nullptr) << "the lists were made on the host";
  const Selection actual = device.on_host(made);
  const Selection expected = device.Ops::select_lines(lines);
  ASSERT_EQ(actual.n_head, expected.n_head);
  ASSERT_EQ(actual.n_block_q, expected.n_block_q);
  ASSERT_EQ(actual.block_ptr.size(), expected.block_ptr.size());
  // Sums in another order may exchange lines of nearly equal mass at the budget's edge: a line moves few entries.
  int64_t differ = 0, entries = 0;
  for (size_t list = 0; list + 1 < expected.block_ptr.size(); ++list) {
    differ += differing(part(actual.block_ptr, actual.block_begin, list),
                        part(expected.block_ptr, expected.block_begin, list)) +
              differing(part(actual.column_ptr, actual.column, list), part(expected.column_ptr, expected.column, list));
  }
  entries = std::ssize(expected.block_begin) + std::ssize(expected.column);
  EXPECT_LE(static_cast<double>(differ), 0.01 * static_cast<double>(entries));
}

TEST_F(CudaLines, AreThoseOfTheHost) {
  check(device(), {300, 300, 4, 2, 64, {40, 60, 30, 20}});
  check(device(), {1000, 1000, 6, 2, 128, {100, 200, 30, 100}});
  check(device(), {700, 3000, 4, 1, 128, {128, 256, 30, 100}});
  check(device(), {5000, 5000, 2, 2, 96, {500, 50, 30, 40}, 5});
  check(device(), {65, 2100, 2, 1, 256, {30, 100, 30, 100}});
  check(device(), {200, 50000, 2, 1, 64, {1000, 2000, 30, 100}});  // many chunks, strips of scores
  check(device(), {17, 17, 2, 1, 64, {30, 100, 30, 100}});         // fewer rows than a probe, fewer slots than lines
}

TEST_F(CudaLines, AttentionTakesThemWhereTheyLie) {
  const ProblemData data(parse_problem("prefill rows=900 heads=4 kv=2 dim=128 type=bf16"));
  ProblemOn on_gpu(device(), data);
  AttnArgs args = on_gpu.args();
  const std::span<const int32_t> limit(args.limit, 900);
  const std::vector<LineBudget> budget(4, {64, 128, 30, 100});
  const Selection made = device().select_lines({.probe = {.q = args.q.rows(836, 64),
                                                          .kv = args.kv,
                                                          .limit = limit.data() + 836,
                                                          .scale = args.scale,
                                                          .softcap = args.softcap},
                                                .limit = limit,
                                                .budget = budget});
  const Selection on_host = device().on_host(made);
  std::vector<float> results[2];
  AttnCounts counts[2];
  for (int i = 0; i < 2; ++i) {
    args.selection = i == 0 ? &made : &on_host;
    args.counts = &counts[i];
    device().attend(args);
    results[i].resize(900 * 4 * 128);
    device().download(results[i].data(), {args.o.data, 900, 4 * 128, args.o.stride, args.o.type});
    device().sync();
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(counts[0].computed, counts[1].computed);
  EXPECT_LT(counts[0].computed, counts[0].permitted);
}

}  // namespace
}  // namespace winnow
