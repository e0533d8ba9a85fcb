"""Commands that measure: bench, perplexity, logits, calibrate, and the targets of every command with methods."""

import array
import json
import math
import os
import shutil
import struct
import unittest

from program import Case, model, path, read, setUpModule, tearDownModule, winnow, write  # noqa: F401


class Bench(Case):
    KEYS = ("model method device threads n_prompt n_gen depth prefill_tok_s decode_tok_s ttft_s density recall "
            "estimated_mass select_share decode_select_share kv_bytes peak_bytes").split()

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
        self.assertEqual(rows[0]["estimated_mass"], 1.0)
        self.assertTrue(0.3 < rows[-1]["estimated_mass"] <= 1, rows[-1])
        self.assertIn("llama-3-8b", self.good("bench", "--help"))
        self.refused("bench", "--shape", "tiny", says=["--shape", "--random-weights"], code=2)
        self.refused("bench", "--random-weights", says=["--shape", "--random-weights"], code=2)
        self.refused("bench", "--shape", "huge", "--random-weights", says=["huge", "llama-3-8b"], code=2)
        shape = ("bench", "--shape", "tiny", "--random-weights")
        self.refused(*shape, "-m", model(), says=["--shape", "--model"], code=2)
        self.refused(*shape, "-f", path("text.txt"), says=["--shape", "--file"], code=2)
        self.refused(*shape, "-c", 100, "--prompt", 200, says=["tokens", "100"])
        self.refused(*shape, "--layers", 3, says=["--layers 3", "2 layers"])
        self.refused("bench", "-m", model(), "--layers", 1, says=["--layers", "--shape"], code=2)
        row, = self.lines(*shape, "--layers", 1, "--prompt", 64, "--gen", 0, "--reps", 1)
        self.assertEqual(row["model"], "tiny, 1 of 2 layers (random weights)")
        self.assertEqual(row["kv_bytes"] * 2, rows[0]["kv_bytes"])

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
        self.refused("logits", "-m", model(), "-f", short, "-o", path(""), says="folder")

    def test_a_file_that_was_there_survives_a_failure(self):
        kept = write("kept.npy", b"precious")
        self.refused("logits", "-m", model(), "-f", path("absent.txt"), "-o", kept, says="absent.txt")
        self.assertEqual(read(kept), b"precious")


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


if __name__ == "__main__":
    unittest.main(verbosity=1)
