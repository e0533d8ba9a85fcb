// What the commands print: JSON lines for machines, tables and units for people.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace winnow {

using Json = nlohmann::ordered_json;

/// One object on one line of standard output, at once. Bytes that are not UTF-8 become U+FFFD.
void print_json(const Json& object);

/// Columns as wide as their widest cell; numbers stand right, the first column left.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  /// Every column left: for words.
  void align_left() { left_ = true; }
  std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
  bool left_ = false;
};

std::string human_bytes(double bytes);      // "147 MB" (10^6)
std::string human_count(int64_t count);     // "12,034"
std::string human_rate(double per_second);  // "512", "38.2": three digits
std::string human_share(double share);      // "31.4%"
std::string human_seconds(double seconds);  // "0.412 s"

}  // namespace winnow
