#include "text/chat.h"

#include <array>
#include <optional>
#include <span>
#include <string_view>

#include "base/error.h"

namespace winnow {
namespace {

using Messages = std::span<const ChatMessage>;

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

/// Without white space at both ends, by the set that Python's strip() takes: the templates' own `trim`.
std::string_view trim(std::string_view text) {
  static constexpr std::array<std::string_view, 29> kSpaces = {
      " ",      "\t",     "\n",     "\v",     "\f",     "\r",     "\x1C",   "\x1D",   "\x1E",   "\x1F",
      "\u0085", "\u00A0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",
      "\u2007", "\u2008", "\u2009", "\u200A", "\u2028", "\u2029", "\u202F", "\u205F", "\u3000"};
  for (bool changed = true; changed;) {
    changed = false;
    for (const std::string_view space : kSpaces) {
      const bool before = text.starts_with(space);
      if (before) text.remove_prefix(space.size());
      const bool after = text.ends_with(space);
      if (after) text.remove_suffix(space.size());
      changed = changed || before || after;
    }
  }
  return text;
}

/// What the string literal around `mark` in a template's source says; nothing where `mark` stands in no literal.
std::optional<std::string> literal_around(std::string_view source, std::string_view mark) {
  const size_t at = source.rfind(mark);
  if (at == std::string_view::npos) return {};
  const size_t open = source.find_last_of("'\"", at);
  if (open == std::string_view::npos) return {};
  const size_t close = source.find(source[open], at);
  if (close == std::string_view::npos) return {};
  return std::string(source.substr(open + 1, close - open - 1));
}

/// A literal's text with its escapes (\n, \') taken back.
std::string unescaped(std::string_view literal) {
  std::string text;
  for (size_t i = 0; i < literal.size(); ++i) {
    const bool escape = literal[i] == '\\' && i + 1 < literal.size();
    if (escape) ++i;
    text += escape && literal[i] == 'n' ? '\n' : literal[i];
  }
  return text;
}

/// Templates of most families demand user and assistant in turn, from the user on.
void check_turns(Messages messages) {
  for (size_t i = 0; i < messages.size(); ++i) {
    if ((messages[i].role == "user") != (i % 2 == 0)) {
      fail("this model takes conversations in which user and assistant alternate, but message {} is from \"{}\"", i + 1,
           messages[i].role);
    }
  }
}

/// Removes the first message where it is the system's, and returns its text.
std::optional<std::string> take_system(Messages& messages) {
  if (messages[0].role != "system") return {};
  const std::string& text = messages[0].content;
  messages = messages.subspan(1);
  return text;
}

class CheckedTemplate : public ChatTemplate {
 public:
  std::string render(const std::vector<ChatMessage>& messages) const final {
    for (const ChatMessage& message : messages) {
      if (message.role != "system" && message.role != "user" && message.role != "assistant") {
        fail("a message's role is \"{}\"; it must be system, user or assistant", message.role);
      }
    }
    if (messages.empty() || messages.back().role != "user") {
      fail("a conversation must end with the user's message to be answered");
    }
    return write(messages);
  }

 protected:
  virtual std::string write(Messages messages) const = 0;
};

/// <|im_start|>role, line end, text, <|im_end|>: Qwen, SmolLM2 and many more. Templates differ in the system message
/// that they put where the conversation has none.
class ChatMl : public CheckedTemplate {
 public:
  static bool knows(std::string_view source) { return contains(source, "<|im_start|>"); }

  explicit ChatMl(std::string_view source) : drops_thoughts_(contains(source, "</think>")) {
    constexpr std::string_view kSystem = "<|im_start|>system";
    for (size_t at = source.find(kSystem); at != std::string_view::npos; at = source.find(kSystem, at + 1)) {
      std::string_view rest = source.substr(at + kSystem.size());
      rest = rest.substr(0, rest.find("<|im_end|>"));
      const bool escaped_line = rest.starts_with("\\n");
      if (!escaped_line && !rest.starts_with("\n")) continue;
      rest.remove_prefix(escaped_line ? 2 : 1);
      // A quote ends the literal: what follows is an expression, the conversation's own system message.
      if (contains(rest, "'") || contains(rest, "\"") || contains(rest, "{{")) continue;
      system_ = unescaped(rest);
      break;
    }
  }

  std::string name() const override { return "chatml"; }

