// The part of a tokenizer that knows how ordinary text becomes tokens: one for each kind of vocabulary.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace winnow {

class TextEncoder {
 public:
  virtual ~TextEncoder() = default;
  /// Adds the ids of `text`, which stands between control tokens (or the ends of the whole), to `ids`.
  virtual void encode(std::string_view text, std::vector<int32_t>& ids) const = 0;
};

}  // namespace winnow
