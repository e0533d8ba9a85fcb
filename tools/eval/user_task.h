// A user's own task: a file with one JSON object a line, {"input": ..., "outputs": [...], "metric": ...}.
#pragma once

#include <string>
#include <vector>

#include "eval/task.h"

namespace winnow::eval {

/// The file's samples in their order. "outputs" may be one text; "metric" is a name of score.h and "all" where it is
/// missing; "answer_prefix", "question" (what follows the input, for --later) and "n_gen" (default 64) are optional.
/// Throws Error that names the line and what is wrong there.
std::vector<Sample> parse_user_task(const std::string& path, const std::string& text);

/// Hands out `samples` by index.
std::unique_ptr<Generator> make_user_task(std::vector<Sample> samples);

}  // namespace winnow::eval
