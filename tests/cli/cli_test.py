"""Runs the program on tiny random models: every subcommand, every refusal. Real models where they are in the cache.

    cd build/bin && WINNOW=./winnow WRITE_TINY_MODELS=./write_tiny_models HELLO=./hello python3 ../../tests/cli/cli_test.py
"""

import array
import json
import math
import os
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import unittest

WINNOW = os.environ["WINNOW"]
WRITER = os.environ["WRITE_TINY_MODELS"]
HELLO = os.environ["HELLO"]
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "winnow", "models")
SANITIZED = bool(os.environ.get("WINNOW_SANITIZED"))
COMMANDS = ("run chat compare bench eval report perplexity logits tokenize info methods kernels calibrate pull").split()
TEXT = "The ferry leaves at seven. Nobody remembers who planted the walnut trees along the road. " * 40

folder = ""  # of this run: tiny models, texts, whatever tests write


def setUpModule():
    global folder
    folder = tempfile.mkdtemp(prefix="winnow-cli-")
    subprocess.run([WRITER, folder], check=True)
    write("text.txt", TEXT.encode())


def tearDownModule():
    shutil.rmtree(folder)


def path(name):
    return os.path.join(folder, name)


def model(architecture="qwen2"):
    return path("tiny-%s.gguf" % architecture)


def write(name, data):
    with open(path(name), "wb") as file:
        file.write(data)
    return path(name)


def read(name):
    with open(name, "rb") as file:
        return file.read()


def winnow(*args, stdin=b"", memory=None, env=None):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    return subprocess.run([WINNOW, *map(str, args)], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          preexec_fn=limit if memory else None, env={**os.environ, **(env or {})}, timeout=300)


class Case(unittest.TestCase):
    def good(self, *args, **more):
        """Standard output of a run that must succeed and say nothing on standard error."""
        done = winnow(*args, **more)
        self.assertEqual((done.returncode, done.stderr.decode()), (0, ""), args)
        return done.stdout.decode()

    def lines(self, *args, **more):
        return [json.loads(line) for line in self.good(*args, "--json", **more).splitlines()]

    def refused(self, *args, says, code=1, **more):
        """One sentence on standard error with every one of the words of `says`; nothing on standard output, no crash,
        no file."""
        before = sorted(os.listdir(folder))
        done = winnow(*args, **more)
        error = done.stderr.decode()
        self.assertEqual(done.returncode, code, (args, error))
        self.assertTrue(error.startswith("winnow: "), error)
        self.assertEqual(error.count("\n"), 1, error)
        for word in [says] if isinstance(says, str) else says:
            self.assertIn(word, error)
        self.assertEqual(done.stdout, b"")
        self.assertEqual(sorted(os.listdir(folder)), before)


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
            "recall select_share decode_select_share kv_bytes peak_bytes").split()

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
        self.refused(*base, "-f", folder, says="folder")
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
        for megabytes in range(8, 136, 16):
            done = winnow("run", "-m", model(), "--raw", "-p", "x" * 3000, "-n", 4, memory=megabytes << 20)
            error = done.stderr.decode()
            if not error.startswith("winnow: ") and megabytes < 64 and done.returncode in (127, -signal.SIGSEGV):
                continue  # the system could not even map the libraries, or the program itself
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
        self.refused("run", "-m", folder, "-p", "x", says=folder)


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
    KEYS = ("model method answer n_prompt n_gen ttft_s prefill_tok_s decode_tok_s density recall kv_bytes peak_bytes "
            "select_share agreement kl").split()

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


