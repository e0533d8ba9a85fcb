#include "tiny_cases.h"

namespace winnow {

const std::vector<TinyCase>& tiny_cases() {
  static const std::vector<TinyCase> kAll = {
      {"tiny-llama", "llama", {.tied = false}},
      {"tiny-llama-linear", "llama", {.rope_scaling = "linear"}},
      {"tiny-llama-llama3", "llama", {.rope_scaling = "llama3", .rope_factor = 8}},
      {"tiny-llama-yarn", "llama", {.rope_scaling = "yarn"}},
      {"tiny-llama-q4_1", "llama", {.type = Type::q4_1}},
      {"tiny-llama-q5_1", "llama", {.type = Type::q5_1}},
      {"tiny-qwen2", "qwen2", {.n_layer = 3}},
      {"tiny-qwen2-q4_K", "qwen2", {.n_embd = 256, .head_dim = 64, .type = Type::q4_K}},
      {"tiny-qwen2-q5_K", "qwen2", {.n_embd = 256, .head_dim = 64, .type = Type::q5_K}},
      {"tiny-qwen2-q5_0", "qwen2", {.type = Type::q5_0}},
      {"tiny-qwen3", "qwen3", {.head_dim = 64, .tied = false}},
      {"tiny-qwen3-yarn", "qwen3", {.rope_scaling = "yarn", .rope_factor = 2}},
      {"tiny-qwen3-q6_K", "qwen3", {.n_embd = 256, .head_dim = 64, .type = Type::q6_K}},
      {"tiny-qwen3-q8_0", "qwen3", {.type = Type::q8_0}},
      {"tiny-qwen3-f16", "qwen3", {.type = Type::f16}},
      {"tiny-gemma3", "gemma3", {.n_layer = 4, .window = 16}},
      {"tiny-gemma3-linear",
       "gemma3",
       {.n_layer = 3,
        .type = Type::bf16,
        .rope_scaling = "linear",
        .rope_factor = 8,
        .window = 7,
        .window_pattern = 3,
        .final_softcap = 5}},
      {"tiny-gemma3-q4_0", "gemma3", {.type = Type::q4_0}},
  };
  return kAll;
}

}  // namespace winnow
