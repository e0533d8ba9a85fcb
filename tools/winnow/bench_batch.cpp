#include "bench_batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>

#include "output.h"

namespace winnow {
namespace {

class BatchRun {
 public:
  BatchRun(const Loaded& loaded, const Policy& policy, std::vector<std::span<const int32_t>> prompts)
      : engine_(*loaded.engine), policy_(policy), prompts_(std::move(prompts)) {}

  /// Seconds that one reading of all prompts takes; `peak` becomes the bytes held meanwhile, caches included.
  double seconds(bool packed, int64_t& peak) {
    std::vector<Sequence> sequences;
    sequences.reserve(prompts_.size());
    std::vector<Sequence*> pointers;
    pointers.reserve(prompts_.size());
    for (size_t i = 0; i < prompts_.size(); ++i) sequences.push_back(engine_.start(policy_));
    for (Sequence& sequence : sequences) pointers.push_back(&sequence);
    engine_.device().memory().reset_peak();
    const auto start = std::chrono::steady_clock::now();
    if (packed) {
      engine_.prefill(pointers, prompts_);
    } else {
      for (size_t i = 0; i < prompts_.size(); ++i) engine_.prefill(sequences[i], prompts_[i]);
    }
    peak = engine_.device().memory().peak();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  Engine& engine_;
  const Policy& policy_;
  std::vector<std::span<const int32_t>> prompts_;
};

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

std::vector<int64_t> unequal_lengths(int n, int longest) {
  std::vector<int64_t> lengths;
  for (int64_t i = 1; i <= n; ++i) lengths.push_back(std::max<int64_t>(1, longest * i / n));
  return lengths;
}

void bench_batch(const Loaded& loaded, const Policy& policy, std::span<const int32_t> tokens, const BatchBench& bench) {
  std::vector<std::span<const int32_t>> prompts;
  int64_t n_tokens = 0;
  for (const int64_t length : unequal_lengths(bench.n_prompts, bench.longest)) {
    prompts.push_back(tokens.subspan(static_cast<size_t>(n_tokens), static_cast<size_t>(length)));
    n_tokens += length;
  }
  const std::string what =
      fmt::format("{}: {} prompts of up to {} tokens", policy.name(), prompts.size(), bench.longest);
  const Watch watch(*loaded.engine, what, n_tokens);
  BatchRun run(loaded, policy, std::move(prompts));
  std::vector<double> packed, alone;
  int64_t packed_peak = 0, alone_peak = 0;
  for (int rep = 0; rep < bench.n_reps; ++rep) {
    alone.push_back(run.seconds(false, alone_peak));
    packed.push_back(run.seconds(true, packed_peak));
  }
  const double alone_s = median(alone), packed_s = median(packed);
  if (bench.json) {
    print_json({{"model", model_name(loaded)},
                {"method", policy.name()},
                {"device", loaded.engine->device().name()},
                {"threads", loaded.engine->device().n_threads()},
                {"n_batch", bench.n_prompts},
                {"n_longest", bench.longest},
                {"n_tokens", n_tokens},
                {"alone_s", alone_s},
                {"packed_s", packed_s},
                {"speed_up", alone_s / packed_s},
                {"alone_peak_bytes", alone_peak},
                {"packed_peak_bytes", packed_peak}});
    return;
  }
  const auto rate = [&](double seconds) { return human_rate(static_cast<double>(n_tokens) / seconds); };
  fmt::print("{}: one by one {} tok/s, packed {} tok/s: {:.2f} times as fast\n", what, rate(alone_s), rate(packed_s),
             alone_s / packed_s);
}

}  // namespace winnow
