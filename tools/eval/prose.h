// Text to measure what a model foresees on: winnow's own essays, another one for each sample, or a file.
#pragma once

#include "eval/task.h"

namespace winnow::eval {

/// Samples of at least request.length tokens of text. Throws Error, naming the task, below 256 tokens.
std::unique_ptr<Generator> make_prose(std::string_view name, const Request& request);

/// The same from a text of the user's: sample i begins where the i-th piece of request.length tokens does, about.
/// Throws Error, naming `path`, where the text is too short.
std::unique_ptr<Generator> make_prose_from(const std::string& path, std::string text, const Request& request);

}  // namespace winnow::eval
