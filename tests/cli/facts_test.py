"""Commands that tell facts: tokenize, info, methods, kernels, pull; and the library's example."""

import json
import os
import subprocess
import unittest

from program import Case, HELLO, model, path, read, setUpModule, tearDownModule, write  # noqa: F401


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
        self.assertIn("On a GPU min_len is 16384 unless", self.good("methods", "flexprefill"))
        self.assertIn("no length that was measured", self.good("methods", "zipvl"))
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


class Library(Case):
    def test_example(self):
        done = subprocess.run([HELLO, model(), "Hello"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertRegex(done.stdout.decode(errors="replace"), r"\[\d+ tokens read, \d+ answered\]\n$")
        done = subprocess.run([HELLO, path("absent.gguf"), "Hello"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"absent.gguf", done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=1)
