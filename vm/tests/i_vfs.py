# SPDX-License-Identifier: GPL-2.0-only
"""What the VFS and its callers ask of a filesystem beyond files and names: handles, extents, splicing, times, unnamed files; and what
the tests of such things share."""
import ctypes, fcntl, mmap, random, stat, struct, threading
from vmtest import *

MIB = 1 << 20
FIFREEZE, FITHAW, FITRIM, SHUTDOWN, FIEMAP = 0xC0045877, 0xC0045878, 0xC0185879, 0x8004587D, 0xC020660B
FULL, LOG, NOW = 0, 1, 2
AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_FOLLOW = -100, 0x1000, 0x400
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def kernel_only():
    if G.driver != "kernel":
        raise Skip("the module's own")


def figure(name, dev=None):
    """A statistic of the mount."""
    text = pathlib.Path(f"/sys/fs/vexfs/{pathlib.Path(dev or G.main).resolve().name}/{name}").read_text().strip()
    return int(text) if text.isdigit() else text


@contextlib.contextmanager
def opened(path, flags=os.O_RDONLY, mode=0o644):
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def ioctl_int(path, request, value):
    """An ioctl on a directory that takes a pointer to a 32-bit number."""
    with opened(path) as fd:
        fcntl.ioctl(fd, request, struct.pack("I", value))


def write_durably(path, data):
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        os.write(fd, data)
        os.fsync(fd)


def read_direct(path, offset, length):
    """Bytes past the page cache; all three are multiples of 4096."""
    b = mmap.mmap(-1, length)
    with opened(path, os.O_RDONLY | os.O_DIRECT) as fd:
        n = os.preadv(fd, [b], offset)
    return bytes(b[:n])


def is_mounted(path):
    return any(l.split()[1] == str(path) for l in open("/proc/mounts"))