class Bench(Case):
    KEYS = ("model method device threads n_prompt n_gen depth prefill_tok_s decode_tok_s ttft_s density recall "
            "select_share decode_select_share kv_bytes peak_bytes").split()

    def test_a_line_for_each_length_depth_and_method(self):
        rows = self.lines("bench", "-m", model(), "--prompt", "64,128", "--gen", 4, "--depth", "0,64", "--reps", 1,
                          "--method", "dense", "--method", "streaming_llm(min_len=0)")
        self.assertEqual([(row["depth"], row["n_prompt"]) for row in rows], [(0, 64), (0, 128), (64, 64), (64, 128)] * 2)
        for row in rows:
            self.assertEqual(list(row), self.KEYS)
            self.assertGreater(row["prefill_tok_s"], 0)
            self.assertGreater(row["decode_tok_s"], 0)
        self.assertEqual(rows[3]["kv_bytes"], 3 * rows[0]["kv_bytes"])

    def test_shapes_with_random_weights(self):
        rows = self.lines("bench", "--shape", "tiny", "--random-weights", "--prompt", "64,512", "--gen", 4, "--depth",
                          "0,1500", "--reps", 1, "--method", "dense", "--method", "flexprefill(min_len=0, min_budget=128)")
        self.assertEqual(len(rows), 8)
        for row in rows:
            self.assertEqual(list(row), self.KEYS)
            self.assertEqual(row["model"], "tiny (random weights)")
            self.assertGreater(row["decode_tok_s"], 0)
        self.assertLess(rows[-1]["density"], 0.9)
        self.assertIn("llama-3-8b", self.good("bench", "--help"))
        self.refused("bench", "--shape", "tiny", says=["--shape", "--random-weights"], code=2)
        self.refused("bench", "--random-weights", says=["--shape", "--random-weights"], code=2)
        self.refused("bench", "--shape", "huge", "--random-weights", says=["huge", "llama-3-8b"], code=2)
        shape = ("bench", "--shape", "tiny", "--random-weights")
        self.refused(*shape, "-m", model(), says=["--shape", "--model"], code=2)
        self.refused(*shape, "-f", path("text.txt"), says=["--shape", "--file"], code=2)
        self.refused(*shape, "-c", 100, "--prompt", 200, says=["tokens", "100"])

    def test_batches(self):
        rows = self.lines("bench", "-m", model(), "--batch", 4, "--prompt", "32,100", "--reps", 1)
        self.assertEqual([(row["n_batch"], row["n_longest"], row["n_tokens"]) for row in rows],
                         [(4, 32, 80), (4, 100, 250)])
        for row in rows:
            self.assertGreater(row["speed_up"], 0)
            self.assertGreater(row["packed_peak_bytes"], 0)
        self.assertIn("times as fast", self.good("bench", "-m", model(), "--batch", 2, "--prompt", 1, "--reps", 1))
        self.refused("bench", "-m", model(), "--batch", 2, "--gen", 4, says=["--batch", "--gen"], code=2)
        self.refused("bench", "-m", model(), "--batch", 2, "--prompt", 5000, says=["tokens", "4,096"])

    def test_too_long(self):
        self.refused("bench", "-m", model(), "--prompt", 4000, "--depth", 1000, says=["tokens", "4,096"])

    def test_attend(self):
        problem = "prefill rows=128 heads=2 kv=1 dim=32 density=0.5"
        self.assertIn("GFLOP/s", self.good("bench", "attend", problem, "--seconds", 0.01))
        (one,) = self.lines("bench", "attend", problem, "--seconds", 0.01)
        self.assertLess(one["max_error"], 2e-2)
        self.assertLess(one["density"], 1.0)
        self.assertIn("Examples:", self.good("bench", "attend", "--help"))
        self.refused("bench", "attend", "prefill wings=2", says=["wings", "rows"])
        self.refused("bench", "--reps", "1", says="--model", code=2)


