#include "model/gguf_writer.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace winnow {
namespace {

constexpr size_t kAlignment = 32;  // GGUF's default
enum ValueType : uint32_t { kUint32 = 4, kInt32 = 5, kFloat32 = 6, kBool = 7, kString = 8, kArray = 9 };

template <typename T>
void put(std::vector<std::byte>& to, T value) {
  const size_t at = to.size();
  to.resize(at + sizeof(T));
  std::memcpy(to.data() + at, &value, sizeof(T));
}

void put_text(std::vector<std::byte>& to, std::string_view text) {
  put<uint64_t>(to, text.size());
  const auto* bytes = reinterpret_cast<const std::byte*>(text.data());
  to.insert(to.end(), bytes, bytes + text.size());
}

size_t padded(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

void GgufWriter::key(std::string_view key, uint32_t type) {
  put_text(values_, key);
  put(values_, type);
  ++n_values_;
}

void GgufWriter::array(std::string_view name, uint32_t type, size_t n) {
  key(name, kArray);
  put(values_, type);
  put<uint64_t>(values_, n);
}

void GgufWriter::integer(std::string_view name, uint32_t value) {
  key(name, kUint32);
  put(values_, value);
}

void GgufWriter::real(std::string_view name, float value) {
  key(name, kFloat32);
  put(values_, value);
}

void GgufWriter::boolean(std::string_view name, bool value) {
  key(name, kBool);
  put<uint8_t>(values_, value ? 1 : 0);
}

void GgufWriter::text(std::string_view name, std::string_view value) {
  key(name, kString);
  put_text(values_, value);
}

void GgufWriter::texts(std::string_view name, const std::vector<std::string>& values) {
  array(name, kString, values.size());
  for (const std::string& value : values) put_text(values_, value);
}

void GgufWriter::reals(std::string_view name, const std::vector<float>& values) {
  array(name, kFloat32, values.size());
  for (const float value : values) put(values_, value);
}

void GgufWriter::integers(std::string_view name, const std::vector<int32_t>& values) {
  array(name, kInt32, values.size());
  for (const int32_t value : values) put(values_, value);
}

void GgufWriter::tensor(std::string_view name, const std::vector<int64_t>& shape, int32_t type,
                        std::vector<std::byte> data) {
  tensors_.push_back({std::string(name), shape, type, std::move(data), data_bytes_});
  data_bytes_ += padded(tensors_.back().data.size());
}

void GgufWriter::tensor_like(std::string_view name, const std::vector<int64_t>& shape, int32_t type,
                             std::string_view other) {
  const auto found = std::find_if(tensors_.begin(), tensors_.end(), [&](const Tensor& t) { return t.name == other; });
  WINNOW_ASSERT(found != tensors_.end());
  tensors_.push_back({std::string(name), shape, type, {}, found->offset});
}

std::vector<std::byte> GgufWriter::finish() const {
  std::vector<std::byte> file;
  put<uint32_t>(file, 0x46554747);  // "GGUF"
  put<uint32_t>(file, 3);
  put<uint64_t>(file, tensors_.size());
  put<uint64_t>(file, n_values_);
  file.insert(file.end(), values_.begin(), values_.end());
  for (const Tensor& tensor : tensors_) {
    put_text(file, tensor.name);
    put(file, static_cast<uint32_t>(tensor.shape.size()));
    for (size_t d = tensor.shape.size(); d-- > 0;) put(file, tensor.shape[d]);
    put(file, tensor.type);
    put(file, tensor.offset);
  }
  const size_t begin = padded(file.size());
  file.resize(begin + data_bytes_);
  for (const Tensor& tensor : tensors_) {
    std::copy(tensor.data.begin(), tensor.data.end(),
              file.begin() + static_cast<std::ptrdiff_t>(begin + tensor.offset));
  }
  return file;
}

}  // namespace winnow
