// The tokens of a model file: what each stands for, and how texts of special tokens are found.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/metadata.h"
#include "text/hash_index.h"

namespace winnow {

// The numbers that tokenizer.ggml.token_type holds.
enum class TokenKind : uint8_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

class Vocabulary {
 public:
  /// How a file spells bytes in its normal tokens.
  enum class Spelling {
    kByteAlphabet,   // every byte as a printable character: 0x20 as U+0120 (byte-level BPE)
    kSpaceAsLowBar,  // text as it is, but U+2581 for a space; <0x0A> for single bytes (SentencePiece)
  };
  /// Throws Error where lists are missing or their lengths differ.
  Vocabulary(const Metadata& metadata, Spelling spelling);

  int32_t size() const { return static_cast<int32_t>(bytes_.size()); }
  const std::string& bytes(int32_t id) const { return bytes_[static_cast<size_t>(id)]; }
  TokenKind kind(int32_t id) const { return kinds_[static_cast<size_t>(id)]; }
  /// The normal token that stands for exactly these bytes; -1: there is none.
  int32_t find(std::string_view bytes) const;
  /// The bytes that a text in the file's spelling stands for.
  std::string spelled(std::string_view text) const;

 private:
  Spelling spelling_;
  std::vector<std::string> bytes_;  // by id
  std::vector<TokenKind> kinds_;    // by id
  HashIndex ids_;                   // of normal tokens, by their bytes
};

/// Finds the texts of chosen tokens inside of a text: the leftmost first, of those that begin together the longest.
class SpecialTexts {
 public:
  /// Of all tokens of these kinds.
  SpecialTexts(const Vocabulary& vocabulary, std::initializer_list<TokenKind> kinds);

  struct Fragment {
    std::string_view text;  // empty where it is a token
    int32_t token = -1;
  };
  /// `text` in order as tokens and the texts between them, none empty.
  std::vector<Fragment> split(std::string_view text) const;

 private:
  struct Entry {
    std::string_view text;
    int32_t token;
  };
  const Entry* longest_at(std::string_view text) const;

  std::vector<Entry> entries_;  // sorted by text
  std::vector<bool> begins_;    // [256]: some entry begins with this byte
};

}  // namespace winnow
