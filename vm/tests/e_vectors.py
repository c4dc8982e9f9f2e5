# SPDX-License-Identifier: GPL-2.0-only
"""Vectors through the mount: recall, filters, the same results in all drivers, memory."""
import random, threading
from vmtest import *
from d_suites import scratch


class Data:
    """Real embeddings: 20,000 if there are that many and time for them, else the sample."""

    def __init__(self):
        full = None if G.quick else G.data
        self.folder, self.prefix = (pathlib.Path(full), "packages-384") if full else (vex.SAMPLE, "sample")
        self.full = full

    def __truediv__(self, name):
        return self.folder / f"{self.prefix}.{name}"


@test(limit=2400)
def test_recall():
    """Recall, filters, radius, export and import on real embeddings (the search tests of the FUSE daemon)"""
    with scratch():
        full = Data().full
        module = end_to_end("recall", *(["--full", full] if full else []))
        notes = []
        for f in vex.tests_of(module):
            begin = time.time()
            note = f()
            G.say(f"{f.__name__.removeprefix('test_').replace('_', ' ')}: {note or 'ok'} ({time.time() - begin:.1f} s)")
            if isinstance(note, str) and "ef " in note:
                notes.append(note)
    return "; ".join(notes)


@test(limit=2400)
def test_files_with_embeddings():
    """2,000 files with embeddings: renamed, linked, moved, deleted; a search names what there is"""
    with scratch():
        module = end_to_end("files_vectors")
        ran = 0
        for f in vex.tests_of(module):
            if "kill" in f.__name__:
                continue  # a module cannot be killed
            note = f()
            ran += 1
            G.say(f"{f.__name__.removeprefix('test_').replace('_', ' ')}: {note or 'ok'}")
    return f"{ran} tests"


@test(limit=3600, quick=True)
def test_vectors():
    """Real embeddings with flat and hnsw: exactness, recall at ef 64 and 256, the same after a remount"""
    data = Data()
    rows, dim, _ = vex.read_npy(data / "base.npy")
    truth = vex.read_ivecs(data / "gt100.ivecs")
    mkfs()
    notes = []

    def found(v, index, ef):
        out = G.work / "out.ivecs"
        begin = time.time()
        vex.vexfs("search", v / index, "--npy", data / "query.npy", "-k", 10, "--ivecs", out, *(["--ef", ef] if ef else []), timeout=1200)
        return vex.read_ivecs(out), len(truth) / (time.time() - begin)

    with mounted() as v:
        before = {}
        for index in ("flat", "hnsw"):
            vex.vexfs("collection", "create", v / index, "--dim", dim, "--metric", "cosine", "--index", index)
            done = vex.vexfs_json("insert", v / index, "--npy", data / "base.npy", "--attrs", data / "jsonl", timeout=3000)[0]
            assert done["inserted"] == rows, done
            end = time.time() + 1200
            while vex.vexfs_json("collection", "info", v / index)[0]["pending"] and time.time() < end:
                time.sleep(0.2)
            notes.append(f"{index}: {done['per_second']:.0f} inserts/s")
            for ef, least in ((None, 1.0),) if index == "flat" else ((64, 0.95), (256, 0.99)):
                got, rate = found(v, index, ef)
                before[index, ef] = got
                r = vex.recall(got, truth, 10)
                notes.append(f"{f'ef {ef}: ' if ef else ''}recall {r:.4f}, {rate:.0f} searches/s")
                assert r >= least, f"{index}: recall {r} where {least} is asked for"
        v.again()
        for (index, ef), got in before.items():
            assert found(v, index, ef)[0] == got, f"{index}, ef {ef}: other results after a remount"
    fsck()
    return "; ".join(notes) + f" ({rows} × {dim})"


