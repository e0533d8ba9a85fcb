#include "base/metadata.h"

#include "base/error.h"

namespace winnow {
namespace {

[[noreturn]] void wrong_kind(std::string_view key, std::string_view wanted) {
  fail("the model file's \"{}\" is not {}", key, wanted);
}

}  // namespace

const Metadata::Value& Metadata::at(std::string_view key) const {
  const auto found = values_.find(key);
  if (found == values_.end()) fail("the model file lacks \"{}\"", key);
  return found->second;
}

int64_t Metadata::integer(std::string_view key) const {
  if (const auto* value = std::get_if<int64_t>(&at(key))) return *value;
  wrong_kind(key, "a whole number");
}

double Metadata::real(std::string_view key) const {
  const Value& value = at(key);
  if (const auto* real = std::get_if<double>(&value)) return *real;
  if (const auto* whole = std::get_if<int64_t>(&value)) return static_cast<double>(*whole);
  wrong_kind(key, "a number");
}

bool Metadata::boolean(std::string_view key) const {
  if (const auto* value = std::get_if<bool>(&at(key))) return *value;
  wrong_kind(key, "true or false");
}

const std::string& Metadata::text(std::string_view key) const {
  if (const auto* value = std::get_if<std::string>(&at(key))) return *value;
  wrong_kind(key, "a text");
}

const std::vector<std::string>& Metadata::texts(std::string_view key) const {
  if (const auto* value = std::get_if<std::vector<std::string>>(&at(key))) return *value;
  wrong_kind(key, "a list of texts");
}

std::vector<int64_t> Metadata::integers(std::string_view key) const {
  if (const auto* value = std::get_if<std::vector<int64_t>>(&at(key))) return *value;
  wrong_kind(key, "a list of whole numbers");
}

std::vector<double> Metadata::reals(std::string_view key) const {
  const Value& value = at(key);
  if (const auto* reals = std::get_if<std::vector<double>>(&value)) return *reals;
  if (const auto* wholes = std::get_if<std::vector<int64_t>>(&value)) return {wholes->begin(), wholes->end()};
  wrong_kind(key, "a list of numbers");
}

}  // namespace winnow
