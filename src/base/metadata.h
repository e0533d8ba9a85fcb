// Key-value facts of a model file. GGUF supplies them (model/gguf.h); tokenizers and architectures read them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace winnow {

class Metadata {
 public:
  using Value = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>, std::vector<double>,
                             std::vector<std::string>>;

  void set(std::string key, Value value) { values_[std::move(key)] = std::move(value); }
  bool has(std::string_view key) const { return values_.find(key) != values_.end(); }
  const std::map<std::string, Value, std::less<>>& all() const { return values_; }

  // Required facts: throw Error naming the key where it is missing or of another kind. Whole numbers pass as reals.
  int64_t integer(std::string_view key) const;
  double real(std::string_view key) const;
  bool boolean(std::string_view key) const;
  const std::string& text(std::string_view key) const;
  const std::vector<std::string>& texts(std::string_view key) const;
  std::vector<int64_t> integers(std::string_view key) const;  // an array of whole numbers or of booleans
  std::vector<double> reals(std::string_view key) const;

  // Facts that may be missing; of another kind is still an error.
  int64_t integer_or(std::string_view key, int64_t otherwise) const { return has(key) ? integer(key) : otherwise; }
  double real_or(std::string_view key, double otherwise) const { return has(key) ? real(key) : otherwise; }
  bool boolean_or(std::string_view key, bool otherwise) const { return has(key) ? boolean(key) : otherwise; }
  std::string text_or(std::string_view key, std::string_view otherwise) const {
    return has(key) ? text(key) : std::string(otherwise);
  }

 private:
  const Value& at(std::string_view key) const;
  std::map<std::string, Value, std::less<>> values_;
};

}  // namespace winnow
