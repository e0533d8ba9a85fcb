"""winnow eval and winnow report as their users meet them, on tiny random models; run as program.py says."""

import glob
import json
import operator
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest

import program
from program import CACHE, WINNOW, model, path, read, setUpModule, tearDownModule, winnow, write  # noqa: F401

SIX = "niah_single_1,niah_multikey_2,niah_multikey_3,vt,cwe,fwe"


def independent_score(metric, answer, outputs):
    """Scores of the metrics used here, written from RULER's evaluate.py and InfiniteBench's compute_scores.py."""
    if metric == "all":
        answer = re.sub("[\x00-\x1f]", "\n", answer.strip()).strip().lower()
        return sum(output.lower() in answer for output in outputs) / len(outputs)
    if metric == "first_number":
        found = re.search("[0-9]+", answer)
        return float(found is not None and found.group() in outputs)
    if metric == "word":
        for mark in "\n:\"'.,?!{}":
            answer = answer.replace(mark, " ")
        return float(any(output in answer.split() for output in outputs))
    raise ValueError(metric)


class EvalCase(program.Case):
    def setUp(self):
        self.out = path("results")
        shutil.rmtree(self.out, ignore_errors=True)

    def tearDown(self):
        shutil.rmtree(self.out, ignore_errors=True)

    def samples(self):
        return [json.loads(line) for line in read(os.path.join(self.out, "samples.jsonl")).decode().splitlines()]

    def eval(self, *args, **more):
        return self.good("eval", "-m", model(), "--out", self.out, *args, **more)


