// Text to measure what a model foresees on: winnow's own essays, from another beginning for each sample.
#pragma once

#include "eval/task.h"

namespace winnow::eval {

/// Samples of at least request.length tokens of text. Throws Error, naming the task, below 256 tokens.
std::unique_ptr<Generator> make_prose(std::string_view name, const Request& request);

}  // namespace winnow::eval