@test(limit=3600)
def test_vector_churn():
    """Inserts and deletes again and again: the module's memory and the volume do not grow"""
    count, live, dim = (20_000, 1_000, 16) if G.quick else (1_000_000, 10_000, 16)
    batch = live // 2
    mkfs()
    with mounted() as v:
        vex.vexfs("collection", "create", v / "c", "--dim", dim, "--metric", "l2", "--index", "flat")
        vex.write_npy(G.work / "churn.npy", batch, dim, [float((i * 7) % 101) for i in range(batch * dim)])
        used = []

        def bytes_used():
            if G.driver != "kernel":
                return int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{v.daemon.pid}/status").read())[1]) * 1024
            return int((next(pathlib.Path("/sys/fs/vexfs").iterdir()) / "module_bytes").read_text())

        done, n = 0, 0
        while done < count:
            first = (n % 2) * batch
            (G.work / "churn.ids").write_text("".join(f"{i}\n" for i in range(first, first + batch)))
            vex.vexfs("insert", v / "c", "--npy", G.work / "churn.npy", "--ids", G.work / "churn.ids", "--sync", "end", timeout=600)
            if n >= 1:
                gone = ((n - 1) % 2) * batch
                vex.vexfs("delete", v / "c", *range(gone, gone + batch), timeout=600)
                done += batch
            done += batch
            n += 1
            used.append((bytes_used(), os.statvfs(v.dir).f_bfree))
        third = len(used) // 3
        early, late = max(u for u, _ in used[:third + 1]), max(u for u, _ in used[-third - 1:])
        assert late < 1.2 * early + (4 << 20), f"memory grew from {early} to {late} bytes"
        lost = (min(f for _, f in used[:third + 1]) - min(f for _, f in used[-third - 1:])) * 4096
        assert lost < 64 << 20, f"{lost} bytes of the volume are gone"
        assert vex.vexfs_json("collection", "info", v / "c")[0]["records"] == batch
    fsck()
    return f"{done} inserts and deletes, memory at most {early >> 10} KiB early and {late >> 10} KiB late"


def rotations(base, rows, dim, amounts):
    """The vectors of `base`, each rotated by so many elements: new ones at the price of a copy."""
    out = vex.array.array("f")
    for n in amounts:
        for r in range(rows):
            row = base[r * dim:(r + 1) * dim]
            out += row[n:] + row[:n]
    return out


@test(limit=3600, kinds=("x86", "uml"), machine={"memory": 512})
def test_memory_limit():
    """512 MiB of memory: searches in a collection of 1 GiB while a file of 2 GiB is copied; nothing runs out of memory"""
    records, large = (100_000, 256 << 20) if G.quick else (700_000, 2 << 30)
    rows, dim, base = vex.read_npy(vex.SAMPLE / "sample.base.npy")
    each = 10 * rows
    mkfs()
    with mounted() as v:
        figures = pathlib.Path("/sys/fs/vexfs") / pathlib.Path(G.main).name / "module_bytes"
        peak, least, over = 0, meminfo("MemAvailable"), threading.Event()

        def watch():
            nonlocal peak, least
            while not over.wait(0.1):
                least = min(least, meminfo("MemAvailable"))
                if G.driver == "kernel":
                    peak = max(peak, int(figures.read_text()))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            vex.vexfs("collection", "create", v / "c", "--dim", dim, "--metric", "cosine", "--index", "flat")
            begin = time.time()
            for n in range(records // each):
                vex.write_npy(G.work / "part.npy", each, dim, rotations(base, rows, dim, range(10 * n, 10 * n + 10)))
                vex.vexfs("insert", v / "c", "--npy", G.work / "part.npy", "--sync", "end", timeout=600)
            inserted = time.time() - begin
            G.say(f"{records} vectors of {dim} in {inserted:.0f} s")
            piece = random.Random(1).randbytes(1 << 20)
            with open(v / "large", "wb") as f:
                for n in range(large >> 20):
                    f.write(n.to_bytes(8, "little") + piece[8:])
            copy = subprocess.Popen(["cp", "--reflink=never", v / "large", v / "copy"])
            begin = time.time()
            searches, beside, copied, rng = 0, 0, 0.0, random.Random(2)
            while searches < 5 or copy.poll() is None:
                # Each vector is there once: it is its own nearest.
                n, r = rng.randrange(records // each * 10), rng.randrange(rows)
                vex.write_npy(G.work / "q.npy", 1, dim, rotations(base[r * dim:(r + 1) * dim], 1, dim, [n]))
                got = vex.vexfs_json("search", v / "c", "--npy", G.work / "q.npy", "-k", 3, timeout=900)[0]["results"]
                assert got[0]["id"] == n * rows + r and got[0]["distance"] < 1e-6, (n * rows + r, got)
                searches += 1
                if copy.poll() is None:
                    beside, copied = searches, time.time() - begin
            assert copy.wait() == 0, "the copy failed"
            assert beside, "no search ended before the copy did"
            with open(v / "copy", "rb") as f:
                for n in range(large >> 20):
                    assert f.read(1 << 20) == n.to_bytes(8, "little") + piece[8:], f"MiB {n} of the copy is wrong"
                assert not f.read(1)
        finally:
            over.set()
            watcher.join()
    fsck()
    total = meminfo("MemTotal")
    assert total < 512 << 10 and (G.quick or records * dim * 4 > 2 * total * 1024)
    return (f"{total >> 10} MiB of memory, {records * dim * 4 >> 20} MiB of vectors inserted in {inserted:.0f} s, {beside} searches during a copy of {large >> 20} MiB ({copied:.0f} s); "
            f"module at most {peak >> 20} MiB, MemAvailable at least {least >> 10} MiB")
