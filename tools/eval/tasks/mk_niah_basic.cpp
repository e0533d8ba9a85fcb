// RULER v2's mk_niah_basic: ten digits, and the length is the prompt's alone.
#include "eval/niah.h"

namespace winnow::roster {

const eval::TaskInfo& task_mk_niah_basic() {
  static const eval::TaskInfo kInfo = {.name = "mk_niah_basic",
                                       .title = "one number of ten digits among lines that all look like it",
                                       .source = "RULER v2 (NeMo Skills); words from winnow's own list",
                                       .metric = "all",
                                       .n_gen = eval::kNiahTokens,
                                       .reserves = false,
                                       .make = [](const eval::Request& request) {
                                         return eval::make_niah(
                                             "mk_niah_basic", request,
                                             {.haystack = eval::Haystack::needles, .n_digits = 10, .version2 = true});
                                       }};
  return kInfo;
}

}  // namespace winnow::roster
