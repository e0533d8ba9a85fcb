// Lines of standard input, read so that a signal ends the wait.
#pragma once

#include <string>

namespace winnow {

class LineReader {
 public:
  enum class Result { line, end, interrupted };
  /// A line without its end. An unfinished line that a signal interrupted is dropped.
  Result next(std::string& line);

 private:
  std::string held_;
  bool at_end_ = false;
};

}  // namespace winnow
