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

double sampled_recall(const RunStats& stats) {
  const bool unknown =
      stats.recall_n == 0 && stats.counts.density() < 1;  // skip-softmax leaves out what nobody samples
  return unknown ? std::numeric_limits<double>::quiet_NaN() : stats.recall();
}

double estimated_mass(const RunStats& stats) {
  const bool unknown = stats.estimate_n == 0 && stats.counts.density() < 1;
  return unknown ? std::numeric_limits<double>::quiet_NaN() : stats.estimated_mass();
}

Figures measure(Engine& engine, const Sequence& sequence, const Generated& answer) {
  const RunStats& stats = sequence.stats();
  Figures figures;
  figures.n_prompt = stats.n_prefill;
  figures.n_gen = static_cast<int64_t>(answer.tokens.size());
  figures.ttft_s = answer.ttft_s;
  figures.prefill_tok_s = rate(stats.n_prefill, stats.prefill_s);
  figures.decode_tok_s = rate(stats.n_decode, stats.decode_s);
  figures.density = stats.counts.density();
  figures.recall = sampled_recall(stats);
  figures.estimated_mass = estimated_mass(stats);
  figures.kv_bytes = static_cast<int64_t>(sequence.bytes());
  figures.peak_bytes = engine.device().memory().peak();
  figures.select_share = stats.select_share();
  figures.decode_select_share = stats.decode_select_share();
  return figures;
}

void add_figures(Json& line, const Figures& figures) {
  line.update({{"n_prompt", figures.n_prompt},
               {"n_gen", figures.n_gen},
               {"ttft_s", figures.ttft_s},
               {"prefill_tok_s", figures.prefill_tok_s},
               {"decode_tok_s", figures.decode_tok_s},
               {"density", figures.density},
               {"recall", figures.recall},
               {"estimated_mass", figures.estimated_mass},
               {"select_share", figures.select_share},
               {"decode_select_share", figures.decode_select_share},
               {"kv_bytes", figures.kv_bytes},
               {"peak_bytes", figures.peak_bytes}});
}

std::string sentence(const Figures& figures) {
  std::string answered = fmt::format("{} answered", human_count(figures.n_gen));
  if (!std::isnan(figures.decode_tok_s)) answered += fmt::format(" at {} tok/s", human_rate(figures.decode_tok_s));
  if (figures.decode_select_share > 0) {
    answered += fmt::format(" (selecting {})", human_share(figures.decode_select_share));
  }
  std::string density = human_share(figures.density);
  if (figures.recall < 1) density += fmt::format(", recall {}", human_share(figures.recall));
  if (figures.estimated_mass < 1) density += fmt::format(", estimated {}", human_share(figures.estimated_mass));
  if (figures.select_share > 0) density += fmt::format(", selecting {}", human_share(figures.select_share));
  return fmt::format("{} tokens read in {} ({} tok/s), {}, density {}, KV {}", human_count(figures.n_prompt),
                     human_seconds(figures.ttft_s), human_rate(figures.prefill_tok_s), answered, density,
                     human_bytes(static_cast<double>(figures.kv_bytes)));
}

}  // namespace winnow
