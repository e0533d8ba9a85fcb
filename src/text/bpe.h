// Byte-level byte-pair encoding (GPT-2 and its descendants): any bytes, well-formed or not, become tokens and return.
#pragma once

#include <array>
#include <optional>

#include "base/metadata.h"
#include "text/hash_index.h"
#include "text/merger.h"
#include "text/pre_tokenizer.h"
#include "text/text_encoder.h"
#include "text/vocabulary.h"

namespace winnow {

class BpeEncoder : public TextEncoder {
 public:
  /// `vocabulary` must outlive it. Throws Error where the merges do not fit the vocabulary.
  BpeEncoder(const Metadata& metadata, const Vocabulary& vocabulary, PreTokenizer words);

  /// A malformed byte counts as a sign of its own when words are cut. Some vocabularies (SmolLM2's) lack tokens for
  /// bytes that are rare in text: such a byte is left out, as the reference implementations do, but where it is
  /// malformed U+FFFD stands for it.
  void encode(std::string_view text, std::vector<int32_t>& ids) const override;

 private:
  struct Merge {
    int32_t left = -1, right = -1;  // the tokens of both sides
    int32_t token = -1;
  };
  static uint64_t hash(int32_t left, int32_t right);
  int32_t rank(int32_t left, int32_t right) const;
  Merge read_merge(std::string_view line) const;
  void encode_words(std::string_view text, std::vector<int32_t>& ids) const;
  void encode_word(std::string_view word, std::string_view masked, Merger& merger, std::vector<int32_t>& ids) const;

  const Vocabulary& vocabulary_;
  PreTokenizer words_;
  SpecialTexts user_defined_;
  std::array<int32_t, 256> byte_tokens_;
  std::vector<Merge> merges_;  // by rank
  HashIndex ranks_;            // by the tokens of both sides
};

}  // namespace winnow