class Scores(Case):
    """perplexity and logits, each checked by the other."""

    def test_perplexity_is_that_of_the_logits(self):
        n_ctx = 64
        for architecture in ("qwen2", "gemma3"):  # without and with BOS
            (ids,) = json.loads("[" + self.good("tokenize", "-m", model(architecture), "-f", path("text.txt"), "--json")
                                + "]")
            tokens = ids["ids"]
            out = path(architecture + ".npy")
            (said,) = self.lines("logits", "-m", model(architecture), "-f", path("text.txt"), "--ctx", n_ctx, "-o", out)
            n_vocab = said["n_vocab"]
            rows = self.read_npy(out, n_ctx, n_vocab)
            if architecture == "gemma3":
                tokens = [2] + tokens
            nll = 0.0
            for at in range(n_ctx // 2, n_ctx - 1):
                row = rows[at * n_vocab:(at + 1) * n_vocab]
                top = max(row)
                nll += math.log(sum(math.exp(x - top) for x in row)) + top - row[tokens[at + 1]]
            nll /= n_ctx - 1 - n_ctx // 2
            (scored,) = self.lines("perplexity", "-m", model(architecture), "-f", path("text.txt"), "--ctx", n_ctx,
                                   "--windows", 1)
            self.assertEqual(scored["n_tokens"], n_ctx - 1 - n_ctx // 2)
            self.assertAlmostEqual(scored["nll"], nll, places=4)
            self.assertAlmostEqual(scored["ppl"], math.exp(scored["nll"]), places=6)

    def read_npy(self, name, rows, cols):
        data = read(name)
        self.assertEqual(data[:8], b"\x93NUMPY\x01\x00")
        (n,) = struct.unpack("<H", data[8:10])
        self.assertEqual((10 + n) % 64, 0)
        self.assertIn("'shape': (%d, %d)" % (rows, cols), data[10:10 + n].decode())
        values = array.array("f", data[10 + n:])
        self.assertEqual(len(values), rows * cols)
        return values

    def test_all_windows(self):
        (one,) = self.lines("perplexity", "-m", model(), "-f", path("text.txt"), "--ctx", 128)
        tokens = len(self.good("tokenize", "-m", model(), "-f", path("text.txt")).split())
        self.assertEqual(one["n_tokens"], tokens // 128 * 63)
        self.assertIn("perplexity", self.good("perplexity", "-m", model(), "-f", path("text.txt"), "--ctx", 128))

    def test_refusals(self):
        short = write("short.txt", b"too short")
        self.refused("perplexity", "-m", model(), "-f", short, says=["short.txt", "1,024"])
        self.refused("logits", "-m", model(), "-f", short, "-o", path("no/such/folder.npy"), says="no/such/folder.npy")
        self.refused("logits", "-m", model(), "-f", write("nothing.txt", b""), "-o", path("x.npy"), says="empty")
        self.refused("logits", "-m", model(), "-f", short, "-o", folder, says="folder")

    def test_a_file_that_was_there_survives_a_failure(self):
        kept = write("kept.npy", b"precious")
        self.refused("logits", "-m", model(), "-f", path("absent.txt"), "-o", kept, says="absent.txt")
        self.assertEqual(read(kept), b"precious")


class CtrlC(Case):
    def stop(self, *args):
        """Starts a run of minutes and stops it."""
        before = sorted(os.listdir(folder))
        process = subprocess.Popen([WINNOW, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(1.5)
        self.assertIsNone(process.poll(), "it was meant to last")
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
        self.assertEqual((process.returncode, error.decode()), (130, "winnow: stopped by Ctrl-C\n"))
        self.assertEqual(sorted(os.listdir(folder)), before)
        return out

    def test_prefill(self):
        long = write("long.txt", (TEXT * 2)[:4000].encode())
        self.stop("logits", "-m", model(), "-f", long, "--ctx", 4000, "--device", "ref", "-o", path("stopped.npy"))

    def test_answer(self):
        self.stop("run", "-m", model(), "--raw", "-p", "Hello", "-n", 4000, "--device", "ref", "--json")

    def test_windows(self):
        self.stop("perplexity", "-m", model(), "-f", path("text.txt"), "--ctx", 1024, "--device", "ref")


class Tokenize(Case):
    def test_any_bytes(self):
        for data in (b"Hello, world", b"\xff\xfe\x00abc", "naïve 日本 🙂".encode()):
            ids = self.good("tokenize", "-m", model(), stdin=data).split()
            self.assertEqual(ids, self.good("tokenize", "-m", model(), "-f", write("bytes", data)).split())
            self.assertGreater(len(ids), 0)
        self.assertEqual(self.good("tokenize", "-m", model(), stdin=b""), "\n")

    def test_special(self):
        plain = self.good("tokenize", "-m", model(), stdin=b"<|im_end|>").split()
        special = self.good("tokenize", "-m", model(), "--special", stdin=b"<|im_end|>").split()
        self.assertEqual(len(special), 1)
        self.assertGreater(len(plain), 1)

    def test_json_lines(self):
        strings = ["Hello, world", "", "tab\tquote\"back\\slash", "naïve 日本 🙂", "\u0001\u007f"]
        for ascii_only in (True, False):
            lines = "".join(json.dumps(s, ensure_ascii=ascii_only) + "\n" for s in strings).encode()
            out = self.good("tokenize", "-m", model(), "--jsonl", stdin=lines).splitlines()
            self.assertEqual(len(out), len(strings))
            for text, line in zip(strings, out):
                self.assertEqual(json.loads(line),
                                 [int(x) for x in self.good("tokenize", "-m", model(), stdin=text.encode()).split()])
        raw = self.good("tokenize", "-m", model(), "--jsonl", stdin=b'"\xff"\n')
        self.assertEqual(json.loads(raw), [int(x) for x in self.good("tokenize", "-m", model(), stdin=b"\xff").split()])

    def test_bad_json_lines(self):
        for line, says in ((b"Hello", "begins with"), (b'"Hello', "does not end"), (b'"a" b', "follow"),
                           (b'"\\q"', "escape"), (b'"\\ud800"', "surrogate"), (b'"\\u12g4"', "hexadecimal")):
            self.refused("tokenize", "-m", model(), "--jsonl", stdin=line, says=["line 1", says])


class Facts(Case):
    def test_info(self):
        (info,) = self.lines("info", "-m", model())
        self.assertEqual((info["architecture"], info["runs"], info["n_ctx"]), ("qwen2", True, 4096))
        self.assertEqual(info["types"]["f32"]["tensors"], info["n_tensors"])
        text = self.good("info", "-m", model(), "--tensors")
        for word in ("qwen2", "4,096", "blk.0.attn_q.weight", "winnow runs it: yes"):
            self.assertIn(word, text)
        self.refused("info", "-m", path("absent.gguf"), says="absent.gguf")

    def test_methods(self):
        names = {method["name"] for method in self.lines("methods")}
        self.assertLessEqual({"dense", "streaming_llm", "minference", "flexprefill", "blasst", "snapkv"}, names)
        for name in names:
            self.assertIn(name, self.good("methods", name))
        self.assertIn("window", self.good("methods", "streaming_llm"))
        self.assertIn("--target-recall and --target-speedup turn gamma", self.good("methods", "flexprefill"))
        self.assertNotIn("--target", self.good("methods", "snapkv"))
        self.refused("methods", "magic", says=["magic", "flexprefill"])

    def test_kernels(self):
        rows = self.lines("kernels")[1:]
        used = [row for row in rows if row["used"]]
        self.assertEqual(len({row["kernel"] for row in used}), len(used))
        self.assertIn("attend", {row["kernel"] for row in used})
        for row in rows:
            self.assertEqual(row["runs"], row["why_not"] == "" or row["why_not"].startswith("WINNOW_ISA"), row)
        portable = self.lines("kernels", env={"WINNOW_ISA": "portable"})[1:]
        self.assertTrue(all(row["isa"] == "portable" for row in portable if row["used"]))
        self.refused("kernels", env={"WINNOW_ISA": "mmx"}, says=["mmx", "avx2"])

    def test_pull_runs_the_script(self):
        os.makedirs(path("share/scripts"), exist_ok=True)
        with open(path("share/scripts/pull"), "w") as script:
            script.write("#!/bin/sh\necho pulled \"$@\"\n")
        os.chmod(path("share/scripts/pull"), 0o755)
        self.assertEqual(self.good("pull", "some-model", env={"WINNOW_SHARE": path("share")}), "pulled some-model\n")
        self.refused("pull", "x", env={"WINNOW_SHARE": path("nowhere")}, says=["nowhere", "WINNOW_SHARE"])


class Target(Case):
    METHOD = ("--method", "streaming_llm(sinks=2, cache=0)")

    def setUp(self):
        self.cache = {"XDG_CACHE_HOME": path("cache")}

    def tearDown(self):
        shutil.rmtree(path("cache"), ignore_errors=True)

    def curves(self):
        return sorted(os.listdir(path("cache/winnow/knobs")))

    def test_recall(self):
        base = ("compare", "-m", model(), "-f", path("text.txt"), "-p", "What?", "-n", 2, *self.METHOD)
        windows = []
        for recall in (0.5, 0.9):
            dense, row = self.lines(*base, "--target-recall", recall, env=self.cache)
            self.assertNotIn("target", dense)
            target = row["target"]
            self.assertEqual((target["recall"], target["param"]), (recall, "window"))
            self.assertIn(f"window={target['value']:.0f}", row["method"])
            self.assertGreaterEqual(target["foretold"]["recall"], recall - 1e-9)
            self.assertEqual(target["achieved"]["recall"], row["recall"])
            windows.append(target["value"])
            self.assertEqual(len(self.curves()), 1)  # measured once
        self.assertLess(*windows)
        self.assertIn("window=", self.good(*base, "--target-recall", 0.9, env=self.cache))
        # A broken file is measured anew, and a folder that cannot be written is no reason to stop.
        name = path("cache/winnow/knobs/" + self.curves()[0])
        with open(name, "w") as file:
            file.write('{"key": 3')
        self.lines(*base, "--target-recall", 0.9, env=self.cache)
        with open(name) as file:
            self.assertEqual(len(json.load(file)["points"]), 9)

    def test_speedup(self):
        (row,) = self.lines("bench", "-m", model(), "--prompt", 2048, "--gen", 0, "--reps", 1, *self.METHOD,
                            "--target-speedup", 1, env=self.cache)
        self.assertEqual(row["target"]["speedup"], 1)
        self.assertGreater(row["target"]["achieved"]["speedup"], 0)
        self.refused("bench", "-m", model(), "--prompt", 2048, *self.METHOD, "--target-speedup", 500,
                     says=["500 cannot be had at 2048 tokens", "attention is"], env=self.cache)
        self.refused("run", "-m", model(), "--raw", "-p", "Hello", "--method", "flexprefill", "--target-speedup", 1.5,
                     says=["at 5 tokens", "4,096", "flexprefill"], env=self.cache)

    def test_every_command_with_methods_takes_a_target(self):
        text, recall = path("text.txt"), (*self.METHOD, "--target-recall", 0.8)
        (row,) = self.lines("run", "-m", model(), "--raw", "-f", text, "-n", 2, *recall, env=self.cache)
        self.assertEqual(row["target"]["achieved"]["density"], row["density"])
        (row,) = self.lines("perplexity", "-m", model(), "-f", text, "-c", 512, *recall, env=self.cache)
        self.assertEqual(row["target"]["param"], "window")
        done = winnow("chat", "-m", model(), "-f", text, "-n", 2, "--stats", *recall, stdin=b"Hi\nHo\n/reset\nHi\n",
                      env=self.cache)
        self.assertEqual((done.returncode, done.stderr.count(b"for recall 0.8 (foretold")), (0, 2))
        self.good("logits", "-m", model(), "-f", text, "-c", 600, "-o", path("logits.npy"), *recall, env=self.cache)
        os.remove(path("logits.npy"))

    def test_refusals(self):
        base = ("run", "-m", model(), "--raw", "-p", "x")
        self.refused(*base, "--target-recall", 0.9, says=["dense attention has no knob", "flexprefill"])
        self.refused(*base, "--method", "snapkv", "--target-recall", 0.9, says=["snapkv has no knob", "minference"])
        self.refused(*base, "--method", "flexprefill(gamma=0.9)", "--target-recall", 0.9, says=["gamma=0.9", "leave"])
        self.refused(*base, "--method", "flexprefill", "--target-recall", 1.5, says="1.5", code=2)
        self.refused(*base, *self.METHOD, "--target-recall", 0.9, "--target-speedup", 2, says="--target", code=2)
        self.refused("bench", "-m", model(), "--batch", 2, *self.METHOD, "--target-recall", 0.9, says="--batch")


class Calibrate(Case):
    def test_learns_and_is_used(self):
        out = path("heads.json")
        self.good("calibrate", "-m", model(), "--method", "minference", "-f", path("text.txt"), "-o", out)
        with open(out) as file:
            self.assertEqual(json.load(file)["method"], "minference")
        os.remove(out)

    def test_refusals(self):
        out = path("heads.json")
        base = ("calibrate", "-m", model(), "-f", path("text.txt"), "-o", out)
        self.refused(*base, "--method", "streaming_llm", says=["streaming_llm", "minference"])
        self.refused(*base, "--method", "magic", says="magic")
        self.refused(*base, "--method", "minference", "--method", "blasst", says="exactly one", code=2)


class Library(Case):
    def test_example(self):
        done = subprocess.run([HELLO, model(), "Hello"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertRegex(done.stdout.decode(errors="replace"), r"\[\d+ tokens read, \d+ answered\]\n$")
        done = subprocess.run([HELLO, path("absent.gguf"), "Hello"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"absent.gguf", done.stderr)


class RealModel(Case):
    MODEL = os.path.join(CACHE, "smollm2-135m-instruct-q4_1.gguf")

    @unittest.skipUnless(os.path.exists(MODEL), "SmolLM2-135M is not in the cache; scripts/pull smollm2-135m fetches it")
    def test_answers(self):
        self.assertIn("Paris", self.good("run", "-m", self.MODEL, "--raw", "-p", "The capital of France is", "-n", 8))


if __name__ == "__main__":
    unittest.main(verbosity=1)
