// Reads GGUF (versions 2 and 3) straight from the mapped bytes.
//
// The reader is our own and not ggml's: a system copy of ggml may be older than its bounds checks, its interface hands
// texts out as C strings (a token that holds a zero byte comes back short), it speaks to a process-wide log, and it
// refuses a whole file for one tensor type that it does not know, which `winnow info` wants to show. Every length is
// compared with the bytes that are left before anything is read or allocated.
#include "model/gguf.h"

#include <fcntl.h>
#include <ggml.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "model/gguf_cursor.h"

namespace winnow {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is little-endian and read as it lies in memory");

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint32_t kOldestVersion = 2, kNewestVersion = 3;
constexpr int64_t kDefaultAlignment = 32;
constexpr uint32_t kMaxDims = 4;

/// a * b, or nothing where it exceeds int64_t; both positive.
bool multiply(int64_t a, int64_t b, int64_t& product) {
  return !__builtin_mul_overflow(a, b, &product);
}

class ParsedGguf : public Gguf {
 public:
  explicit ParsedGguf(std::string path) { path_ = std::move(path); }

  void parse(const std::byte* data, size_t size) {
    file_bytes_ = size;
    Cursor cursor(path_, data, size);
    if (size < sizeof(kMagic) || cursor.number<uint32_t>() != kMagic) fail("{}: this is not a GGUF file", path_);
    check_version(cursor.number<uint32_t>());
    const auto n_tensors = cursor.number<uint64_t>();
    const auto n_values = cursor.number<uint64_t>();
    read_metadata(cursor, n_values);
    cursor.expect(n_tensors, 24);  // lengths, type and offset of a tensor without name and dimensions
    std::vector<uint64_t> offsets;
    for (uint64_t i = 0; i < n_tensors; ++i) offsets.push_back(read_tensor_info(cursor));
    refuse_twins();
    place_tensors(data, cursor.position(), offsets);
  }

 private:
  void check_version(uint32_t version) const {
    if (version >= kOldestVersion && version <= kNewestVersion) return;
    if ((version & 0xffffU) == 0) fail("{}: this GGUF file is big-endian, which winnow does not read", path_);
    fail("{}: this is GGUF version {}; winnow reads versions {} to {}", path_, version, kOldestVersion, kNewestVersion);
  }

  void read_metadata(Cursor& cursor, uint64_t n_values) {
    for (uint64_t i = 0; i < n_values; ++i) {
      std::string key = cursor.short_text("key");
      if (metadata_.has(key)) fail("{}: damaged header: \"{}\" stands there twice", path_, key);
      Metadata::Value value = ValueReader(path_, key, cursor).value();
      metadata_.set(std::move(key), std::move(value));
    }
  }

  /// Adds the tensor without its data; -> offset of these in the data section.
  uint64_t read_tensor_info(Cursor& cursor) {
    Tensor tensor;
    tensor.name = cursor.short_text("tensor's name");
    const auto n_dims = cursor.number<uint32_t>();
    if (n_dims == 0 || n_dims > kMaxDims) {
      fail("{}: tensor {} has {} dimensions; GGUF allows 1 to {}", path_, tensor.name, n_dims, kMaxDims);
    }
    int64_t n_values = 1;
    for (uint32_t d = 0; d < n_dims; ++d) {
      const auto n = cursor.number<int64_t>();
      if (n < 1 || !multiply(n_values, n, n_values)) {
        fail("{}: tensor {} has a dimension of {}, which no file can hold", path_, tensor.name, n);
      }
      tensor.shape.insert(tensor.shape.begin(), n);  // GGUF stores the fastest first
    }
    tensor.type_id = cursor.number<int32_t>();
    set_type(tensor, n_values);
    tensors_.push_back(std::move(tensor));
    return cursor.number<uint64_t>();
  }

  /// Fills type_name and bytes; the latter stay 0 where not even ggml knows the type.
  void set_type(Tensor& tensor, int64_t n_values) const {
    tensor.type_name = fmt::format("type {}", tensor.type_id);
    if (tensor.type_id < 0 || tensor.type_id >= GGML_TYPE_COUNT) return;
    const auto type = static_cast<ggml_type>(tensor.type_id);
    const int64_t block_values = ggml_blck_size(type);
    const auto block_bytes = static_cast<int64_t>(ggml_type_size(type));
    if (block_values == 0 || block_bytes == 0) return;  // an id that was given up
    tensor.type_name = ggml_type_name(type);
    if (tensor.shape.back() % block_values != 0) {
      fail("{}: tensor {} has rows of {} values; {} stores them in blocks of {}", path_, tensor.name,
           tensor.shape.back(), tensor.type_name, block_values);
    }
    int64_t bytes = 0;
    if (!multiply(n_values / block_values, block_bytes, bytes)) {
      fail("{}: tensor {} is larger than any file", path_, tensor.name);
    }
    tensor.bytes = static_cast<size_t>(bytes);
  }

  void refuse_twins() const {
    std::vector<std::string_view> names;
    names.reserve(tensors_.size());
    for (const Tensor& tensor : tensors_) names.push_back(tensor.name);
    std::sort(names.begin(), names.end());
    const auto twin = std::adjacent_find(names.begin(), names.end());
    if (twin != names.end()) fail("{}: damaged header: tensor {} stands there twice", path_, *twin);
  }

