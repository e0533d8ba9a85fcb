#include "text/sentencepiece.h"

#include <algorithm>

#include "base/error.h"
#include "text/merger.h"
#include "text/utf8.h"

namespace winnow {

SentencePieceEncoder::SentencePieceEncoder(const Metadata& metadata, const Vocabulary& vocabulary)
    : vocabulary_(vocabulary),
      user_defined_(vocabulary, {TokenKind::kUserDefined}),
      scores_(metadata.reals("tokenizer.ggml.scores")),
      space_before_(metadata.boolean_or("tokenizer.ggml.add_space_prefix", true)) {
  const auto n = static_cast<size_t>(vocabulary.size());
  if (scores_.size() != n) fail("the model file has {} tokens, but {} scores", n, scores_.size());
  byte_tokens_.fill(-1);
  int32_t unknown = -1;
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    if (vocabulary.kind(id) == TokenKind::kUnknown) unknown = id;
    if (vocabulary.kind(id) == TokenKind::kByte) byte_tokens_[static_cast<uint8_t>(vocabulary.bytes(id)[0])] = id;
  }
  unknown = static_cast<int32_t>(metadata.integer_or("tokenizer.ggml.unknown_token_id", unknown));
  const bool all_bytes = std::find(byte_tokens_.begin(), byte_tokens_.end(), -1) == byte_tokens_.end();
  if (!all_bytes && (unknown < 0 || unknown >= vocabulary.size())) {
    fail("the model file's vocabulary has neither tokens for all bytes nor one for the unknown");
  }
  std::replace(byte_tokens_.begin(), byte_tokens_.end(), -1, unknown);
}

void SentencePieceEncoder::encode(std::string_view text, std::vector<int32_t>& ids) const {
  std::string spaced(space_before_ ? " " : "");
  spaced += vocabulary_.spelled(text);
  for (const SpecialTexts::Fragment& fragment : user_defined_.split(spaced)) {
    if (fragment.token >= 0) {
      ids.push_back(fragment.token);
    } else {
      encode_plain(fragment.text, ids);
    }
  }
}

void SentencePieceEncoder::encode_plain(std::string_view text, std::vector<int32_t>& ids) const {
  WINNOW_ASSERT(text.size() < UINT32_MAX);
  Merger merger;
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text.substr(at));
    const size_t size = step.kind == Utf8Kind::kWhole ? step.length : 1;
    merger.add(static_cast<uint32_t>(at), static_cast<uint32_t>(size), vocabulary_.find(text.substr(at, size)));
    at += size;
  }
  merger.merge([&](const Merger::Symbol& left, const Merger::Symbol& right) -> std::optional<Merger::Rule> {
    const int32_t token = vocabulary_.find(text.substr(left.begin, left.size + right.size));
    if (token < 0) return {};
    return Merger::Rule{-scores_[static_cast<size_t>(token)], token};
  });
  merger.each([&](const Merger::Symbol& symbol) {
    if (symbol.token >= 0) {
      ids.push_back(symbol.token);
      return;
    }
    for (const char byte : text.substr(symbol.begin, symbol.size))
      ids.push_back(byte_tokens_[static_cast<uint8_t>(byte)]);
  });
}

}  // namespace winnow
