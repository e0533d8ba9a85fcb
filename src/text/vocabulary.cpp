#include "text/vocabulary.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>

#include "base/error.h"
#include "text/utf8.h"

namespace winnow {
namespace {

constexpr std::string_view kLowBar = "\xE2\x96\x81";  // U+2581

/// Bytes by the character (all are below U+0144) that the byte alphabet writes for them; -1: it uses no such character.
/// Printable Latin-1 stands for itself, the other 68 bytes in order for U+0100 and on.
const std::array<int16_t, 0x144>& bytes_of_characters() {
  static const auto table = [] {
    std::array<int16_t, 0x144> bytes{};
    bytes.fill(-1);
    size_t next = 0x100;
    for (int16_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
      bytes[printable ? static_cast<size_t>(byte) : next++] = byte;
    }
    return bytes;
  }();
  return table;
}

/// Takes a text in the byte alphabet apart. A text with other characters in it is not in that alphabet and stands for
/// itself, whole.
std::string from_byte_alphabet(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_step(text.substr(at)).length;
    const auto first = static_cast<uint8_t>(text[at]);
    size_t character = first;
    if (length == 2) character = (first & 0x1FU) << 6 | (static_cast<uint8_t>(text[at + 1]) & 0x3FU);
    const auto& table = bytes_of_characters();
    if (length > 2 || character >= table.size() || table[character] < 0) return std::string(text);
    bytes += static_cast<char>(table[character]);
    at += length;
  }
  return bytes;
}

std::string with_spaces(std::string_view text) {
  std::string spaced;
  spaced.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const bool bar = text.substr(at, kLowBar.size()) == kLowBar;
    spaced += bar ? ' ' : text[at];
    at += bar ? kLowBar.size() : 1;
  }
  return spaced;
}

/// The byte that "<0x0A>" names.
std::string named_byte(const std::string& text) {
  unsigned value = 0;
  const bool form = text.size() == 6 && text.starts_with("<0x") && text.back() == '>';
  if (!form || std::from_chars(&text[3], &text[5], value, 16).ptr != &text[5]) {
    fail("the model file's byte token \"{}\" is not of the form <0x0A>", text);
  }
  return {static_cast<char>(value)};
}

std::vector<TokenKind> read_kinds(const Metadata& metadata, size_t n) {
  if (!metadata.has("tokenizer.ggml.token_type")) return std::vector<TokenKind>(n, TokenKind::kNormal);
  const std::vector<int64_t> types = metadata.integers("tokenizer.ggml.token_type");
  if (types.size() != n) fail("the model file has {} tokens, but {} token types", n, types.size());
  std::vector<TokenKind> kinds;
  kinds.reserve(n);
  for (const int64_t type : types) {
    if (type < 1 || type > 6) fail("the model file has a token of type {}; known types are 1 to 6", type);
    kinds.push_back(static_cast<TokenKind>(type));
  }
  return kinds;
}

}  // namespace

Vocabulary::Vocabulary(const Metadata& metadata, Spelling spelling)
    : spelling_(spelling), ids_(metadata.texts("tokenizer.ggml.tokens").size()) {
  const std::vector<std::string>& texts = metadata.texts("tokenizer.ggml.tokens");
  if (texts.empty() || texts.size() > INT32_MAX) fail("the model file's vocabulary has {} tokens", texts.size());
  kinds_ = read_kinds(metadata, texts.size());
  bytes_.reserve(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    const TokenKind kind = kinds_[i];
    const bool ordinary = kind == TokenKind::kNormal || kind == TokenKind::kUnused;
    const bool byte = kind == TokenKind::kByte && spelling == Spelling::kSpaceAsLowBar;
    bytes_.push_back(byte ? named_byte(texts[i]) : ordinary ? spelled(texts[i]) : texts[i]);
    if (kind != TokenKind::kNormal || bytes_[i].empty() || find(bytes_[i]) >= 0) continue;
    ids_.add(std::hash<std::string_view>()(bytes_[i]), static_cast<int32_t>(i));
  }
}

int32_t Vocabulary::find(std::string_view bytes) const {
  const auto equal = [&](int32_t id) { return bytes_[static_cast<size_t>(id)] == bytes; };
  return ids_.find(std::hash<std::string_view>()(bytes), equal);
}

std::string Vocabulary::spelled(std::string_view text) const {
  return spelling_ == Spelling::kByteAlphabet ? from_byte_alphabet(text) : with_spaces(text);
}

SpecialTexts::SpecialTexts(const Vocabulary& vocabulary, std::initializer_list<TokenKind> kinds) : begins_(256, false) {
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const std::string& text = vocabulary.bytes(id);
    if (text.empty() || std::find(kinds.begin(), kinds.end(), vocabulary.kind(id)) == kinds.end()) continue;
    entries_.push_back({text, id});
    begins_[static_cast<uint8_t>(text[0])] = true;
  }
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return a.text < b.text; });
}

const SpecialTexts::Entry* SpecialTexts::longest_at(std::string_view text) const {
  // The entries that begin as `text` does, narrowed byte by byte; the shortest of them stands first.
  auto begin = entries_.begin();
  auto end = entries_.end();
  const Entry* longest = nullptr;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    const auto at_i = [i](const Entry& entry) { return static_cast<uint8_t>(entry.text[i]); };
    begin = std::partition_point(begin, end, [&](const Entry& entry) { return at_i(entry) < byte; });
    end = std::partition_point(begin, end, [&](const Entry& entry) { return at_i(entry) <= byte; });
    if (begin == end) break;
    if (begin->text.size() == i + 1) longest = &*begin++;
  }
  return longest;
}

std::vector<SpecialTexts::Fragment> SpecialTexts::split(std::string_view text) const {
  std::vector<Fragment> fragments;
  size_t rest = 0;  // begin of the text since the last token
  for (size_t at = 0; at < text.size();) {
    const Entry* found = begins_[static_cast<uint8_t>(text[at])] ? longest_at(text.substr(at)) : nullptr;
    if (found == nullptr) {
      ++at;
      continue;
    }
    if (at > rest) fragments.push_back({text.substr(rest, at - rest)});
    fragments.push_back({{}, found->token});
    at += found->text.size();
    rest = at;
  }
  if (rest < text.size()) fragments.push_back({text.substr(rest)});
  return fragments;
}

}  // namespace winnow
