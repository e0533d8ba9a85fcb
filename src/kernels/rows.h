// Rows of values in their storage types, as ggml lays them out, to float32 and back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"

namespace winnow {

/// Decodes `n` values (a multiple of the type's block). The same on every device.
void decode_row(Type type, const std::byte* from, float* to, int64_t n);
/// Encodes `n` values; plain loops, ties as the format's reference has them.
void encode_row_plain(Type type, const float* from, std::byte* to, int64_t n);
/// The same with this machine's vector instructions.
void encode_row(Type type, const float* from, std::byte* to, int64_t n);

}  // namespace winnow
