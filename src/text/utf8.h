// Well-formed characters in bytes that need not be.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace winnow {

enum class Utf8Kind {
  kWhole,      // one well-formed character
  kMalformed,  // bytes that no continuation makes well-formed
  kCut,        // the text ends inside of what may become a character
};

struct Utf8Step {
  Utf8Kind kind = Utf8Kind::kWhole;
  size_t length = 0;  // bytes, at least 1
};

/// What `text`, which is not empty, begins with. Malformed bytes come in the longest part that could have begun a
/// character (as the Unicode standard advises), so that each such part is shown as one U+FFFD.
Utf8Step utf8_step(std::string_view text);

/// `text` with every byte outside of a well-formed character replaced by `mark` (ASCII): well-formed, of equal length.
std::string utf8_masked(std::string_view text, char mark);

}  // namespace winnow
