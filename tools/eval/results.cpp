#include "eval/results.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/error.h"

namespace winnow::eval {
namespace {

/// The file's text; empty where there is none, or where it is no file that could hold any (a device).
std::string read_all(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return {};
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) fail("{}: the file cannot be read: {}", path, std::strerror(errno));
  return text;
}

Json parse_line(const std::string& path, size_t number, std::string_view text) {
  Json line = Json::parse(text, nullptr, false);
  const bool good = line.is_object() && line.contains("task") && line["task"].is_string() && line.contains("length") &&
                    line["length"].is_number_integer() && line.contains("index") && line["index"].is_number_integer() &&
                    line.contains("method") && line["method"].is_string();
  if (!good) fail("{}: line {} is no result of winnow eval", path, number);
  return line;
}

}  // namespace

Key key_of(const Json& line) {
  return {line.at("task"), line.at("length"), line.at("index"), line.at("method")};
}

std::vector<Json> read_samples(const std::string& path) {
  const std::string text = read_all(path);
  std::vector<Json> lines;
  for (size_t begin = 0, end = 0; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    if (end > begin)
      lines.push_back(parse_line(path, lines.size() + 1, std::string_view(text).substr(begin, end - begin)));
  }
  return lines;
}

SampleFile::SampleFile(std::string path) : path_(std::move(path)) {
  file_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (file_ < 0) fail("{}: the file cannot be written: {}", path_, std::strerror(errno));
  struct stat facts {};
  if (fstat(file_, &facts) != 0 || !S_ISREG(facts.st_mode)) return;
  if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
    close(file_);
    fail("{}: another winnow eval is writing there; wait for it, or give another --out", path_);
  }
  const std::string text = read_all(path_);
  const size_t whole = text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1;
  if (whole < text.size() && ftruncate(file_, static_cast<off_t>(whole)) != 0) {
    close(file_);
    fail("{}: the unfinished last line cannot be taken away: {}", path_, std::strerror(errno));
  }
}

SampleFile::~SampleFile() {
  close(file_);
}

void SampleFile::add(const Json& line) {
  const std::string text = line.dump(-1, ' ', false, Json::error_handler_t::replace) + '\n';
  struct stat before {};
  fstat(file_, &before);
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = write(file_, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int reason = errno;
      const bool undone = done == 0 || ftruncate(file_, before.st_size) == 0;
      fail("{}: writing failed: {}; the samples finished before are kept, and the same command goes on{}", path_,
           std::strerror(reason), undone ? " after them" : ", dropping the line that was cut off");
    }
    done += static_cast<size_t>(n);
  }
}

}  // namespace winnow::eval
