// --trace DIR: the density of every layer and head of a run, as a file that `winnow report` draws.
#pragma once

#include <string>
#include <vector>

#include "engine/engine.h"

namespace winnow {

/// Watches an engine's selections while it lives; one at a time.
class DensityTrace {
 public:
  /// `folder` empty: nothing is watched or written. Throws Error where the folder cannot be made.
  DensityTrace(Engine& engine, std::string folder);
  ~DensityTrace();
  DensityTrace(const DensityTrace&) = delete;
  DensityTrace& operator=(const DensityTrace&) = delete;

  /// Forgets what was seen so far.
  void clear();
  /// Writes what was seen since to FOLDER/`name`.json: {"method", "n_prompt", "density": [n_layer][n_head],
  /// "permitted": [n_layer] pairs of one head, fewer in the last layer, of which only the last rows are computed}.
  /// Characters that are no letters or digits of `name` become underlines. What skip-softmax drops is not known here.
  void write(const std::string& name, const std::string& method, int64_t n_prompt) const;

 private:
  Engine& engine_;
  std::string folder_;
  std::vector<std::vector<AttnCounts>> counts_;  // [n_layer][n_head]
};

}  // namespace winnow
