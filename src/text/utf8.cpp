#include "text/utf8.h"

#include <cstdint>

#include "text/tokenizer.h"

namespace winnow {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct Lead {
  size_t length = 0;                // of the whole character; 0: no character begins so
  uint8_t low = 0x80, high = 0xBF;  // limits of the second byte: no overlong forms, no surrogates, none above U+10FFFF
};

Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {.length = 1};
  if (byte >= 0xC2 && byte <= 0xDF) return {.length = 2};
  if (byte == 0xE0) return {.length = 3, .low = 0xA0};
  if (byte == 0xED) return {.length = 3, .high = 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {.length = 3};
  if (byte == 0xF0) return {.length = 4, .low = 0x90};
  if (byte >= 0xF1 && byte <= 0xF3) return {.length = 4};
  if (byte == 0xF4) return {.length = 4, .high = 0x8F};
  return {};
}

}  // namespace

Utf8Step utf8_step(std::string_view text) {
  const Lead lead = lead_of(static_cast<uint8_t>(text[0]));
  if (lead.length == 0) return {Utf8Kind::kMalformed, 1};
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == text.size()) return {Utf8Kind::kCut, i};
    const auto byte = static_cast<uint8_t>(text[i]);
    const uint8_t low = i == 1 ? lead.low : 0x80;
    const uint8_t high = i == 1 ? lead.high : 0xBF;
    if (byte < low || byte > high) return {Utf8Kind::kMalformed, i};
  }
  return {Utf8Kind::kWhole, lead.length};
}

std::string utf8_masked(std::string_view text, char mark) {
  std::string masked(text);
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text.substr(at));
    if (step.kind != Utf8Kind::kWhole) masked.replace(at, step.length, step.length, mark);
    at += step.length;
  }
  return masked;
}

std::string Utf8Stream::push(std::string_view bytes) {
  pending_ += bytes;
  std::string shown;
  size_t at = 0;
  while (at < pending_.size()) {
    const Utf8Step step = utf8_step(std::string_view(pending_).substr(at));
    if (step.kind == Utf8Kind::kCut) break;
    shown += step.kind == Utf8Kind::kWhole ? std::string_view(pending_).substr(at, step.length) : kReplacement;
    at += step.length;
  }
  pending_.erase(0, at);
  return shown;
}

std::string Utf8Stream::finish() {
  const bool cut = !pending_.empty();
  pending_.clear();
  return std::string(cut ? kReplacement : "");
}

}  // namespace winnow
