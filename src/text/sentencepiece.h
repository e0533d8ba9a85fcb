// SentencePiece's byte-pair encoding: tokens with scores over characters, single bytes for what no token covers.
#pragma once

#include <array>

#include "base/metadata.h"
#include "text/text_encoder.h"
#include "text/vocabulary.h"

namespace winnow {

class SentencePieceEncoder : public TextEncoder {
 public:
  /// `vocabulary` must outlive it. Throws Error where scores are missing, or what no token covers could not be encoded.
  SentencePieceEncoder(const Metadata& metadata, const Vocabulary& vocabulary);

  /// As SentencePiece does, U+2581 counts as a space, and (where the file asks for it) a space is put before the text.
  void encode(std::string_view text, std::vector<int32_t>& ids) const override;

 private:
  void encode_plain(std::string_view text, std::vector<int32_t>& ids) const;

  const Vocabulary& vocabulary_;
  SpecialTexts user_defined_;
  std::vector<double> scores_;            // by token
  std::array<int32_t, 256> byte_tokens_;  // the unknown token where a byte has none
  bool space_before_ = true;
};

}  // namespace winnow
