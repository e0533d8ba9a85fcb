// Errors that a user can cause. One clear sentence that names the thing, the value and what is allowed.
//
//   if (budget < 1) fail("snapkv: budget is {}; it must be at least 1 token", budget);
//
// Our own bugs are assertions (WINNOW_ASSERT), kept in release builds because they stand outside inner loops.
// Kernels neither throw nor check: whoever calls a kernel has checked its arguments.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace winnow {

/// What a user did wrong or what the machine lacks; its text is shown as it is.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

[[noreturn]] void assertion_failed(const char* condition, const char* file, int line);

}  // namespace winnow

#define WINNOW_ASSERT(condition) \
  ((condition) ? static_cast<void>(0) : ::winnow::assertion_failed(#condition, __FILE__, __LINE__))
