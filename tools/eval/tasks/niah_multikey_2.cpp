// RULER's niah_multikey_2: one needle among lines that are needles of other keys.
#include "eval/niah.h"

namespace winnow::roster {

const eval::TaskInfo& task_niah_multikey_2() {
  static const eval::TaskInfo kInfo = {.name = "niah_multikey_2",
                                       .title = "one number among lines that all look like it",
                                       .source = "RULER, arXiv 2404.06654; words from winnow's own list",
                                       .metric = "all",
                                       .n_gen = eval::kNiahTokens,
                                       .make = [](const eval::Request& request) {
                                         return eval::make_niah("niah_multikey_2", request,
                                                                {.haystack = eval::Haystack::needles});
                                       }};
  return kInfo;
}

}  // namespace winnow::roster
