"""Kills, faults of the file system, signals and many restarts: R1, R2, R3, R12, R13."""
import os
import pathlib
import re
import shutil
import signal
import struct
import time

from lab import SIGNALS, Lab, RunFolder, check, random_numbers, wait_until

EVERY_STEP = ("checkpoint.every=8", "train.images=100M", "checkpoint.keep_last=2")


def starts(run):
    return len(run.log("start", "resume"))


def kills(count=500, seed=0):
    """R1: kill -9 at a random moment; a checkpoint every step."""
    rng = random_numbers(seed)
    with Lab() as lab:
        run = RunFolder(lab.folder / "runs/tiny")
        process = lab.start(*lab.train(*EVERY_STEP))
        wait_until(lambda: run.newest() >= 1, process, "first checkpoint")
        lost = 0
        for i in range(count):
            time.sleep(rng.uniform(0, 0.03))
            process.kill()
            process.wait()
            saved = run.newest()
            run.verify(saved)
            steps = [e["step"] for e in run.log("step")]
            lost = max(lost, steps[-1] - saved)
            check(steps[-1] - saved <= 1, f"kill {i}: step {steps[-1]} was done, {saved} saved")
            before = starts(run)
            process = lab.start(*lab.train(*EVERY_STEP))
            if i % 5 == 0:  # some die while they start
                time.sleep(rng.uniform(0, 0.25))
                process.kill()
                process.wait()
                check(run.newest() >= saved, f"kill {i}: lost a checkpoint at the start")
                process = lab.start(*lab.train(*EVERY_STEP))
                before = starts(run)
                saved = run.newest()
            wait_until(lambda: starts(run) > before, process, "resume")
            resumed = run.log("resume")[-1]["step"]
            check(resumed == saved, f"kill {i}: resumed from {resumed}, saved was {saved}")
            wait_until(lambda: run.newest() > saved, process, "next checkpoint")
        process.terminate()
        check(process.wait() == 143, "exit code after SIGTERM")
        check(not run.temporaries(), f"left behind: {run.temporaries()}")
        print(f"R1: {count}/{count} resumed from a verified checkpoint, at most {lost} step lost, no temporary left")


def trace_save(lab, base, run):
    """[(call, k)] of the save of step 2: the k-th of its kind in the main thread."""
    shutil.copytree(base, run.path)
    code, _, err = lab.run(*THREE_STEPS(lab), before=("strace", "-f", "-s", "200", "-o", "trace", "-e",
                                                     "trace=write,fsync,rename,close,mkdir"))
    check(code == 0, err)
    lines = (lab.folder / "trace").read_text().splitlines()
    main = lines[0].split()[0]
    counts, out, inside = {}, [], False
    for line in lines:
        found = re.match(rf"{main} +(\w+)\(", line)
        if not found:
            continue
        call = found[1]
        counts[call] = counts.get(call, 0) + 1
        inside = inside or (call == "mkdir" and ".tmp-0000002" in line)
        if inside and call != "mkdir":
            out.append((call, counts[call]))
        if inside and call == "write" and '\\"checkpoint\\"' in line:
            return out  # the line in the log is the end of it
    check(False, "no save in the trace")


def THREE_STEPS(lab):
    return lab.train("checkpoint.every=8", "train.images=24")


