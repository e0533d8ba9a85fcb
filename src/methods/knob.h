// The one parameter of a method that a user turns: less computed at one end, less missed at the other. Each method says
// which it is (MethodInfo::knob); this is what is the same for all.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "methods/method.h"

namespace winnow {

/// The one of several methods that work together whose knob is turned.
struct KnobOwner {
  size_t spec = 0;  // its place among them
  const MethodInfo* info = nullptr;
};

/// Throws Error where none of `specs` has a knob, naming those that have one, or where the user has set its parameter.
KnobOwner find_knob(std::span<const std::string> specs);

/// The knob's value at `place`, 0 its dense end and 1 its sparse one. Rounded towards dense, or else towards sparse: to
/// whole numbers where the parameter is one, else to four digits.
double knob_value(const MethodInfo& info, double place, bool towards_dense = true);

/// `specs` with the owner's knob set.
std::vector<std::string> with_knob(std::span<const std::string> specs, const KnobOwner& owner, double value);

}  // namespace winnow
