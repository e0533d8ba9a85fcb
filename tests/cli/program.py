"""The program as its tests start it, on tiny random models. Each file of tests beside this one is run so:

    cd build/bin && WINNOW=./winnow WRITE_TINY_MODELS=./write_tiny_models HELLO=./hello python3 ../../tests/cli/answers_test.py
"""

import json
import os
import resource
import shutil
import subprocess
import tempfile
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


def files():
    """Names of what stands in the folder of this run."""
    return sorted(os.listdir(folder))


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
        before = files()
        done = winnow(*args, **more)
        error = done.stderr.decode()
        self.assertEqual(done.returncode, code, (args, error))
        self.assertTrue(error.startswith("winnow: "), error)
        self.assertEqual(error.count("\n"), 1, error)
        for word in [says] if isinstance(says, str) else says:
            self.assertIn(word, error)
        self.assertEqual(done.stdout, b"")
        self.assertEqual(files(), before)
