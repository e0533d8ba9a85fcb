// Conversations to prompts, by the template that the model file names or holds.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/metadata.h"

namespace winnow {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

class ChatTemplate {
 public:
  virtual ~ChatTemplate() = default;
  /// Picks the family (ChatML, Llama 3, Gemma, SmolLM2's ChatML with its own system message, ...) by marks in the
  /// file's template. A file without template gets null; an unknown one throws Error.
  static std::unique_ptr<ChatTemplate> load(const Metadata& metadata);
  virtual std::string name() const = 0;
  /// The prompt of the whole conversation, open for the assistant's answer. To be encoded with special tokens. Without
  /// the BOS at its very start: whoever encodes puts it there where Tokenizer::add_bos() says so. Throws Error where
  /// the conversation is empty, does not end with the user, or is not one that the model's own template takes (a system
  /// message, roles that do not alternate).
  virtual std::string render(const std::vector<ChatMessage>& messages) const = 0;
};

}  // namespace winnow
