// winnow pull: fetches a model of the manifest into the user's cache folder, by the script that knows how.
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "command.h"

namespace winnow::roster {
namespace {

/// scripts/pull under WINNOW_SHARE, or beside the program: in its source tree, or where an installation puts it.
std::string find_script() {
  namespace fs = std::filesystem;
  std::vector<fs::path> places;
  if (const char* share = std::getenv("WINNOW_SHARE")) {
    places.emplace_back(fs::path(share) / "scripts/pull");
  } else {
    std::error_code code;
    const fs::path folder = fs::read_symlink("/proc/self/exe", code).parent_path();
    places = {folder / "../../scripts/pull", folder / "../share/winnow/scripts/pull"};
  }
  for (const fs::path& place : places) {
    if (fs::exists(place)) return fs::weakly_canonical(place).string();
  }
  fail("scripts/pull is not at {}; set WINNOW_SHARE to the folder that holds scripts", places.front().string());
}

void run(const std::string& name) {
  const std::string script = find_script();
  std::string argument = name.empty() ? "--list" : name;
  std::string program = script;
  std::array<char*, 3> arguments = {program.data(), argument.data(), nullptr};
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
  execv(script.c_str(), arguments.data());
  fail("{} cannot be run: {}", script, std::strerror(errno));
}

std::function<void()> add(CLI::App& app) {
  auto name = std::make_shared<std::string>();
  app.add_option("name", *name, "a model of the manifest; none: list them")->type_name("NAME");
  return [name] { run(*name); };
}

}  // namespace

const CommandInfo& command_pull() {
  static const CommandInfo kInfo = {"pull", "fetch a known model into the cache folder, checked by its hash",
                                    "winnow pull\n"
                                    "winnow pull smollm2-135m",
                                    add};
  return kInfo;
}

}  // namespace winnow::roster
