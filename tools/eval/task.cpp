#include "eval/task.h"

#include "base/error.h"

namespace winnow::eval {

const TaskInfo& find_task(std::string_view name) {
  std::string known;
  for (const TaskInfo* task : task_roster()) {
    if (task->name == name) return *task;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", task->name);
  }
  fail("there is no task \"{}\"; known: {}, and files of your own, NAME.jsonl", name, known);
}

}  // namespace winnow::eval