class Eval(EvalCase):
    ARGS = ("--task", "niah_single_1,passkey", "--length", "1500,2500", "--samples", 2, "--method",
            "streaming_llm(sinks=4, window=256)")
    KEYS = ("task length index method prompt_hash n_prompt depth answer outputs metric score n_gen finish ttft_s "
            "prefill_tok_s decode_tok_s density recall estimated_mass select_share kv_bytes peak_bytes").split()

    def test_a_line_for_each_sample_and_method(self):
        table = self.eval(*self.ARGS)
        self.assertIn("16 samples in", table)
        lines = self.samples()
        self.assertEqual(len(lines), 16)
        keys = {(line["task"], line["length"], line["index"], line["method"]) for line in lines}
        self.assertEqual(len(keys), 16)
        prompts = {}
        for line in lines:
            self.assertEqual(list(line), self.KEYS)
            self.assertLessEqual(line["n_prompt"], line["length"])
            self.assertEqual(line["score"], independent_score(line["metric"], line["answer"], line["outputs"]))
            # Every method meets the same prompt.
            cell = line["task"], line["length"], line["index"]
            self.assertEqual(prompts.setdefault(cell, line["prompt_hash"]), line["prompt_hash"])
            self.assertEqual(line["density"] == 1, line["method"] == "dense")
        self.assertEqual(len(set(prompts.values())), 8)

        # Asked again: nothing is left to do; asked for more: only that is done.
        before = read(os.path.join(self.out, "samples.jsonl"))
        self.eval(*self.ARGS)
        self.assertEqual(read(os.path.join(self.out, "samples.jsonl")), before)
        self.eval(*self.ARGS[:-4], "--samples", 3, "--json")
        after = read(os.path.join(self.out, "samples.jsonl"))
        self.assertTrue(after.startswith(before))
        self.assertEqual(len(after.splitlines()), 20)

        page = path("page.html")
        self.assertIn("20 samples, 2 methods", self.good("report", self.out, "-o", page))
        html = read(page).decode()
        self.assertIn("streaming_llm(", html)
        self.assertNotIn("http", html)
        os.remove(page)

    def test_what_a_method_took_itself_to_keep(self):
        self.eval("--task", "niah_single_1", "--length", 1500, "--samples", 1, "--method",
                  "xattention(min_len=0, threshold=0.5)", "--method", "streaming_llm(sinks=4, window=256)")
        mass = {line["method"].partition("(")[0]: line["estimated_mass"] for line in self.samples()}
        self.assertIsNone(mass["dense"])
        self.assertIsNone(mass["streaming_llm"])
        self.assertGreater(mass["xattention"], 0.5)
        self.assertLess(mass["xattention"], 1)
        self.good("report", self.out)
        html = read(os.path.join(self.out, "report.html")).decode()
        self.assertIn("<th>estimated mass</th>", html)
        self.assertIn(f"<td>{100 * mass['xattention']:.1f} %</td>", html)

    def test_twice_the_same_lines(self):
        timing = re.compile(r'"(ttft_s|prefill_tok_s|decode_tok_s|select_share|peak_bytes)":[^,}]*')
        texts = []
        for _ in range(2):
            shutil.rmtree(self.out, ignore_errors=True)
            self.eval(*self.ARGS)
            texts.append(timing.sub("", read(os.path.join(self.out, "samples.jsonl")).decode()))
        self.assertEqual(*texts)

    def test_parts_of_a_run_are_the_run(self):
        self.eval(*self.ARGS)
        whole = {(line["task"], line["length"], line["index"], line["method"]): line["prompt_hash"]
                 for line in self.samples()}
        parts = {}
        for first in range(2):
            shutil.rmtree(self.out)
            self.eval(*self.ARGS[:4], "--samples", 1, "--first", first, *self.ARGS[6:])
            parts |= {(line["task"], line["length"], line["index"], line["method"]): line["prompt_hash"]
                      for line in self.samples()}
        self.assertEqual(parts, whole)

    def test_a_target_sets_the_knob_for_each_length(self):
        cache = {"XDG_CACHE_HOME": path("cache")}
        self.eval("--task", "niah_single_1", "--length", "1500,3000", "--samples", 1, "--method",
                  "streaming_llm(sinks=4, cache=0)", "--target-recall", 0.7, env=cache)
        shutil.rmtree(path("cache"))
        lines = [line for line in self.samples() if line["method"] != "dense"]
        self.assertEqual([line["method"] for line in lines], ["streaming_llm(sinks=4, cache=0) at recall 0.7"] * 2)
        self.assertEqual([line["target"]["foretold"]["n_tokens"] for line in lines], [1024, 2048])

    def test_an_interrupted_run_goes_on(self):
        command = [WINNOW, "eval", "-m", model(), "--out", self.out, "--task", "niah_single_1", "--length", "3000",
                   "--samples", "400"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        file = os.path.join(self.out, "samples.jsonl")
        while not os.path.exists(file) or os.path.getsize(file) < 3000:
            self.assertIsNone(process.poll())
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
        self.assertEqual((process.returncode, error), (130, b"winnow: stopped by Ctrl-C\n"))
        self.assertIn(b"the same command goes on", out)
        n_done = len(self.samples())
        self.assertLess(n_done, 400)
        with open(file, "ab") as samples:
            samples.write(b'{"task": "niah_single_1", "leng')  # as a machine that lost its power would leave it
        self.eval("--task", "niah_single_1", "--length", 3000, "--samples", n_done + 1)
        self.assertEqual([line["index"] for line in self.samples()], list(range(n_done + 1)))

    def test_full_disk(self):
        os.mkdir(self.out)
        os.symlink("/dev/full", os.path.join(self.out, "samples.jsonl"))
        done = winnow("eval", "-m", model(), "--out", self.out, "--task", "niah_single_1", "--length", 1500)
        self.assertEqual(done.returncode, 1)
        self.assertIn("samples.jsonl: writing failed: No space left on device; the samples finished before are kept",
                      done.stderr.decode())
        self.assertEqual(done.stderr.count(b"\n"), 1)

    def test_refusals(self):
        def refused(*args, says):
            self.refused("eval", "-m", model(), "--out", self.out, *args, says=says)

        refused("--task", "telepathy", says=["no task \"telepathy\"; known: ", "niah_single_1"])
        refused("--task", "vt,vt", says="names vt twice")
        refused("--task", "vt", "--length", "4097", says=["task vt at length 4097", "context holds 4,096"])
        refused("--task", "mk_niah_basic", "--length", "4096", says=["needs 4,224 tokens", "context holds 4,096"])
        refused("--task", "vt", "--method", "guesswork", says="guesswork")
        refused("--task", path("none.jsonl"), says="none.jsonl")
        own = write("own.jsonl", b'{"input": "1+1=", "outputs": "2"}\n{"input": 1}\n')
        refused("--task", own, says=["own.jsonl, line 2", "\"input\" must be a text"])
        write("own.jsonl", json.dumps({"input": "x" * 5000, "outputs": "2"}).encode())
        refused("--task", own, says=["own.jsonl: sample 1 needs", "context holds 4,096"])
        os.remove(own)
        self.refused("eval", "-m", model(), "--out", model(), "--task", "vt", says="the folder cannot be made")
        self.refused("eval", "-m", model(), "--task", "vt", says="--out", code=2)
        self.refused("report", path("nothing"), says="there are no results")

    def test_a_length_that_no_prompt_fits(self):
        done = winnow("eval", "-m", model(), "--out", self.out, "--task", "niah_single_1", "--length", 100)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"task niah_single_1: 100 tokens are too few; its shortest prompt needs", done.stderr)

    def test_another_run_is_not_mixed_in(self):
        self.eval("--task", "niah_single_1", "--length", 1500, "--samples", 1)
        for args, says in ((["--seed", 7], "holds a run with seed 42, and this one has 7"), (["--kv", "bf16"], "kv \"f16\""),
                           (["--raw"], "template \"chat\""), (["--later"], "question")):
            self.refused("eval", "-m", model(), "--out", self.out, "--task", "niah_single_1", "--length", 1500, *args,
                         says=[says, "give another --out"])
        self.refused("eval", "-m", model("llama"), "--out", self.out, "--task", "niah_single_1", "--raw",
                     "--length", 1500, says="holds a run with model")

    def test_own_tasks(self):
        own = write("own.jsonl", b'{"input": "Say something.", "outputs": ["e", "a", "zzzzzz"], "n_gen": 40}\n'
                                 b'{"input": "The key is 5.", "question": "\\nWhich?", "outputs": "5", "metric": "word"}\n')
        self.eval("--task", own)
        lines = self.samples()
        self.assertEqual([(line["task"], line["length"], line["index"]) for line in lines], [("own", 0, 0), ("own", 0, 1)])
        for line in lines:
            self.assertAlmostEqual(line["score"], independent_score(line["metric"], line["answer"], line["outputs"]), 5)
        self.assertIn("the user's own", self.page())
        os.remove(own)

    def page(self):
        self.good("report", self.out)
        return read(os.path.join(self.out, "report.html")).decode()

    def test_the_question_later(self):
        self.eval("--task", "niah_single_1", "--length", 2000, "--samples", 1, "--later", "--method",
                  "snapkv(budget=256)")
        dense, snapkv = self.samples()
        self.assertLess(snapkv["kv_bytes"], dense["kv_bytes"])
        self.assertIn("after the context", self.page())

    def test_what_the_model_foresees(self):
        self.eval("--task", "perplexity,divergence", "--length", 600, "--samples", 1, "--method",
                  "streaming_llm(sinks=4, window=64)")
        surprise, surprise2, dense, other = self.samples()
        for line in (surprise, surprise2):
            self.assertEqual(len(line["nll_by_part"]), 16)
            self.assertAlmostEqual(sum(line["nll_by_part"]) / 16, line["nll"], 1)
        self.assertNotEqual(surprise["nll"], surprise2["nll"])
        self.assertEqual((dense["kl"], dense["agreement"]), (0, 1))
        self.assertGreater(other["kl"], 0)
        # Within the window nothing differs; later positions do.
        self.assertLess(other["kl_by_part"][0], other["kl_by_part"][-1])
        self.assertIn("KL to dense by position", self.page())

    def test_a_text_of_the_users(self):
        args = ("--task", "perplexity", "--length", 600, "--text", path("text.txt"))
        self.eval(*args, "--samples", 2)
        self.assertNotEqual(*(line["prompt_hash"] for line in self.samples()))
        done = winnow("eval", "-m", model(), "--out", self.out, *args, "--samples", 50)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"text.txt: the text has ", done.stderr)

    def test_dense_logits_are_made_again_where_a_run_goes_on(self):
        args = ("--task", "divergence", "--length", 600, "--samples", 1)
        self.eval(*args)
        self.eval(*args, "--method", "streaming_llm(sinks=4, window=1000000)")
        self.assertEqual(self.samples()[1]["kl"], 0)


