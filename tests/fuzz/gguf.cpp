// Model files from nowhere: reading one and loading its model may throw Error and nothing else.
#include <algorithm>
#include <vector>

#include "base/error.h"
#include "model/model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Tensors are read where they lie: a mapped file starts at a page, a fuzzer's input anywhere.
  std::vector<std::byte> bytes(size);
  std::copy_n(reinterpret_cast<const std::byte*>(data), size, bytes.data());
  try {
    winnow::load_model(winnow::Gguf::parse("fuzz", bytes.data(), bytes.size()));
  } catch (const winnow::Error&) {
  }
  return 0;
}
