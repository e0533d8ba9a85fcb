#include "text/bpe.h"

#include "base/error.h"
#include "text/utf8.h"

namespace winnow {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
// Stands for a malformed byte when words are cut: like U+FFFD it is neither letter, digit nor space.
constexpr char kMark = '\x01';

}  // namespace

BpeEncoder::BpeEncoder(const Metadata& metadata, const Vocabulary& vocabulary, PreTokenizer words)
    : vocabulary_(vocabulary),
      words_(std::move(words)),
      user_defined_(vocabulary, {TokenKind::kUserDefined}),
      ranks_(metadata.texts("tokenizer.ggml.merges").size()) {
  for (size_t byte = 0; byte < byte_tokens_.size(); ++byte) {
    byte_tokens_[byte] = vocabulary.find(std::string(1, static_cast<char>(byte)));
  }
  for (const char byte : kReplacement) {
    const auto value = static_cast<uint8_t>(byte);
    if (byte_tokens_[value] < 0) fail("the model file's vocabulary has no token for the byte 0x{:02X}", value);
  }
  for (const std::string& line : metadata.texts("tokenizer.ggml.merges")) {
    const Merge merge = read_merge(line);
    if (merge.token < 0) fail("the model file's merge {} (\"{}\") is not a pair of its tokens", merges_.size(), line);
    if (rank(merge.left, merge.right) < 0) {
      ranks_.add(hash(merge.left, merge.right), static_cast<int32_t>(merges_.size()));
    }
    merges_.push_back(merge);
  }
}

uint64_t BpeEncoder::hash(int32_t left, int32_t right) {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  const uint64_t mixed = pair * 0x9E3779B97F4A7C15;  // 2^64 over the golden ratio spreads neighbours widely
  return mixed ^ mixed >> 32;
}

int32_t BpeEncoder::rank(int32_t left, int32_t right) const {
  return ranks_.find(hash(left, right), [&](int32_t place) {
    const Merge& merge = merges_[static_cast<size_t>(place)];
    return merge.left == left && merge.right == right;
  });
}

/// The tokens of "left right" and of both together; none where the line is not of that form or they do not exist.
BpeEncoder::Merge BpeEncoder::read_merge(std::string_view line) const {
  const size_t space = line.find(' ', 1);
  if (space == std::string_view::npos) return {};
  std::string bytes = vocabulary_.spelled(line.substr(0, space));
  const int32_t left = vocabulary_.find(bytes);
  const std::string right_bytes = vocabulary_.spelled(line.substr(space + 1));
  const int32_t right = vocabulary_.find(right_bytes);
  if (left < 0 || right < 0) return {};
  return {left, right, vocabulary_.find(bytes += right_bytes)};
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
    const int32_t found = rank(left.token, right.token);
    if (found < 0) return {};
    return Merger::Rule{static_cast<double>(found), merges_[static_cast<size_t>(found)].token};
  });
  merger.each([&](const Merger::Symbol& symbol) { ids.push_back(symbol.token); });
}

}  // namespace winnow
