// A subcommand of the program. One file each in commands/, found by folder; see base/roster.h.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <span>
#include <string_view>

namespace winnow {

struct CommandInfo {
  std::string_view name;
  std::string_view summary;   // one line for the list of commands
  std::string_view examples;  // lines shown at the end of --help
  /// Adds the command's options to `app`. What it returns runs the command once they have been read; it throws Error
  /// for what a user must be told, and a CLI::ParseError for a wrong use of options.
  std::function<void()> (*add)(CLI::App& app) = nullptr;
};

/// All subcommands, one for each file of commands/.
std::span<const CommandInfo* const> command_roster();

}  // namespace winnow
