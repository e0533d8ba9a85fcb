#include "methods/roster.h"

#include <algorithm>

#include "base/error.h"

namespace winnow {
namespace {

std::string known_methods() {
  std::string names;
  for (const MethodInfo* info : method_roster()) names += fmt::format("{}{}", names.empty() ? "" : ", ", info->name);
  return names;
}

bool given(const Spec& spec, std::string_view name) {
  return std::any_of(spec.arguments.begin(), spec.arguments.end(),
                     [name](const auto& argument) { return argument.first == name; });
}

// The length from which on the method is asked: the user's, or the one that was measured on this kind of device.
int32_t min_len(const Spec& spec, const MethodInfo& info, const Params& params, const MethodShape& shape) {
  const bool measured_apart = shape.on_gpu && info.gpu_min_len > 0 && !given(spec, "min_len");
  return measured_apart ? info.gpu_min_len : params.whole("min_len");
}

// The spec without superfluous blanks, parameters in the order of the method's own list.
std::string canonical(const Spec& spec, const MethodInfo& info, const Params& params) {
  std::string arguments;
  const auto add = [&](std::string_view name, const std::string& value) {
    if (given(spec, name)) arguments += fmt::format("{}{}={}", arguments.empty() ? "" : ", ", name, value);
  };
  for (const ParamInfo& param : info.params) add(param.name, fmt::format("{}", params.number(param.name)));
  for (const std::string_view text : info.texts) add(text, params.text(text));
  return arguments.empty() ? spec.name : fmt::format("{}({})", spec.name, arguments);
}

// The names of those who fill a part that only one method may fill.
struct Takers {
  std::string_view selector, pruner, skip, plain, compressor, reviver;
};

void take(std::string_view& taken, std::string_view name, std::string_view what) {
  if (!taken.empty()) fail("{} and {} both {}; choose one of them", taken, name, what);
  taken = name;
}

}  // namespace

const MethodInfo& find_method(std::string_view name) {
  for (const MethodInfo* info : method_roster()) {
    if (info->name == name) return *info;
  }
  fail("there is no method \"{}\"; known: {}", name, known_methods());
}

Policy::Policy(std::span<const std::string> specs, const MethodShape& shape) : shape_(shape) {
  Takers takers;
  std::string names;
  for (const std::string& text : specs) {
    const Spec spec = parse_spec(text);
    const MethodInfo& info = find_method(spec.name);
    for (const Choice& other : choices_) {
      if (other.info == &info) fail("{} is named twice; name each method once", info.name);
    }
    const Params params = resolve(spec, info.params, info.texts);
    const Method method = info.make(params, shape);
    if (info.parts.empty()) takers.plain = info.name;
    if (method.selector != nullptr) {
      take(takers.selector, info.name, "select what prefill computes");
      break_even_ = min_len(spec, info, params, shape);
      last_rows_ = params.whole("last_rows");
    }
    if (method.pruner != nullptr) {
      take(takers.pruner, info.name, "drop tokens between layers");
      prune_break_even_ = min_len(spec, info, params, shape);
      if (method.pruner->revives()) takers.reviver = info.name;
    }
    if (method.compressor != nullptr) takers.compressor = info.name;
    if (method.skip.prefill > 0 || method.skip.decode > 0) {
      take(takers.skip, info.name, "set skip-softmax thresholds");
      skip_break_even_ = min_len(spec, info, params, shape);
    }
    names += fmt::format("{}{}", names.empty() ? "" : " + ", canonical(spec, info, params));
    choices_.push_back({&info, params});
  }
  const std::string_view part = takers.selector.empty() ? takers.pruner : takers.selector;
  if (!takers.plain.empty() && !part.empty()) {
    fail("{} computes all of attention and {} a part of it; choose one of them", takers.plain, part);
  }
  if (!takers.reviver.empty() && !takers.compressor.empty()) {
    fail("{} takes tokens up again that {} removes from the cache; choose one of them", takers.reviver,
         takers.compressor);
  }
  if (!names.empty()) name_ = names;
}

std::vector<Method> Policy::make() const {
  std::vector<Method> methods;
  methods.reserve(choices_.size());
  for (const Choice& choice : choices_) methods.push_back(choice.info->make(choice.params, shape_));
  return methods;
}

}  // namespace winnow
