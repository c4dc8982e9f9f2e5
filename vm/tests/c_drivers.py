# SPDX-License-Identifier: GPL-2.0-only
"""One image, three drivers: what one writes, the others read, bit by bit."""
import hashlib, json, random, stat, struct
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
        # Before 1970 too.
        os.utime(p, ns=(rng.randrange(-(1 << 60), 1 << 60), rng.randrange(-(1 << 60), 1 << 60)))
    os.symlink("../d0/f5", v / "d1/link")
    os.symlink("y" * 3000, v / "d1/long")
    os.mkfifo(v / "d2/fifo", 0o640)
    os.mknod(v / "d2/socket", stat.S_IFSOCK | 0o755)
    os.mknod(v / "d2/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(v / "d2/disk", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    # Links and special files have owners, times and attributes too.
    for n, p in enumerate(v / p for p in ("d1/link", "d1/long", "d2/fifo", "d2/socket", "d2/null", "d2/disk")):
        os.chown(p, 1000 + n, 70_000 - n, follow_symlinks=False)
        os.setxattr(p, "trusted.kind", bytes([n]) * n, follow_symlinks=False)
        os.utime(p, ns=(rng.randrange(1 << 60), rng.randrange(-(1 << 50), 1 << 60)), follow_symlinks=False)
    os.setxattr(v / "d1/f1", "system.posix_acl_access", acl((0o6, 0), (0o7, 1000), (0o4, 70_000), group=0o4, mask=0o7, other=0))
    for d in range(4):
        p = v / f"d{d}/e{d}"
        os.setxattr(p, "system.posix_acl_default", acl((0o7, 0), (0o5, 1000 + d), (0o1, 3), group=0o5, mask=0o5, other=0o1))
        os.mkdir(p / "inherits")
        (p / "inherits too").touch()
        os.setxattr(p, "user.of a directory", rng.randbytes(d * 1000))
        os.chown(p, d, 50 + d)
        os.chmod(p, 0o1777 - d)
        os.utime(p, ns=(rng.randrange(1 << 60), rng.randrange(1 << 60)))


def acl(owner, user, group_member, group, mask, other):
    """A POSIX ACL as an xattr: owner, a user, the group, a group, the mask, others; the pairs are (rights, id)."""
    entries = [(1, owner[0], 0xFFFFFFFF), (2, *user), (4, group, 0xFFFFFFFF), (8, *group_member), (16, mask, 0xFFFFFFFF), (32, other, 0xFFFFFFFF)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)


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
            row = {"mode": s.st_mode, "inode": s.st_ino, "links": s.st_nlink, "uid": s.st_uid, "gid": s.st_gid, "rdev": s.st_rdev, "size": s.st_size, "blocks": s.st_blocks,
                   "atime": s.st_atime_ns, "mtime": s.st_mtime_ns, "ctime": s.st_ctime_ns}
            if stat.S_ISREG(s.st_mode):
                row["hash"] = hashlib.file_digest(open(p, "rb"), "sha256").hexdigest() if s.st_size < 4 << 20 else sparse_hash(p)
            elif stat.S_ISLNK(s.st_mode):
                row["target"] = os.readlink(p)
            row["xattrs"] = sorted((a, os.getxattr(p, a, follow_symlinks=False).hex()) for a in os.listxattr(p, follow_symlinks=False))
            out[os.path.relpath(p, v.dir)] = row
    return out


KINDS = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK, "fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "character device": stat.S_IFCHR, "block device": stat.S_IFBLK}


def embedded_attributes(dev, tree):
    """What the embedded driver says of the names in a manifest, as far as `vexfs stat` shows it."""
    out = {}
    nanoseconds = lambda t: int(t[:-10]) * 10**9 + (int(t[-9:]) if t[-10] == "." else 1 / 0)
    paths = sorted(tree)
    for at in range(0, len(paths), 40):
        for path, r in zip(paths[at:at + 40], vex.vexfs_json("stat", *[f"{dev}:/{p}" for p in paths[at:at + 40]])):
            out[path] = {"mode": KINDS[r["type"]] | int(r["mode"], 8), "inode": r["inode"], "links": r["links"], "uid": r["uid"], "gid": r["gid"], "size": r["size"],
                         "blocks": 8 * r["blocks"], **{t: nanoseconds(r[t]) for t in ("atime", "mtime", "ctime")}}
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
        if stat.S_ISREG(row["mode"]) and row["size"] < 4 << 20:
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
        # Negative times, ACLs, links: what is compared is there.
        if writer != "embedded":
            kinds = {stat.S_IFMT(r["mode"]) for r in first.values()}
            names = {a for r in first.values() for a, _ in r["xattrs"]}
            assert kinds == set(KINDS.values()) and any(r["mtime"] < 0 for r in first.values()), kinds
            assert {"user.n", "trusted.blob", "trusted.kind", "system.posix_acl_access", "system.posix_acl_default"} <= names, names
            assert any(a == "system.posix_acl_access" for a, _ in first["d2/e2/inherits too"]["xattrs"]), "a default ACL was not inherited"
        for reader in drivers[1:]:
            for path in sorted(set(first) | set(trees[reader])):
                a, b = first.get(path), trees[reader].get(path)
                differ = {k: (a and a.get(k), b and b.get(k)) for k in {**(a or {}), **(b or {})} if not a or not b or a.get(k) != b.get(k)}
                assert not differ, f"written by {writer}: {path}: {drivers[0]} and {reader} show {differ}"
        for path, digest in embedded_files(G.main, first).items():
            assert digest == first[path]["hash"], f"written by {writer}: {path} read embedded differs"
        for path, row in embedded_attributes(G.main, first).items():
            differ = {k: (first[path][k], x) for k, x in row.items() if first[path][k] != x}
            assert not differ, f"written by {writer}: {path}: {drivers[0]} and embedded show {differ}"
        for key, value in found["embedded"].items():
            for reader in drivers:
                assert found[reader][key] == value, f"written by {writer}: {key}: {reader} and embedded differ"
        sums.append(len(first))
        G.say(f"written by {writer}: {len(first)} names, {len(found)} readers agree ({time.time() - begin:.0f} s)")
    return f"{len(sums)} writers, {max(len(drivers) + 1, 2)} readers, {min(sums)} names or more, {n} searches on two indexes: all equal"
