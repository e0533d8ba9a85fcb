// write_tiny_models FOLDER: writes every tiny model that golden logits exist for as FOLDER/NAME.gguf.
// Called by scripts/golden-logits.
#include <cstdio>
#include <fstream>

#include "tiny_cases.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: write_tiny_models FOLDER\n", stderr);
    return 1;
  }
  for (const winnow::TinyCase& one : winnow::tiny_cases()) {
    const std::vector<std::byte> bytes = winnow::tiny_gguf(one.architecture, one.options);
    const std::string path = std::string(argv[1]) + "/" + one.name + ".gguf";
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    if (!file.flush()) {
      std::fprintf(stderr, "%s: cannot be written\n", path.c_str());
      return 1;
    }
  }
  return 0;
}
