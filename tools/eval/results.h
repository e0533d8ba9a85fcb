// A folder of results: run.json says what was run, samples.jsonl has one line for each finished (task, length, index,
// method). Lines are only ever added, so that a run may stop at any time and go on later.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <vector>

namespace winnow::eval {

using Json = nlohmann::ordered_json;

/// What a line is about.
struct Key {
  std::string task;
  int64_t length = 0;
  int64_t index = 0;
  std::string method;
  bool operator==(const Key&) const = default;
  bool operator<(const Key& other) const {
    return std::tie(task, length, index, method) < std::tie(other.task, other.length, other.index, other.method);
  }
};
Key key_of(const Json& line);

/// The finished lines of a samples.jsonl; none where there is no such file. A last line without its end, which an
/// interruption left, does not count. Throws Error that names the line where one is no object with a key.
std::vector<Json> read_samples(const std::string& path);

/// samples.jsonl, open for adding lines, by one process at a time.
class SampleFile {
 public:
  /// Cuts off an unfinished last line. Throws Error where the file cannot be written or another process does.
  explicit SampleFile(std::string path);
  ~SampleFile();
  SampleFile(const SampleFile&) = delete;
  SampleFile& operator=(const SampleFile&) = delete;
  /// One line, at once. Throws Error where the disk is full or broken: what was there before is whole.
  void add(const Json& line);

 private:
  std::string path_;
  int file_ = -1;
};

}  // namespace winnow::eval
