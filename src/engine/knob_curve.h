// What every setting of a method's knob keeps and costs on this machine, measured once on a text; and the setting that
// meets a user's aim.
#pragma once

#include "engine/engine.h"
#include "methods/knob.h"

namespace winnow {

/// One setting of a knob, over the layers that were looked at.
struct KnobPoint {
  double place = 0, value = 0;  // see knob_value
  double density = 1;           // computed share of what is permitted
  double recall = 1;            // sampled, of the layers in which something is left out
  double seconds = 0;           // of choosing and attention, for all layers of the model
};

struct KnobCurve {
  int64_t n_tokens = 0;           // of the text
  double rest_s = 0;              // of its dense prefill: all but attention
  double attend_s = 0;            // dense attention
  std::vector<KnobPoint> points;  // from dense to sparse
};

/// Reads `tokens` with dense attention and, in every third layer, tries the knob of `specs` at nine places between its
/// ends: choosing, attention and the recall of 16 rows. Costs the dense prefill and about half as much again.
/// Throws Error where `specs` have no knob, or select nothing in prefill.
KnobCurve measure_knob(Engine& engine, std::span<const std::string> specs, std::span<const int32_t> tokens);

/// What a user asks for; one of them is set.
struct KnobAim {
  double recall = 0;   // at least this share of the dense attention's mass
  double speedup = 0;  // dense prefill's time over this one's, at least
};

/// A setting, and what the curve foretells of it at the length that was asked about.
struct KnobSetting {
  double value = 0, density = 1, recall = 1, speedup = 1;
  double dense_s = 0;  // time of a dense prefill
};

/// The sparsest setting whose recall is met, or the densest whose speed-up is, for prompts of `n_tokens`. Between the
/// curve's points everything is taken to run straight; products grow with the length, attention with its square.
/// Throws Error, with what can be reached, where the aim lies beyond it.
KnobSetting choose_setting(const KnobCurve& curve, const MethodInfo& info, const KnobAim& aim, int64_t n_tokens);

}  // namespace winnow
