// Files that a user names: read whole, and written so that no half of one is ever left behind.
#pragma once

#include <cstdio>
#include <string>
#include <string_view>

namespace winnow {

/// The file's bytes; "-" is standard input. Throws Error where it cannot be read.
std::string read_file(const std::string& path);
/// The same, refused where it is not UTF-8; the message names the byte.
std::string read_text(const std::string& path);
/// Throws Error, naming `what` and the byte, where `text` is not UTF-8.
void require_utf8(std::string_view text, std::string_view what);

/// Of a file's size and its beginning, where GGUF keeps all that tells models apart but the weights themselves: sixteen
/// hexadecimal digits.
std::string file_fingerprint(const std::string& path);

/// A file that appears under its name only once it is whole: it grows beside its place under another name, and is
/// deleted if `commit` is not reached.
class PendingFile {
 public:
  /// Throws Error where nothing can be written there.
  explicit PendingFile(std::string path);
  ~PendingFile();
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;
  /// Throws Error where the disk is full or broken.
  void write(const void* data, size_t bytes);
  void commit();

 private:
  [[noreturn]] void fail_write() const;
  std::string path_, pending_;
  std::FILE* file_ = nullptr;
};

}  // namespace winnow