class Trace(EvalCase):
    METHOD = "streaming_llm(sinks=4, window=256)"

    def check(self, folder, density, n):
        traces = [json.loads(read(file)) for file in glob.glob(os.path.join(folder, "*.json"))]
        self.assertEqual(len(traces), n)
        (trace,) = [trace for trace in traces if trace["method"] != "dense"]
        means = [sum(layer) / len(layer) for layer in trace["density"]]
        pairs = trace["permitted"]
        self.assertAlmostEqual(sum(map(operator.mul, means, pairs)) / sum(pairs), density, 4)
        self.assertLess(max(max(layer) for layer in trace["density"]), 1)

    def test_eval_and_its_report(self):
        self.eval("--task", "niah_single_1", "--length", 2000, "--samples", 2, "--method", self.METHOD, "--trace",
                  os.path.join(self.out, "trace"))
        self.check(os.path.join(self.out, "trace"), self.samples()[1]["density"], 2)
        self.good("report", self.out)
        page = read(os.path.join(self.out, "report.html")).decode()
        self.assertIn("Density of each layer and head", page)
        self.assertIn("layer 0, head 0:", page)

    def test_run_and_compare(self):
        text = path("text.txt")
        args = ("-m", model(), "--raw", "-f", text, "-n", 2, "--method", self.METHOD, "--trace", self.out)
        (line,) = self.lines("run", *args)
        self.check(self.out, line["density"], 1)
        shutil.rmtree(self.out)
        _, line = self.lines("compare", *args)
        self.check(self.out, line["density"], 2)

    def test_refusals(self):
        self.refused("run", "-m", model(), "-p", "x", "--trace", model(), says="--trace")


