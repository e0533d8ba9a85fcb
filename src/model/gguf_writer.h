// Writes GGUF into memory: values and tensors as they are given, right or wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace winnow {

class GgufWriter {
 public:
  void integer(std::string_view key, uint32_t value);
  void real(std::string_view key, float value);
  void boolean(std::string_view key, bool value);
  void text(std::string_view key, std::string_view value);
  void texts(std::string_view key, const std::vector<std::string>& values);
  void reals(std::string_view key, const std::vector<float>& values);
  void integers(std::string_view key, const std::vector<int32_t>& values);
  /// shape slowest first; type is GGUF's id
  void tensor(std::string_view name, const std::vector<int64_t>& shape, int32_t type, std::vector<std::byte> data);
  /// A tensor that lies where `other` lies, which was given before: several names for the same data. It may be smaller.
  void tensor_like(std::string_view name, const std::vector<int64_t>& shape, int32_t type, std::string_view other);
  /// The whole file.
  std::vector<std::byte> finish() const;

 private:
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
    int32_t type;
    std::vector<std::byte> data;
    uint64_t offset;  // in the data section
  };
  void key(std::string_view key, uint32_t type);
  void array(std::string_view name, uint32_t type, size_t n);
  std::vector<std::byte> values_;
  uint64_t n_values_ = 0;
  std::vector<Tensor> tensors_;
  uint64_t data_bytes_ = 0;  // of the data section, padding included
};

}  // namespace winnow
