// RULER's niah_multiquery with winnow's essays for a haystack.
#include "eval/niah.h"

namespace winnow::roster {

const eval::TaskInfo& task_niah_multiquery_own_essays() {
  static const eval::TaskInfo kInfo = {
      .name = "niah_multiquery_own_essays",
      .title = "the numbers of four keys, in prose",
      .source = "after RULER, arXiv 2404.06654; winnow's own essays and words, so not RULER's scores",
      .metric = "all",
      .n_gen = eval::kNiahTokens,
      .make = [](const eval::Request& request) {
        return eval::make_niah("niah_multiquery_own_essays", request,
                               {.haystack = eval::Haystack::essay, .n_keys = 4, .n_queries = 4});
      }};
  return kInfo;
}

}  // namespace winnow::roster
