"""The tables of bench/accuracy: scores of methods on tasks, with intervals, paired with dense attention's."""
import collections
import json
import math
import pathlib
import subprocess
import sys

TASKS = "niah_single_1,niah_multikey_2,niah_multikey_3,vt,cwe,fwe,mk_niah_basic,kv_retrieval".split(",")


def read_lines(path):
    """The whole lines of a samples.jsonl; an interrupted last one is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def key_of(line):
    return line["task"], line["length"], line["index"], line["method"]


Z = 1.959963984540054  # 97.5 % of the normal distribution lie below


def share_interval(scores):
    """Mean and Wilson's interval, as winnow report has them. Never too narrow for scores between 0 and 1."""
    n, p = len(scores), sum(scores) / len(scores)
    z2 = Z * Z / n
    middle, half = (p + z2 / 2) / (1 + z2), Z / (1 + z2) * math.sqrt(p * (1 - p) / n + z2 / (4 * n))
    return p, max(middle - half, 0), min(middle + half, 1)


def mean_of_tasks(cells):
    """Mean of the tasks' means with its interval: half widths of independent tasks add up by their squares."""
    parts = [share_interval(scores) for scores in cells]
    k = len(parts)
    mean = sum(p for p, _, _ in parts) / k
    below = math.sqrt(sum((p - low) ** 2 for p, low, _ in parts)) / k
    above = math.sqrt(sum((high - p) ** 2 for p, _, high in parts)) / k
    return mean, mean - below, mean + above


def paired(own, dense):
    """Mean over tasks of the scores' difference to dense on the same prompts, and half its 95 % interval.

    own and dense: {task: {index: score}}. None where a task has no two prompts in common.
    """
    means, variance = [], 0
    for task, scores in own.items():
        apart = [score - dense[task][index] for index, score in scores.items() if index in dense.get(task, {})]
        if len(apart) < 2:
            return None
        mean = sum(apart) / len(apart)
        means.append(mean)
        variance += sum((x - mean) ** 2 for x in apart) / (len(apart) - 1) / len(apart)
    return sum(means) / len(means), Z * math.sqrt(variance) / len(means)


def plain(method):
    """A method's name without the min_len that only this script sets."""
    return method.replace("(min_len=0)", "").replace(", min_len=0", "")


def speeds(paths):
    """(method, class of the length) -> {device: (seconds, share of selecting)} of winnow bench's lines."""
    found = collections.defaultdict(dict)
    for path in paths:
        for line in map(json.loads, pathlib.Path(path).read_text(encoding="utf-8").splitlines()):
            if line.get("depth", 0) == 0 and "ttft_s" in line:
                key = plain(line["method"]), line["n_prompt"]
                found[key][line["device"]] = line["ttft_s"], line["select_share"]
    return found


def average(lines, name):
    values = [line[name] for line in lines if line.get(name) is not None]
    return sum(values) / len(values) if values else None


def share(value):
    return "" if value is None else f"{100 * value:.1f}"


def scores_of(lines):
    """[{task, index, score}] -> {task: {index: score}}"""
    found = collections.defaultdict(dict)
    for line in lines:
        found[line["task"]][line["index"]] = line["score"]
    return found


def classes_of(lines):
    """Lines by the power of two that is nearest to their length."""
    classes = collections.defaultdict(list)
    for line in lines:
        classes[1 << round(math.log2(line["length"]))].append(line)
    return classes


def by_method(lines):
    found = {}
    for line in lines:
        found.setdefault(line["method"], []).append(line)
    return found


def apart_text(own, methods):
    """Nothing where dense attention did not answer the same prompts."""
    found = paired(scores_of(own), scores_of(methods.get("dense", [])))
    return "" if found is None else f"{100 * found[0]:+.1f} ± {100 * found[1]:.1f}"


def table_of(lines, length, speed, devices):
    """The rows of one length: methods by their mean score, dense first."""
    tasks = [task for task in dict.fromkeys(TASKS + [line["task"] for line in lines])
             if any(line["task"] == task for line in lines)]
    rows, methods = [], by_method(lines)
    for method, own in methods.items():
        cells = [[line["score"] for line in own if line["task"] == task] for task in tasks]
        full = all(cells)
        mean, low, high = mean_of_tasks([cell for cell in cells if cell])
        row = [plain(method)] + [share(sum(cell) / len(cell)) if cell else "" for cell in cells]
        row += [f"**{share(mean)}** ({share(low)} to {share(high)})" if full else "",
                apart_text(own, methods) if full and method != "dense" else "", str(min(map(len, cells))),
                share(average(own, "density")), share(average(own, "recall"))]
        for device in devices:
            dense = speed.get(("dense", length), {}).get(device)
            this = speed.get((plain(method), length), {}).get(device)
            row += [f"{dense[0] / this[0]:.2f}x", share(this[1])] if dense and this else ["", ""]
        rows.append((method != "dense", -mean if full else 1, row))
    head = ["method", *tasks, "mean (95 %)", "to dense", "n", "density", "recall"]
    for device in devices:
        head += [f"speed-up, {device}", f"selecting, {device}"]
    text = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(text + ["| " + " | ".join(row) + " |" for _, _, row in sorted(rows, key=lambda row: row[:2])])


def answers_in(out):
    lines = read_lines(out / "samples.jsonl") + read_lines(out / "openvino.jsonl")
    lines = [line for line in lines if "score" in line]
    if not lines:
        sys.exit(f"accuracy: {out} has no answers")
    return lines


def brief(args):
    """Methods by lengths: mean of the tasks' means, difference to dense, computed share."""
    classes = {length: by_method(own) for length, own in sorted(classes_of(answers_in(pathlib.Path(args.out))).items())}
    n_tasks = max(len(scores_of(own)) for methods in classes.values() for own in methods.values())
    rows = {}
    for length, methods in classes.items():
        for method, own in methods.items():
            scores = scores_of(own)
            if len(scores) < n_tasks:
                continue
            mean, low, high = mean_of_tasks([list(cell.values()) for cell in scores.values()])
            if method == "dense":
                parts = [f"{share(mean)} ({share(low)} to {share(high)})"]
            else:
                computed = average(own, "density")  # which other engines do not tell
                parts = [share(mean), apart_text(own, methods), "" if computed is None else f"{100 * computed:.0f} %"]
            rows.setdefault(method, {})[length] = mean, ", ".join(part for part in parts if part)
    order = sorted(rows, key=lambda method: (method != "dense", -sum(mean for mean, _ in rows[method].values())))
    print("| | " + " | ".join(f"{length:,}" for length in classes) + " |\n|---" + "|---" * len(classes) + "|")
    for method in order:
        print(f"| `{plain(method)}` | " + " | ".join(rows[method].get(length, (0, ""))[1] for length in classes) + " |")


def table(args):
    out = pathlib.Path(args.out)
    lines = answers_in(out)
    speed = speeds(args.speed)
    devices = sorted({device for found in speed.values() for device in found})
    model = json.loads((out / "run.json").read_text(encoding="utf-8"))["model"]
    classes = classes_of(lines)
    for length in sorted(classes):
        print(f"\n{model}, {length:,} tokens: scores, density, recall and selecting in percent; n answers a task\n")
        print(table_of(classes[length], length, speed, devices))
    if args.report:
        subprocess.run([str(args.winnow), "report", str(out), "-o", str(args.report)], check=True,
                       stdout=subprocess.DEVNULL)
        print(f"accuracy: the page is {args.report}", file=sys.stderr)
