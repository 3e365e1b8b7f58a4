"""A full disk and bad images: R8, R9."""
import ctypes
import json
import os
import re
import shutil
import struct
import subprocess
import zlib

from lab import ROOT, Lab, RunFolder, check

CLONE_NEWNS = 0x20000


def fill(folder, leave):
    """A file that takes all but about `leave` bytes."""
    state = os.statvfs(folder)
    with open(folder / "ballast", "wb") as file:
        file.write(bytes(max(0, state.f_bavail * state.f_bsize - leave)))


def full_disk():
    """R8: 8 MB of tmpfs, full at a checkpoint, a line of the log, a sample."""
    libc = ctypes.CDLL(None, use_errno=True)
    check(libc.unshare(CLONE_NEWNS) == 0, "a mount of one's own needs root")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    with Lab() as lab:
        small = lab.folder / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], check=True)
        try:
            run = RunFolder(small / "tiny")
            long = lab.train("train.images=160000", "checkpoint.every=80", "checkpoint.keep_last=1000", run=run.path)

            def refused(what, *arguments):
                code, _, err = lab.run(*arguments)
                check(code == 7 and "small/" in err and re.search(r"\d+ bytes", err), f"{what}: exit {code}: {err}")
                print(f"R8: {what}: {err.splitlines()[0]}")

            refused("checkpoints until it is full", *long)
            saved = run.newest()
            check(saved > 0, "no checkpoint was saved before")
            run.verify(saved)
            check(not run.temporaries(), f"left behind: {run.temporaries()}")
            fill(small, 0)
            refused("the log", *long)
            run.verify(saved)
            refused("a sample", "sample", run.path, "-o", small / "a.png", "--labels", "0-3", "--count", "64")
            check(not (small / "a.png").exists(), "half a picture")
            os.remove(small / "ballast")
            for step in run.steps()[:-1]:
                shutil.rmtree(run.checkpoint(step))
            code, _, err = lab.run("sample", run.path, "-o", lab.folder / "b.png")
            check(code == 0, err)
            process = lab.start(*long)
            out, err = process.communicate(timeout=300)
            resumed = run.log("resume")[-1]["step"]
            check(resumed == saved, f"resumed from {resumed}, saved was {saved}: {err}")
            print(f"R8: with space again, training goes on from step {saved}")
        finally:
            subprocess.run(["umount", "-l", small], check=True)


# ---- images ----


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width=8, height=8, depth=8, color=0, rows=None, extra=b""):
    size = {0: 1, 2: 3, 3: 1, 6: 4}[color] * depth // 8
    if rows is None:
        rows = b"".join(b"\0" + bytes((x * 7 + y * 13) % 251 for x in range(width * size)) for y in range(height))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)) + extra
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


GOOD = {  # read as 8-bit pixels; of an animation the first frame
    "animated.png": png(extra=chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", bytes(26))),
    "sixteen_bit.png": png(depth=16),
    "palette.png": png(color=3, rows=b"".join(b"\0" + bytes([x % 3 for x in range(8)]) for _ in range(8)),
                       extra=chunk(b"PLTE", bytes([0, 0, 0, 9, 9, 9, 200, 200, 200]))),
}
BAD = {
    "truncated.png": png()[:60],
    "empty.png": b"",
    "text.png": b"not an image",
    "one_pixel.png": png(1, 1),
    "huge_header.png": png(50000, 50000, rows=b"\0"),
    "cmyk.jpg": (ROOT / "tests/fuzz/corpus/png/jpeg_cmyk").read_bytes(),
    "animated.gif.png": b"GIF89a\x08\0\x08\0\x80\0\0\0\0\0\xff\xff\xff!\xf9\x04\0\0\0\0\0;",
    "few_rows.png": png(rows=bytes(9)),
    "bad_checksum.png": png()[:-6] + b"\0\0\0\0\0\0",
    "other_size.png": png(8, 9),
}


def bad_images(count=1000):
    """R9: 1 % of the images are bad: all of them listed, or skipped and counted."""
    with Lab() as lab:
        for i in range(count - len(BAD) - len(GOOD)):
            lab.write(f"photos/{i % 4}/{i:04}.png", png())
        for name, data in {**BAD, **GOOD}.items():
            lab.write(f"photos/1/{name}", data)
        sets = ("data={kind=\"folder\", root=\"photos\", channels=1}", "train.images=80")
        code, out, err = lab.run("data", "check", "photos")
        check(code == 3, f"data check: exit {code}: {out}{err}")
        for name in BAD:
            check(f"/{name}: " in out, f"data check does not name {name}: {out}")
        code, _, err = lab.run(*lab.train(*sets))
        check(code == 3, f"train: exit {code}: {err}")
        for name in BAD:
            check(name in err, f"train does not name {name}: {err}")
        for name in GOOD:
            check(name not in err, f"train refuses {name}: {err}")
        skip = (*sets, "data.on_bad_image=skip")
        code, out, err = lab.run(*lab.train(*skip), "--dry-run", "--json")
        check(code == 0, err)
        used = json.loads(out)["result"]["data_count"]
        check(used == count - len(BAD), f"{used} images used, expected {count - len(BAD)}")
        code, out, err = lab.run(*lab.train(*skip))
        check(code == 0, err)
        check(f"data: {len(BAD)} bad files are skipped;" in err, f"the skipped images are not counted: {err}")
        print(f"R9: {len(BAD)} of {count} images bad: exit 3 lists each; skip trains on the other {used}; {', '.join(GOOD)} are read")