class RulerLines(EvalCase):
    """The prompts that --prompts writes, as RULER's own scripts would read them."""

    def check_lines(self, gguf, tasks):
        self.good("eval", "-m", gguf, "--out", self.out, "--task", tasks, "--length", "4096", "--samples", 2, "--prompts")
        files = sorted(glob.glob(os.path.join(self.out, "*.jsonl")))
        self.assertEqual([os.path.basename(file) for file in files],
                         sorted(task + "-4096.jsonl" for task in tasks.split(",")))
        for file in files:
            for index, text in enumerate(read(file).decode().splitlines()):
                line = json.loads(text)
                self.assertEqual(list(line), ["index", "input", "outputs", "length", "answer_prefix", "prompt",
                                              "metric", "n_gen"])
                self.assertEqual(line["index"], index)
                self.assertLessEqual(line["length"], 4096)
                self.assertEqual(independent_score("all", " ".join(line["outputs"]), line["outputs"]), 1)
                # What is asked for stands in the text: made-up words for fwe, names, numbers.
                for output in line["outputs"]:
                    self.assertIn(output, line["input"])

    def test_lines(self):
        self.check_lines(model(), SIX.replace(",cwe", ""))  # its shortest prompt has more bytes than 4096

    MODEL = os.path.join(CACHE, "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")

    @unittest.skipUnless(os.path.exists(MODEL), "the 0.5B model is not in the cache")
    def test_lines_of_a_real_tokenizer(self):
        self.check_lines(self.MODEL, SIX)

    @unittest.skipUnless(os.path.exists(MODEL), "the 0.5B model is not in the cache")
    def test_a_real_model_finds_needles(self):
        self.good("eval", "-m", self.MODEL, "--out", self.out, "--task", "niah_single_1,mk_niah_basic", "--length", 700,
                  "--samples", 2)
        lines = self.samples()
        for line in lines:
            self.assertEqual(line["score"], independent_score(line["metric"], line["answer"], line["outputs"]))
        self.assertGreaterEqual(sum(line["score"] for line in lines), 3)


class Accuracy(EvalCase):
    """bench/accuracy: many processes of winnow eval, one table."""

    def accuracy(self, what, *args):
        script = os.path.join(os.path.dirname(__file__), "..", "..", "bench", "accuracy")
        done = subprocess.run([sys.executable, script, what, "--out", self.out, "--winnow", WINNOW, "-m", model(), "--task",
                               "niah_single_1,vt", "--length", "2000,3000", "--method", "streaming_llm", "--ctx", "4096",
                               *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        return done.stdout.decode()

    def test_parts_side_by_side_make_the_lines_of_one_run(self):
        work = ("--samples", "3", "--unit", "2", "--jobs", "2", "--threads", "2")
        self.accuracy("run", *work, "--minutes", "0.003")
        before = self.samples()
        self.assertLess(len(before), 24)
        shutil.rmtree(os.path.join(self.out, "parts"))  # only the two files go from machine to machine
        self.accuracy("run", *work)
        lines = self.samples()
        self.assertEqual([line for line in lines if line in before], before)
        timing = ("ttft_s", "prefill_tok_s", "decode_tok_s", "select_share", "peak_bytes")
        untimed = [{name: value for name, value in line.items() if name not in timing} for line in lines]
        table = self.accuracy("table")
        for word in ("2,048 tokens", "niah_single_1 | vt | mean (95 %)", "| streaming_llm |", "| dense |"):
            self.assertIn(word, table)
        brief = self.accuracy("brief")
        self.assertIn("| | 2,048 | 4,096 |", brief)  # by the nearest powers of two
        self.assertRegex(brief, r"\| `streaming_llm` \| [0-9.]+, [+-][0-9.]+ ± [0-9.]+, [0-9]+ % \|")
        # Another engine tells no density, and may have answered where dense attention did not.
        other = [{name: line[name] for name in ("task", "index", "score")} | {"method": "openvino", "length": length}
                 for line in lines if line["method"] == "dense" and line["length"] == 2000 for length in (2000, 8000)]
        with open(os.path.join(self.out, "openvino.jsonl"), "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in other)
        self.assertRegex(self.accuracy("brief"), r"\| `openvino` \| [0-9.]+, \+0.0 ± 0.0 \|  \| [0-9.]+ \|")
        self.assertEqual(self.accuracy("table").count("| openvino |"), 2)
        self.assertIn("24 samples, 2 methods", self.good("report", self.out, "-o", path("page.html")))
        os.remove(path("page.html"))
        shutil.rmtree(self.out)
        self.eval("--task", "niah_single_1,vt", "--length", "2000,3000", "--samples", 3, "--method", "streaming_llm",
                  "--threads", 2)
        alone = [{name: value for name, value in line.items() if name not in timing} for line in self.samples()]
        key = lambda line: (line["task"], line["length"], line["index"], line["method"])
        self.assertEqual(untimed, sorted(alone, key=key))


if __name__ == "__main__":
    unittest.main()
