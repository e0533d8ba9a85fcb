// --target-recall and --target-speedup: the knob of a method is set so that a target is met. What a knob does to this
// model on this machine is measured once for each length class, on essays, and kept in the user's cache folder.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/knob_curve.h"
#include "loaded.h"
#include "output.h"

namespace winnow {

/// Methods with their knob set, for prompts of one length.
struct Tuned {
  std::vector<std::string> specs;
  /// What was chosen and what is foretold of it; nothing where there is no target, or none is needed.
  struct Choice {
    std::string param;
    int64_t n_measured = 0;  // tokens of the text that the knob was measured on; 0: too short for the method to act
    KnobSetting setting;
  };
  std::optional<Choice> choice;
};

/// What a run with a target came to; seconds of its prefill.
struct Achieved {
  double recall = 1, density = 1, prefill_s = 0;
};

class Tuner {
 public:
  /// `options` gave `loaded`; both outlive it. Throws Error where a target has no method to turn.
  Tuner(const Loaded& loaded, const ModelOptions& options);

  /// `specs`, methods that work together, for prompts of `n_tokens`. Without a target they stay as they are, and so
  /// does plain dense attention among several contestants. Reads a text where the knob has not been measured yet: no
  /// Watch may live meanwhile. Throws Error where there is no knob, or the target is out of reach.
  Tuned tune(const std::vector<std::string>& specs, int64_t n_tokens);
  bool wanted() const { return options_.target.recall > 0 || options_.target.speedup > 0; }
  /// " at recall 0.95", " at speed-up 2", or nothing: what tells a contestant with a target from one without.
  std::string suffix() const;

  /// Adds "target" to a command's line: what was asked for, set, foretold and achieved.
  void add_json(Json& line, const Tuned& tuned, const Achieved* achieved) const;
  /// "gamma=0.93 for recall 0.95 (foretold: recall 95.2%, density 21.0%, 1.82x dense)"; empty where nothing was chosen.
  std::string sentence(const Tuned& tuned) const;

 private:
  const KnobCurve& curve(const std::vector<std::string>& specs, int64_t n_tokens);
  std::vector<int32_t> text(int64_t n_tokens) const;

  const Loaded& loaded_;
  const ModelOptions& options_;
  std::map<std::string, KnobCurve> curves_;
};

}  // namespace winnow
