// RULER's niah_multikey_3: the same with UUIDs as keys and values.
#include "eval/niah.h"

namespace winnow::roster {

const eval::TaskInfo& task_niah_multikey_3() {
  static const eval::TaskInfo kInfo = {
      .name = "niah_multikey_3",
      .title = "one UUID among lines that all look like it",
      .source = "RULER, arXiv 2404.06654; words from winnow's own list",
      .metric = "all",
      .n_gen = eval::kNiahTokens,
      .make = [](const eval::Request& request) {
        return eval::make_niah(
            "niah_multikey_3", request,
            {.haystack = eval::Haystack::needles, .key = eval::NeedleKind::uuids, .value = eval::NeedleKind::uuids});
      }};
  return kInfo;
}

}  // namespace winnow::roster
