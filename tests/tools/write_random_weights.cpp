// write_random_weights METHOD MODEL OUT: a file of random weights for a method that wants trained ones, fit for the
// model file MODEL. Its answers mean nothing; the time that the method takes does.
#include <cstdio>

#include "base/error.h"
#include "methods/roster.h"
#include "model/model.h"
#include "random_weights.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fputs("usage: write_random_weights METHOD MODEL OUT\n", stderr);
    return 1;
  }
  try {
    const winnow::MethodInfo& info = winnow::find_method(argv[1]);
    if (info.weights == nullptr) winnow::fail("{} has no weights", info.name);
    const auto model = winnow::load_model(winnow::Gguf::open(argv[2]));
    const winnow::ModelShape& shape = model->shape();
    winnow::write_weights(argv[3], info,
                          {shape.n_layer, shape.n_head, shape.n_head_kv, shape.head_dim, shape.architecture});
  } catch (const winnow::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
