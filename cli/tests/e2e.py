#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""End to end through FUSE: what people do with files, up to the limits. `e2e.py [NAME…]`"""
import ctypes, errno, fcntl, hashlib, mmap, os, random, stat, subprocess, sys, threading, time
from vex import *

libc = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE = 1, 2


def rename2(a, b, flags):
    if libc.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), flags):
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))


def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))


def fails(code, f, *args, **kw):
    """`f` fails with this error number."""
    try:
        f(*args, **kw)
    except OSError as e:
        assert e.errno == code, f"{f.__name__}{args}: {errno.errorcode.get(e.errno)} instead of {errno.errorcode[code]}"
        return
    raise AssertionError(f"{f.__name__}{args} succeeded instead of {errno.errorcode[code]}")


class Fresh:
    """A fresh volume, mounted; checked after use."""

    def __init__(self, name, size="512M", options=(), check=True):
        self.name, self.size, self.options, self.check = name, size, options, check

    def __enter__(self):
        self.home = Dir(self.name)
        self.image = self.home / "image"
        mkfs(self.image, "-s", self.size)
        m = self.home.mount(self.image, *self.options)
        m.home = self.home
        self.m = m
        return m

    def __exit__(self, kind, *_):
        try:
            if kind is None and self.check:
                if self.m.daemon:
                    self.m.stop()
                fsck(self.image)
        finally:
            self.home.__exit__()


