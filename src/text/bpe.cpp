#include "text/bpe.h"

#include <algorithm>

#include "base/error.h"
#include "text/utf8.h"

namespace winnow {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
// Stands for a malformed byte when words are cut: like U+FFFD it is neither letter, digit nor space.
constexpr char kMark = '\x01';

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

BpeEncoder::BpeEncoder(const Metadata& metadata, const Vocabulary& vocabulary, PreTokenizer words)
    : vocabulary_(vocabulary), words_(std::move(words)), user_defined_(vocabulary, TokenKind::kUserDefined) {
  for (size_t byte = 0; byte < byte_tokens_.size(); ++byte) {
    byte_tokens_[byte] = vocabulary.find(std::string(1, static_cast<char>(byte)));
  }
  for (const char byte : kReplacement) {
    const auto value = static_cast<uint8_t>(byte);
    if (byte_tokens_[value] < 0) fail("the model file's vocabulary has no token for the byte 0x{:02X}", value);
  }
  const std::vector<std::string>& lines = metadata.texts("tokenizer.ggml.merges");
  merges_.reserve(lines.size());
  for (size_t i = 0; i < lines.size(); ++i) {
    const std::string_view line = lines[i];
    const size_t space = line.find(' ', 1);
    if (space == std::string_view::npos) fail("the model file's merge {} (\"{}\") is not a pair", i, line);
    const std::string left = vocabulary.spelled(line.substr(0, space));
    const std::string right = vocabulary.spelled(line.substr(space + 1));
    const int32_t ids[3] = {vocabulary.find(left), vocabulary.find(right), vocabulary.find(left + right)};
    if (*std::min_element(ids, ids + 3) < 0) fail("the model file's merge {} (\"{}\") has no tokens", i, line);
    merges_.emplace(pair_key(ids[0], ids[1]), Merge{static_cast<int32_t>(i), ids[2]});
  }
}

void BpeEncoder::encode(std::string_view text, std::vector<int32_t>& ids) const {
  for (const SpecialTexts::Fragment& fragment : user_defined_.split(text)) {
    if (fragment.token >= 0) {
      ids.push_back(fragment.token);
    } else {
      encode_words(fragment.text, ids);
    }
  }
}

void BpeEncoder::encode_words(std::string_view text, std::vector<int32_t>& ids) const {
  const std::string masked = utf8_masked(text, kMark);
  Merger merger;
  size_t begin = 0;
  for (const size_t end : words_.ends(masked)) {
    const std::string_view same = std::string_view(masked).substr(begin, end - begin);
    encode_word(text.substr(begin, end - begin), same, merger, ids);
    begin = end;
  }
}

void BpeEncoder::encode_word(std::string_view word, std::string_view masked, Merger& merger,
                             std::vector<int32_t>& ids) const {
  if (const int32_t whole = words_.whole_words() ? vocabulary_.find(word) : -1; whole >= 0) {
    ids.push_back(whole);
    return;
  }
  merger.clear();
  const auto add = [&](char byte) {
    const int32_t token = byte_tokens_[static_cast<uint8_t>(byte)];
    if (token >= 0) merger.add(0, 1, token);
    return token >= 0;
  };
  for (size_t i = 0; i < word.size(); ++i) {
    if (add(word[i]) || word[i] == masked[i]) continue;
    for (const char byte : kReplacement) add(byte);
  }
  merger.merge([&](const Merger::Symbol& left, const Merger::Symbol& right) -> std::optional<Merger::Rule> {
    const auto found = merges_.find(pair_key(left.token, right.token));
    if (found == merges_.end()) return {};
    return Merger::Rule{static_cast<double>(found->second.rank), found->second.token};
  });
  merger.each([&](const Merger::Symbol& symbol) { ids.push_back(symbol.token); });
}

}  // namespace winnow
