#include "methods/knob.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "methods/roster.h"

namespace winnow {
namespace {

std::string methods_with_knob() {
  std::string names;
  for (const MethodInfo* info : method_roster()) {
    if (!info->knob.param.empty()) names += fmt::format("{}{}", names.empty() ? "" : ", ", info->name);
  }
  return names;
}

bool is_whole(const MethodInfo& info) {
  for (const ParamInfo& param : info.params) {
    if (param.name == info.knob.param) return param.whole;
  }
  return false;
}

}  // namespace

KnobOwner find_knob(std::span<const std::string> specs) {
  std::string names;
  for (size_t i = 0; i < specs.size(); ++i) {
    const Spec spec = parse_spec(specs[i]);
    const MethodInfo& info = find_method(spec.name);
    names += fmt::format("{}{}", names.empty() ? "" : " + ", info.name);
    if (info.knob.param.empty()) continue;
    for (const auto& [key, value] : spec.arguments) {
      if (key == info.knob.param) {
        fail("{}: {}={} is given, and a target sets {} itself; leave one of them out", info.name, key, value, key);
      }
    }
    return {i, &info};
  }
  fail("{} has no knob that a target could turn; these have: {}", names.empty() ? "dense attention" : names,
       methods_with_knob());
}

double knob_value(const MethodInfo& info, double place, bool towards_dense) {
  const Knob& knob = info.knob;
  const double exact = knob.geometric ? knob.dense * std::pow(knob.sparse / knob.dense, place)
                                      : knob.dense + (knob.sparse - knob.dense) * place;
  const bool whole = is_whole(info);
  const double unit = whole || exact == 0 ? 1 : std::pow(10.0, std::floor(std::log10(exact)) - 3);
  // A hair against the direction of the rounding, so that the ends stay what they are.
  const bool up = (knob.dense > knob.sparse) == towards_dense;
  const double steps = up ? std::ceil(exact / unit - 1e-6) : std::floor(exact / unit + 1e-6);
  const double value = whole ? steps : std::stod(fmt::format("{:.10g}", steps * unit));
  const auto [low, high] = std::minmax(knob.dense, knob.sparse);
  return std::clamp(value, low, high);
}

std::vector<std::string> with_knob(std::span<const std::string> specs, const KnobOwner& owner, double value) {
  std::vector<std::string> set(specs.begin(), specs.end());
  std::string& spec = set[owner.spec];
  spec.erase(spec.find_last_not_of(" \t") + 1);
  const std::string argument = fmt::format("{}={}", owner.info->knob.param, value);
  if (spec.ends_with(')')) {
    spec.pop_back();
    spec += (parse_spec(specs[owner.spec]).arguments.empty() ? "" : ", ") + argument + ")";
  } else {
    spec += "(" + argument + ")";
  }
  return set;
}

}  // namespace winnow
