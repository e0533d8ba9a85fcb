// Perplexity by position: how well each token is foreseen from those before it, in sixteen parts of the text.
#include "eval/prose.h"

namespace winnow::roster {

const eval::TaskInfo& task_perplexity() {
  static const eval::TaskInfo kInfo = {
      .name = "perplexity",
      .title = "what the model foresees of a text, by position",
      .source = "winnow's own essays",
      .metric = "",
      .kind = eval::TaskKind::surprise,
      .make = [](const eval::Request& request) { return eval::make_prose("perplexity", request); }};
  return kInfo;
}

}  // namespace winnow::roster
