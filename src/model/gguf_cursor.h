// GGUF's scalars, texts and metadata values, read from bytes that may be cut short or hostile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/metadata.h"

namespace winnow {

// Ids of the types of metadata values, by the GGUF specification.
enum ValueType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64
};

inline constexpr uint64_t kMaxNameBytes = 65535;  // the specification's limit for keys; tensors' names are shorter

/// The file's bytes from front to back. Running over the end throws Error.
class Cursor {
 public:
  Cursor(const std::string& name, const std::byte* data, size_t size) : name_(name), data_(data), size_(size) {}

  size_t position() const { return position_; }
  size_t left() const { return size_ - position_; }

  /// Throws unless n_items of at least item_bytes each may still follow.
  void expect(uint64_t n_items, size_t item_bytes) const {
    if (n_items > left() / item_bytes) {
      fail("{}: the file is cut short: its header goes on beyond the last of its {} bytes", name_, size_);
    }
  }

  template <typename T>
  T number() {
    expect(1, sizeof(T));
    T value;
    std::memcpy(&value, data_ + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  std::string text() {
    const auto n = number<uint64_t>();
    expect(n, 1);
    std::string text(reinterpret_cast<const char*>(data_ + position_), static_cast<size_t>(n));
    position_ += n;
    return text;
  }

  std::string short_text(std::string_view what) {
    const auto n = number<uint64_t>();
    if (n == 0 || n > kMaxNameBytes) fail("{}: damaged header: a {} is {} bytes long", name_, what, n);
    position_ -= sizeof(n);
    return text();
  }

 private:
  const std::string& name_;
  const std::byte* data_;
  size_t size_;
  size_t position_ = 0;
};

/// Values of one key. Whole numbers become int64_t, reals double.
class ValueReader {
 public:
  ValueReader(const std::string& name, const std::string& key, Cursor& cursor)
      : name_(name), key_(key), cursor_(cursor) {}

  Metadata::Value value() {
    const auto type = cursor_.number<uint32_t>();
    switch (type) {
      case kFloat32:
        return static_cast<double>(cursor_.number<float>());
      case kFloat64:
        return cursor_.number<double>();
      case kBool:
        return cursor_.number<uint8_t>() != 0;
      case kString:
        return cursor_.text();
      case kArray:
        return array();
      default:
        return whole(type);
    }
  }

 private:
  int64_t whole(uint32_t type) {
    switch (type) {
      case kUint8:
        return cursor_.number<uint8_t>();
      case kInt8:
        return cursor_.number<int8_t>();
      case kUint16:
        return cursor_.number<uint16_t>();
      case kInt16:
        return cursor_.number<int16_t>();
      case kUint32:
        return cursor_.number<uint32_t>();
      case kInt32:
        return cursor_.number<int32_t>();
      case kInt64:
        return cursor_.number<int64_t>();
      case kUint64:
        return whole_u64();
      default:
        fail("{}: damaged header: \"{}\" has a value of type {}, which GGUF does not define", name_, key_, type);
    }
  }

  int64_t whole_u64() {
    const auto value = cursor_.number<uint64_t>();
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      fail("{}: \"{}\" is {}; winnow takes whole numbers below 2^63", name_, key_, value);
    }
    return static_cast<int64_t>(value);
  }

  static size_t value_bytes(uint32_t type) {
    switch (type) {
      case kUint8:
      case kInt8:
      case kBool:
        return 1;
      case kUint16:
      case kInt16:
        return 2;
      case kUint32:
      case kInt32:
      case kFloat32:
        return 4;
      default:
        return 8;  // a text is at least its length
    }
  }

  Metadata::Value array() {
    const auto type = cursor_.number<uint32_t>();
    const auto n = cursor_.number<uint64_t>();
    if (type == kArray) fail("{}: \"{}\" is a list of lists, which winnow does not read", name_, key_);
    cursor_.expect(n, value_bytes(type));
    if (type == kString) return list<std::string>(n, [&] { return cursor_.text(); });
    if (type == kFloat32) return list<double>(n, [&] { return cursor_.number<float>(); });
    if (type == kFloat64) return list<double>(n, [&] { return cursor_.number<double>(); });
    if (type == kBool) return list<int64_t>(n, [&] { return cursor_.number<uint8_t>() != 0 ? 1 : 0; });
    return list<int64_t>(n, [&] { return whole(type); });
  }

  template <typename T, typename Next>
  static std::vector<T> list(uint64_t n, Next next) {
    std::vector<T> values;
    values.reserve(n);
    for (uint64_t i = 0; i < n; ++i) values.push_back(next());
    return values;
  }

  const std::string& name_;
  const std::string& key_;
  Cursor& cursor_;
};

}  // namespace winnow
