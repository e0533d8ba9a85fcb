"""Commands that answer: run, chat, compare, their refusals, Ctrl-C; a real model where it is in the cache."""

import os
import signal
import struct
import subprocess
import time
import unittest

from program import (CACHE, COMMANDS, Case, SANITIZED, TEXT, WINNOW, files, model, path, read, setUpModule,  # noqa: F401
                     tearDownModule, winnow, write)


class Help(Case):
    def test_every_command_explains_itself_with_examples(self):
        overview = self.good("--help")
        for command in COMMANDS:
            self.assertIn(command, overview)
            text = self.good(command, "--help")
            self.assertIn("Examples:\n  ", text)
            self.assertIn("winnow " + command, text)

    def test_version(self):
        self.assertRegex(self.good("--version"), r"^\d+\.\d+\.\d+\n$")

    def test_misuse(self):
        self.refused(says="subcommand", code=2)
        self.refused("fly", says="fly", code=2)
        self.refused("run", "-p", "x", says="--model", code=2)
        self.refused("run", "-m", model(), "--wings", says="--wings", code=2)
        self.refused("run", "-m", model(), "-n", "many", says=["-n", "many", "whole number"], code=2)
        self.refused("run", "-m", model(), "-n", "0", says=["-n", "from 1"], code=2)
        self.refused("run", "-m", model(), "--threads", "-3", says=["--threads", "-3"], code=2)
        self.refused("run", "-m", model(), "--kv", "q2", says=["--kv", "q2"], code=2)
        self.refused("run", "-m", model(), "--device", "abacus", says=["--device", "abacus"], code=2)
        self.refused("run", "-m", model(), "--products", "fp4", says=["--products", "fp4"], code=2)
        self.refused("run", "-m", model(), "-p", "x", "--products", "fp8", says=["cpu", "fp8"])
        self.refused("run", "-m", model(), "--top-p", "1.5", says=["--top-p", "1.5"], code=2)
        self.refused("bench", "-m", model(), "--prompt", "12,x", says=["--prompt", "x"], code=2)


    def test_full_disk(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([WINNOW, "methods"], stdout=full, stderr=subprocess.PIPE)
        self.assertEqual((done.returncode, done.stderr[:8]), (1, b"winnow: "))


class Run(Case):
    KEYS = ("model method device threads answer finish n_prompt n_gen ttft_s prefill_tok_s decode_tok_s density "
            "recall estimated_mass select_share decode_select_share kv_bytes peak_bytes").split()

    def test_streams_an_answer(self):
        for architecture in ("llama", "qwen2", "gemma3"):
            first = self.good("run", "-m", model(architecture), "--raw", "-p", "Hello", "-n", 12)
            self.assertTrue(first.endswith("\n"))
            self.assertEqual(first, self.good("run", "-m", model(architecture), "--raw", "-p", "Hello", "-n", 12))

    def test_json(self):
        (one,) = self.lines("run", "-m", model(), "-p", "Hello", "-n", 5)
        self.assertEqual(list(one), self.KEYS)
        self.assertLessEqual(one["n_gen"], 5)
        self.assertEqual(one["method"], "dense")
        self.assertEqual(one["density"], 1.0)
        self.assertGreater(one["peak_bytes"], one["kv_bytes"])

    def test_files_stand_before_the_question(self):
        whole = self.good("run", "-m", model(), "--raw", "-p", "one two three", "-n", 8)
        first, second = write("one", b"one "), write("two", b"two ")
        self.assertEqual(whole, self.good("run", "-m", model(), "--raw", "-f", first, "-f", second, "-p", "three", "-n", 8))
        self.assertEqual(whole, self.good("run", "-m", model(), "--raw", "-f", "-", "-p", "three", "-n", 8,
                                          stdin=b"one two "))

    def test_seed_decides_the_draw(self):
        def draw(seed):
            return self.good("run", "-m", model(), "--raw", "-p", "Hello", "-n", 16, "--temp", 2, "--seed", seed)

        self.assertEqual(draw(1), draw(1))
        self.assertGreater(len({draw(seed) for seed in range(4)}), 1)

    def test_stats_on_request(self):
        done = winnow("run", "-m", model(), "-p", "Hello", "-n", 4, "--stats")
        self.assertRegex(done.stderr.decode(), r"^\[dense: \d+ tokens read in .* tok/s.*density 100.0%, KV .*\]\n$")

    def test_what_was_left_out_is_told(self):
        done = winnow("run", "-m", model(), "--raw", "-f", path("text.txt"), "-n", 4, "--stats", "--method",
                      "powerattention(block=64, window=1, full=0)")
        self.assertRegex(done.stderr.decode(), r"answered at .* \(selecting .*%\), density .*%, recall .*%, selecting ")

    def test_estimated_mass(self):
        base = ("run", "-m", model(), "--raw", "-f", path("text.txt"), "-n", 2)
        (row,) = self.lines(*base)
        self.assertEqual(row["estimated_mass"], 1.0)
        (row,) = self.lines(*base, "--method", "streaming_llm(min_len=0, window=256)")
        self.assertIsNone(row["estimated_mass"])  # a fixed pattern estimates nothing
        xattention = ("--method", "xattention(min_len=0, threshold=0.7)")
        (row,) = self.lines(*base, *xattention)
        self.assertTrue(0.7 <= row["estimated_mass"] < 1, row)
        self.assertRegex(winnow(*base, "--stats", *xattention).stderr.decode(), r"recall .*%, estimated .*%, selecting ")

    def test_stop_text_ends_the_answer(self):
        (free,) = self.lines("run", "-m", model(), "--raw", "-p", "Hello", "-n", 12)
        stop = free["answer"][2:4]
        (stopped,) = self.lines("run", "-m", model(), "--raw", "-p", "Hello", "-n", 12, "--stop", stop)
        self.assertEqual(stopped["finish"], "stop")
        self.assertEqual(stopped["answer"], free["answer"][:free["answer"].index(stop)])

    def test_answer_ends_with_the_context(self):
        (one,) = self.lines("run", "-m", model(), "--raw", "-p", "Hello Hello", "-n", 100, "-c", 16)
        self.assertEqual(one["finish"], "context")

    def test_methods_work_together(self):
        (one,) = self.lines("run", "-m", model(), "--raw", "-f", path("text.txt"), "-n", 4, "--method",
                            "streaming_llm(min_len=0)", "--method", "blasst")
        self.assertIn("streaming_llm", one["method"])
        self.assertIn("blasst", one["method"])

    def test_refusals(self):
        base = ("run", "-m", model(), "--raw")
        self.refused(*base, says="prompt is empty")
        self.refused(*base, "-p", "", says="prompt is empty")
        self.refused(*base, "-p", "x" * 5000, says=["5", "tokens", "4,096"])
        self.refused(*base, "-p", "x" * 100, "-c", 50, says=["context", "50"])
        self.refused(*base, "-p", "x", "-c", 99999, says=["99999", "4096"])
        self.refused(*base, "-f", path("absent.txt"), says=["absent.txt", "cannot be read"])
        self.refused(*base, "-f", path(""), says="folder")
        self.refused(*base, "-f", write("bad.txt", b"abc\xff def"), says=["bad.txt", "UTF-8", "offset 3"])
        self.refused(*base, "-f", "-", stdin=b"\xc3", says=["standard input", "UTF-8", "offset 0"])
        self.refused(*base, "-p", "x", "--method", "magic", says=["magic", "flexprefill"])
        self.refused(*base, "-p", "x", "--method", "blasst(magic=1)", says=["blasst", "magic"])
        self.refused(*base, "-p", "x", "--method", "streaming_llm(window=-1)", says=["streaming_llm", "window"])
        self.refused(*base, "-p", "x", "--method", "streaming_llm(", says="streaming_llm(")
        self.refused(*base, "-p", "x", "--method", "flexprefill", "--method", "minference",
                     says=["flexprefill", "minference"])

    @unittest.skipIf(SANITIZED, "sanitizers reserve more address space than any limit")
    def test_too_little_memory(self):
        refusals = 0
        for megabytes in range(8, 264, 16):
            if winnow("--version", memory=megabytes << 20).returncode != 0:
                continue  # too little to map the program and its libraries, whose size is the system's
            done = winnow("run", "-m", model(), "--raw", "-p", "x" * 3000, "-n", 4, memory=megabytes << 20)
            error = done.stderr.decode()
            self.assertIn(done.returncode, (0, 1), error)
            if done.returncode == 1:
                self.assertRegex(error, r"^winnow: .*(memory|resource).*\n$")
                refusals += 1
        self.assertGreater(refusals, 0)


class Models(Case):
    """Files that are no models, or none that winnow runs."""

    def test_refusals(self):
        whole = read(model())
        bad = {
            "empty.gguf": (b"", "empty.gguf"),
            "short.gguf": (whole[:2000], "short.gguf"),
            "cut.gguf": (whole[:-1000], "cut.gguf"),
            "text.gguf": (b"just some text, not a model at all", "text.gguf"),
            "other.gguf": (whole.replace(b"general.architecture" + struct.pack("<IQ", 8, 5) + b"qwen2",
                                         b"general.architecture" + struct.pack("<IQ", 8, 5) + b"qwenX"), "qwenX"),
            "pre.gguf": (whole.replace(b"tokenizer.ggml.pre" + struct.pack("<IQ", 8, 5) + b"qwen2",
                                       b"tokenizer.ggml.pre" + struct.pack("<IQ", 8, 5) + b"qwenX"), "qwenX"),
            "tensor.gguf": (whole.replace(b"blk.1.ffn_down.weight", b"blk.1.ffn_duwn.weight"), "blk.1.ffn_down.weight"),
        }
        for name, (data, says) in bad.items():
            self.assertNotEqual(data, whole, name)
            write(name, data)
            with self.subTest(name):
                self.refused("run", "-m", path(name), "-p", "x", says=says)
        self.refused("run", "-m", path("absent.gguf"), "-p", "x", says="absent.gguf")
        self.refused("run", "-m", path(""), "-p", "x", says=path(""))


class Chat(Case):
    def test_the_cache_is_reused(self):
        one, two = self.lines("chat", "-m", model(), "-n", 6, stdin=b"Hello there\nAnd again\n")
        self.assertEqual(one["n_reused"], 0)
        self.assertGreater(two["n_reused"], one["n_prompt"] // 2)

    def test_commands(self):
        one, two = self.lines("chat", "-m", model(), "-n", 6, stdin=b"Hello\n/reset\n\nHello\n/exit\nnever\n")
        self.assertEqual(one["answer"], two["answer"])

    def test_first_answer_is_that_of_run(self):
        self.assertEqual(self.good("chat", "-m", model(), "-n", 6, stdin=b"Hello"),
                         self.good("run", "-m", model(), "-n", 6, "-p", "Hello"))

    def test_refusals(self):
        self.refused("chat", "-m", model(), stdin=b"\xff\n", says="UTF-8")
        self.refused("chat", "-m", model(), "-c", 8, stdin=b"a long question\n", says="context")


class Compare(Case):
    KEYS = ("model method answer n_prompt n_gen ttft_s prefill_tok_s decode_tok_s density recall "
            "estimated_mass select_share decode_select_share kv_bytes peak_bytes agreement kl").split()

    def test_dense_first_then_each_method(self):
        rows = self.lines("compare", "-m", model(), "-f", path("text.txt"), "-p", "What?", "-n", 6, "--method", "dense",
                          "--method", "streaming_llm(min_len=0, window=256)", "--method", "streaming_llm + blasst")
        self.assertEqual(len(rows), 4)
        for row in rows:
            self.assertEqual(list(row), self.KEYS)
        self.assertEqual(rows[0]["method"], "dense")
        for row in rows[:2]:  # dense against itself
            self.assertEqual((row["answer"], row["agreement"], row["density"]), (rows[0]["answer"], 1.0, 1.0))
            self.assertLess(row["kl"], 1e-9)
        self.assertLess(rows[2]["density"], 1.0)
        self.assertLess(rows[2]["recall"], 1.0)
        self.assertGreater(rows[2]["kl"], 0.0)
        self.assertIn("blasst", rows[3]["method"])

    def test_each_answer_is_that_of_run(self):
        method = "streaming_llm(min_len=0, window=128)"
        base = ("-m", model(), "-f", path("text.txt"), "-p", "What?", "-n", 6)
        rows = self.lines("compare", *base, "--method", method)
        for row, more in zip(rows, ((), ("--method", method))):
            (alone,) = self.lines("run", *base, *more)
            self.assertEqual((row["answer"], row["density"]), (alone["answer"], alone["density"]))

    def test_table(self):
        text = self.good("compare", "-m", model(), "-p", "What?", "-n", 4, "--method", "blasst")
        for word in ("agreement", "KL", "density", "dense", "blasst"):
            self.assertIn(word, text)


class CtrlC(Case):
    def stop(self, *args):
        """Starts a run of minutes and stops it."""
        before = files()
        process = subprocess.Popen([WINNOW, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(1.5)
        self.assertIsNone(process.poll(), "it was meant to last")
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
        self.assertEqual((process.returncode, error.decode()), (130, "winnow: stopped by Ctrl-C\n"))
        self.assertEqual(files(), before)
        return out

    def test_prefill(self):
        long = write("long.txt", (TEXT * 2)[:4000].encode())
        self.stop("logits", "-m", model(), "-f", long, "--ctx", 4000, "--device", "ref", "-o", path("stopped.npy"))

    def test_answer(self):
        self.stop("run", "-m", model(), "--raw", "-p", "Hello", "-n", 4000, "--device", "ref", "--json")

    def test_windows(self):
        self.stop("perplexity", "-m", model(), "-f", path("text.txt"), "--ctx", 1024, "--device", "ref")


class RealModel(Case):
    MODEL = os.path.join(CACHE, "smollm2-135m-instruct-q4_1.gguf")

    @unittest.skipUnless(os.path.exists(MODEL), "SmolLM2-135M is not in the cache; scripts/pull smollm2-135m fetches it")
    def test_answers(self):
        self.assertIn("Paris", self.good("run", "-m", self.MODEL, "--raw", "-p", "The capital of France is", "-n", 8))


if __name__ == "__main__":
    unittest.main(verbosity=1)
