// dense: plain attention over everything.
//
// Paper: Vaswani et al., "Attention Is All You Need", arXiv 1706.03762.
// Idea: every row attends to every slot before it. The method fills no part: it is the name under which plain attention
// stands in tables beside the methods that save some of it.
// Deviations: none.
#include "methods/method.h"

namespace winnow::roster {

const MethodInfo& method_dense() {
  static const MethodInfo kInfo = {
      .name = "dense",
      .title = "plain attention over everything",
      .paper = "Attention Is All You Need, arXiv 1706.03762",
      .parts = "",
      .neutral = "dense",
      .params = {},
      .texts = {},
      .make = [](const Params&, const MethodShape&) { return Method{}; },
      .calibrate = nullptr,
  };
  return kInfo;
}

}  // namespace winnow::roster
