#include "bench_attend.h"

#include <fmt/format.h>

#include "attention/problem.h"
#include "base/error.h"
#include "output.h"

namespace winnow {
namespace {

// Products in bf16 of unit-sized numbers; what the kernels' own tests allow.
constexpr double kTolerance = 2e-2;

void print(const BenchAttend& bench, const Device& device, const ProblemResult& result) {
  const double share = result.gflops / result.peak_gflops;
  const double tile_share = result.tile_gflops / result.peak_gflops;
  if (bench.json) {
    print_json({{"problem", bench.problem},
                {"device", device.name()},
                {"threads", device.n_threads()},
                {"max_error", result.max_error},
                {"rows_checked", result.rows_checked},
                {"density", result.counts.density()},
                {"seconds", result.seconds},
                {"estimate_seconds", result.estimate_seconds},
                {"estimate_density", result.estimate_density},
                {"gflops", result.gflops},
                {"tile_gflops", result.tile_gflops},
                {"peak_gflops", result.peak_gflops},
                {"share_of_peak", share},
                {"share_of_peak_tiles", tile_share},
                {"gb_per_second", result.gb_per_second},
                {"read_gb_second", result.read_gb_second}});
    return;
  }
  fmt::print("{}\n", bench.problem);
  fmt::print("checked   {} rows against ref, largest difference {:.2g}\n", human_count(result.rows_checked),
             result.max_error);
  fmt::print("computed  {} of what is permitted\n", human_share(result.counts.density()));
  fmt::print("time      {:.4g} ms on {} threads\n", result.seconds * 1e3, device.n_threads());
  fmt::print("speed     {:.0f} GFLOP/s of computed pairs, {} of the matrix product's {:.0f}\n", result.gflops,
             human_share(share), result.peak_gflops);
  fmt::print("tiles     {:.0f} GFLOP/s, {}, where a tile on the diagonal counts whole\n", result.tile_gflops,
             human_share(tile_share));
  fmt::print("memory    {:.1f} GB/s of keys and values, {} of a plain read's {:.1f}\n", result.gb_per_second,
             human_share(result.gb_per_second / result.read_gb_second), result.read_gb_second);
  if (result.estimate_seconds > 0) {
    fmt::print("estimate  {:.4g} ms for as many lines, with which attention computes {}\n",
               result.estimate_seconds * 1e3, human_share(result.estimate_density));
  }
}

}  // namespace

void BenchAttend::run() const {
  const Problem parsed = parse_problem(problem);
  const auto on = make_device(device, parsed.threads);
  const ProblemResult result = run_problem(*on, parsed, seconds);
  print(*this, *on, result);
  if (!(result.max_error <= kTolerance)) {
    fail("the result differs from ref by {:.2g}; at most {} is right", result.max_error, kTolerance);
  }
}

std::shared_ptr<BenchAttend> add_bench_attend(CLI::App& bench) {
  auto attend = std::make_shared<BenchAttend>();
  attend->command = bench.add_subcommand("attend", "one attention call: checked against ref, then timed in GFLOP/s");
  CLI::App& app = *attend->command;
  app.add_option("problem", attend->problem, "the call, made up of random numbers; its keys stand below")
      ->type_name("PROBLEM")
      ->required();
  app.add_option("--device", attend->device, "cpu, cuda or ref (default cpu)")
      ->check(CLI::IsMember({"cpu", "cuda", "ref"}).description(""))
      ->type_name("NAME");
  app.add_option("--seconds", attend->seconds, "time it for at least so long (default 1)")
      ->check(number_between(0.01, 1000))
      ->type_name("S");
  add_json(app, attend->json);
  app.footer(
      fmt::format("PROBLEM: {}\nExamples:\n"
                  "  winnow bench attend \"prefill rows=8192 heads=12 kv=2 dim=128 density=0.1\"\n"
                  "  winnow bench attend \"prefill rows=32768 heads=32 kv=8 dim=128 verticals=1000 slashes=6096\"\n"
                  "  winnow bench attend \"decode slots=32768 heads=12 kv=2 dim=128 type=q8_0\" --json",
                  problem_help()));
  return attend;
}

}  // namespace winnow
