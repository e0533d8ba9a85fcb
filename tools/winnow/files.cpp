#include "files.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "eval/draw.h"
#include "signals.h"

namespace winnow {
namespace {

/// Bytes of the well-formed character at `text[at]`, or 0 (overlong forms, surrogates and what lies beyond U+10FFFF
/// are malformed).
size_t character_bytes(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) -> unsigned { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  const auto follows = [&](size_t i) { return (byte(i) & 0xc0U) == 0x80U; };
  const unsigned lead = byte(at);
  if (lead < 0x80U) return 1;
  if (lead >= 0xc2U && lead <= 0xdfU) return follows(at + 1) ? 2 : 0;
  const unsigned second = byte(at + 1);
  if (!follows(at + 1) || !follows(at + 2)) return 0;
  if (lead >= 0xe0U && lead <= 0xefU) {
    return (lead == 0xe0U && second < 0xa0U) || (lead == 0xedU && second >= 0xa0U) ? 0 : 3;
  }
  if (lead < 0xf0U || lead > 0xf4U || !follows(at + 3)) return 0;
  return (lead == 0xf0U && second < 0x90U) || (lead == 0xf4U && second >= 0x90U) ? 0 : 4;
}

}  // namespace

std::string read_file(const std::string& path) {
  const bool standard = path == "-";
  if (!standard && std::filesystem::is_directory(path)) fail("{}: this is a folder, not a file", path);
  std::FILE* file = standard ? stdin : std::fopen(path.c_str(), "rb");
  if (file == nullptr) fail("{}: the file cannot be read: {}", path, std::strerror(errno));
  std::string text;
  char buffer[1 << 16];
  size_t n = 0;
  while ((n = std::fread(buffer, 1, sizeof buffer, file)) > 0) text.append(buffer, n);
  const bool broken = std::ferror(file) != 0;
  if (!standard) std::fclose(file);
  check_signal();
  if (broken) fail("{}: reading stopped after {} bytes: {}", path, text.size(), std::strerror(errno));
  return text;
}

void require_utf8(std::string_view text, std::string_view what) {
  for (size_t at = 0; at < text.size();) {
    const size_t n = character_bytes(text, at);
    if (n == 0) {
      fail("{} is not UTF-8: the byte at offset {} (0x{:02x}) is no part of a character", what, at,
           static_cast<unsigned char>(text[at]));
    }
    at += n;
  }
}

std::string read_text(const std::string& path) {
  std::string text = read_file(path);
  require_utf8(text, path == "-" ? "standard input" : path);
  return text;
}

std::string file_fingerprint(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string head(size_t{1} << 20, '\0');
  file.read(head.data(), static_cast<std::streamsize>(head.size()));
  head.resize(static_cast<size_t>(std::max<std::streamsize>(file.gcount(), 0)));
  return fmt::format("{:016x}", eval::hash64(head + std::to_string(std::filesystem::file_size(path))));
}

PendingFile::PendingFile(std::string path) : path_(std::move(path)) {
  if (std::filesystem::is_directory(path_)) fail("{}: this is a folder; give the name of a file", path_);
  pending_ = fmt::format("{}.part-{}", path_, getpid());
  file_ = std::fopen(pending_.c_str(), "wb");
  if (file_ == nullptr) fail("{}: the file cannot be written: {}", path_, std::strerror(errno));
  delete_on_second_signal(pending_);
}

PendingFile::~PendingFile() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  unlink(pending_.c_str());
  delete_on_second_signal({});
}

void PendingFile::fail_write() const {
  fail("{}: writing failed: {}", path_, std::strerror(errno));
}

void PendingFile::write(const void* data, size_t bytes) {
  if (std::fwrite(data, 1, bytes, file_) != bytes) fail_write();
}

void PendingFile::commit() {
  if (std::fflush(file_) != 0 || std::rename(pending_.c_str(), path_.c_str()) != 0) fail_write();
  std::fclose(file_);
  file_ = nullptr;
  delete_on_second_signal({});
}

}  // namespace winnow
