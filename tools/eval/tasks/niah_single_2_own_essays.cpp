// RULER's niah_single_2 with winnow's essays for a haystack.
#include "eval/niah.h"

namespace winnow::roster {

const eval::TaskInfo& task_niah_single_2_own_essays() {
  static const eval::TaskInfo kInfo = {
      .name = "niah_single_2_own_essays",
      .title = "one number in prose",
      .source = "after RULER, arXiv 2404.06654; winnow's own essays and words, so not RULER's scores",
      .metric = "all",
      .n_gen = eval::kNiahTokens,
      .make = [](const eval::Request& request) {
        return eval::make_niah("niah_single_2_own_essays", request, {.haystack = eval::Haystack::essay});
      }};
  return kInfo;
}

}  // namespace winnow::roster