def faults():
    """R2: every write, fsync, rename and close of a save fails, or is the last thing the process does."""
    with Lab() as lab:
        run, base = RunFolder(lab.folder / "runs/tiny"), lab.folder / "base"
        check(lab.run(*THREE_STEPS(lab))[0] == 0, "three steps")
        expected = run.hashes(3)
        for step in (2, 3):
            shutil.rmtree(run.checkpoint(step))
        shutil.move(run.path, base)
        calls = trace_save(lab, base, run)
        seen = {}
        for call, k in calls:
            for fault in ("error=ENOSPC", "error=EIO", "signal=KILL"):
                shutil.rmtree(run.path)
                shutil.copytree(base, run.path)
                code, _, err = lab.run(*THREE_STEPS(lab), before=(
                    "strace", "-f", "-y", "-o", "trace", "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={k}"))
                where = f"{call} {k} {fault}: exit {code}: {err}"
                run.verify(1)
                for step in run.steps():
                    run.verify(step)
                if fault == "signal=KILL":
                    check(code in (137, -9), where)
                else:
                    injected = [x for x in (lab.folder / "trace").read_text().splitlines() if "(INJECTED)" in x]
                    check(injected, f"nothing was injected: {where}")
                    # A folder that was only read may fail to close.
                    check(code == 7 or (code == 0 and call == "close"), where)
                    check(code == 0 or "runs/tiny" in err, f"no path named: {where}")
                key = (call, fault.split("=")[1], code)
                seen[key] = seen.get(key, 0) + 1
                code, _, err = lab.run(*THREE_STEPS(lab))
                check(code == 0, f"{where}; then: exit {code}: {err}")
                check(run.hashes(3) == expected, f"{where}; then other weights")
                check(not run.temporaries(), f"{where}; then left behind: {run.temporaries()}")
        print(f"R2: {len(calls)} calls x 3 faults: previous checkpoints intact, the same weights after the next start")
        for (call, fault, code), count in sorted(seen.items()):
            print(f"    {call:7} {fault:7} exit {code:4}: {count}")


KINDS = {
    "experts": ("generator.trunk.mlp={kind=\"moe\", num_experts=3, num_chosen=2, balance={bias_rate=1e-2}}",
                "train.micro_batch=4"),
    "sparse": ("generator.trunk.attention={kind=\"sparse\", block=[1, 1], num_selected=2}",),
    "multi_token": ("generator.trunk.attention={kind=\"multi_token\"}", "generator.objective={kind=\"flow_matching\"}"),
}


def resume(steps=200, stops=5, seed=0):
    """R3: straight, straight again, and with stops: the same bytes."""
    rng = random_numbers(seed)
    with Lab() as lab:
        for kind, settings in KINDS.items():
            sets = (*settings, f"train.images={steps * 8}")
            for name in ("a", "b"):
                code, _, err = lab.run(*lab.train(*sets, run=f"runs/{kind}-{name}"))
                check(code == 0, err)
            stopped = RunFolder(lab.folder / f"runs/{kind}-stopped")
            at = sorted(rng.sample(range(1, steps - 20), stops))
            for step in at:
                process = lab.start(*lab.train(*sets, run=stopped.path))
                wait_until(lambda: [e for e in stopped.log("step")[-1:] if e["step"] >= step], process, f"step {step}")
                process.terminate()
                check(process.wait() == 143, f"{kind}: exit code after SIGTERM")
            code, _, err = lab.run(*lab.train(*sets, run=stopped.path))
            check(code == 0, err)
            expected = RunFolder(lab.folder / f"runs/{kind}-a").hashes(steps)
            check(len(expected) == 3, f"{kind}: files {list(expected)}")
            check(RunFolder(lab.folder / f"runs/{kind}-b").hashes(steps) == expected, f"{kind}: the same seed differs")
            check(stopped.hashes(steps) == expected, f"{kind}: stops at {at} change the weights")
        print(f"R3: {steps} steps straight, again, and with {stops} stops: equal weights, moments and averages ({', '.join(KINDS)})")