def test_names_and_contents():
    with Fresh("basic") as m:
        (m / "a").write_bytes(b"hello")
        os.link(m / "a", m / "b")
        os.symlink("a", m / "s")
        os.mkdir(m / "d", 0o750)
        os.mkfifo(m / "f")
        os.mknod(m / "c", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        assert (m / "s").read_bytes() == b"hello" and os.readlink(m / "s") == "a"
        assert os.stat(m / "a").st_nlink == 2 and os.stat(m / "b").st_ino == os.stat(m / "a").st_ino
        assert stat.S_ISFIFO(os.lstat(m / "f").st_mode) and os.lstat(m / "c").st_rdev == os.makedev(1, 3)
        os.rename(m / "a", m / "d/x")
        fails(errno.ENOENT, os.stat, m / "a")
        fails(errno.EEXIST, rename2, m / "b", m / "d/x", NOREPLACE)
        (m / "y").write_bytes(b"other")
        rename2(m / "y", m / "d/x", EXCHANGE)
        assert (m / "y").read_bytes() == b"hello" and (m / "d/x").read_bytes() == b"other"
        fails(errno.ENOTEMPTY, os.rmdir, m / "d")
        fails(errno.EISDIR, os.rename, m / "y", m / "d")
        os.chmod(m / "y", 0o4711)
        os.chown(m / "y", 1234, 5678)
        os.utime(m / "y", ns=(1_000_000_001, -5_000_000_007))
        s = os.stat(m / "y")
        assert (s.st_uid, s.st_gid, s.st_atime_ns, s.st_mtime_ns) == (1234, 5678, 1_000_000_001, -5_000_000_007)
        m.again()
        s = os.stat(m / "y")
        assert (s.st_uid, s.st_gid, s.st_atime_ns, s.st_mtime_ns, s.st_nlink) == (1234, 5678, 1_000_000_001, -5_000_000_007, 2)
        assert sorted(os.listdir(m.dir)) == ["b", "c", "d", "f", "s", "y"]
        fd = os.open(m / "y", os.O_RDWR)
        os.unlink(m / "y")
        os.unlink(m / "b")
        os.write(fd, b"J")
        assert os.pread(fd, 10, 0) == b"Jello" and os.fstat(fd).st_nlink == 0
        os.close(fd)


def test_attributes_and_acls():
    with Fresh("xattr") as m:
        (m / "f").write_bytes(b"x")
        os.setxattr(m / "f", "user.a", b"1")
        os.setxattr(m / "f", "user.big", b"v" * 60000)
        os.setxattr(m / "f", "trusted.t", b"\0\1")
        os.setxattr(m / "f", "user.empty", b"")
        fails(errno.EEXIST, os.setxattr, m / "f", "user.a", b"2", os.XATTR_CREATE)
        fails(errno.ENODATA, os.setxattr, m / "f", "user.none", b"2", os.XATTR_REPLACE)
        fails(errno.ENODATA, os.getxattr, m / "f", "user.none")
        m.again()
        assert sorted(os.listxattr(m / "f")) == ["trusted.t", "user.a", "user.big", "user.empty"]
        assert os.getxattr(m / "f", "user.big") == b"v" * 60000 and os.getxattr(m / "f", "user.empty") == b""
        os.removexattr(m / "f", "user.big")
        fails(errno.ENODATA, os.removexattr, m / "f", "user.big")
        need("setfacl")
        run("setfacl", "-m", "u:1234:r", m / "f")
        assert "user:1234:r--" in run("getfacl", "-cpn", m / "f").out


def test_sparse_and_preallocated():
    with Fresh("sparse", "1G") as m:
        with open(m / "big", "wb") as f:
            for at in (0, 3 << 30, (8 << 30) - 5):
                f.seek(at)
                f.write(b"piece")
        assert os.stat(m / "big").st_size == 8 << 30 and os.stat(m / "big").st_blocks * 512 < 1 << 20
        fd = os.open(m / "big", os.O_RDWR)
        assert os.pread(fd, 5, 3 << 30) == b"piece" and os.pread(fd, 4096, 1 << 30) == bytes(4096)
        assert os.lseek(fd, 1 << 20, os.SEEK_DATA) <= 3 << 30 < os.lseek(fd, 3 << 30, os.SEEK_HOLE)
        fails(errno.ENXIO, os.lseek, fd, 9 << 30, os.SEEK_DATA)
        os.pwrite(fd, b"z" * 100_000, 1000)
        fallocate(fd, 3, 4096, 8192)  # punch a hole
        assert os.pread(fd, 20_000, 0) == b"piece" + bytes(995) + b"z" * 3096 + bytes(8192) + b"z" * (20_000 - 12288)
        os.close(fd)
        fd = os.open(m / "pre", os.O_RDWR | os.O_CREAT)
        fallocate(fd, 1, 0, 10 << 20)  # keep size
        assert os.fstat(fd).st_size == 0 and os.fstat(fd).st_blocks * 512 >= 10 << 20
        fallocate(fd, 0, 0, 1 << 20)
        assert os.fstat(fd).st_size == 1 << 20 and os.pread(fd, 1 << 20, 0) == bytes(1 << 20)
        os.ftruncate(fd, 5)
        os.ftruncate(fd, 9000)
        assert os.pread(fd, 9000, 0) == bytes(9000)
        os.close(fd)
        m.again()
        with open(m / "big", "rb") as f:
            f.seek((8 << 30) - 5)
            assert f.read() == b"piece"


def test_names_of_any_bytes_and_long_paths():
    with Fresh("names") as m:
        root = os.fsencode(m.dir)
        odd = [b"x" * 255, b"\xff\xfe\x80", "grün".encode(), b" ", b"\n", b"-rf", b"a:/b".replace(b"/", b"_"), bytes(range(1, 47)), b"\xf0\x9f\x8e\x89" * 63]
        for i, n in enumerate(odd):
            with open(root + b"/" + n, "wb") as f:
                f.write(b"%d" % i)
        m.again()
        assert sorted(os.listdir(root)) == sorted(odd)
        for i, n in enumerate(odd):
            with open(root + b"/" + n, "rb") as f:
                assert f.read() == b"%d" % i
        fails(errno.ENAMETOOLONG, os.stat, root + b"/" + b"x" * 256)
        fails(errno.ENAMETOOLONG, os.mkdir, root + b"/" + b"x" * 256)
        # A path of 4,095 bytes works, one of 4,096 does not (PATH_MAX counts the NUL).
        os.mkdir(m / "p")
        fd = os.open(m / "p", os.O_RDONLY)
        depth = 0
        while depth < 20:
            os.mkdir("d" * 250, dir_fd=fd)
            nxt = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = nxt
            depth += 1
        os.close(fd)
        base = root + b"/p" + (b"/" + b"d" * 250) * 15
        base += b"/" * (4095 - 200 - len(base))
        longest = base + b"/" + b"f" * 199
        assert len(longest) == 4095
        with open(longest, "wb") as f:
            f.write(b"deep")
        with open(longest, "rb") as f:
            assert f.read() == b"deep"
        fails(errno.ENAMETOOLONG, os.stat, base + b"//" + b"f" * 199)
        with open(longest, "rb") as f:
            pass


def test_100000_files_in_a_directory():
    with Fresh("many", "1G") as m:
        os.mkdir(m / "d")
        start = time.time()
        fd = os.open(m / "d", os.O_RDONLY)
        for i in range(100_000):
            os.close(os.open(f"file-{i:06}", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644, dir_fd=fd))
        made = time.time() - start
        assert len(os.listdir(m / "d")) == 100_000
        m_list = time.time()
        os.close(fd)
        m.again()
        names = set(os.listdir(m / "d"))
        assert len(names) == 100_000 and "file-099999" in names
        assert os.stat(m / "d/file-054321").st_size == 0
        fails(errno.ENOENT, os.stat, m / "d/file-100000")
        start = time.time()
        for i in range(0, 100_000, 2):
            os.unlink(m / f"d/file-{i:06}")
        gone = time.time() - start
        assert len(os.listdir(m / "d")) == 50_000
        run("rm", "-r", m / "d")
        assert os.listdir(m.dir) == []
        return f"{100_000 / made:.0f} creates/s, {50_000 / gone:.0f} unlinks/s"


def test_readdir_while_it_changes():
    """Entries that stay are seen exactly once, whatever happens to the others."""
    with Fresh("cookies") as m:
        for i in range(3000):
            (m / f"stay{i}").touch()
            (m / f"go{i}").touch()
        seen = []
        with os.scandir(m.dir) as it:
            for n, e in enumerate(it):
                seen.append(e.name)
                if n % 2 == 0 and n < 6000:
                    os.unlink(m / f"go{n // 2}")
                    (m / f"new{n}").touch()
        stay = [s for s in seen if s.startswith("stay")]
        assert len(stay) == len(set(stay)) == 3000, f"{len(stay)} seen, {len(set(stay))} different"


def test_full_disk():
    with Fresh("full", "64M") as m:
        (m / "keep").write_bytes(b"k" * 100_000)
        os.sync()
        n = 0
        try:
            while True:
                with open(m / f"fill{n}", "wb", buffering=0) as f:
                    while f.write(os.urandom(1 << 18)):
                        pass
                n += 1
        except OSError as e:
            assert e.errno == errno.ENOSPC, e
        names = 0
        try:
            while names < 200_000:
                (m / f"empty-{names:0200}").touch()
                names += 1
        except OSError as e:
            assert e.errno == errno.ENOSPC, e
        free = os.statvfs(m.dir).f_bavail
        os.unlink(m / "fill0")
        os.sync()
        deadline = time.time() + 30
        while os.statvfs(m.dir).f_bavail <= free and time.time() < deadline:
            time.sleep(0.1)
        (m / "after").write_bytes(b"a" * 100_000)
        for e in os.listdir(m.dir):
            if e.startswith(("fill", "empty")):
                os.unlink(m / e)
        m.again()
        assert (m / "keep").read_bytes() == b"k" * 100_000 and (m / "after").read_bytes() == b"a" * 100_000
        (m / "again").write_bytes(os.urandom(30 << 20))


def test_mmap_and_odirect():
    with Fresh("mmap") as m:
        (m / "f").write_bytes(bytes(1 << 20))
        with open(m / "f", "r+b") as f:
            with mmap.mmap(f.fileno(), 1 << 20) as mm:
                mm[5000:5005] = b"mapped"[:5]
                mm.flush()
        assert (m / "f").read_bytes()[5000:5005] == b"mappe"
        m.again()
        assert (m / "f").read_bytes()[5000:5005] == b"mappe"
        fd = os.open(m / "f", os.O_RDWR | os.O_DIRECT)
        buf = mmap.mmap(-1, 4096)
        buf.write(b"D" * 4096)
        os.pwrite(fd, buf, 8192)
        os.close(fd)
        assert (m / "f").read_bytes()[8191:12289] == b"\0" + b"D" * 4096 + b"\0"


def test_locks():
    with Fresh("locks") as m:
        (m / "f").write_bytes(b"x" * 100)
        a, b = open(m / "f", "r+b"), open(m / "f", "r+b")
        fcntl.flock(a, fcntl.LOCK_EX)
        fails(errno.EAGAIN, fcntl.flock, b, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(a, fcntl.LOCK_UN)
        fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)
        a.close()
        b.close()


def test_many_threads():
    """Threads that write, rename and delete in one tree; every file that stays has its right contents."""
    with Fresh("threads", "1G") as m:
        errors, stay = [], {}

        def work(t):
            rng = random.Random(t)
            mine = {}
            try:
                os.mkdir(m / f"t{t}")
                for i in range(300):
                    data = rng.randbytes(rng.randrange(1, 30_000))
                    p = m / f"t{t}/f{i}"
                    p.write_bytes(data)
                    mine[str(p)] = data
                    if rng.random() < 0.3:
                        old = rng.choice(list(mine))
                        new = str(m / f"moved-{t}-{i}")
                        os.rename(old, new)
                        mine[new] = mine.pop(old)
                    if rng.random() < 0.2:
                        old = rng.choice(list(mine))
                        os.unlink(old)
                        del mine[old]
                    if rng.random() < 0.1:
                        old = rng.choice(list(mine))
                        fd = os.open(old, os.O_RDWR)
                        os.fsync(fd)
                        os.close(fd)
                stay.update(mine)
            except BaseException as e:
                errors.append(e)

        threads = [threading.Thread(target=work, args=(t,)) for t in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert not errors, errors
        m.again()
        for p, data in stay.items():
            with open(p, "rb") as f:
                assert f.read() == data, p
        found = sum(len(files) for _, _, files in os.walk(m.dir))
        assert found == len(stay), f"{found} files, {len(stay)} expected"


def test_embeddings_travel():
    """cp -a, rsync -aX and tar --xattrs carry files with their embeddings into another volume."""
    for tool in ("rsync", "tar", "setfattr"):
        need(tool)
    rows, dim, v = read_npy(SAMPLE / "sample.base.npy")
    with Fresh("from") as a, Fresh("to") as b:
        for i in range(50):
            (a / "docs").mkdir(exist_ok=True)
            (a / f"docs/f{i}").write_text(f"file {i}")
        write_npy(a.home / "v.npy", 50, dim, v[:50 * dim])
        vexfs("embed", "--npy", a.home / "v.npy", *[a / f"docs/f{i}" for i in range(50)])
        assert os.getxattr(a / "docs/f7", "user.vexfs.embedding") == v[7 * dim:8 * dim].tobytes()
        run("cp", "-a", a / "docs", b / "cp")
        run("rsync", "-aX", f"{a / 'docs'}/", f"{b / 'rsync'}/")
        os.mkdir(b / "tar")
        run("tar", "--xattrs", "--xattrs-include=*", "-C", a / "docs", "-cf", a.home / "t.tar", ".")
        run("tar", "--xattrs", "--xattrs-include=*", "-C", b / "tar", "-xf", a.home / "t.tar")
        for way in ("cp", "rsync", "tar"):
            vexfs("collection", "create", b / way, "--dim", dim, "--metric", "cosine", "--index", "flat")
            for i in (0, 7, 49):
                assert os.getxattr(b / f"{way}/f{i}", "user.vexfs.embedding") == v[i * dim:(i + 1) * dim].tobytes(), way
                write_npy(a.home / "q.npy", 1, dim, v[i * dim:(i + 1) * dim])
                hit = wait_for(b / way, a.home / "q.npy", f"f{i}")
                assert hit["path"] == f"f{i}" and hit["distance"] < 1e-6, (way, i, hit)


def wait_for(collection, query, path):
    """The nearest hit; files that were there before are taken in in the background, so it may take a moment."""
    end = time.time() + 20
    while True:
        hits = vexfs_json("search", collection, "--npy", query, "-k", 1)[0]["results"]
        if (hits and hits[0].get("path") == path) or time.time() > end:
            return hits[0] if hits else {}
        time.sleep(0.05)


def test_read_only():
    with Dir("ro") as home:
        image = home / "image"
        mkfs(image, "-s", "64M")
        m = home.mount(image)
        (m / "f").write_bytes(b"there")
        vectors = [random.Random(7).gauss(0, 1) for _ in range(300 * 16)]
        write_npy(home / "v.npy", 300, 16, vectors)
        write_npy(home / "q.npy", 300, 16, vectors[::-1])
        vexfs("collection", "create", m / "c", "--dim", 16, "--metric", "l2")
        vexfs("insert", m / "c", "--npy", home / "v.npy")
        found = vexfs("search", m / "c", "--npy", home / "q.npy", "-k", 20, "--json").out
        m.stop()
        before = hashlib.sha256(image.read_bytes()).digest()
        def options():
            line = [l.split() for l in open("/proc/mounts") if l.split()[1] == str(m.dir)][-1]
            return line[3].split(",")

        def search(ok=(0,)):
            return vexfs("search", m / "c", "--npy", home / "q.npy", "-k", 20, "--json", ok=ok).out

        m = home.mount(image, "ro")
        assert "ro" in options(), options()
        assert (m / "f").read_bytes() == b"there"
        fails(errno.EROFS, os.mkdir, m / "d")
        fails(errno.EROFS, os.unlink, m / "f")
        # Searching works, whatever the length of the request; changing does not.
        assert search() == found
        p = vexfs("insert", m / "c", "--npy", home / "v.npy", ok=(5,))
        assert "read-only" in p.err, p.err
        remount = lambda flag, ok=(0,): vexfs("mount", image, m.dir, "-o", f"remount,{flag}", ok=ok)
        if os.geteuid() == 0:
            assert "opened read-only" in remount("rw", ok=(1,)).err
            assert "ro" in options(), options()
        m.stop()
        assert hashlib.sha256(image.read_bytes()).digest() == before, "a read-only mount wrote to the image"
        # After a crash too: the log is replayed in memory only.
        m = home.mount(image)
        (m / "g").write_bytes(b"not synced")
        m.kill()
        before = hashlib.sha256(image.read_bytes()).digest()
        m = home.mount(image, "ro")
        assert (m / "f").read_bytes() == b"there" and (m / "g").read_bytes() == b"not synced"
        m.stop()
        assert hashlib.sha256(image.read_bytes()).digest() == before, "a read-only mount wrote to the image"
        if os.geteuid() != 0:
            return
        m = home.mount(image)
        remount("ro")
        assert "ro" in options(), options()
        assert search() == found
        p = vexfs("insert", m / "c", "--npy", home / "v.npy", ok=(5,))
        assert "read-only" in p.err, p.err
        fails(errno.EROFS, (m / "f").write_bytes, b"x")
        remount("rw")
        (m / "f").write_bytes(b"x")
        vexfs("insert", m / "c", "--npy", home / "v.npy")
        m.stop()
        fsck(image)


def test_bad_images():
    with Dir("bad") as home:
        image = home / "image"
        mkfs(image, "-s", "64M")
        m = home.mount(image)
        for i in range(200):
            (m / f"f{i}").write_bytes(os.urandom(50_000))
        m.stop()
        for name, change, say in (
            ("half", lambda p: os.truncate(p, 32 << 20), "shorter"),
            ("empty", lambda p: os.truncate(p, 0), "mkfs.vexfs"),
            ("short", lambda p: os.truncate(p, 5000), "mkfs.vexfs"),
            ("zeros", lambda p: p.write_bytes(bytes(64 << 20)), "mkfs.vexfs"),
            ("noise", lambda p: p.write_bytes(random.Random(1).randbytes(20 << 20)), "mkfs.vexfs"),
        ):
            bad = home / name
            shutil.copy(image, bad)
            change(bad)
            p = vexfs("ls", f"{bad}:/", ok=None)
            assert p.returncode not in (0, 101) and say in p.err and len(p.err.splitlines()) == 1, f"{name}: {p.returncode} {p.err}"
            p = fsck(bad, ok=None)
            assert p.returncode in (4, 8), f"fsck of {name}: {p.returncode} {p.out} {p.err}"
            mnt = Mount(home, bad)
            text = mnt.start(ok=False)
            assert text and not os.path.ismount(mnt.dir), f"{name} was mounted"


def test_damaged_slots_come_back_from_the_records():
    rows, dim = 1000, 16
    rng = random.Random(7)
    with Dir("slots") as home:
        image = home / "image"
        mkfs(image, "-s", "64M")
        write_npy(home / "base.npy", rows, dim, [rng.gauss(0, 1) for _ in range(rows * dim)])
        write_npy(home / "query.npy", 20, dim, [rng.gauss(0, 1) for _ in range(20 * dim)])
        vexfs("collection", "create", f"{image}:/c", "--dim", dim, "--metric", "cosine", "--index", "hnsw")
        vexfs("insert", f"{image}:/c", "--npy", home / "base.npy")
        search = lambda: vexfs("search", f"{image}:/c", "--npy", home / "query.npy", "-k", "10", "--json").out
        before = search()
        # A block of slots: 32 bytes each, the record's id first; here ids follow one another.
        b, damaged = bytearray(image.read_bytes()), 0
        for at in range(0, len(b), 4096):
            ids = [struct.unpack_from("<Q", b, at + 32 * i)[0] for i in range(8)]
            if ids == list(range(ids[0], ids[0] + 8)):
                b[at + 37] ^= 0x55
                damaged += 1
        assert damaged > 1, "found no blocks of slots to damage"
        image.write_bytes(b)
        assert search() == before, "a search over restored slots gives other results"
        fsck(image, "-n", ok=(4,))
        vexfs("delete", f"{image}:/c", rows - 1)  # a change writes the slots anew
        fsck(image, "-n")
        return f"{damaged} blocks of slots"


def test_8_tib():
    with Dir("huge") as home:
        image = home / "image"
        try:
            with open(image, "wb") as f:
                f.truncate(8 << 40)
        except OSError as e:
            raise Skip(f"the host's filesystem has no files of 8 TiB ({e.strerror})")
        start = time.time()
        mkfs(image)
        seconds = time.time() - start
        held = os.stat(image).st_blocks * 512
        m = home.mount(image)
        s = os.statvfs(m.dir)
        assert s.f_blocks * s.f_frsize == 8 << 40, s
        (m / "f").write_bytes(b"x" * 1_000_000)
        m.again()
        assert (m / "f").read_bytes() == b"x" * 1_000_000
        m.stop()
        return f"made in {seconds:.1f} s, {held >> 10} KiB held"


def test_one_image_one_writer():
    with Fresh("lock") as m:
        p = vexfs("mkdir", f"{m.image}:/d", ok=None)
        assert p.returncode == 8 and "in use" in p.err, p.err
        p = fsck(m.image, "-y", ok=None)
        assert p.returncode == 8, p.returncode
        p = run(BIN / "mkfs.vexfs", "-f", m.image, ok=None)
        assert p.returncode == 8 and "in use" in p.err, p.err


def test_block_devices():
    """mkfs refuses a mounted device, a disk with partitions, one with another filesystem, an image behind a loop device."""
    need_root()
    with Dir("loop") as home:
        image = home / "disk"
        with open(image, "wb") as f:
            f.truncate(256 << 20)
        p = run("losetup", "-f", "--show", image, ok=None)
        if p.returncode:
            raise Skip(f"no loop devices here: {p.err.strip()}")
        device = p.out.strip()
        try:
            p = run(BIN / "mkfs.vexfs", "-f", image, ok=None)
            assert p.returncode == 8 and device in p.err, p.err
            run("mkfs.ext4", "-q", device)
            p = run(BIN / "mkfs.vexfs", device, ok=None)
            assert p.returncode == 4 and "ext4" in p.err, p.err
            os.mkdir(home / "m")
            run("mount", device, home / "m")
            p = run(BIN / "mkfs.vexfs", "-f", device, ok=None)
            assert p.returncode == 8 and "mounted" in p.err, p.err
            run("umount", home / "m")
            mkfs(device, "-f")
            m = home.mount(device)
            (m / "f").write_bytes(b"x" * 300_000)
            p = run(BIN / "mkfs.vexfs", "-f", device, ok=None)
            assert p.returncode == 8, p.err
            m.again()
            assert (m / "f").read_bytes() == b"x" * 300_000
            m.stop()
            fsck(device)
        finally:
            run("losetup", "-d", device, ok=None)
        # A whole disk with a partition.
        with open(image, "r+b") as f:
            f.truncate(0)
            f.truncate(256 << 20)
            f.seek(446)
            f.write(bytes([0, 0, 2, 0, 0x83, 0, 0, 0]) + struct.pack("<II", 2048, 100_000))
            f.seek(510)
            f.write(b"\x55\xaa")
        device = run("losetup", "-P", "-f", "--show", image).out.strip()
        try:
            time.sleep(0.5)
            p = run(BIN / "mkfs.vexfs", "-f", device, ok=None)
            partitions = any(e.startswith(os.path.basename(device) + "p") for e in os.listdir(f"/sys/block/{os.path.basename(device)}"))
            if partitions:
                assert p.returncode == 8 and "1 partition" in p.err, p.err
            else:
                return "no partitions on loop devices here"
        finally:
            run("losetup", "-d", device, ok=None)


def test_sigterm_unmounts_cleanly():
    with Fresh("term") as m:
        (m / "f").write_bytes(b"x" * 100_000)
        m.term()
        assert "clean" in run(BIN / "vexfs", "info", m.image).out
        m.start()
        assert (m / "f").read_bytes() == b"x" * 100_000


def test_suid_bits_and_umask():
    with Fresh("suid", options=("allow_other,default_permissions,suid,dev",)) as m:
        os.chmod(m.dir, 0o777)
        (m / "f").write_bytes(b"x")
        os.chown(m / "f", 1000, 1000)
        os.chmod(m / "f", 0o6755)
        if os.geteuid() == 0:
            code = f"import os; os.setgid(1000); os.setuid(1000); fd = os.open({str(m / 'f')!r}, os.O_WRONLY); os.write(fd, b'y')"
            subprocess.run([sys.executable, "-c", code], check=True)
            assert os.stat(m / "f").st_mode & 0o6000 == 0, oct(os.stat(m / "f").st_mode)
        os.mkdir(m / "g")
        os.chown(m / "g", -1, 4321)
        os.chmod(m / "g", 0o2775)
        (m / "g/x").touch()
        os.mkdir(m / "g/d")
        assert os.stat(m / "g/x").st_gid == 4321 and os.stat(m / "g/d").st_mode & 0o2000


def test_control_file_is_hidden():
    with Fresh("control") as m:
        os.mkdir(m / "d")
        assert os.listdir(m.dir) == ["d"] and os.listdir(m / "d") == []
        assert os.path.exists(m / "d/.vexfs")
        for f in (os.mkdir, os.unlink):
            try:
                f(m / "d/.vexfs")
                raise AssertionError(f"{f.__name__} of .vexfs succeeded")
            except OSError:
                pass
        os.rmdir(m / "d")


if __name__ == "__main__":
    need_fuse()
    build()
    Checks(tests_of(sys.modules[__name__])).run(sys.argv[1:])
