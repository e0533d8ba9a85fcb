// What a run cost, under the names that every command uses.
#pragma once

#include <string>

#include "engine/generate.h"
#include "output.h"

namespace winnow {

struct Figures {
  int64_t n_prompt = 0, n_gen = 0;  // tokens read, tokens answered
  double ttft_s = 0;
  double prefill_tok_s = 0, decode_tok_s = 0;  // NaN where nothing was decoded
  double density = 1, recall = 1, estimated_mass = 1;
  int64_t kv_bytes = 0, peak_bytes = 0;  // peak: everything counted by the device, KV included, mapped weights not
  double select_share = 0, decode_select_share = 0;  // of the time that reading, and answering, took
};

/// Of the rows that were sampled; NaN where something was left out and none was.
double sampled_recall(const RunStats& stats);
/// What the method took itself to keep; NaN where something was left out and it did not tell.
double estimated_mass(const RunStats& stats);

/// `answer` was generated on `sequence` with its figures reset before, as was the peak of the engine's memory.
Figures measure(Engine& engine, const Sequence& sequence, const Generated& answer);

/// Adds them to a line of --json, each under its name here.
void add_figures(Json& line, const Figures& figures);

/// "12,034 tokens read in 24.1 s (499 tok/s), 56 answered at 38.2 tok/s, density 31.4%, recall 98.1%, estimated
/// 97.2%, selecting 3.2%, KV 147 MB"; what selecting was of the answer's time follows it, where it took any
std::string sentence(const Figures& figures);

}  // namespace winnow
