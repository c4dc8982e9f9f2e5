# SPDX-License-Identifier: GPL-2.0-only
"""Measurements: the module beside the FUSE daemon and ext4, on the same disk of the same guest, in rounds that take
turns. vexfs-bench does the measuring, so that it is the same code as everywhere else."""
import json
from vmtest import *
from e_vectors import Data

MACHINE = {"kvm": "KVM", "tcg": "emulated VM", "uml": "user-mode Linux"}


def bench(*args):
    p = run(vex.BIN / "vexfs-bench", *args, "--machine", MACHINE[G.accel], "--runs", 1, "--warmups", 1, "--json", timeout=3000)
    return json.loads(p.out)


def once(driver):
    """One round of a driver on a fresh volume."""
    slow = G.accel == "tcg" or G.quick
    if driver == "ext4":
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", G.main, "4G")
    else:
        mkfs(G.main, "-s", "4G")
    rows = []
    with mounted(driver=driver) as v:
        rows += bench("files", v / "files", "--count", 200 if slow else 1000, "--mib", 32 if slow else 128, "--requests", 40 if slow else 200)
        if driver == "ext4":
            return rows
        data = Data() if not slow else None
        base, query = (data / "base.npy", data / "query.npy") if data else (vex.SAMPLE / "sample.base.npy", vex.SAMPLE / "sample.query.npy")
        for index in ("flat", "hnsw"):
            rows += bench("insert", v / f"insert-{index}", "--data", base, "--records", 1000 if slow else 5000, "--batch", "1,100,1000", "--requests", 20 if slow else 100, "--index", index)
            rows += bench("search", v / f"search-{index}", "--data", base, "--queries", query, "--requests", 50 if slow else 200, "--index", index, "--target", 0.95)
    return rows


@test(limit=10_000, measure=True, kinds=("x86", "uml"), after=lambda run: keep(run))
def test_measure():
    """Inserts, searches and files: kernel, FUSE and ext4 in interleaved rounds; bench/results/kernel-*.json, vm/README.md"""
    if G.driver != "kernel":
        raise Skip("measures all drivers")
    if not (vex.BIN / "vexfs-bench").exists():
        raise Skip("no vexfs-bench")
    rounds = 2 if G.quick else 5
    drivers = ["kernel", "fuse", "ext4"]
    for n in range(rounds):
        for driver in drivers[n % 3:] + drivers[:n % 3]:
            begin = time.time()
            for row in once(driver):
                G.give(row)
            G.say(f"round {n + 1} of {rounds}: {driver} ({time.time() - begin:.0f} s)")
    return f"{rounds} rounds"


# On the host.

def keep(run):
    """Keeps the samples, shows the table, and puts it into vm/README.md, unless it was only a quick look."""
    import measure
    rows = measure.merge(run.given)
    commit = subprocess.run(["git", "-C", TOP, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip() or "unknown"
    if subprocess.run(["git", "-C", TOP, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True).stdout.strip():
        commit += " with changes"
    for r in rows:
        r["commit"] = commit
        r["command"] = "vm/run_vm_tests.sh --measure" + (" --uml" if run.kind == "uml" else "")
    place = TOP / "target/vm/measured.json" if run.opt.quick else TOP / f"bench/results/kernel-{run.accel}.json"
    # A line for each measurement, so that a difference can be read.
    place.write_text('{"version": 1, "rows": [\n' + ",\n".join(json.dumps(r) for r in rows) + "\n]}\n")
    run.show("\n" + measure.table(rows))
    if not run.opt.quick:
        measure.publish()
    return f"{len(rows)} rows in {place.relative_to(TOP)}"
