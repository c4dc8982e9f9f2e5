# SPDX-License-Identifier: GPL-2.0-only
"""Power cuts. Killing the machine loses nothing, as the host keeps its pages; so QEMU logs each write of the disk, and
blockdev-replay makes from the log what a disk could hold whose power was cut. The guest tells the host what has become
durable, and the host notes how long the log was by then."""
import bisect, hashlib, json, random, struct, threading
from vmtest import *

DIM = 48


def vector(i):
    return vex.array.array("f", random.Random(i).choices([x / 64 for x in range(-64, 65)], k=DIM))


class Collection:
    """Durable inserts and deletions through the control file."""

    def __init__(self, path):
        self.f = open(path / ".vexfs", "r+b", buffering=0)

    def call(self, op, body, n):
        body += b"\0" * (-len(body) % 8)
        self.f.write(struct.pack("<IHHQIIQ", 32 + len(body), 1, op, n, 1, 0, 0) + body)
        reply = self.f.read(1 << 16)
        status, = struct.unpack_from("<i", reply, 16)
        if status:
            raise OSError(status, os.strerror(status))

    def insert(self, ids):
        self.call(5, struct.pack("<IIIIQ", len(ids), DIM, 1, 0, 0) + b"".join(struct.pack("<Q", i) for i in ids) + b"".join(vector(i).tobytes() for i in ids), ids[0])


