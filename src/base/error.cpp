#include "base/error.h"

#include <cstdio>
#include <cstdlib>

namespace winnow {

void assertion_failed(const char* condition, const char* file, int line) {
  fmt::print(stderr, "winnow: internal error: {} does not hold ({}:{})\n", condition, file, line);
  std::abort();
}

}  // namespace winnow
