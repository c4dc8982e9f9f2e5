#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Kills the FUSE daemon, or cuts its power, while clients insert and write; nothing acknowledged (killed) or durable
(power cut) may be missing, and fsck.vexfs has to be content each time.

    crash.py kill [--rounds 20]        kill -9: what a call returned for is there
    crash.py power [--rounds 50]       unflushed writes are lost, a random subset: what was synced is there
    crash.py noflush [--rounds 50]     the same with flushes that do nothing: the check has to notice
"""
import argparse, random, sys, threading, zlib
from vex import *

DIM = 48


def vector(i):
    return array.array("f", random.Random(i).choices([x / 64 for x in range(-64, 65)], k=DIM))


def embedding(data):
    """The embedding of a file with these contents."""
    return vector(zlib.crc32(data))


class Client:
    """Inserts records through the control file, and remembers which ones the volume has acknowledged."""

    def __init__(self, m, known):
        self.m, self.known = m, known

    def insert(self, i, durable):
        """One record with the id `i`, as a frame of the protocol."""
        v = vector(i).tobytes()
        body = struct.pack("<IIIIQ", 1, DIM, 1, 0, 0) + struct.pack("<Q", i) + v
        body += b"\0" * (-len(body) % 8)
        head = struct.pack("<IHHQIIQ", 32 + len(body), 1, 5, i, 1 if durable else 0, 0, 0)
        self.f.write(head + body)
        reply = self.f.read(1 << 16)
        status, = struct.unpack_from("<i", reply, 16)
        if status:
            raise OSError(status, os.strerror(status))

    def run(self, rng, durable, stop):
        try:
            self.f = open(self.m / "vectors/.vexfs", "r+b", buffering=0)
            while not stop.is_set():
                i = self.known["next"]
                self.known["next"] += 1
                self.known["begun"].add(i)
                self.insert(i, durable)
                self.known["records"].add(i)
        except OSError:
            pass  # the daemon is gone


def writer(m, rng, files, sync, stop):
    """Makes, overwrites, renames and deletes files with embeddings; `files` is what was acknowledged (or synced): name -> contents.
    While a call is under way, both states are right: they are in files["?"]."""
    n = 0
    try:
        while not stop.is_set():
            n += 1
            name = f"f{rng.randrange(60)}"
            p = m / f"files/{name}"
            kind = rng.random()
            if kind < 0.7:
                data = rng.randbytes(rng.randrange(1, 40_000))
                new = f"files/new-{name}"
                files["?"] = {name: (files.get(name), data), f"new-{name}": (None, data, "any")}
                fd = os.open(m / new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
                os.write(fd, data)
                os.setxattr(fd, "user.vexfs.embedding", embedding(data).tobytes())
                if sync:
                    os.fsync(fd)
                os.close(fd)
                os.rename(m / new, p)
                if sync:
                    d = os.open(m / "files", os.O_RDONLY)
                    os.fsync(d)
                    os.close(d)
                files[name] = data
            elif name in files:
                files["?"] = {name: (files[name], None)}
                os.unlink(p)
                if sync:
                    d = os.open(m / "files", os.O_RDONLY)
                    os.fsync(d)
                    os.close(d)
                del files[name]
            files["?"] = {}
    except OSError:
        pass


def check(m, known, files):
    """What is missing or wrong, as a list of sentences."""
    wrong = []
    there = {}
    for r in vexfs_json("list", m / "vectors", "--vectors"):
        there[r["id"]] = r.get("vector")
    lost = known["records"] - set(there)
    if lost:
        wrong.append(f"{len(lost)} acknowledged records are missing, among them {sorted(lost)[:5]}")
    if set(there) - known["begun"]:
        wrong.append("there are records that nobody inserted")
    for i, v in there.items():
        if v is None:
            wrong.append(f"the vector of record {i} is damaged")
        elif array.array("f", v) != vector(i):
            wrong.append(f"record {i} has another vector")
    # A search finds every record; one through the index, which may overlook one, finds only records.
    sample = sorted(there)[:: max(1, len(there) // 20)]
    for i in sample:
        query = ("--vector", ",".join(map(repr, vector(i))))
        got = vexfs_json("search", m / "vectors", *query, "-k", 1, "--exact")[0]["results"]
        if not got or got[0]["distance"] != 0 or got[0]["id"] not in there:
            wrong.append(f"search does not find record {i}: {got}")
        for hit in vexfs_json("search", m / "vectors", *query, "-k", 5)[0]["results"]:
            right = sum((a - b) ** 2 for a, b in zip(vector(i), vector(hit["id"])))
            if hit["id"] not in there or abs(hit["distance"] - right) > 1e-9:
                wrong.append(f"search near record {i} gives {hit}")
    maybe = files.get("?", {})
    listed = set(os.listdir(m / "files"))
    for name in set(files) - {"?"} | listed:
        got = (m / f"files/{name}").read_bytes() if name in listed else None
        right = maybe[name] if name in maybe else (files.get(name),)
        if "any" in right:
            continue
        if got not in right:
            wrong.append(f"file {name}: {'missing' if got is None else 'not deleted' if name not in files else f'{len(got)} bytes of other contents'}")
    # The embedding is that of the contents, and a search names the files that are there, no other and none twice.
    bearers = set()
    for name in listed:
        path = m / f"files/{name}"
        if "user.vexfs.embedding" in os.listxattr(path):
            bearers.add(name)
            data = path.read_bytes()
            if os.getxattr(path, "user.vexfs.embedding") != embedding(data).tobytes():
                wrong.append(f"file {name} has the embedding of other contents")
            hit = vexfs_json("search", m / "files", "--vector", ",".join(map(repr, embedding(data))), "-k", 1)[0]["results"]
            if not hit or hit[0]["distance"] != 0:
                wrong.append(f"search does not find file {name}: {hit}")
        elif not name.startswith("new-"):
            wrong.append(f"file {name} has lost its embedding")
    query = ("--vector", ",".join(map(repr, vector(0))), "-k", 1000, "--exact")
    named = [hit["path"] for hit in vexfs_json("search", m / "files", *query)[0]["results"]]
    if sorted(os.path.basename(p) for p in named) != sorted(bearers):
        wrong.append(f"search names {len(named)} files, {len(bearers)} with embeddings are there")
    known["records"] |= set(there)
    files.pop("?", None)
    for name in listed:
        data = (m / f"files/{name}").read_bytes()
        if name.startswith("new-"):
            os.unlink(m / f"files/{name}")
        else:
            files[name] = data
    for name in set(files) - listed:
        del files[name]
    return wrong


def rounds(mode, count, seed):
    power = mode != "kill"
    found_wrong = 0
    crashes = 0
    with Dir(mode) as home:
        image = home / "image"
        rng = random.Random(seed)
        fresh = True
        for n in range(count):
            if fresh:
                for f in os.listdir(home.path):
                    if f.startswith("image"):
                        os.unlink(home / f)
                mkfs(image, "-s", "256M")
                for name in ("vectors", "files"):
                    vexfs("collection", "create", f"{image}:/{name}", "--dim", DIM, "--metric", "l2", "--index", "hnsw", "--ef-construction", 40)
                known, files = {"next": 0, "records": set(), "begun": set()}, {}
                fresh = False
            options = []
            if power:
                options = [f"powercut={rng.randrange(1 << 30)}"] + (["noflush"] if mode == "noflush" else [])
            m = Mount(home, image, options)
            home.mounts = [m]
            text = m.start(ok=False)
            if text:
                # The volume cannot even be opened.
                found_wrong += 1
                if mode != "noflush":
                    raise AssertionError(f"round {n}: mount failed: {text}")
                fresh = True
                continue
            stop = threading.Event()
            threads = [threading.Thread(target=Client(m, known).run, args=(rng, power, stop)),
                       threading.Thread(target=writer, args=(m, random.Random(rng.random()), files, power, stop))]
            [t.start() for t in threads]
            time.sleep(rng.uniform(0.02, 0.8))
            m.kill()
            crashes += 1
            stop.set()
            [t.join(60) for t in threads]
            assert not any(t.is_alive() for t in threads), "a client hangs after the daemon was killed"
            if power:
                # What was not flushed is thrown away, then the volume is checked as it is.
                m = Mount(home, image, [f"powercut={rng.randrange(1 << 30)}"])
                home.mounts = [m]
                text = m.start(ok=False)
                wrong = [f"mount after the power cut failed: {text}"] if text else check_safely(m, known, files)
                if not text:
                    try:
                        m.stop()
                    except AssertionError as e:
                        wrong.append(str(e))
            else:
                p = fsck(image, "-n", ok=None)
                wrong = [f"fsck.vexfs -n: {p.out}{p.err}"] if p.returncode else []
                m = Mount(home, image)
                home.mounts = [m]
                m.start()
                wrong += check_safely(m, known, files)
                m.stop()
            p = fsck(image, "-n", ok=None)
            if p.returncode:
                wrong.append(f"fsck.vexfs -n: {p.out[-500:]}{p.err}")
            if wrong:
                found_wrong += 1
                if mode != "noflush":
                    raise AssertionError(f"round {n} of seed {seed}: " + "; ".join(wrong[:5]))
                fresh = True
        total = len(known["records"])
    if mode == "noflush" and not found_wrong:
        print(f"FAILED: {crashes} power cuts with flushes turned off, and no loss was noticed: this test proves nothing")
        return 1
    if mode == "noflush":
        print(f"noflush; {crashes} power cuts without flushes: the loss was noticed {found_wrong} times, as it has to be")
    else:
        print(f"{mode}; {crashes} crashes, {total} records and {len(files)} files at the end, nothing lost, fsck.vexfs clean each time")
    return 0


def check_safely(m, known, files):
    try:
        return check(m, known, files)
    except (AssertionError, OSError) as e:
        return [f"reading after the crash failed: {e}"[:500]]


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("mode", choices=("kill", "power", "noflush"))
    ap.add_argument("--rounds", type=int, default=20)
    ap.add_argument("--seed", type=int, default=1)
    opt = ap.parse_args()
    need_fuse()
    build()
    sys.exit(rounds(opt.mode, opt.rounds, opt.seed))
