// A thing named with its parameters, as a user writes it: "flexprefill(gamma=0.9, min_budget=512)".
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace winnow {

/// One parameter of a method: what it means and which values it takes.
struct ParamInfo {
  std::string_view name;
  std::string_view meaning;  // a phrase, with unit
  double initial = 0;        // the value where the user gives none
  double min = 0, max = 0;   // inclusive
  bool whole = false;        // whole numbers only
};

/// "name(key=value, ...)" taken apart; values stay text until `resolve`.
struct Spec {
  std::string name;
  std::vector<std::pair<std::string, std::string>> arguments;
};

/// Throws Error where the text is not of that form.
Spec parse_spec(std::string_view text);

/// Parameters with their values, all of them known and inside their ranges.
class Params {
 public:
  double number(std::string_view name) const;  // asserts that the name is one of the infos'
  int whole(std::string_view name) const;
  bool flag(std::string_view name) const { return number(name) != 0; }
  /// A text argument such as a file's path; empty where not given.
  const std::string& text(std::string_view name) const;

 private:
  friend Params resolve(const Spec&, std::span<const ParamInfo>, std::span<const std::string_view>);
  std::map<std::string, double, std::less<>> numbers_;
  std::map<std::string, std::string, std::less<>> texts_;
};

/// Checks `spec`'s arguments against `infos` (numbers) and `texts` (names of text arguments). Throws Error that names
/// the argument, its value and what is allowed.
Params resolve(const Spec& spec, std::span<const ParamInfo> infos, std::span<const std::string_view> texts);

}  // namespace winnow
