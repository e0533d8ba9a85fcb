// The one program. Finds its subcommands, reads options, and turns whatever goes wrong into one sentence.
//
// Exit codes: 0 done, 1 refused or failed, 2 wrong use of options, 128 + signal where Ctrl-C or SIGTERM stopped it.
#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <new>
#include <system_error>

#include "command.h"
#include "signals.h"

namespace {

constexpr int kFailed = 1;
constexpr int kMisused = 2;

int complain(int code, const char* sentence, const char* detail = "") noexcept {
  std::fflush(stdout);
  std::fprintf(stderr, "winnow: %s%s\n", sentence, detail);
  return code;
}

std::string indented(std::string_view lines) {
  std::string text = "Examples:";
  for (size_t begin = 0; begin < lines.size();) {
    const size_t end = std::min(lines.find('\n', begin), lines.size());
    text += fmt::format("\n  {}", lines.substr(begin, end - begin));
    begin = end + 1;
  }
  return text;
}

/// Throws where the first argument is meant as a command and is none.
void require_known_command(int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') return;
  std::string names;
  for (const winnow::CommandInfo* info : winnow::command_roster()) {
    if (info->name == argv[1]) return;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", info->name);
  }
  throw CLI::ParseError(fmt::format("there is no command \"{}\"; known: {}", argv[1], names),
                        CLI::ExitCodes::ExtrasError);
}

int run(int argc, char** argv) {
  CLI::App app("winnow: runs language models on long inputs and computes only the attention that matters", "winnow");
  app.require_subcommand(1);
  app.set_version_flag("--version", WINNOW_VERSION);
  app.footer("winnow COMMAND --help shows a command's options with examples.");
  std::function<void()> chosen;
  for (const winnow::CommandInfo* info : winnow::command_roster()) {
    CLI::App* command = app.add_subcommand(std::string(info->name), std::string(info->summary));
    command->footer(indented(info->examples));
    const auto action = info->add(*command);
    command->callback([&chosen, action] { chosen = action; });
  }
  try {
    require_known_command(argc, argv);
    app.parse(argc, argv);
    chosen();
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    std::string name = "winnow";
    for (const CLI::App* command : app.get_subcommands()) name += " " + command->get_name();
    return complain(kMisused, error.what(), fmt::format(" ({} --help tells more)", name).c_str());
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    return complain(kFailed, "standard output cannot be written");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  winnow::watch_signals();
  try {
    return run(argc, argv);
  } catch (const winnow::Cancelled&) {
    const int signal = winnow::pending_signal();
    return complain(128 + (signal == 0 ? SIGINT : signal), "stopped by ", signal == SIGTERM ? "a signal" : "Ctrl-C");
  } catch (const std::system_error& error) {  // no more threads, most of all
    return complain(kFailed, "the system refused a resource: ", error.what());
  } catch (const std::bad_alloc&) {
    return complain(kFailed, "the system has not enough free memory for this");
  } catch (const std::exception& error) {  // winnow::Error most of all: its sentence is shown as it is
    return complain(kFailed, error.what());
  }
}