 protected:
  std::string write(Messages messages) const override {
    std::string prompt;
    if (system_ && messages[0].role != "system") prompt += turn("system", *system_);
    for (const ChatMessage& message : messages) {
      std::string_view text = message.content;
      // Qwen3: earlier answers stand without the thoughts that led to them.
      const size_t thoughts = text.rfind(kThoughtsEnd);
      if (drops_thoughts_ && message.role == "assistant" && thoughts != std::string_view::npos) {
        text.remove_prefix(thoughts + kThoughtsEnd.size());
        text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
      }
      prompt += turn(message.role, text);
    }
    return prompt + "<|im_start|>assistant\n";
  }

 private:
  static constexpr std::string_view kThoughtsEnd = "</think>";

  static std::string turn(std::string_view role, std::string_view text) {
    return fmt::format("<|im_start|>{}\n{}<|im_end|>\n", role, text);
  }

  bool drops_thoughts_;
  std::optional<std::string> system_;
};

/// Headers with the role, <|eot_id|> after each text. From 3.1 on a system message always stands first, with two dates.
/// "Today" is the day that the template itself falls back to, so that a prompt is the same on every day.
class Llama3 : public CheckedTemplate {
 public:
  static bool knows(std::string_view source) { return contains(source, "<|start_header_id|>"); }

  explicit Llama3(std::string_view source) {
    if (!contains(source, "Cutting Knowledge Date: December 2023")) return;
    constexpr std::string_view kSet = "set date_string = \"";
    const size_t at = source.find(kSet);
    if (at == std::string_view::npos) fail("the model file's chat template names a date, but no day to fall back to");
    const std::string_view rest = source.substr(at + kSet.size());
    dates_ = fmt::format("Cutting Knowledge Date: December 2023\nToday Date: {}\n\n", rest.substr(0, rest.find('"')));
  }

  std::string name() const override { return "llama3"; }

 protected:
  std::string write(Messages messages) const override {
    std::string prompt;
    if (dates_) {
      const std::string system = take_system(messages).value_or("");
      prompt += header("system") + *dates_ + std::string(trim(system)) + "<|eot_id|>";
    }
    for (const ChatMessage& message : messages) {
      prompt += header(message.role) + std::string(trim(message.content)) + "<|eot_id|>";
    }
    return prompt + header("assistant");
  }

 private:
  static std::string header(std::string_view role) {
    return fmt::format("<|start_header_id|>{}<|end_header_id|>\n\n", role);
  }

  std::optional<std::string> dates_;
};

/// <start_of_turn>; the assistant is called model, and a system message opens the user's first.
class Gemma : public CheckedTemplate {
 public:
  static bool knows(std::string_view source) { return contains(source, "<start_of_turn>"); }

  explicit Gemma(std::string_view source) : takes_system_(!contains(source, "System role not supported")) {}

  std::string name() const override { return "gemma"; }

 protected:
  std::string write(Messages messages) const override {
    const std::optional<std::string> system = take_system(messages);
    if (system && !takes_system_) fail("this model's chat template takes no system message");
    check_turns(messages);
    std::string prompt;
    for (const ChatMessage& message : messages) {
      const bool first = &message == &messages[0];
      prompt += fmt::format("<start_of_turn>{}\n{}{}<end_of_turn>\n", message.role == "user" ? "user" : "model",
                            first && system ? *system + "\n\n" : "", trim(message.content));
    }
    return prompt + "<start_of_turn>model\n";
  }

 private:
  bool takes_system_;
};

/// <|role|>, line end, text, EOS, line end: Zephyr, TinyLlama.
class Zephyr : public CheckedTemplate {
 public:
  static bool knows(std::string_view source) {
    return contains(source, "<|user|>") && contains(source, "<|assistant|>") && contains(source, "eos_token") &&
           !contains(source, "<|end|>");
  }

  explicit Zephyr(std::string eos) : eos_(std::move(eos)) {}

  std::string name() const override { return "zephyr"; }

 protected:
  std::string write(Messages messages) const override {
    std::string prompt;
    for (const ChatMessage& message : messages) {
      prompt += fmt::format("<|{}|>\n{}{}\n", message.role, message.content, eos_);
    }
    return prompt + "<|assistant|>\n";
  }

 private:
  std::string eos_;
};

/// [INST] ... [/INST] with the system message in <<SYS>>: Llama 2.
class Llama2 : public CheckedTemplate {
 public:
  static bool knows(std::string_view source) { return contains(source, "[INST]") && contains(source, "<<SYS>>"); }