  void place_tensors(const std::byte* data, size_t header_bytes, const std::vector<uint64_t>& offsets) {
    if (tensors_.empty()) return;
    const int64_t alignment = metadata_.integer_or("general.alignment", kDefaultAlignment);
    if (alignment < 8 || alignment > (1 << 30) || !std::has_single_bit(static_cast<uint64_t>(alignment))) {
      fail("{}: general.alignment is {}; it must be a power of two from 8 to 2^30", path_, alignment);
    }
    const auto step = static_cast<size_t>(alignment);
    const size_t begin = (header_bytes + step - 1) / step * step;
    const size_t room = begin > file_bytes_ ? 0 : file_bytes_ - begin;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      Tensor& tensor = tensors_[i];
      if (offsets[i] % step != 0) {
        fail("{}: tensor {} lies at offset {}, which is no multiple of {}", path_, tensor.name, offsets[i], step);
      }
      if (offsets[i] > room || tensor.bytes > room - offsets[i]) {
        fail("{}: the file is cut short: tensor {} reaches beyond the last of its {} bytes", path_, tensor.name,
             file_bytes_);
      }
      tensor.data = data + begin + offsets[i];
    }
  }
};

/// A whole file, mapped for reading.
class Mapping {
 public:
  explicit Mapping(const std::string& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) fail("{}: cannot be opened: {}", path, std::strerror(errno));
    struct stat facts {};
    const bool regular = ::fstat(file, &facts) == 0 && S_ISREG(facts.st_mode);
    if (regular && facts.st_size > 0) {
      size_ = static_cast<size_t>(facts.st_size);
      data_ = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0);
    }
    const int code = errno;
    ::close(file);
    if (!regular) fail("{}: this is not a file", path);
    if (size_ == 0) fail("{}: this is not a GGUF file: it is empty", path);
    if (data_ == MAP_FAILED) fail("{}: cannot be mapped into memory: {}", path, std::strerror(code));
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { ::munmap(data_, size_); }

  const std::byte* data() const { return static_cast<const std::byte*>(data_); }
  size_t size() const { return size_; }

 private:
  void* data_ = MAP_FAILED;
  size_t size_ = 0;
};

class MappedGguf : public ParsedGguf {
 public:
  explicit MappedGguf(const std::string& path) : ParsedGguf(path), mapping_(path) {
    parse(mapping_.data(), mapping_.size());
  }

 private:
  Mapping mapping_;
};

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t n : shape) text += fmt::format("{}{}", text.empty() ? "" : " x ", n);
  return text;
}

/// Whether the shapes agree but for leading ones.
bool same_shape(std::span<const int64_t> a, std::span<const int64_t> b) {
  while (!a.empty() && a.front() == 1) a = a.subspan(1);
  while (!b.empty() && b.front() == 1) b = b.subspan(1);
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

std::string readable_types() {
  std::string names;
  for (int32_t id = 0; id < GGML_TYPE_COUNT; ++id) {
    const TypeInfo* info = find_type(id);
    if (info == nullptr || id == static_cast<int32_t>(Type::i32)) continue;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", info->name);
  }
  return names;
}

const Gguf::Tensor& checked(const Gguf& file, const Gguf::Tensor* tensor, const std::string& name,
                            const std::vector<int64_t>& shape) {
  if (tensor == nullptr) fail("{}: tensor {} is missing", file.path(), name);
  if (!same_shape(tensor->shape, shape)) {
    fail("{}: tensor {} is {}; the model's other facts ask for {}", file.path(), name, shape_text(tensor->shape),
         shape_text(shape));
  }
  if (find_type(tensor->type_id) == nullptr || tensor->type_id == static_cast<int32_t>(Type::i32)) {
    fail("{}: tensor {} is stored as {}, which winnow does not read; it reads {}", file.path(), name, tensor->type_name,
         readable_types());
  }
  return *tensor;
}

}  // namespace

std::shared_ptr<const Gguf> Gguf::open(const std::string& path) {
  return std::make_shared<const MappedGguf>(path);
}

std::shared_ptr<const Gguf> Gguf::parse(const std::string& name, const std::byte* data, size_t size) {
  auto file = std::make_shared<ParsedGguf>(name);
  file->parse(data, size);
  return file;
}

const Gguf::Tensor* Gguf::find(std::string_view tensor) const {
  const auto found = std::find_if(tensors_.begin(), tensors_.end(), [&](const Tensor& t) { return t.name == tensor; });
  return found == tensors_.end() ? nullptr : &*found;
}

Weight Gguf::weight(const std::string& tensor, int64_t n_out, int64_t n_in) const {
  const Tensor& found = checked(*this, find(tensor), tensor, {n_out, n_in});
  return {tensor, static_cast<Type>(found.type_id), n_out, n_in, found.data};
}

std::vector<float> Gguf::vector(const std::string& tensor, int64_t n) const {
  return values(checked(*this, find(tensor), tensor, {n}));
}

std::vector<float> Gguf::values(const Tensor& tensor) const {
  size_t n = 1;
  for (const int64_t extent : tensor.shape) n *= static_cast<size_t>(extent);
  std::vector<float> values(n);
  const auto type = static_cast<Type>(tensor.type_id);
  if (type == Type::f32) {
    std::memcpy(values.data(), tensor.data, tensor.bytes);
    return values;
  }
  if (type != Type::f16 && type != Type::bf16) {
    fail("{}: tensor {} is stored as {}; winnow reads it in f32, f16 and bf16", path_, tensor.name, tensor.type_name);
  }
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, tensor.data + i * sizeof(bits), sizeof(bits));
    values[i] = type == Type::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
  }
  return values;
}

}  // namespace winnow
