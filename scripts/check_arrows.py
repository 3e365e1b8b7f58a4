#!/usr/bin/env python3
"""Reads the includes of sigma/ and fails on one that points back (ARCHITECTURE.md draws the arrows).

Also: no torch in kernels/ folders, and no random numbers but those of base/random.h.
"""
import pathlib
import re
import sys

# A room may include itself and these.
ROOMS = {
    "base": [],
    "io": ["base"],
    "nn": ["io", "base"],
    "attention": ["nn", "io", "base"],
    "moe": ["nn", "io", "base"],
    "data": ["nn", "io", "base"],
    "metrics": ["data", "nn", "io", "base"],
    "trunk": ["attention", "moe", "nn", "io", "base"],
    "generator": ["trunk", "attention", "moe", "nn", "io", "base"],
    "tokenizer": ["generator", "trunk", "attention", "moe", "nn", "io", "base"],
    "ops": ["tokenizer", "generator", "trunk", "attention", "moe", "nn", "io", "base"],
    "train": ["tokenizer", "generator", "trunk", "attention", "moe", "data", "metrics", "nn", "io", "base"],
    "cli": ["train", "tokenizer", "generator", "trunk", "attention", "moe", "data", "metrics", "nn", "io", "base"],
}
INCLUDE = re.compile(r'^\s*#include\s+[<"]([^">]+)[">]', re.M)
FORBIDDEN = re.compile(r"torch::rand|at::rand|at::normal|torch::normal|torch::dropout|std::mt19937|\.normal_\(|\.uniform_\(")

root = pathlib.Path(__file__).resolve().parent.parent
bad = []
count = 0
for path in sorted((root / "sigma").rglob("*")):
    if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
        continue
    name = path.relative_to(root)
    room = name.parts[1]
    text = path.read_text()
    for include in INCLUDE.findall(text):
        count += 1
        parts = include.split("/")
        if parts[0] == "sigma" and parts[1] != room and parts[1] not in ROOMS[room]:
            bad.append(f"{name}: {room} must not include {include}")
        if "kernels" in name.parts and parts[0] in ("torch", "ATen", "c10"):
            bad.append(f"{name}: kernels are torch-free, found {include}")
    for match in FORBIDDEN.findall(text):
        bad.append(f"{name}: random numbers come from base/random.h, found {match}")
print("\n".join(bad) if bad else f"{count} includes, all arrows point one way")
sys.exit(1 if bad else 0)
