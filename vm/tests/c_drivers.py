# SPDX-License-Identifier: GPL-2.0-only
"""One image, three drivers: what one writes, the others read, bit by bit."""
import hashlib, json, random, stat
from vmtest import *

ROWS, DIM, VECTORS = None, None, None


def write_tree(v, seed):
    """Files, directories, links, device nodes, attributes, times; embeddings and collections."""
    rng = random.Random(seed)
    name = lambda n: f"f{n}" if n % 7 else f"ü {n} " + "x" * 200
    for d in range(4):
        os.makedirs(v / f"d{d}/e{d}")
    for n in range(60):
        p = v / f"d{n % 4}" / name(n)
        kind = n % 5
        if kind == 0:
            p.write_bytes(rng.randbytes(rng.randrange(300_000)))
        elif kind == 1:
            p.write_bytes(rng.randbytes(rng.randrange(100)))
        elif kind == 2:  # holes
            with open(p, "wb") as f:
                for at in sorted(rng.randrange(1 << 30) for _ in range(5)):
                    f.seek(at)
                    f.write(rng.randbytes(rng.randrange(1, 9000)))
        elif kind == 3:
            p.write_bytes(b"")
            os.truncate(p, rng.randrange(1 << 20))
        else:
            os.link(v / f"d{(n - 2) % 4}" / name(n - 2), p)
        os.chmod(p, rng.choice([0o644, 0o600, 0o4755, 0o2711, 0o777]))
        os.chown(p, rng.randrange(70_000), rng.randrange(70_000))
        os.setxattr(p, "user.n", str(n).encode())
        if n % 6 == 0:
            os.setxattr(p, "trusted.blob", rng.randbytes(rng.randrange(1, 20_000)))
        os.utime(p, ns=(rng.randrange(-(1 << 40), 1 << 60), rng.randrange(1 << 60)))
    os.symlink("../d0/f5", v / "d1/link")
    os.symlink("y" * 3000, v / "d1/long")
    os.mkfifo(v / "d2/fifo", 0o640)
    os.mknod(v / "d2/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(v / "d2/disk", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))


def write_vectors(where, seed):
    """Collections with records, attributes, deletions and replacements; `where` is a mount or TARGET:/."""
    rng = random.Random(seed)
    vex.write_npy(G.work / "base.npy", ROWS, DIM, VECTORS[:ROWS * DIM])
    (G.work / "base.jsonl").write_text("".join(open(vex.SAMPLE / "sample.jsonl").readlines()[:ROWS]))
    for index in ("flat", "hnsw"):
        path = f"{where}/{index}"
        vex.vexfs("collection", "create", path, "--dim", DIM, "--metric", "cosine", "--index", index, "--seed", 7, *(["--ef-construction", 40] if index == "hnsw" else []))
        vex.vexfs("insert", path, "--npy", G.work / "base.npy", "--attrs", G.work / "base.jsonl", timeout=1800)
        vex.vexfs("delete", path, *rng.sample(range(ROWS), 30))
        vex.write_npy(G.work / "again.npy", 20, DIM, VECTORS[100 * DIM:120 * DIM])
        (G.work / "again.ids").write_text("".join(f"{i}\n" for i in rng.sample(range(ROWS), 20)))
        vex.vexfs("insert", path, "--npy", G.work / "again.npy", "--ids", G.work / "again.ids")


def manifest(v):
    """Everything that can be seen of the tree: path -> attributes and hash."""
    out = {}
    for root, dirs, files in os.walk(v.dir):
        for name in sorted(dirs + files):
            p = os.path.join(root, name)
            s = os.lstat(p)
            row = [s.st_mode, s.st_ino, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev, s.st_mtime_ns, s.st_ctime_ns]
            if not stat.S_ISDIR(s.st_mode):
                row.append(s.st_size)
                row.append(s.st_blocks)
            if stat.S_ISREG(s.st_mode):
                row.append(hashlib.file_digest(open(p, "rb"), "sha256").hexdigest() if s.st_size < 4 << 20 else sparse_hash(p))
            elif stat.S_ISLNK(s.st_mode):
                row.append(os.readlink(p))
            if not stat.S_ISLNK(s.st_mode):
                row.append(sorted((a, os.getxattr(p, a).hex()) for a in os.listxattr(p)))
            out[os.path.relpath(p, v.dir)] = row
    return out


def sparse_hash(path):
    """Hash of the data, and where it lies, of a file with holes."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        fd, at, end = f.fileno(), 0, os.fstat(f.fileno()).st_size
        while at < end:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break
            hole = os.lseek(fd, at, os.SEEK_HOLE)
            h.update(f"{at}-{hole}:".encode() + os.pread(fd, hole - at, at))
            at = hole
    return h.hexdigest()


def contents(where):
    """Vectors, ids, attributes, and the results of searches; `where` is a mount or TARGET:/."""
    out = {}
    for index in ("flat", "hnsw"):
        path = f"{where}/{index}"
        out[f"{index} records"] = hashlib.sha256(vex.vexfs("list", path, "--vectors", "--json", timeout=1800).out.encode()).hexdigest()
        queries = G.work / "queries.npy"
        out[f"{index} searches"] = vex.vexfs("search", path, "--npy", queries, "-k", 10, "--json", *(["--ef", 64] if index == "hnsw" else []), timeout=1800).out
        out[f"{index} filtered"] = vex.vexfs("search", path, "--npy", vex.SAMPLE / "sample.query.npy", "-k", 10, "--where", 'section = "libs"', "--json", timeout=1800).out
    return out


def embedded_files(dev, tree):
    """Hashes of the regular files as the embedded driver reads them."""
    out = {}
    for path, row in tree.items():
        if stat.S_ISREG(row[0]) and row[8] < 4 << 20:
            p = subprocess.run([vex.BIN / "vexfs", "cat", f"{dev}:/{path}"], capture_output=True, check=True)
            out[path] = hashlib.sha256(p.stdout).hexdigest()
    return out


@test(limit=2400, quick=True)
def test_three_drivers():
    """Written by the module, by FUSE and embedded, read by the other two: hashes, attributes, vectors, 500 searches"""
    global ROWS, DIM, VECTORS
    ROWS, DIM, VECTORS = vex.read_npy(vex.SAMPLE / "sample.base.npy")
    if G.quick:
        ROWS = 300
    n = 50 if G.quick else 500
    vex.write_npy(G.work / "queries.npy", n, DIM, VECTORS[:n * DIM])
    drivers = ["kernel", "fuse"] if G.driver == "kernel" else ["fuse"]
    sums = []
    for seed, writer in enumerate([*drivers, "embedded"]):
        begin = time.time()
        mkfs()
        with mounted(driver=drivers[0] if writer == "embedded" else writer) as v:
            write_tree(v, seed)
            if writer != "embedded":
                write_vectors(v.dir, seed)
        if writer == "embedded":
            write_vectors(f"{G.main}:", seed)
            for i in range(10):
                (G.work / f"put{i}").write_bytes(os.urandom(30_000 * i))
                vex.vexfs("put", G.work / f"put{i}", f"{G.main}:/put{i}")
        fsck()
        trees, found = {}, {}
        for reader in drivers:
            with mounted(driver=reader, options="ro,noatime" if reader == "kernel" else "ro") as v:
                trees[reader] = manifest(v)
                found[reader] = contents(v.dir)
        found["embedded"] = contents(f"{G.main}:")
        first = trees[drivers[0]]
        assert len(first) > 60
        for reader in drivers[1:]:
            for path in sorted(set(first) | set(trees[reader])):
                a, b = first.get(path), trees[reader].get(path)
                assert a == b, f"written by {writer}: {path}: {drivers[0]} shows {a}, {reader} {b}"
        for path, digest in embedded_files(G.main, first).items():
            assert digest in first[path], f"written by {writer}: {path} read embedded differs"
        for key, value in found["embedded"].items():
            for reader in drivers:
                assert found[reader][key] == value, f"written by {writer}: {key}: {reader} and embedded differ"
        sums.append(len(first))
        G.say(f"written by {writer}: {len(first)} names, {len(found)} readers agree ({time.time() - begin:.0f} s)")
    return f"{len(sums)} writers, {max(len(drivers) + 1, 2)} readers, {min(sums)} names or more, {n} searches on two indexes: all equal"
