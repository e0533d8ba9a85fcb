// winnow report: the results of `winnow eval` as one HTML page.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "command.h"
#include "eval/report.h"
#include "files.h"

namespace winnow::roster {
namespace {

struct Options {
  std::string folder, out;
};

eval::Json read_object(const std::string& path) {
  eval::Json object = eval::Json::parse(read_text(path), nullptr, false);
  if (!object.is_object()) fail("{}: this is no JSON object", path);
  return object;
}

/// The folder's traces by name: one density map for each method.
std::vector<eval::Json> read_traces(const std::string& folder) {
  std::vector<std::string> paths;
  if (std::filesystem::is_directory(folder)) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() == ".json") paths.push_back(entry.path().string());
    }
  }
  std::sort(paths.begin(), paths.end());
  std::vector<eval::Json> traces;
  for (const std::string& path : paths) {
    eval::Json trace = read_object(path);
    if (!trace.contains("density") || !trace["density"].is_array()) fail("{}: this is no trace of winnow", path);
    traces.push_back(std::move(trace));
  }
  return traces;
}

void run(const Options& options) {
  const std::string samples = options.folder + "/samples.jsonl";
  if (!std::filesystem::exists(samples)) fail("{}: there are no results of winnow eval", options.folder);
  const eval::ResultSet results(eval::read_samples(samples));
  if (results.lines().empty()) fail("{}: no sample is finished yet", options.folder);
  const std::string page =
      eval::report_page(read_object(options.folder + "/run.json"), results, read_traces(options.folder + "/trace"));
  const std::string out = options.out.empty() ? options.folder + "/report.html" : options.out;
  PendingFile file(out);
  file.write(page.data(), page.size());
  file.commit();
  fmt::print("{}: {} samples, {} methods\n", out, results.lines().size(), results.methods().size());
}

std::function<void()> add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("DIR", options->folder, "the folder that winnow eval wrote")->required()->type_name("");
  app.add_option("-o,--out", options->out, "the page (default DIR/report.html)")->type_name("FILE.html");
  return [options] { run(*options); };
}

}  // namespace

const CommandInfo& command_report() {
  static const CommandInfo kInfo = {"report", "the results of winnow eval as one HTML page with tables and plots",
                                    "winnow report results\nwinnow report results -o comparison.html", add};
  return kInfo;
}

}  // namespace winnow::roster
