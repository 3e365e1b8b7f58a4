"""A folder with tiny data and a recipe, and the program run in it."""
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = str(ROOT / os.environ.get("SIGMA_BUILD", "build") / "sigma")

RECIPE = """task = "generator"
[data]
kind = "idx"
images = "images.idx"
labels = "labels.idx"
threads = 0
[generator]
num_classes = 4
patch_size = 4
path = { kind = "ot_fm", t_min = 0.006 }
[generator.trunk]
hidden_size = 16
depth = 1
num_heads = 2
[generator.objective]
kind = "imm"
min_ts_gap = 1e-4
[train]
batch = 8
optimizer = { lr = 1e-3, eps = 1e-10 }
[log]
every = 1
"""


def check(condition, message):
    if not condition:
        sys.exit(f"FAILED: {message}")


class Lab:
    """Files in a temporary folder, which goes with its processes when the lab is left."""

    processes = ()

    def __enter__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="sigma-reliability-"))
        pixels = b"\0\0\x08\x03" + struct.pack(">III", 64, 8, 8)
        labels = b"\0\0\x08\x01" + struct.pack(">I", 64)
        for i in range(64):
            labels += bytes([i % 4])
            for y in range(8):
                pixels += bytes((160 if (y // 4) * 2 + x // 4 == i % 4 else 20) + (i * 7 + y * 3 + x) % 60
                                for x in range(8))
        self.write("images.idx", pixels)
        self.write("labels.idx", labels)
        self.write("tiny.toml", RECIPE.encode())
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, name, data):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def start(self, *arguments, before=()):
        process = subprocess.Popen([*before, PROGRAM, *map(str, arguments)], cwd=self.folder, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.processes = [p for p in self.processes if p.poll() is None] + [process]
        return process

    def run(self, *arguments, before=()):
        """-> (exit code, standard output, standard error)"""
        process = self.start(*arguments, before=before)
        out, err = process.communicate(timeout=600)
        return process.returncode, out, err

    def train(self, *sets, run="runs/tiny", recipe="tiny.toml"):
        return ["train", recipe, "--quiet", "--run", run, *(x for s in sets for x in ("--set", s))]


class RunFolder:
    def __init__(self, path):
        self.path = pathlib.Path(path)

    def steps(self):
        folder = self.path / "checkpoints"
        return sorted(int(p.name[5:]) for p in folder.glob("step-*")) if folder.exists() else []

    def newest(self):
        return (self.steps() or [0])[-1]

    def checkpoint(self, step):
        return self.path / "checkpoints" / f"step-{step:07}"

    def verify(self, step):
        """Sizes and SHA-256 of all files, by another program than the one that wrote them."""
        folder = self.checkpoint(step)
        for file in json.loads((folder / "manifest.json").read_text())["files"]:
            data = (folder / file["name"]).read_bytes()
            check(len(data) == file["bytes"] and hashlib.sha256(data).hexdigest() == file["sha256"],
                  f"{folder / file['name']} does not verify")

    def hashes(self, step):
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest()
                for p in self.checkpoint(step).glob("*.safetensors")}

    def temporaries(self):
        return [p.name for p in (self.path / "checkpoints").glob(".t*")]

    def log(self, *events):
        """Whole lines only: a kill may leave half a one."""
        try:
            text = (self.path / "log.jsonl").read_text()
        except FileNotFoundError:
            return []
        out = []
        for line in text.split("\n"):
            if not any(f'"event":"{event}"' in line for event in events):
                continue
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            out.append(entry)
        return out


def wait_until(condition, process, what, seconds=300):  # a busy disk takes long to sync
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            check(False, f"the program ended before {what}: {process.stderr.read()}")
        check(time.monotonic() < end, f"no {what} within {seconds} s")
        time.sleep(0.0005)


def random_numbers(seed):
    return random.Random(seed)


SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}
