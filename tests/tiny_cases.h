// The tiny models that golden logits exist for (tests/data/golden, made by scripts/golden-logits).
#pragma once

#include <string>
#include <vector>

#include "tiny_gguf.h"

namespace winnow {

struct TinyCase {
  std::string name;  // of its golden file
  std::string architecture;
  TinyOptions options;
};

/// Every architecture, every RoPE scaling, tied and untied outputs, softcaps, windows, quantised matrices.
const std::vector<TinyCase>& tiny_cases();

}  // namespace winnow
