// winnow bench attend: one attention call, written as a text, checked and timed.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>

#include "options.h"

namespace winnow {

struct BenchAttend {
  CLI::App* command = nullptr;
  std::string problem;
  std::string device = "cpu";
  double seconds = 1;
  bool json = false;
  /// Throws Error where the device's answer is not that of ref.
  void run() const;
};

/// Adds the subcommand `attend`.
std::shared_ptr<BenchAttend> add_bench_attend(CLI::App& bench);

}  // namespace winnow
