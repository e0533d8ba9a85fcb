#include "kernels/rows.h"

#include <ggml-cpu.h>
#include <ggml.h>

#include <cstring>

namespace winnow {
namespace {

// ggml has no type of plain e4m3.
void decode_fp8(const std::byte* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = fp8_to_f32(static_cast<uint8_t>(from[i]));
}

void encode_fp8(const float* from, std::byte* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<std::byte>(f32_to_fp8(from[i]));
}

ggml_type ggml_id(Type type) {
  return static_cast<ggml_type>(type);  // but for fp8, Type's ids are GGUF's, and so ggml's
}

}  // namespace

void decode_row(Type type, const std::byte* from, float* to, int64_t n) {
  if (type == Type::f32) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
  } else if (type == Type::fp8) {
    decode_fp8(from, to, n);
  } else {
    ggml_get_type_traits(ggml_id(type))->to_float(from, to, n);
  }
}

void encode_row_plain(Type type, const float* from, std::byte* to, int64_t n) {
  if (type == Type::f32) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
  } else if (type == Type::fp8) {
    encode_fp8(from, to, n);
  } else {
    ggml_get_type_traits(ggml_id(type))->from_float_ref(from, to, n);
  }
}

void encode_row(Type type, const float* from, std::byte* to, int64_t n) {
  if (type == Type::fp8) return encode_fp8(from, to, n);
  ggml_get_type_traits_cpu(ggml_id(type))->from_float(from, to, n);
}

}  // namespace winnow
