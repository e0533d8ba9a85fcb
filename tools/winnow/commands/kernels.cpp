// winnow kernels: what there is for which instruction set, what this machine can run, and why not.
#include <fmt/format.h>

#include <set>

#include "attention/device.h"
#include "base/error.h"
#include "command.h"
#include "kernel_files.h"
#include "kernels/cpu/cpu_features.h"
#include "options.h"
#include "output.h"

namespace winnow::roster {
namespace {

struct Isa {
  std::string_view name;
  std::string_view needs;
  bool (*runs)(const CpuFeatures&);
};

// From the plainest to the widest: of the kernels that can run, the last one is taken.
constexpr Isa kIsas[] = {
    {"portable", "nothing", [](const CpuFeatures&) { return true; }},
    {"neon", "a 64-bit ARM processor", [](const CpuFeatures& f) { return f.neon; }},
    {"avx2", "AVX2, FMA and F16C", [](const CpuFeatures& f) { return f.avx2; }},
    {"avx512", "AVX-512 F, BW, VL and DQ", [](const CpuFeatures& f) { return f.avx512; }},
    {"amx", "AMX tiles, allowed by the system", [](const CpuFeatures& f) { return f.amx_bf16 || f.amx_int8; }},
};

struct Row {
  std::string kernel, isa, why_not;
  bool runs = false, used = false;
};

std::vector<Row> list_rows() {
  const CpuFeatures machine = machine_features(), chosen = chosen_features();
  std::set<std::string_view> kernels;
  for (const KernelFile& file : kernel_files()) kernels.insert(file.kernel);
  std::vector<Row> rows;
  for (const std::string_view kernel : kernels) {
    int64_t used = -1;
    for (const Isa& isa : kIsas) {
      for (const KernelFile& file : kernel_files()) {
        if (file.kernel != kernel || file.isa != isa.name) continue;
        Row row{std::string(kernel), std::string(isa.name), "", isa.runs(machine), false};
        if (!row.runs) {
          row.why_not = fmt::format("needs {}", isa.needs);
        } else if (!isa.runs(chosen)) {
          row.why_not = "WINNOW_ISA forbids it";
        } else {
          used = std::ssize(rows);
        }
        rows.push_back(std::move(row));
      }
    }
    if (used >= 0) rows[static_cast<size_t>(used)].used = true;
  }
  return rows;
}

Json features_json(const CpuFeatures& f) {
  return {{"avx2", f.avx2},
          {"avx_vnni", f.avx_vnni},
          {"avx512", f.avx512},
          {"avx512_vnni", f.avx512_vnni},
          {"avx512_bf16", f.avx512_bf16},
          {"amx_bf16", f.amx_bf16},
          {"amx_int8", f.amx_int8},
          {"neon", f.neon}};
}

/// What device cuda is on this machine, or why there is none.
std::string describe_cuda() {
  try {
    return make_device("cuda", 0)->description();
  } catch (const Error& error) {
    return error.what();
  }
}

void run(bool json) {
  const std::vector<Row> rows = list_rows();
  const auto device = make_device("cpu", 0);
  const std::string cuda = describe_cuda();
  if (json) {
    print_json({{"machine", features_json(machine_features())},
                {"chosen", features_json(chosen_features())},
                {"device", device->description()},
                {"cuda", cuda},
                {"threads", device->n_threads()}});
    for (const Row& row : rows) {
      print_json(
          {{"kernel", row.kernel}, {"isa", row.isa}, {"runs", row.runs}, {"used", row.used}, {"why_not", row.why_not}});
    }
    return;
  }
  fmt::print("this machine: {}\ndevice cpu:   {}, {} threads\ndevice cuda:  {}\n\n",
             describe_features(machine_features()), device->description(), device->n_threads(), cuda);
  Table table({"kernel", "instructions", "here", ""});
  table.align_left();
  for (const Row& row : rows) {
    table.add({row.kernel, row.isa, row.used ? "in use" : row.runs ? "can run" : "no", row.why_not});
  }
  fmt::print("{}\nThe environment variable WINNOW_ISA (portable, avx2, avx512, amx, neon) lowers the choice.\n",
             table.text());
}

std::function<void()> add(CLI::App& app) {
  auto json = std::make_shared<bool>(false);
  add_json(app, *json);
  return [json] { run(*json); };
}

}  // namespace

const CommandInfo& command_kernels() {
  static const CommandInfo kInfo = {"kernels", "kernels, with what this machine can run and why not",
                                    "winnow kernels\n"
                                    "WINNOW_ISA=avx2 winnow kernels\n"
                                    "winnow kernels --json",
                                    add};
  return kInfo;
}

}  // namespace winnow::roster
