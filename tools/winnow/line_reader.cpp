#include "line_reader.h"

#include <unistd.h>

#include <array>
#include <cerrno>

namespace winnow {

LineReader::Result LineReader::next(std::string& line) {
  while (true) {
    const size_t end = held_.find('\n');
    if (end != std::string::npos) {
      line = held_.substr(0, end);
      held_.erase(0, end + 1);
      return Result::line;
    }
    if (at_end_) {
      if (held_.empty()) return Result::end;
      line = std::move(held_);
      held_.clear();
      return Result::line;
    }
    std::array<char, 4096> buffer{};
    const ssize_t n = read(STDIN_FILENO, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) {
      held_.clear();
      return Result::interrupted;
    }
    if (n <= 0) {
      at_end_ = true;
    } else {
      held_.append(buffer.data(), static_cast<size_t>(n));
    }
  }
}

}  // namespace winnow
