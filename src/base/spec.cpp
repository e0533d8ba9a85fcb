#include "base/spec.h"

#include <charconv>
#include <cmath>

#include "base/error.h"

namespace winnow {
namespace {

std::string_view trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

bool is_name(std::string_view text) {
  if (text.empty()) return false;
  for (const char c : text) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!letter && c != '_' && c != '-') return false;
  }
  return true;
}

std::string known_names(std::span<const ParamInfo> infos, std::span<const std::string_view> texts) {
  std::string names;
  for (const ParamInfo& info : infos) names += fmt::format("{}{}", names.empty() ? "" : ", ", info.name);
  for (const std::string_view text : texts) names += fmt::format("{}{}", names.empty() ? "" : ", ", text);
  return names.empty() ? "it takes none" : "known: " + names;
}

double checked_number(const std::string& owner, const ParamInfo& info, const std::string& text) {
  double value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) {
    fail("{}: {}={} is not a number", owner, info.name, text);
  }
  if (value < info.min || value > info.max || (info.whole && value != std::floor(value))) {
    fail("{}: {}={} is out of range; it must be a {} from {} to {}", owner, info.name, text,
         info.whole ? "whole number" : "number", info.min, info.max);
  }
  return value;
}

}  // namespace

Spec parse_spec(std::string_view text) {
  const std::string_view all = trim(text);
  const size_t open = all.find('(');
  Spec spec;
  spec.name = std::string(trim(all.substr(0, open)));
  if (!is_name(spec.name)) fail("\"{}\" is not a method; write name or name(key=value, ...)", text);
  if (open == std::string_view::npos) return spec;
  if (all.back() != ')') fail("\"{}\": the closing parenthesis is missing", text);
  std::string_view rest = all.substr(open + 1, all.size() - open - 2);
  while (!trim(rest).empty()) {
    const size_t comma = rest.find(',');
    const std::string_view item = trim(rest.substr(0, comma));
    const size_t equals = item.find('=');
    if (equals == std::string_view::npos || !is_name(trim(item.substr(0, equals)))) {
      fail("\"{}\": \"{}\" is not of the form key=value", text, item);
    }
    spec.arguments.emplace_back(trim(item.substr(0, equals)), trim(item.substr(equals + 1)));
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
  }
  return spec;
}

double Params::number(std::string_view name) const {
  const auto found = numbers_.find(name);
  WINNOW_ASSERT(found != numbers_.end());
  return found->second;
}

int Params::whole(std::string_view name) const {
  return static_cast<int>(number(name));
}

const std::string& Params::text(std::string_view name) const {
  static const std::string kNone;
  const auto found = texts_.find(name);
  return found == texts_.end() ? kNone : found->second;
}

Params resolve(const Spec& spec, std::span<const ParamInfo> infos, std::span<const std::string_view> texts) {
  Params params;
  for (const ParamInfo& info : infos) params.numbers_[std::string(info.name)] = info.initial;
  for (const auto& [key, value] : spec.arguments) {
    bool known = false;
    for (const ParamInfo& info : infos) {
      if (info.name != key) continue;
      params.numbers_[key] = checked_number(spec.name, info, value);
      known = true;
    }
    for (const std::string_view text : texts) {
      if (text != key) continue;
      params.texts_[key] = value;
      known = true;
    }
    if (!known) fail("{}: there is no parameter \"{}\"; {}", spec.name, key, known_names(infos, texts));
  }
  return params;
}

}  // namespace winnow
