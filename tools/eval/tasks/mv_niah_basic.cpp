// RULER v2's mv_niah_basic: four values of one key, among keys that have four each.
#include "eval/niah.h"

namespace winnow::roster {

const eval::TaskInfo& task_mv_niah_basic() {
  static const eval::TaskInfo kInfo = {
      .name = "mv_niah_basic",
      .title = "all four numbers of one key among keys that have four each",
      .source = "RULER v2 (NeMo Skills); words from winnow's own list",
      .metric = "all",
      .n_gen = eval::kNiahTokens,
      .reserves = false,
      .make = [](const eval::Request& request) {
        return eval::make_niah("mv_niah_basic", request,
                               {.haystack = eval::Haystack::needles, .n_values = 4, .n_digits = 10, .version2 = true});
      }};
  return kInfo;
}

}  // namespace winnow::roster
