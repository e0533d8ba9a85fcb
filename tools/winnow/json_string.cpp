#include "json_string.h"

#include "base/error.h"

namespace winnow {
namespace {

void append_utf8(std::string& text, unsigned code) {
  const auto tail = [&](unsigned shift) { text += static_cast<char>(0x80U | ((code >> shift) & 0x3fU)); };
  if (code < 0x80U) {
    text += static_cast<char>(code);
  } else if (code < 0x800U) {
    text += static_cast<char>(0xc0U | (code >> 6));
    tail(0);
  } else if (code < 0x10000U) {
    text += static_cast<char>(0xe0U | (code >> 12));
    tail(6);
    tail(0);
  } else {
    text += static_cast<char>(0xf0U | (code >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

class Reader {
 public:
  explicit Reader(std::string_view line) : line_(line) {}

  std::string read() {
    skip_space();
    if (next() != '"') refuse("a JSON string begins with \"");
    std::string text;
    for (char c = next(); c != '"'; c = next()) {
      if (static_cast<unsigned char>(c) < 0x20U) refuse("a control character must be escaped");
      if (c == '\\') {
        escape(text);
      } else {
        text += c;
      }
    }
    skip_space();
    if (at_ != line_.size()) refuse("nothing may follow the string");
    return text;
  }

 private:
  [[noreturn]] void refuse(std::string_view why) const { fail("column {}: {}", at_, why); }

  char next() {
    if (at_ >= line_.size()) refuse("the string does not end");
    return line_[at_++];
  }

  void skip_space() {
    while (at_ < line_.size() && (line_[at_] == ' ' || line_[at_] == '\t' || line_[at_] == '\r')) ++at_;
  }

  unsigned hex4() {
    unsigned value = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = next();
      const bool digit = c >= '0' && c <= '9';
      const char letter = static_cast<char>(c | 0x20);
      if (!digit && (letter < 'a' || letter > 'f')) refuse("\\u takes four hexadecimal digits");
      value = value * 16 + static_cast<unsigned>(digit ? c - '0' : letter - 'a' + 10);
    }
    return value;
  }

  void escape(std::string& text) {
    constexpr std::string_view kLetters = "\"\\/bfnrt", kBytes = "\"\\/\b\f\n\r\t";
    const char c = next();
    if (const size_t i = kLetters.find(c); i != std::string_view::npos) {
      text += kBytes[i];
      return;
    }
    if (c != 'u') refuse("no such escape");
    unsigned code = hex4();
    if (code >= 0xd800U && code < 0xdc00U && line_.substr(at_).starts_with("\\u")) {
      at_ += 2;
      const unsigned low = hex4();
      if (low < 0xdc00U || low > 0xdfffU) refuse("half of a surrogate pair");
      code = 0x10000U + ((code - 0xd800U) << 10) + (low - 0xdc00U);
    }
    if (code >= 0xd800U && code <= 0xdfffU) refuse("half of a surrogate pair");
    append_utf8(text, code);
  }

  std::string_view line_;
  size_t at_ = 0;
};

}  // namespace

std::string parse_json_string(std::string_view line) {
  return Reader(line).read();
}

}  // namespace winnow