def signals(count=50, seed=0):
    """R12: SIGINT and SIGTERM; every third time both, which wait together for a stopped process."""
    rng = random_numbers(seed)
    slowest = 0.0
    at_once = 0
    sets = ("train.images=100M", "checkpoint.every=100M")
    with Lab() as lab:
        run = RunFolder(lab.folder / "runs/tiny")
        for i in range(count):
            before, saved = starts(run), run.newest()
            process = lab.start(*lab.train(*sets))
            wait_until(lambda: starts(run) > before, process, "start")
            check((run.log("resume")[-1]["step"] if saved else 0) == saved, f"{i}: resumed elsewhere")
            steps = len(run.log("step"))
            wait_until(lambda: len(run.log("step")) > steps, process, "a step")
            time.sleep(rng.uniform(0, 0.02))
            sent = list(SIGNALS) if i % 3 == 2 else [list(SIGNALS)[i % 2]]
            if len(sent) == 2:
                process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            began = time.monotonic()
            for each in sent:
                process.send_signal(each)
            process.send_signal(signal.SIGCONT)
            out, _ = process.communicate(timeout=10)
            took = time.monotonic() - began
            slowest = max(slowest, took)
            check(process.returncode in [SIGNALS[each] for each in sent], f"{i}: exit {process.returncode} after {sent}")
            if len(sent) == 2:
                check(out == "" and run.newest() == saved, f"{i}: saved step {run.newest()} after a second signal: {out}")
                # A save waits for the disk; this does not.
                check(took < 1, f"{i}: {took:.2f} s from the second signal to the end")
                at_once += 1
                continue
            check(run.newest() == run.log("step")[-1]["step"], f"{i}: the last step was not saved")
            run.verify(run.newest())
        check(at_once > 0, f"no second signal in {count} starts: at least 3 are needed")
        print(f"R12: {count}/{count} resumed; {at_once} ended at once by a second signal; at most {slowest:.2f} s from signal to end")


def memory(process):
    """(resident bytes, open files)"""
    pages = int(pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{process.pid}/fd"))


def proto(data):
    """The fields of a protocol buffer, the last of each number."""
    at, out = 0, {}

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            out[key >> 3] = varint()
        else:
            size = {1: 8, 5: 4}.get(key & 7) or varint()
            out[key >> 3] = data[at:at + size]
            at += size
    return out


def event_steps(folder, tag):
    """The steps of a curve in TensorBoard's files, as its reader sees them."""
    steps = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at + 16 <= len(data):
            size = struct.unpack_from("<Q", data, at)[0]
            event = proto(data[at + 12:at + 12 + size])
            at += 16 + size
            step = event.get(2, 0)
            if 7 in event:  # a start forgets what comes after its step
                steps = [s for s in steps if s < step]
            elif 5 in event and proto(proto(event[5])[1])[1] == tag:
                steps.append(step)
    return steps


def restarts(steps=20000, count=100):
    """R13: half the steps in one process, half in `count` of them; one curve in the log."""
    sets = (f"train.images={steps * 8}", "checkpoint.every=80000")
    half = steps // 2
    with Lab() as lab:
        run = RunFolder(lab.folder / "runs/tiny")
        log = run.path / "log.jsonl"

        def last_step():
            if not log.exists():
                return 0
            with open(log, "rb") as file:
                file.seek(max(0, log.stat().st_size - 4000))
                found = re.findall(rb'"event":"step","step":(\d+)', file.read())
            return int(found[-1]) if found else 0

        process = lab.start(*lab.train(*sets))
        wait_until(lambda: last_step() >= half // 10, process, "warm-up", 600)
        first = memory(process)
        wait_until(lambda: last_step() >= half, process, "half of the steps", 600)
        last = memory(process)
        process.terminate()
        check(process.wait() == 143, "exit code after SIGTERM")
        for i in range(1, count + 1):
            target = half + i * (steps - half) // (count + 1)
            process = lab.start(*lab.train(*sets))
            wait_until(lambda: last_step() >= target or process.poll() == 0, process, f"step {target}")
            process.terminate()
            check(process.wait() == 143, f"restart {i}: exit code")
        code, _, err = lab.run(*lab.train(*sets))
        check(code == 0, err)
        curve = []
        for entry in run.log("step", "resume"):
            if entry["event"] == "resume":
                while curve and curve[-1] > entry["step"]:
                    curve.pop()
            else:
                curve.append(entry["step"])
        check(curve == list(range(1, steps + 1)), "the curve of the log has gaps or repeats")
        check(event_steps(run.path / "events", b"loss") == curve, "the curve of the events has gaps or repeats")
        growth = (last[0] - first[0]) / first[0]
        check(growth < 0.01, f"memory grew by {growth:.2%}: {first[0]} to {last[0]} bytes")
        check(last[1] <= first[1], f"open files grew: {first[1]} to {last[1]}")
        print(f"R13: {steps} steps, {count} restarts: one curve in log and events, memory {growth:+.2%} over {half - half // 10} steps, {last[1]} open files")
