// How far next-token distributions part from those under dense attention: KL and agreement of the first choice, on 128
// rows in sixteen parts of the text.
#include "eval/prose.h"

namespace winnow::roster {

const eval::TaskInfo& task_divergence() {
  static const eval::TaskInfo kInfo = {
      .name = "divergence",
      .title = "KL and first choice beside dense attention, by position",
      .source = "winnow's own essays",
      .metric = "",
      .kind = eval::TaskKind::divergence,
      .make = [](const eval::Request& request) { return eval::make_prose("divergence", request); }};
  return kInfo;
}

}  // namespace winnow::roster
