// Text to ids and back, from a model file's own facts (tokenizer.ggml.*).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/metadata.h"

namespace winnow {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  /// Throws Error where the file's tokenizer or pre-tokenizer is not one that winnow knows, naming those it does.
  static std::unique_ptr<Tokenizer> load(const Metadata& metadata);

  /// Ids of `text`. Malformed UTF-8 is taken as it is, byte by byte. `special`: texts of special tokens (<|im_start|>)
  /// become those tokens; otherwise they are ordinary text. No BOS is added here.
  virtual std::vector<int32_t> encode(std::string_view text, bool special) const = 0;
  /// The bytes one token stands for; may be part of a UTF-8 character. Special tokens give their text if `special`,
  /// else nothing.
  virtual std::string decode(int32_t token, bool special) const = 0;
  virtual int32_t n_vocab() const = 0;

  int32_t bos() const { return bos_; }       // -1: none
  bool add_bos() const { return add_bos_; }  // prompts of this model start with BOS
  bool is_end(int32_t token) const;          // EOS, EOT and their kin: generation stops
  std::string decode(std::span<const int32_t> tokens, bool special) const;

 protected:
  int32_t bos_ = -1;
  bool add_bos_ = false;
  std::vector<int32_t> ends_;
};

/// Bytes of a stream of tokens, handed out as whole UTF-8 characters.
class Utf8Stream {
 public:
  /// What of the stream may be shown after `bytes` came.
  std::string push(std::string_view bytes);
  /// What is left at the end; malformed bytes become U+FFFD.
  std::string finish();

 private:
  std::string pending_;
};

}  // namespace winnow
