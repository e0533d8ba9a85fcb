// Checks and times a problem on a device.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>

#include "attention/problem.h"

namespace winnow {
namespace {

using Clock = std::chrono::steady_clock;

// ref takes about this many (row, slot) pairs of one head in a second; larger problems are compared on a sample.
constexpr int64_t kCheckedPairs = 1 << 22;
// Timing of few rows goes round through caches of this size, so that no processor cache holds them.
constexpr int64_t kTimedBytes = int64_t{512} << 20;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Compares the device's result with ref's, in query blocks spread evenly over the rows. Of very long ones only the
/// first rows of a block are compared, unless a vote depends on all of them.
void compare(ProblemData& data, const Problem& problem, ProblemResult& result) {
  const std::unique_ptr<Device> reference = make_device("ref", 1);
  const int64_t unit = problem.block_q;
  const int64_t n_units = (problem.rows + unit - 1) / unit;
  const int64_t pairs_of_row = problem.n_slots() * problem.heads;
  const int64_t most_rows = problem.skip > 0 ? unit : std::clamp<int64_t>(kCheckedPairs / pairs_of_row, 1, unit);
  const int64_t pairs = std::min(most_rows, problem.rows) * pairs_of_row;
  const int64_t n_checked = std::clamp<int64_t>(kCheckedPairs / std::max<int64_t>(pairs, 1), 1, n_units);
  for (int64_t i = 0; i < n_checked; ++i) {
    const int64_t begin = (n_units - 1 - i * n_units / n_checked) * unit;  // the last ones see most
    const int64_t n = std::min(most_rows, problem.rows - begin);
    AttnArgs args = data.args();
    std::vector<float> o(static_cast<size_t>(n * args.o.stride));
    std::vector<float> lse(static_cast<size_t>(n * problem.heads));
    args.q = args.q.rows(begin, n);
    args.limit += begin;
    args.first_row += begin;
    args.o = {o.data(), n, problem.heads, problem.dim, args.o.stride};
    args.lse = lse.data();
    reference->attend(args);
    for (size_t j = 0; j < o.size(); ++j) {
      const double difference = std::abs(o[j] - data.o()[static_cast<size_t>(begin * args.o.stride) + j]);
      result.max_error = std::isnan(difference) ? difference : std::max(result.max_error, difference);
    }
    result.rows_checked += n;
  }
}

/// Slots that stand at `position` or before.
int64_t slots_up_to(const KvHead& kv, int64_t position) {
  if (kv.idx == nullptr) return std::clamp<int64_t>(position + 1, 0, kv.n_slots);
  return std::upper_bound(kv.idx, kv.idx + kv.n_slots, position) - kv.idx;
}

/// How many of the slots [low, high) the lists of q's row `row` name.
int64_t selected_between(const AttnArgs& args, int32_t head, int64_t row, int64_t low, int64_t high) {
  if (args.selection == nullptr || args.selection->everything()) return std::max<int64_t>(high - low, 0);
  const Selection& s = *args.selection;
  const int64_t list = s.list(head, static_cast<int32_t>((args.first_row + row) / s.block_q));
  int64_t n = 0;
  for (const int64_t begin : s.blocks(list)) {
    n += std::max<int64_t>(std::min(begin + s.block_k, high) - std::max(begin, low), 0);
  }
  for (const int32_t slot : s.columns(list)) n += slot >= low && slot < high ? 1 : 0;
  return n;
}

/// (row, slot) pairs of whole tiles: the rows of each query tile times the selected slots that any of them sees. A tile
/// on the diagonal, where half of the pairs is permitted, counts whole.
int64_t tile_pairs(const AttnArgs& args) {
  const int32_t n_kv = static_cast<int32_t>(args.kv.heads.size());
  int64_t pairs = 0;
  for (int64_t row = 0; row < args.q.n_rows; row += kVoteRows) {
    const int64_t n_rows = std::min<int64_t>(kVoteRows, args.q.n_rows - row);
    for (int32_t head = 0; head < args.q.n_head; ++head) {
      const KvHead& kv = args.kv.heads[static_cast<size_t>(head / (args.q.n_head / n_kv))];
      const int64_t high = slots_up_to(kv, args.limit[row + n_rows - 1]);
      const int64_t low = args.window > 0 ? slots_up_to(kv, int64_t{args.limit[row]} - args.window) : 0;
      pairs += n_rows * selected_between(args, head, row, low, high);
    }
  }
  return pairs;
}

double copy_speed(Device& device) {
  const auto bytes = static_cast<size_t>(kTimedBytes);
  const auto from = device.allocate(bytes), to = device.allocate(bytes);
  const BytesCopy copy{to.get(), from.get(), bytes};
  double best = 0;
  for (int repetition = 0; repetition < 5; ++repetition) {
    const auto start = Clock::now();
    device.copy_bytes({&copy, 1});
    device.sync();
    best = std::max(best, 2e-9 * static_cast<double>(bytes) / seconds_since(start));
  }
  return best;
}

/// GB/s of a plain read of memory by all threads of the device; of a copy, reads and writes, where its memory is not
/// the host's.
double read_speed(Device& device) {
  if (!device.memory_is_host()) return copy_speed(device);
  const std::vector<uint64_t> memory(static_cast<size_t>(kTimedBytes) / 2 / sizeof(uint64_t), 1);
  constexpr int64_t kPiece = 1 << 17;
  const auto n_pieces = static_cast<int64_t>(memory.size()) / kPiece;
  std::atomic<uint64_t> total{0};
  double best = 0;
  for (int repetition = 0; repetition < 5; ++repetition) {
    const auto start = Clock::now();
    device.for_each(n_pieces, [&](int64_t item, int /*thread*/) {
      uint64_t sum = 0;
      for (int64_t i = item * kPiece; i < (item + 1) * kPiece; ++i) sum += memory[static_cast<size_t>(i)];
      total += sum;
    });
    best = std::max(best, static_cast<double>(memory.size() * sizeof(uint64_t)) / seconds_since(start) / 1e9);
  }
  return best;
}

/// The fastest of at least three calls, and of at least `seconds`. `call` takes the number of the call.
template <typename Call>
double fastest(Device& device, double seconds, const Call& call) {
  double best = std::numeric_limits<double>::infinity();
  const auto start = Clock::now();
  for (int i = 0; i < 3 || seconds_since(start) < seconds; ++i) {
    const auto begin = Clock::now();
    call(i);
    device.sync();
    best = std::min(best, seconds_since(begin));
  }
  return best;
}

/// Times the estimate of as many lines as the problem has, from its last rows, as minference asks for it.
void time_estimate(Device& device, const Problem& problem, double seconds, AttnArgs args, ProblemResult& result) {
  constexpr int64_t kProbe = 64;
  const int64_t first = std::max<int64_t>(problem.rows - kProbe, 0);
  const std::span<const int32_t> limit(args.limit, static_cast<size_t>(problem.rows));
  const std::vector<LineBudget> budget(static_cast<size_t>(problem.heads),
                                       {problem.verticals, problem.slashes, 30, 100});
  const LineArgs lines = {.probe = {.q = args.q.rows(first, problem.rows - first),
                                    .kv = args.kv,
                                    .limit = args.limit + first,
                                    .scale = args.scale,
                                    .softcap = args.softcap,
                                    .window = args.window},
                          .limit = limit,
                          .budget = budget};
  Selection found;
  result.estimate_seconds = fastest(device, seconds, [&](int) { found = device.select_lines(lines); });
  AttnCounts counts;
  args.selection = &found;
  args.counts = &counts;
  device.attend(args);
  device.sync();
  result.estimate_density = counts.density();
}

}  // namespace

ProblemResult run_problem(Device& device, const Problem& problem, double seconds) {
  const bool few = problem.rows <= kVoteRows;
  int copies = 1;
  if (few) {
    const ProblemData one(problem);
    copies = static_cast<int>(std::clamp<int64_t>(kTimedBytes / std::max<int64_t>(one.kv_bytes(), 1), 1, 64));
  }
  ProblemData data(problem, copies);
  ProblemOn on_device(device, data, copies);
  ProblemResult result;
  AttnArgs args = on_device.args();
  args.counts = &result.counts;
  device.attend(args);
  device.sync();
  on_device.download(data.o(), data.lse());
  compare(data, problem, result);

  result.seconds = fastest(device, seconds, [&](int i) { device.attend(on_device.args(i % copies)); });
  if (problem.lines()) time_estimate(device, problem, seconds, on_device.args(), result);
  result.gflops = 4e-9 * problem.dim * static_cast<double>(result.counts.computed) / result.seconds;
  result.tile_gflops = 4e-9 * problem.dim * static_cast<double>(tile_pairs(data.args())) / result.seconds;
  result.peak_gflops = device.peak_gflops();
  result.gb_per_second = static_cast<double>(data.kv_bytes()) / result.seconds / 1e9;
  result.read_gb_second = read_speed(device);
  return result;
}

}  // namespace winnow
