// JSON strings that may hold any bytes: what tokenizers are tested with is not always UTF-8.
#pragma once

#include <string>
#include <string_view>

namespace winnow {

/// The bytes that `line`, one JSON string with white space around it, stands for. Bytes outside of ASCII pass as they
/// are. Throws Error that names the column and what was wrong there.
std::string parse_json_string(std::string_view line);

}  // namespace winnow