def user(uid, function):
    """Calls it in a process with this user id; gives the errno or 0."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            os.closerange(3, 1000)
            os.setgid(uid)
            os.setuid(uid)
            function()
            code = 0
        except OSError as e:
            code = e.errno
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# Stable pages.


class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]


def handle_of(path):
    h, mount_id = Handle(128), ctypes.c_int()
    syscall("name_to_handle_at", AT_FDCWD, os.fsencode(path), ctypes.byref(h), ctypes.byref(mount_id), 0)
    return h


def open_handle(mount, h, flags=os.O_RDONLY):
    with opened(mount) as fd:
        return syscall("open_by_handle_at", fd, ctypes.byref(h), flags)


@test(quick=True, limit=180)
def test_handles():
    """File handles (NFS): they open their file by inode and generation, after drop_caches and a remount too; ESTALE when it is gone"""
    kernel_only()
    mkfs()
    with mounted() as v:
        os.makedirs(v / "a/b/c/d")
        files = {v / f"a/b/c/d/f{i}": os.urandom(100) for i in range(200)}
        for p, data in files.items():
            p.write_bytes(data)
        os.symlink("x", v / "a/link")
        os.mkfifo(v / "a/fifo")
        handles = {p: handle_of(p) for p in files}
        folders = {v / p: handle_of(v / p) for p in ("", "a", "a/b", "a/b/c", "a/b/c/d")}
        others = [handle_of(v / "a/link"), handle_of(v / "a/fifo")]
        assert len({bytes(h.data[:h.bytes]) for h in [*handles.values(), *folders.values(), *others]}) == len(files) + 7, "two files share a handle"
        checked = 0

        def all_open():
            nonlocal checked
            for p, h in handles.items():
                fd = open_handle(v.dir, h)
                assert os.read(fd, 200) == files[p], p
                os.close(fd)
                checked += 1
            for p, h in folders.items():
                fd = open_handle(v.dir, h, os.O_RDONLY | os.O_DIRECTORY)
                # The directory is found again with its way up to the root, which the cache has forgotten.
                assert os.readlink(f"/proc/self/fd/{fd}") == str(p), os.readlink(f"/proc/self/fd/{fd}")
                assert set(os.listdir(fd)) == set(os.listdir(p))
                os.close(fd)
                checked += 1
            for h in others:
                os.close(open_handle(v.dir, h, 0o10000000))  # O_PATH
                checked += 1

        all_open()
        drop_caches()
        all_open()
        v.again()
        all_open()
        # A rename changes no handle.
        os.rename(v / "a/b", v / "moved")
        folders = {pathlib.Path(str(p).replace("/a/b", "/moved")): h for p, h in folders.items()}
        drop_caches()
        all_open()
        gone = list(files)[:50]
        kept_open = open_handle(v.dir, handles[gone[0]])
        for p in gone:
            os.unlink(str(p).replace("/a/b", "/moved"))
        fd = open_handle(v.dir, handles[gone[0]])  # deleted, but open
        assert os.read(fd, 200) == files[gone[0]]
        os.close(fd)
        os.close(kept_open)
        for p in gone:
            fails(errno.ESTALE, open_handle, v.dir, handles[p])
        # New files do not answer to old handles.
        for i in range(100):
            (v / f"new{i}").touch()
        v.again()
        for p in gone:
            fails(errno.ESTALE, open_handle, v.dir, handles.pop(p))
        all_open()
        fake = Handle(handles[list(files)[60]].bytes, handles[list(files)[60]].type)
        fails(errno.ESTALE, open_handle, v.dir, fake)
        for n in (0, 4, 8, 12):
            short = Handle(n, fake.type)
            try:
                os.close(open_handle(v.dir, short))
                raise AssertionError(f"a handle of {n} bytes opens something")
            except OSError as e:
                assert e.errno in (errno.ESTALE, errno.EINVAL), e
        for i in range(2000):
            wild = Handle(16, random.Random(i).choice((0x91, 0x92, 1, 2)))
            wild.data[:16] = random.Random(i).randbytes(16)
            try:
                os.close(open_handle(v.dir, wild))
                raise AssertionError("a made-up handle opens something")
            except OSError as e:
                assert e.errno in (errno.ESTALE, errno.EINVAL), e
    fsck()
    return f"{checked} handles opened, {2 * len(gone)} stale, 2000 made up"


# Extents.

def fiemap(fd, start=0, length=(1 << 64) - 1, room=64, flags=0):
    """(logical, physical, length, flags) of all extents in the range, `room` at a time."""
    out, at = [], start
    while True:
        b = bytearray(struct.pack("QQIIII", at, length, flags, 0, room, 0) + bytes(56 * room))
        fcntl.ioctl(fd, FIEMAP, b)
        n = struct.unpack_from("I", b, 20)[0]
        for i in range(n):
            logical, physical, size, _, _, f = struct.unpack_from("QQQQQI", b, 32 + 56 * i)
            out.append((logical, physical, size, f))
        if n < room or out[-1][3] & 1:
            return out
        moved = out[-1][0] + out[-1][2] - at
        at, length = at + moved, length - moved if length != (1 << 64) - 1 else length
        if length <= 0:
            return out


def segments(fd, size):
    """What SEEK_DATA and SEEK_HOLE say: [(from, to)]."""
    out, at = [], 0
    while at < size:
        try:
            a = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            assert e.errno == errno.ENXIO, e
            break
        b = os.lseek(fd, a, os.SEEK_HOLE)
        assert at <= a < b <= size, (at, a, b, size)
        out.append((a, b))
        at = b
    return out


@test(quick=True, limit=240)
def test_extents():
    """FIEMAP: where it says the data is, the device has it; it agrees with SEEK_DATA and SEEK_HOLE; ranges, paging, the last one"""
    kernel_only()
    mkfs()
    total, bytes_compared, files = 0, 0, 12 if G.quick else 100
    with mounted() as v:
        for n in range(files):
            rng = random.Random(n)
            path = v / f"f{n}"
            model, size = {}, 0
            with opened(path, os.O_RDWR | os.O_CREAT) as fd:
                for _ in range(rng.randrange(1, 60)):
                    at, length = rng.randrange(400) * 4096, rng.randrange(1, 12) * 4096
                    what = rng.random()
                    if what < 0.65:
                        os.pwrite(fd, rng.randbytes(length), at)
                        size = max(size, at + length)
                    elif what < 0.8:
                        os.posix_fallocate(fd, at, length)
                        size = max(size, at + length)
                    elif at < size:
                        # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
                        syscall("fallocate64", fd, 3, ctypes.c_int64(at), ctypes.c_int64(length))
                    if rng.random() < 0.2:
                        os.fsync(fd)
                if n % 3 == 0:
                    size += 5000
                    os.ftruncate(fd, size)
                # Without a sync: what is asked for must count what waits to be written.
                extents = fiemap(fd, room=rng.choice((1, 3, 64, 500)))
                assert extents == fiemap(fd, room=200), "the number of extents asked for at once changes the answer"
                end = 0
                for logical, physical, length, flags in extents:
                    assert logical >= end and length > 0 and length % 4096 == 0 and physical % 4096 == 0, (logical, physical, length)
                    end = logical + length
                assert [bool(e[3] & 1) for e in extents] == [False] * (len(extents) - 1) + [True] * bool(extents), "the last extent, and only that, is marked so"
                data = []
                for logical, _, length, flags in extents:
                    if not flags & 0x800:  # unwritten
                        to = min(logical + length, size)
                        if data and data[-1][1] == logical:
                            data[-1] = (data[-1][0], to)
                        else:
                            data.append((logical, to))
                assert data == segments(fd, size), f"{path}: extents say {data}, seeking says {segments(fd, size)}"
                contents = os.pread(fd, size, 0)
                for logical, physical, length, flags in extents:
                    if flags & 0x800:
                        assert not any(contents[logical:logical + length])
                        continue
                    here = contents[logical:logical + length]
                    assert read_direct(G.main, physical, length)[:len(here)] == here, f"{path}: the device has other bytes at {physical}"
                    bytes_compared += len(here)
                # A part of the range: the extents that overlap it, and the mark of the last one only on the last of the file.
                if extents:
                    a = rng.randrange(400) * 4096
                    b = a + rng.randrange(1, 40) * 4096
                    part = fiemap(fd, a, b - a)
                    assert [e[0] for e in part] == [e[0] for e in extents if e[0] < b and e[0] + e[2] > a] or all(
                        any(x[0] <= e[0] < x[0] + x[2] for x in extents) and e[0] < b and e[0] + e[2] > a for e in part), (a, b, part, extents)
                    assert all(bool(e[3] & 1) == (e[0] + e[2] == extents[-1][0] + extents[-1][2]) for e in part), "an extent in the middle is called the last"
                fails(errno.EBADR, fiemap, fd, 0, 4096, 1, 2)  # FIEMAP_FLAG_XATTR
                total += len(extents)
        for name in ("empty", "hole"):
            with opened(v / name, os.O_RDWR | os.O_CREAT) as fd:
                os.ftruncate(fd, 0 if name == "empty" else 1 << 30)
                assert fiemap(fd) == [] and segments(fd, 1 << 20) == []
        if vex.shutil.which("filefrag"):
            run("filefrag", "-v", v / "f0")
    fsck()
    return f"{files} files, {total} extents, {bytes_compared >> 10} KiB compared with the device"


# Splicing, copying, reading ahead.

@test(quick=True, limit=180)
def test_splice():
    """splice, sendfile, copy_file_range, readahead and fadvise move the right bytes"""
    kernel_only()
    mkfs()
    size = 5 * MIB + 1234
    data = random.Random(7).randbytes(size)
    with mounted() as v:
        write_durably(v / "f", data)
        drop_caches()
        with opened(v / "f") as src, opened(v / "spliced", os.O_RDWR | os.O_CREAT) as dst:
            r, w = os.pipe()
            moved = 0
            while moved < size:
                n = os.splice(src, w, min(65536, size - moved))
                left = n
                while left:
                    left -= os.splice(r, dst, left)
                moved += n
            os.close(r), os.close(w)
        assert (v / "spliced").read_bytes() == data
        import socket
        a, b = socket.socketpair()
        got = bytearray()
        t = threading.Thread(target=lambda: [got.extend(x) for x in iter(lambda: b.recv(1 << 20), b"")])
        t.start()
        with opened(v / "f") as src:
            sent = 0
            while sent < size:
                sent += os.sendfile(a.fileno(), src, sent, size - sent)
        a.close()
        t.join()
        assert bytes(got) == data, "sendfile"
        with opened(v / "f") as src, opened(v / "copied", os.O_RDWR | os.O_CREAT) as dst:
            assert os.copy_file_range(src, dst, 100, 50, 7) == 100 and os.pread(dst, 200, 0) == bytes(7) + data[50:150]
            done = 0
            while done < size:
                done += os.copy_file_range(src, dst, size - done, done, done)
            os.fsync(dst)
        v.again()
        assert (v / "copied").read_bytes() == data and (v / "spliced").read_bytes() == data
        # Asked for in advance, it is in memory when it is read.
        drop_caches()
        with opened(v / "f") as fd:
            # As much at once as the kernel allows, which is 128 KiB.
            for at in range(0, size, 131072):
                if at < size // 2:
                    syscall("readahead", fd, ctypes.c_int64(at), ctypes.c_size_t(131072))
                else:
                    os.posix_fadvise(fd, at, 131072, os.POSIX_FADV_WILLNEED)
            m = mmap.mmap(fd, size, prot=mmap.PROT_READ)
            pages = (size + 4095) // 4096
            vec = (ctypes.c_ubyte * pages)()
            base = int(next(l for l in open("/proc/self/maps") if l.rstrip().endswith("/f")).split("-")[0], 16)
            end = time.time() + 10
            while True:
                syscall("mincore", ctypes.c_void_p(base), ctypes.c_size_t(size), vec)
                resident = sum(x & 1 for x in vec)
                if resident == pages or time.time() > end:
                    break
                time.sleep(0.05)
            assert resident == pages, f"{resident} of {pages} pages in memory after readahead"
            m.close()
        # Sequential reading makes large requests.
        drop_caches()
        before = figure("reads")
        with opened(v / "f") as fd:
            while os.read(fd, 4096):
                pass
        requests = figure("reads") - before
        assert requests < size // 32768, f"{requests} requests for {size >> 10} KiB read in order"
        # Dropped from the cache on request.
        with opened(v / "f") as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            before = figure("reads")
            assert os.pread(fd, 4096, MIB) == data[MIB:MIB + 4096]
            assert figure("reads") > before, "POSIX_FADV_DONTNEED dropped nothing"
    fsck()
    return f"{size} bytes each way; {resident} of {pages} pages read ahead; {requests} requests for a read in order"


# Attributes and names.

@test(quick=True, limit=180)
def test_inodes():
    """Times with nanoseconds, syncfs, statfs, special files, rename flags"""
    kernel_only()
    mkfs()
    with mounted() as v:
        # Times.
        p = v / "t"
        p.touch()
        os.utime(p, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
        assert (p.stat().st_atime_ns, p.stat().st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321_987_654_321)
        old = v / "old"
        old.touch()
        os.utime(old, ns=(-2_000_000_000_000_000_001, -1))
        for i in range(20):
            (v / f"n{i}").write_bytes(b"x")
        assert any((v / f"n{i}").stat().st_mtime_ns % 1_000_000 for i in range(20)), "times have no part below the millisecond"
        born = {f"n{i}": run("stat", "-c", "%W", v / f"n{i}").out.strip() for i in range(3)}
        assert all(abs(int(b) - time.time()) < 1000 for b in born.values()), born
        times = {n: (os.stat(v / n).st_atime_ns, os.stat(v / n).st_mtime_ns, os.stat(v / n).st_ctime_ns) for n in os.listdir(v.dir)}
        v.again()
        for n, t in times.items():
            assert (os.stat(v / n).st_atime_ns, os.stat(v / n).st_mtime_ns, os.stat(v / n).st_ctime_ns) == t, f"times of {n} after the remount"
        # statfs.
        f = os.statvfs(v.dir)
        assert f.f_bsize == f.f_frsize == 4096 and f.f_namemax == 255 and f.f_bavail <= f.f_bfree < f.f_blocks and f.f_fsid
        assert run("stat", "-f", "-c", "%t", v.dir).out.strip() == "76657866"
        (v / "big").write_bytes(os.urandom(8 * MIB))
        g = os.statvfs(v.dir)
        assert f.f_bfree - g.f_bfree >= 2000, "data that waits to be written is not counted"
        # syncfs, then everything stops: names and contents are there.
        for i in range(100):
            (v / f"s{i}").write_bytes(bytes([i]) * 3000)
        with opened(v.dir) as fd:
            syscall("syncfs", fd)
        ioctl_int(v.dir, SHUTDOWN, NOW)
        v.again()
        for i in range(100):
            assert (v / f"s{i}").read_bytes() == bytes([i]) * 3000, f"s{i} after syncfs and a stop"
        # Special files.
        made = {"fifo": stat.S_IFIFO | 0o640, "socket": stat.S_IFSOCK | 0o600, "chr": stat.S_IFCHR | 0o666, "blk": stat.S_IFBLK | 0o660}
        for n, mode in made.items():
            os.mknod(v / n, mode, os.makedev(1, 3) if n == "chr" else os.makedev(259, 1_000_000))
            os.chmod(v / n, mode & 0o7777)
        v.again()
        for n, mode in made.items():
            s = (v / n).lstat()
            want = os.makedev(1, 3) if n == "chr" else os.makedev(259, 1_000_000) if n == "blk" else 0
            assert s.st_mode == mode and s.st_rdev == want, f"{n}: {s.st_mode:o} {s.st_rdev:#x}"
        (v / "chr").write_bytes(b"to nowhere")  # it is /dev/null
        t = threading.Thread(target=lambda: (v / "fifo").write_bytes(b"through"))
        t.start()
        assert (v / "fifo").read_bytes() == b"through"
        t.join()
        # Rename flags.
        rename = lambda a, b, flags: syscall("renameat2", AT_FDCWD, os.fsencode(v / a), AT_FDCWD, os.fsencode(v / b), flags)
        (v / "a").write_bytes(b"a")
        (v / "b").write_bytes(b"b")
        fails(errno.EEXIST, rename, "a", "b", NOREPLACE)
        rename("a", "b", EXCHANGE)
        assert (v / "a").read_bytes() == b"b" and (v / "b").read_bytes() == b"a"
        (v / "dir/sub").mkdir(parents=True)
        rename("dir", "a", EXCHANGE)
        assert (v / "a/sub").is_dir() and (v / "dir").read_bytes() == b"b"
        rename("dir", "c", NOREPLACE)
        fails(errno.ENOENT, rename, "dir", "c", EXCHANGE)
        fails(errno.EINVAL, rename, "b", "c", EXCHANGE | NOREPLACE)
        fails(errno.EINVAL, rename, "b", "c", 8)
        v.again()
        assert (v / "a/sub").is_dir() and (v / "c").read_bytes() == b"b" and (v / "b").read_bytes() == b"a" and not (v / "dir").exists()
    fsck()
    return f"{len(times)} inodes with their times, {len(made)} special files"


# Remounting.


class Searcher:
    """A session with a collection that asks one search after the other."""

    def __init__(self, path):
        self.f = open(path / ".vexfs", "r+b", buffering=0)

    def search(self, query, k=3):
        """The reply's hits."""
        self.f.write(struct.pack("<IHHQIIQ", 32 + 48 + len(query), 1, 10, 1, 0, 0, 0) + struct.pack("<IIIIIIIIQQ", 1, len(query) // 4, k, 0, 0, 0, 0, 0, 0, 0) + query)
        reply = self.f.read(65536)
        status, = struct.unpack_from("<i", reply, 16)
        assert status == 0 and len(reply) > 64, (status, len(reply))
        return reply[64:]


# Unnamed files and whiteouts.

@test(quick=True, limit=180)
def test_tmpfile():
    """O_TMPFILE: no name, linkat gives one, a crash leaves nothing; RENAME_WHITEOUT; an overlay with its upper layer on the volume"""
    kernel_only()
    mkfs()
    TMPFILE = os.O_TMPFILE | os.O_RDWR

    def link(fd, path):
        syscall("linkat", AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, os.fsencode(path), AT_SYMLINK_FOLLOW)

    with mounted() as v:
        (v / "d").mkdir()
        os.sync()
        data = os.urandom(300_000)
        with opened(v / "d", TMPFILE, 0o640) as fd:
            os.write(fd, data)
            s = os.fstat(fd)
            assert s.st_nlink == 0 and s.st_size == len(data) and stat.S_IMODE(s.st_mode) == 0o640 & ~os.umask(os.umask(0))
            os.setxattr(fd, "user.a", b"1")
            os.utime(fd, ns=(5, 6))
            assert os.listdir(v / "d") == []
            os.fsync(fd)
            link(fd, v / "d/named")
            fails(errno.EEXIST, link, fd, v / "d/named")
            assert os.fstat(fd).st_nlink == 1
            os.link(v / "d/named", v / "twice")
            os.write(fd, b"more")
        with opened(v / "d", TMPFILE | os.O_EXCL, 0o600) as fd:
            fails(errno.ENOENT, link, fd, v / "d/not")
        with opened(v / "d", TMPFILE, 0o600) as fd:
            link(fd, v / "d/gone")
            os.unlink(v / "d/gone")
            fails(errno.ENOENT, link, fd, v / "d/again")
        v.again()
        assert (v / "twice").read_bytes() == (v / "d/named").read_bytes() == data + b"more" and (v / "twice").stat().st_nlink == 2
        assert os.getxattr(v / "twice", "user.a") == b"1" and os.listdir(v / "d") == ["named"]
        os.unlink(v / "twice")
        v.again()
        assert (v / "d/named").stat().st_nlink == 1
        # Unnamed files that a crash finds open, and those that were closed, leave nothing.
        free, inodes = os.statvfs(v.dir).f_bfree, os.statvfs(v.dir).f_files - os.statvfs(v.dir).f_ffree
        fds = [os.open(v.dir, TMPFILE, 0o600) for _ in range(50)]
        for fd in fds:
            os.write(fd, os.urandom(100_000))
            os.fsync(fd)
        link(fds[0], v / "kept")
        os.fsync(fds[0])
        for fd in fds[25:]:
            os.close(fd)
        ioctl_int(v.dir, SHUTDOWN, LOG)
        for fd in fds[:25]:
            os.close(fd)
        v.again()
        assert len((v / "kept").read_bytes()) == 100_000 and sorted(os.listdir(v.dir)) == ["d", "kept"]
        os.unlink(v / "kept")
        for _ in range(2):
            v.again()
        now = os.statvfs(v.dir)
        assert now.f_files - now.f_ffree == inodes, f"{now.f_files - now.f_ffree - inodes} inodes are left over"
        assert free - now.f_bfree < 1000, f"{free - now.f_bfree} blocks are left over"
        # Whiteouts.
        rename = lambda a, b, flags: syscall("renameat2", AT_FDCWD, os.fsencode(v / a), AT_FDCWD, os.fsencode(v / b), flags)
        (v / "w").write_bytes(b"w")
        rename("w", "d/w", WHITEOUT)
        s = (v / "w").lstat()
        assert stat.S_ISCHR(s.st_mode) and s.st_rdev == 0 and (v / "d/w").read_bytes() == b"w"
        fails(errno.EINVAL, rename, "d/w", "w", WHITEOUT | EXCHANGE)
        fails(errno.EEXIST, rename, "d/w", "w", WHITEOUT | NOREPLACE)
        v.again()
        assert stat.S_ISCHR((v / "w").lstat().st_mode) and (v / "d/w").read_bytes() == b"w"
        # What they are for.
        lower = G.work / "lower"
        lower.mkdir()
        for i in range(20):
            (lower / f"f{i}").write_bytes(bytes([i]))
        (lower / "dir").mkdir()
        for n in ("upper", "work"):
            (v / n).mkdir()
        merged = pathlib.Path("/mnt/merged")
        merged.mkdir(exist_ok=True)
        run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={v / 'upper'},workdir={v / 'work'}", merged)
        try:
            os.unlink(merged / "f0")
            os.rename(merged / "f1", merged / "moved")
            (merged / "f2").write_bytes(b"changed")
            os.chmod(merged / "f3", 0o600)
            os.rmdir(merged / "dir")
            (merged / "dir").mkdir()
            want = {f"f{i}" for i in range(2, 20)} | {"moved", "dir"}
            assert set(os.listdir(merged)) == want and (merged / "moved").read_bytes() == b"\1" and (merged / "f2").read_bytes() == b"changed"
        finally:
            run("umount", merged)
        white = [n for n in os.listdir(v / "upper") if stat.S_ISCHR((v / "upper" / n).lstat().st_mode)]
        assert set(white) == {"f0", "f1"}, white
    fsck()
    return f"{len(fds)} unnamed files, 25 of them open at a crash; {len(white)} whiteouts of an overlay"
