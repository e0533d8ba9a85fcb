// Random files of trained weights (methods/weights_file.h) for tests: a method says what its file must hold.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "methods/method.h"

namespace winnow {

/// Values of some of a file's tensors, by their names in the file; the others are random.
using GivenWeights = std::map<std::string, std::vector<float>>;

/// The file of `info`, which has one, for a model of this shape, as bytes. Products of its matrices stay near unit
/// size.
std::vector<std::byte> random_weights(const MethodInfo& info, const MethodShape& shape, const GivenWeights& given = {});

/// The same, written to `path`.
void write_weights(const std::string& path, const MethodInfo& info, const MethodShape& shape,
                   const GivenWeights& given = {});

/// A file of this process among the temporary ones: the same test program may run several times at once.
std::string temporary_path(std::string_view name);

/// The spec with weights=PATH added where its method needs a file and it names none, or where it says "weights=random":
/// a file of random weights, which goes when the program ends.
std::string with_weights(const std::string& spec, const MethodShape& shape);

}  // namespace winnow
