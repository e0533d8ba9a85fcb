#include "kernels/rows.h"

#include <ggml-cpu.h>
#include <ggml.h>

#include <cstring>

namespace winnow {
namespace {

ggml_type ggml_id(Type type) {
  return static_cast<ggml_type>(type);  // Type's ids are GGUF's, and so ggml's
}

}  // namespace

void decode_row(Type type, const std::byte* from, float* to, int64_t n) {
  if (type == Type::f32) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
  } else {
    ggml_get_type_traits(ggml_id(type))->to_float(from, to, n);
  }
}

void encode_row_plain(Type type, const float* from, std::byte* to, int64_t n) {
  if (type == Type::f32) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
  } else {
    ggml_get_type_traits(ggml_id(type))->from_float_ref(from, to, n);
  }
}

void encode_row(Type type, const float* from, std::byte* to, int64_t n) {
  ggml_get_type_traits_cpu(ggml_id(type))->from_float(from, to, n);
}

}  // namespace winnow
