#include "text/chat.h"

#include <gmock/gmock.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace winnow {
namespace {

Metadata facts_with(const std::string& source) {
  Metadata facts;
  facts.set("tokenizer.chat_template", source);
  facts.set("tokenizer.ggml.tokens", std::vector<std::string>{"<unk>", "<s>", "</s>"});
  facts.set("tokenizer.ggml.bos_token_id", int64_t{1});
  facts.set("tokenizer.ggml.eos_token_id", int64_t{2});
  return facts;
}

std::vector<ChatMessage> messages_of(const nlohmann::json& conversation) {
  std::vector<ChatMessage> messages;
  for (const auto& message : conversation) messages.push_back({message["role"], message["content"]});
  return messages;
}

// Expected prompts were rendered from the same templates by Jinja2 (scripts/golden-chat).
TEST(Chat, RendersAsTheTemplatesThemselves) {
  std::ifstream file(std::string(WINNOW_TEST_DATA) + "/chat.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  ASSERT_GE(golden["templates"].size(), 15U);
  for (const auto& entry : golden["templates"]) {
    SCOPED_TRACE(entry["name"].get<std::string>());
    const auto chat = ChatTemplate::load(facts_with(entry["template"]));
    ASSERT_NE(chat, nullptr);
    EXPECT_EQ(chat->name(), entry["family"]);
    for (size_t i = 0; i < golden["conversations"].size(); ++i) {
      const std::vector<ChatMessage> messages = messages_of(golden["conversations"][i]);
      const auto& prompt = entry["prompts"][i];
      if (prompt.is_null()) {
        EXPECT_THROW(chat->render(messages), Error) << "conversation " << i;
      } else {
        EXPECT_EQ(chat->render(messages), prompt.get<std::string>()) << "conversation " << i;
      }
    }
  }
}

TEST(Chat, NoTemplateIsNull) {
  EXPECT_EQ(ChatTemplate::load(Metadata()), nullptr);
}

TEST(Chat, UnknownTemplateIsRefused) {
  EXPECT_THROW(ChatTemplate::load(facts_with("{{ messages }}")), Error);
  EXPECT_THROW(ChatTemplate::load(facts_with("")), Error);
}

TEST(Chat, MissingEndTokenIsRefused) {
  Metadata facts = facts_with("[INST] {{ message }} [/INST] eos_token");
  facts.set("tokenizer.ggml.eos_token_id", int64_t{3});
  EXPECT_THROW(ChatTemplate::load(facts), Error);
}

TEST(Chat, ConversationsThatCannotBeAnswered) {
  const auto chat = ChatTemplate::load(facts_with("<|im_start|>"));
  EXPECT_THROW(chat->render({}), Error);
  EXPECT_THROW(chat->render({{"user", "a"}, {"assistant", "b"}}), Error);
  EXPECT_THROW(chat->render({{"system", "a"}}), Error);
  EXPECT_THROW(chat->render({{"tool", "a"}, {"user", "b"}}), Error);
}

}  // namespace
}  // namespace winnow
