#include "figures.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

namespace winnow {
namespace {

double rate(int64_t count, double seconds) {
  return count == 0 || seconds <= 0 ? std::numeric_limits<double>::quiet_NaN() : static_cast<double>(count) / seconds;
}

}  // namespace

Figures measure(Engine& engine, const Sequence& sequence, const Generated& answer) {
  const RunStats& stats = sequence.stats();
  Figures figures;
  figures.n_prompt = stats.n_prefill;
  figures.n_gen = static_cast<int64_t>(answer.tokens.size());
  figures.ttft_s = answer.ttft_s;
  figures.prefill_tok_s = rate(stats.n_prefill, stats.prefill_s);
  figures.decode_tok_s = rate(stats.n_decode, stats.decode_s);
  figures.density = stats.counts.density();
  figures.recall = stats.recall();
  figures.kv_bytes = static_cast<int64_t>(sequence.bytes());
  figures.peak_bytes = engine.device().memory().peak();
  figures.select_share = stats.select_share();
  return figures;
}

std::string sentence(const Figures& figures) {
  return fmt::format("{} tokens read in {} ({} tok/s), {} answered{}, density {}, KV {}", human_count(figures.n_prompt),
                     human_seconds(figures.ttft_s), human_rate(figures.prefill_tok_s), human_count(figures.n_gen),
                     std::isnan(figures.decode_tok_s) ? "" : " at " + human_rate(figures.decode_tok_s) + " tok/s",
                     human_share(figures.density), human_bytes(static_cast<double>(figures.kv_bytes)));
}

}  // namespace winnow
