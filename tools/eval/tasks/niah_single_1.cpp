// RULER's niah_single_1: one number among equal lines of noise.
#include "eval/niah.h"

namespace winnow::roster {

const eval::TaskInfo& task_niah_single_1() {
  static const eval::TaskInfo kInfo = {.name = "niah_single_1",
                                       .title = "one number in a text of equal lines",
                                       .source = "RULER, arXiv 2404.06654; words from winnow's own list",
                                       .metric = "all",
                                       .n_gen = eval::kNiahTokens,
                                       .make = [](const eval::Request& request) {
                                         return eval::make_niah("niah_single_1", request,
                                                                {.haystack = eval::Haystack::noise});
                                       }};
  return kInfo;
}

}  // namespace winnow::roster