  Llama2(std::string_view source, std::string bos, std::string eos)
      : trims_(contains(source, "strip()") || contains(source, "trim")),
        bos_(contains(source, "bos_token + '[INST]") ? std::move(bos) : ""),
        eos_(std::move(eos)) {}

  std::string name() const override { return "llama2"; }

 protected:
  std::string write(Messages messages) const override {
    const std::optional<std::string> system = take_system(messages);
    check_turns(messages);
    std::string prompt;
    for (const ChatMessage& message : messages) {
      const bool first = &message == &messages[0];
      std::string text = message.content;
      if (first && system) text = fmt::format("<<SYS>>\n{}\n<</SYS>>\n\n{}", *system, text);
      if (trims_) text = trim(text);
      if (message.role == "user") {
        prompt += fmt::format("{}[INST] {} [/INST]", first ? "" : bos_, text);
      } else {
        prompt += fmt::format(" {} {}", text, eos_);
      }
    }
    return prompt;
  }

 private:
  bool trims_;
  std::string bos_;  // before each turn; empty where only the first has it
  std::string eos_;
};

/// [INST] ... [/INST] without more: Mistral. Its versions differ in the spaces, which are read off the template.
class Mistral : public CheckedTemplate {
 public:
  static bool knows(std::string_view source) {
    return contains(source, "[INST]") && !contains(source, "[SYSTEM_PROMPT]");
  }

  Mistral(std::string_view source, const std::string& eos)
      : begin_(literal_around(source, "[INST]").value_or("[INST] ")),
        end_(literal_around(source, "[/INST]").value_or(" [/INST]")),
        before_answer_(contains(source, "' ' + message") || contains(source, "\" \" + message") ? " " : ""),
        after_answer_(eos + (contains(source, "eos_token + ' '") ? " " : "")),
        trims_answer_(contains(source, "|trim + eos_token") || contains(source, "| trim + eos_token")) {
    if (contains(source, "system_message")) system_in_ = contains(source, "loop.last and system") ? "last" : "first";
  }

  std::string name() const override { return "mistral"; }

 protected:
  std::string write(Messages messages) const override {
    const std::optional<std::string> system = take_system(messages);
    if (system && system_in_.empty()) fail("this model's chat template takes no system message");
    check_turns(messages);
    std::string prompt;
    for (const ChatMessage& message : messages) {
      if (message.role == "user") {
        const bool here = &message == (system_in_ == "last" ? &messages.back() : &messages.front());
        prompt += begin_ + (here && system ? *system + "\n\n" : "") + message.content + end_;
      } else {
        const std::string_view text = trims_answer_ ? trim(message.content) : message.content;
        prompt += before_answer_ + std::string(text) + after_answer_;
      }
    }
    return prompt;
  }

 private:
  std::string begin_, end_;
  std::string before_answer_, after_answer_;
  bool trims_answer_;
  std::string_view system_in_;  // the user message that the system's text opens; empty: the template refuses one
};

std::string token_text(const Metadata& metadata, std::string_view key) {
  const int64_t id = metadata.integer_or(key, -1);
  const std::vector<std::string>& tokens = metadata.texts("tokenizer.ggml.tokens");
  if (id < 0 || static_cast<size_t>(id) >= tokens.size()) {
    fail("the model file's chat template needs \"{}\", which names no token", key);
  }
  return tokens[static_cast<size_t>(id)];
}

}  // namespace

std::unique_ptr<ChatTemplate> ChatTemplate::load(const Metadata& metadata) {
  if (!metadata.has("tokenizer.chat_template")) return nullptr;
  const std::string& source = metadata.text("tokenizer.chat_template");
  const auto eos = [&] { return token_text(metadata, "tokenizer.ggml.eos_token_id"); };
  if (ChatMl::knows(source)) return std::make_unique<ChatMl>(source);
  if (Llama3::knows(source)) return std::make_unique<Llama3>(source);
  if (Gemma::knows(source)) return std::make_unique<Gemma>(source);
  if (Zephyr::knows(source)) return std::make_unique<Zephyr>(eos());
  if (Llama2::knows(source)) {
    return std::make_unique<Llama2>(source, token_text(metadata, "tokenizer.ggml.bos_token_id"), eos());
  }
  if (Mistral::knows(source)) return std::make_unique<Mistral>(source, eos());
  fail(
      "the model file's chat template is of no family that winnow knows (chatml, llama3, gemma, zephyr, llama2, "
      "mistral); prompt the model without one");
}

}  // namespace winnow
