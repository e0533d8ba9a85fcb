// RULER's niah_multikey_1 with winnow's essays for a haystack.
#include "eval/niah.h"

namespace winnow::roster {

const eval::TaskInfo& task_niah_multikey_1_own_essays() {
  static const eval::TaskInfo kInfo = {
      .name = "niah_multikey_1_own_essays",
      .title = "one of four numbers in prose",
      .source = "after RULER, arXiv 2404.06654; winnow's own essays and words, so not RULER's scores",
      .metric = "all",
      .n_gen = eval::kNiahTokens,
      .make = [](const eval::Request& request) {
        return eval::make_niah("niah_multikey_1_own_essays", request, {.haystack = eval::Haystack::essay, .n_keys = 4});
      }};
  return kInfo;
}

}  // namespace winnow::roster
