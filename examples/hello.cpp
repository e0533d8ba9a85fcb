// The smallest program: a question, answered as it is written.
//
//   hello MODEL.gguf "Why is the sky blue?" [METHOD]
#include <winnow/winnow.h>

#include <iostream>

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: hello MODEL.gguf QUESTION [METHOD]\n";
    return 2;
  }
  try {
    winnow::SessionOptions options;
    if (argc > 3) options.methods = {argv[3]};
    winnow::Session session(argv[1], options);
    const winnow::Answer answer =
        session.generate({.prompt = argv[2]}, [](std::string_view piece) { std::cout << piece << std::flush; });
    std::cout << "\n[" << answer.n_prompt << " tokens read, " << answer.n_gen << " answered]\n";
  } catch (const std::exception& error) {
    std::cerr << "hello: " << error.what() << "\n";
    return 1;
  }
}