def load_files(v, rng, stop):
    (v / "files").mkdir(exist_ok=True)
    d = os.open(v / "files", os.O_RDONLY)
    there, n = set(), 0
    while not stop(n):
        n += 1
        name = f"f{rng.randrange(60)}"
        if name in there and rng.random() < 0.25:
            os.unlink(v / f"files/{name}")
            os.fsync(d)
            there.discard(name)
            digest = None
        else:
            data = rng.randbytes(rng.choice([0, 10, 3000, 4096, 40_000, 200_000]) and rng.randrange(1, 60_000))
            fd = os.open(v / f"files/new-{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.write(fd, data)
            os.fsync(fd)
            os.close(fd)
            os.rename(v / f"files/new-{name}", v / f"files/{name}")
            os.fsync(d)
            there.add(name)
            digest = hashlib.sha256(data).hexdigest()
        G.mark({"file": name, "hash": digest})
    os.close(d)
    return n


def load_vectors(v, rng, stop):
    c, n, next_id = Collection(v / "vectors"), 0, 0
    while not stop(n):
        n += 1
        ids = list(range(next_id, next_id + rng.choice([1, 1, 1, 10, 100])))
        next_id = ids[-1] + 1
        c.insert(ids)
        G.mark({"records": [ids[0], ids[-1]]})
    c.f.close()
    return next_id


def in_guest(loads, seconds):
    mkfs(G.main, "-s", "512M")
    vex.vexfs("collection", "create", f"{G.main}:/vectors", "--dim", DIM, "--metric", "l2", "--index", "hnsw", "--ef-construction", 40)
    G.mark({"begin": True})
    with mounted() as v:
        end = time.time() + seconds
        counts, failed = {}, []

        def work(f, seed):
            try:
                counts[f.__name__] = f(v, random.Random(seed), lambda n: time.time() > end)
            except BaseException as e:
                failed.append(e)

        threads = [threading.Thread(target=work, args=(f, n)) for n, f in enumerate(loads)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert not failed, failed
    return ", ".join(f"{n} of {name.removeprefix('load_')}" for name, n in counts.items())


# On the host.

def replay(run, *args, ok=(0,)):
    p = subprocess.run([TOP / "target/release/blockdev-replay", *map(str, args)], capture_output=True, text=True, timeout=1800)
    assert ok is None or p.returncode in ok, f"blockdev-replay {' '.join(map(str, args))}: exit code {p.returncode}: {p.stdout[-1500:]}{p.stderr[-500:]}"
    return p


def wrong(image, marks, at):
    """What is missing or wrong in the image of a cut after `at` entries; `marks` are (entries, what)."""
    p = vex.fsck(image, "-n", ok=None)
    if p.returncode:
        return f"fsck.vexfs -n: {p.out[-600:]}{p.err}"
    versions, sure = {}, {}
    last_sure = begun = -1
    for entries, what in marks:
        if "file" in what:
            chain = versions.setdefault(what["file"], [None])
            chain.append(what["hash"])
            if entries <= at:
                sure[what["file"]] = len(chain) - 1
        elif "records" in what:
            lo, hi = what["records"]
            if entries <= at:
                last_sure = hi
            elif begun < 0:
                begun = hi
    begun = max(begun, last_sure)
    p = vex.vexfs("ls", "--long", "--json", f"{image}:/files", ok=None)
    listed = [json.loads(l) for l in p.out.splitlines()] if p.returncode == 0 else []
    names = [f for f in (e["name"] for e in listed) if not f.startswith("new-")]
    found = {}
    for name in names:
        p = subprocess.run([vex.BIN / "vexfs", "cat", f"{image}:/files/{name}"], capture_output=True)
        if p.returncode:
            return f"file {name} cannot be read: {p.stderr.decode()[-300:]}"
        found[name] = hashlib.sha256(p.stdout).hexdigest()
    for name, chain in versions.items():
        k = sure.get(name, 0)
        if found.get(name) not in chain[k:k + 2]:
            return f"file {name}: {found.get(name)}, not version {k} or {k + 1} of {len(chain) - 1}"
    if set(found) - set(versions):
        return f"files that nobody made: {sorted(set(found) - set(versions))[:5]}"
    if any("records" in w for _, w in marks):
        p = vex.vexfs("list", f"{image}:/vectors", "--vectors", "--json", ok=None)
        if p.returncode:
            return f"the records cannot be read: {p.err[-300:]}"
        there = {r["id"]: r.get("vector") for r in map(json.loads, p.out.splitlines())}
        missing = set(range(last_sure + 1)) - set(there)
        if missing:
            return f"{len(missing)} durable records are missing, among them {sorted(missing)[:5]}"
        if there and max(there) > begun:
            return f"record {max(there)} was never inserted"
        for i, x in there.items():
            if x is None or vex.array.array("f", x) != vector(i):
                return f"record {i} has another vector"
    return None


def cuts(run, count):
    """Cuts the power `count` times; everything durable has to be there. The same without flushes has to fail."""
    log = run.log
    vex.BIN = pathlib.Path(run.bin)
    if not (TOP / "target/release/blockdev-replay").exists() or "VEXFS_BIN" not in os.environ:
        subprocess.run(["cargo", "build", "--release", "-q", "-p", "blockdev-replay"], cwd=TOP, check=True)
    entries = [json.loads(l) for l in replay(run, "list", "--json", log).stdout.splitlines()]
    ends = [e["log_end"] for e in entries]
    # A virtio disk has no FUA: what the module asks for in that way comes as a flush after the write (test flush-and-fua sees the request).
    flushes = sum("flush" in e["what"] for e in entries)
    durable = sum("begin" not in what for _, what in run.marks)
    assert flushes > 0 and flushes * 200 > durable, f"{flushes} flushes for {durable} durable operations"
    marks = [(bisect.bisect_right(ends, size), what) for size, what in run.marks]
    start = next(n for n, what in marks if "begin" in what)
    rng = random.Random(1)
    image = run.folder / "cut.img"

    def one(seed, *more):
        at = rng.randrange(start, len(ends) + 1)
        replay(run, "build", log, "--at", at, "--seed", seed, "--from", start, "-o", image, *more)
        return at, wrong(image, marks, at)

    for seed in range(count):
        at, why = one(seed)
        assert why is None, f"blockdev-replay build {log} --from {start} --at {at} --seed {seed}: {why}"
    summary = replay(run, "check", log, "--from", start, "--random", count, "--recovery", 1, "--json", ok=None)
    outcome = json.loads(summary.stdout)
    assert not outcome["bad"], f"{len(outcome['bad'])} of {outcome['states']} states: {outcome['bad'][0]}"
    noticed = sum(one(seed, "--ignore-flushes")[1] is not None for seed in range(20))
    assert noticed >= 10, f"on a disk that ignores flushes only {noticed} of 20 cuts were noticed: this test proves nothing"
    image.unlink()
    return (f"{count} cuts of {len(ends)} log entries ({flushes} flushes) with {len(marks) - 1} durable operations: nothing durable missing, fsck clean; "
            f"{outcome['states']} more with cuts in recovery; without flushes {noticed} of 20 noticed")


def power(name, loads):
    seconds = lambda: 5 if G.quick else 30

    def function():
        return in_guest(loads, seconds())

    function.__name__ = f"test_power_cut_{name}"
    function.__doc__ = f"Random power cuts under a load of {name}; what was durable is there"
    test(limit=600, quick=name == "mixed", kinds=("x86", "debug"), machine={"log": name}, after=lambda run: cuts(run, 20 if run.opt.quick else 70))(function)


power("files", [load_files])
power("vectors", [load_vectors])
power("mixed", [load_files, load_vectors])


# The same log format, written in the guest by device mapper, which sees the requests as the module makes them.

FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
SUPERS = {16, 17, 1024, 1025}


def log_entries(dev):
    """(flags, block, length, mark) of each entry of a log of dm-log-writes."""
    with open(dev, "rb") as f:
        magic, _, count, size = struct.unpack("<QQQI", f.read(28))
        assert magic == 0x6A736677736872, hex(magic)
        at = size
        for _ in range(count):
            f.seek(at)
            sector, sectors, flags, length = struct.unpack("<QQQQ", f.read(32))
            mark = f.read(length).decode() if flags & MARK else None
            yield flags, sector * size // 4096, sectors * size, mark
            at += size
            if not flags & (DISCARD | MARK):
                at += sectors * size


@test(quick=True, limit=240)
def test_flush_and_fua():
    """What is called durable was written and then flushed (dm-log-writes); superblocks are written with FUA"""
    if G.driver != "kernel":
        raise Skip("requests of the module")
    from f_faults import Mapped, sectors
    mkfs(G.main, "-s", "256M")
    vex.vexfs("collection", "create", f"{G.main}:/vectors", "--dim", DIM, "--metric", "l2", "--index", "hnsw", "--ef-construction", 40)
    m = Mapped(f"0 {sectors(G.main)} log-writes {G.main} {G.spare}\n")
    counts = 20 if G.quick else 100
    try:
        with mounted(m.path) as v:
            c = Collection(v / "vectors")
            (v / "d").mkdir()
            d = os.open(v / "d", os.O_RDONLY)

            def write(n):
                with open(v / f"d/f{n}", "wb") as f:
                    f.write(bytes([n]) * 9000)
                    f.flush()
                    os.fsync(f.fileno())

            def rename(n):
                os.rename(v / f"d/f{n}", v / f"d/g{n}")
                os.fsync(d)

            def o_sync(n):
                fd = os.open(v / f"d/s{n}", os.O_WRONLY | os.O_CREAT | os.O_SYNC)
                os.write(fd, b"s" * 5000)
                os.close(fd)

            kinds = {"write": write, "rename": rename, "insert": lambda n: c.insert([n]), "o_sync": o_sync, "sync": lambda n: ((v / f"n{n}").touch(), os.sync())}
            for n in range(counts):
                for name, f in kinds.items():
                    m.message("mark", f"begin-{name}")
                    f(n)
                    m.message("mark", "end")
            os.close(d)
            c.f.close()
            m.message("mark", "rest")
    finally:
        m.remove()
    seen, inside, plain = {}, None, []
    supers = flushes = fua = 0
    for flags, block, length, mark in log_entries(G.spare):
        if flags & MARK:
            if mark == "end":
                _, wrote, dirty = inside
                assert wrote and not dirty, f"{inside[0]} returned and {'nothing was written and flushed' if not wrote else 'no flush and no FUA came after its last write'}"
                seen[inside[0]] = seen.get(inside[0], 0) + 1
                inside = None
            elif mark.startswith("begin-"):
                inside = [mark.removeprefix("begin-"), False, False]
            continue
        flushes += bool(flags & FLUSH)
        fua += bool(flags & FUA)
        if block in SUPERS and length:
            supers += 1
            if not flags & FUA:
                plain.append(block)
        if inside:
            # A flush covers what was there before it, FUA the write itself.
            inside[2] = inside[2] and not flags & FLUSH
            if length and not flags & DISCARD:
                inside[1] = True
                inside[2] = inside[2] or not flags & FUA
    assert seen == {k: counts for k in kinds}, seen
    assert flushes and fua and supers, (flushes, fua, supers)
    assert not plain, f"superblocks were written without FUA: {plain[:5]}"
    fsck()
    return f"{sum(seen.values())} durable operations of {len(seen)} kinds, each with its flush; {flushes} flushes, {fua} writes with FUA, {supers} of superblocks"
