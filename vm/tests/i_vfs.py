# SPDX-License-Identifier: GPL-2.0-only
"""What the VFS and its callers ask of a filesystem beyond files and names: stable pages, freezing, trimming, shutting down,
handles, extents, splicing, unnamed files, remounting, and many threads at once."""
import ctypes, fcntl, hashlib, mmap, random, stat, struct, threading
from f_faults import Mapped, dm, sectors, unmount_whatever
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

def scribble(memory, stop, seed):
    """Another process that changes the memory all the time, until it is killed."""
    pid = os.fork()
    if pid:
        return pid
    rng = random.Random(seed)
    patterns = [rng.randbytes(65536) for _ in range(4)]
    n = 0
    while True:
        at = rng.randrange(0, len(memory) - 65536)
        memory[at:at + 65536] = patterns[n % 4]
        memory[rng.randrange(len(memory))] = n & 255
        n += 1
        stop[8:16] = struct.pack("Q", n)


@test(quick=True, limit=300)
def test_stable_pages():
    """Buffers of direct writes and shared mappings are rewritten while they are written: no read gives EIO, ever"""
    size, seconds = 4 * MIB, 6 if G.quick else 60
    mkfs()
    with mounted() as v:
        write_durably(v / "mapped", bytes(size))
        write_durably(v / "direct", bytes(size))
        write_durably(v / "both", bytes(size))
        maps = {}
        for name in ("mapped", "both"):
            with opened(v / name, os.O_RDWR) as fd:
                maps[name] = mmap.mmap(fd, size)
        buffer = mmap.mmap(-1, size)
        counters = [mmap.mmap(-1, 4096) for _ in range(3)]
        changers = [scribble(m, c, i) for i, (m, c) in enumerate(zip([maps["mapped"], maps["both"], buffer], counters))]
        wrong, counts, end = [], {"direct": 0, "msync": 0, "read": 0}, time.time() + seconds
        before = figure("writes") if G.driver == "kernel" else 0

        def write_direct(name):
            rng = random.Random(name)
            with opened(v / name, os.O_RDWR | os.O_DIRECT) as fd:
                while time.time() < end and not wrong:
                    at = rng.randrange(0, size // 4096 - 64) * 4096
                    view = memoryview(buffer)[at:at + rng.choice((4096, 65536, 262144))]
                    try:
                        os.pwritev(fd, [view], at)
                    except OSError as e:
                        wrong.append(f"direct write of {name}: {e}")
                    counts["direct"] += 1
                    if counts["direct"] % 16 == 0:
                        os.fsync(fd)

        def sync(name):
            while time.time() < end and not wrong:
                try:
                    maps[name].flush()
                except OSError as e:
                    wrong.append(f"msync of {name}: {e}")
                counts["msync"] += 1

        def read_all():
            while time.time() < end and not wrong:
                pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")
                for name in ("mapped", "direct", "both"):
                    try:
                        assert len((v / name).read_bytes()) == size
                        assert len(read_direct(v / name, 0, size)) == size
                    except OSError as e:
                        wrong.append(f"read of {name}: {e}")
                    counts["read"] += 2

        threads = [threading.Thread(target=f, args=a) for f, a in
                   ((write_direct, ("direct",)), (write_direct, ("both",)), (sync, ("mapped",)), (sync, ("both",)), (read_all, ()))]
        try:
            for t in threads:
                t.start()
            for t in threads:
                t.join(seconds + 120)
                assert not t.is_alive(), "a thread hangs"
        finally:
            for pid in changers:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
        changes = [struct.unpack("Q", c[8:16])[0] for c in counters]
        assert not wrong, wrong[:5]
        assert all(n > 50 for n in changes) and all(counts.values()), f"too little happened to prove anything: {changes} changes, {counts}"
        # What they hold now is what reads give when memory has forgotten it, also after a remount.
        held = {n: hashlib.sha256(m).digest() for n, m in maps.items()}
        for m in maps.values():
            m.flush()
            m.close()
        written = figure("writes") - before if G.driver == "kernel" else 0
        drop_caches()
        for n, h in held.items():
            assert hashlib.sha256((v / n).read_bytes()).digest() == h, f"{n} differs from its mapping"
        v.again()
        for n, h in held.items():
            assert hashlib.sha256((v / n).read_bytes()).digest() == h, f"{n} differs after the remount"
        assert len((v / "direct").read_bytes()) == size
    fsck()
    return f"{counts['direct']} direct writes and {counts['msync']} msyncs ({written} requests) while memory changed {sum(changes)} times, {counts['read']} reads of {size >> 20} MiB, no EIO"


# Freezing.

def copy_of(dev, length):
    """What the device holds, as a file with holes, read past every cache."""
    path = G.work / "frozen.img"
    run("dd", f"if={dev}", f"of={path}", "bs=1M", f"count={length // MIB}", "iflag=direct", "conv=sparse", "status=none", timeout=300)
    os.truncate(path, length)
    return path


@test(quick=True, limit=240)
def test_freeze():
    """fsfreeze: writers block, reads go on, the device holds a clean volume with everything in it; thawed, writers go on"""
    kernel_only()
    mkfs(G.main, "-s", "256M")
    vex.vexfs("collection", "create", f"{G.main}:/c", "--dim", 4, "--metric", "l2", "--index", "hnsw")
    with mounted() as v:
        files = {f"f{i}": random.Random(i).randbytes(10_000 + i) for i in range(100)}
        for name, data in files.items():
            (v / name).write_bytes(data)
        unlinked = os.open(v / "f99", os.O_RDWR)
        os.unlink(v / "f99")
        del files["f99"]
        with opened(v / "f0", os.O_RDWR) as fd:
            shared = mmap.mmap(fd, 4096)
        (v / "c/e").touch()
        rng = random.Random(1)
        vectors = [[rng.gauss(0, 1) for _ in range(4)] for _ in range(300)]
        (G.work / "v.fvecs").write_bytes(b"".join(struct.pack("<i4f", 4, *x) for x in vectors))
        vex.vexfs("insert", v / "c", "--fvecs", G.work / "v.fvecs")
        ioctl_int(v.dir, FIFREEZE, 0)
        # Whatever happens to the test, the guest has to go on.
        rescue = os.fork()
        if rescue == 0:
            os.closerange(3, 1000)
            time.sleep(100)
            ioctl_int(v.dir, FITHAW, 0)
            os._exit(0)
        blocked = {}
        try:
            fails(errno.EBUSY, ioctl_int, v.dir, FIFREEZE, 0)
            flushes = figure("writes")

            def change():
                # In a process of its own: a page fault does not give the interpreter's lock back.
                def child():
                    shared[0:1] = b"x"

                assert user(0, child) == 0

            jobs = {
                "write": lambda: (v / "f1").write_bytes(b"new"), "create": (v / "fresh").touch, "mkdir": (v / "d").mkdir, "unlink": (v / "f2").unlink,
                "rename": lambda: os.rename(v / "f3", v / "f3b"), "setxattr": lambda: os.setxattr(v / "f4", "user.a", b"1"), "truncate": lambda: os.truncate(v / "f5", 1),
                "chmod": lambda: os.chmod(v / "f6", 0o600), "mapping": change, "embedding": lambda: vex.vexfs("embed", v / "c/e", "--vector", "1,2,3,4"),
                "last close": lambda: os.close(unlinked),
            }
            for name, job in jobs.items():
                # The process of `mapping` has to have closed its copy of the descriptor first.
                time.sleep(1 if name == "last close" else 0)
                blocked[name] = threading.Thread(target=job)
                blocked[name].start()
            time.sleep(1.5)
            through = [n for n, t in blocked.items() if not t.is_alive()]
            assert not through, f"on a frozen volume these went on: {through}"
            drop_caches_only()
            for name, data in files.items():
                if name not in ("f1", "f0", "f3"):
                    assert (v / name).read_bytes() == data, name
            assert os.listdir(v / "c") == ["e"] and os.statvfs(v.dir).f_blocks
            # To open what the cache has forgotten for writing waits in the VFS, on any filesystem.
            (v / "c/.vexfs").stat()
            found = vex.vexfs_json("search", v / "c", "--fvecs", G.work / "v.fvecs", "-k", 1)
            assert [f["results"][0]["id"] for f in found] == list(range(len(vectors))), "a search on a frozen volume"
            assert figure("writes") == flushes, "something was written to the device of a frozen volume"
            image = copy_of(G.main, 256 * MIB)
            first = hashlib.file_digest(open(image, "rb"), "sha256").digest()
            said = fsck(image, "-n")
            assert "ERROR" not in (said.out if said else ""), said
            for name in ("f1", "f42", "f98"):
                got = subprocess.run([vex.BIN / "vexfs", "cat", f"{image}:/{name}"], capture_output=True, check=True).stdout
                assert got == files[name], f"{name} in the image of the frozen volume"
            names = vex.vexfs("ls", f"{image}:/").out.split()
            assert set(files) <= set(names) and "fresh" not in names and "f3b" not in names, names
            image = copy_of(G.main, 256 * MIB)
            assert hashlib.file_digest(open(image, "rb"), "sha256").digest() == first, "the device of a frozen volume changes"
            image.unlink()
        finally:
            os.kill(rescue, 9)
            os.waitpid(rescue, 0)
            ioctl_int(v.dir, FITHAW, 0)
        for name, t in blocked.items():
            t.join(30)
            assert not t.is_alive(), f"{name} is still blocked after the thaw"
        fails(errno.EINVAL, ioctl_int, v.dir, FITHAW, 0)
        assert (v / "f1").read_bytes() == b"new" and (v / "f3b").exists() and not (v / "f2").exists() and (v / "fresh").exists()
        assert (v / "f5").stat().st_size == 1 and os.getxattr(v / "f4", "user.a") == b"1" and (v / "f0").read_bytes()[:1] == b"x"
        found = vex.vexfs_json("search", v / "c", "--vector", "1,2,3,4", "-k", 1)
        assert found[0]["results"][0]["path"].endswith("e"), found
        shared.close()
        # The tool that people use, under load.
        stop = threading.Event()

        def load():
            n = 0
            while not stop.is_set():
                (v / f"l{n % 50}").write_bytes(bytes([n & 255]) * 5000)
                n += 1

        t = threading.Thread(target=load)
        t.start()
        for _ in range(5 if G.quick else 50):
            run("fsfreeze", "-f", v.dir)
            time.sleep(0.05)
            run("fsfreeze", "-u", v.dir)
            time.sleep(0.05)
        stop.set()
        t.join(30)
        assert not t.is_alive(), "the writer hangs after freezing and thawing"
    fsck()
    return f"{len(jobs)} kinds of changes blocked, {len(files)} files read and {len(vectors)} searches meanwhile, image of {256} MiB clean"


@test(quick=True, limit=180)
def test_freeze_beside_readers():
    """fsfreeze does not wait for a pause of those who read: on a slow disk there is none"""
    kernel_only()
    delay = 100
    slow_disk = lambda ms: f"0 {sectors(G.main)} delay {G.main} 0 {ms} {G.main} 0 0\n"
    m = Mapped(slow_disk(0))
    mkfs(m.path, "-s", "256M")
    readers, longest = [], 0.0
    try:
        with mounted(m.path) as v:
            (v / "cold").write_bytes(random.Random(7).randbytes(8 * MIB))
            os.sync()
            m.change(slow_disk(delay))
            for n in range(8):
                pid = os.fork()
                if pid == 0:
                    b, rng, end = mmap.mmap(-1, 4096), random.Random(n), time.time() + 25
                    with opened(v / "cold", os.O_RDONLY | os.O_DIRECT) as fd:
                        while time.time() < end:
                            os.preadv(fd, [b], rng.randrange(2000) * 4096)
                    os._exit(0)
                readers.append(pid)
            time.sleep(0.5)
            for _ in range(3):
                begin = time.time()
                run("fsfreeze", "-f", v.dir)
                longest = max(longest, time.time() - begin)
                run("fsfreeze", "-u", v.dir)
            assert longest < 3, f"to freeze took {longest:.1f} s beside readers"
            m.change(slow_disk(0))
            for pid in readers:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
    finally:
        m.change(slow_disk(0))
        m.remove()
    return f"frozen within {longest:.2f} s"


@test(quick=True, limit=180, warns=True)
def test_no_healing():
    """Bad copies of metadata are written anew by reads, but not on a frozen volume and not on one that was remounted read-only"""
    kernel_only()
    count = 3000
    notes = []
    for how in ("frozen", "read-only", "writable"):
        mkfs(G.main, "-s", "1G")
        v = Volume(G.main, "/mnt/v", G.driver, "").mount()
        (v / "d").mkdir()
        for i in range(count):
            (v / f"d/file-with-a-name-{i}").touch()
        v.umount()
        # The first copies of tree nodes.
        with open(G.main, "r+b", buffering=0) as f:
            for at in range(16, 20_000):
                head = os.pread(f.fileno(), 64, at * 4096)
                first, second = struct.unpack_from("<QQ", head, 24)
                if head[4:8] == b"VXnd" and first == at and second:
                    os.pwrite(f.fileno(), bytes(b ^ 0x55 for b in head), at * 4096)
        v.mount()
        if how == "frozen":
            ioctl_int(v.dir, FIFREEZE, 0)
        elif how == "read-only":
            v.remount("ro")
        before = figure("healed"), figure("writes")
        try:
            for i in range(0, count, 7):
                (v / f"d/file-with-a-name-{i}").stat()
            time.sleep(0.5)
            healed = figure("healed") - before[0]
            if how == "writable":
                assert healed > 10, f"{healed} copies were written anew: nothing was tested"
            else:
                assert healed == 0 and figure("writes") == before[1], f"{healed} copies were written anew on a {how} volume"
        finally:
            if how == "frozen":
                ioctl_int(v.dir, FITHAW, 0)
        notes.append(f"{how}: {healed}")
        v.umount()
    return "copies written anew: " + ", ".join(notes)


def drop_caches_only():
    """Without sync(2), which blocks on nothing but may write."""
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")


# Trimming.

def trim(path, start=0, length=(1 << 64) - 1, least=0):
    """FITRIM; gives the bytes trimmed."""
    with opened(path) as fd:
        b = bytearray(struct.pack("QQQ", start, length, least))
        fcntl.ioctl(fd, FITRIM, b)
    return struct.unpack("QQQ", b)[1]


@test(quick=True, limit=240)
def test_trim():
    """fstrim: free blocks go back to the device, the bytes reported are those, ranges and refusals are right, data stays"""
    kernel_only()
    image = G.work / "trim.img"
    image.touch()
    os.truncate(image, 512 * MIB)
    loop = run("losetup", "-f", "--show", image).out.strip()
    try:
        mkfs(loop)
        with mounted(loop) as v:
            rng = random.Random(5)
            files = {f"f{i}": rng.randbytes(rng.randrange(1, 600_000)) for i in range(300)}
            for name, data in files.items():
                (v / name).write_bytes(data)
            os.sync()
            used = image.stat().st_blocks * 512
            for name in list(files)[::2]:
                (v / name).unlink()
                del files[name]
            os.sync()
            # What was removed is free for good when two checkpoints have gone by.
            v.again()
            free = os.statvfs(v.dir).f_bfree * 4096
            got = trim(v.dir)
            assert 0.9 * free <= got <= 512 * MIB, f"{got} bytes trimmed of {free} free"
            now = image.stat().st_blocks * 512
            assert used - now > 30 * MIB, f"the device holds {now >> 20} MiB after the trim, {used >> 20} before"
            assert trim(v.dir, least=512 * MIB) == 0
            half = trim(v.dir, 0, 256 * MIB)
            other = trim(v.dir, 256 * MIB)
            assert 0 < half <= 256 * MIB and 0 < other <= 256 * MIB and abs(half + other - got) < 64 * MIB, (half, other, got)
            fails(errno.EINVAL, trim, v.dir, 1 << 40)
            fails(errno.EINVAL, trim, v.dir, 0, 512)
            assert user(1000, lambda: trim(v.dir)) == errno.EPERM
            text = run("fstrim", "-v", v.dir).out
            assert re.search(r"\(\d+ bytes\) trimmed", text), text
            v.again()
            drop_caches()
            for name, data in files.items():
                assert (v / name).read_bytes() == data, f"{name} after the trim"
            v.remount("ro")
            fails(errno.EROFS, trim, v.dir)
        fsck(loop)
    finally:
        run("losetup", "-d", loop, ok=None)
        image.unlink()
    return f"{got >> 20} MiB trimmed of {free >> 20} free; the device gave back {(used - now) >> 20} MiB"


# Shutting down.

@test(quick=True, limit=240, warns=True)
def test_shutdown():
    """FS_IOC_SHUTDOWN, all three kinds: then EIO, unmounting works, what is durable is there"""
    kernel_only()
    notes = []
    for kind, text in ((FULL, "all"), (LOG, "log"), (NOW, "nothing")):
        mkfs()
        v = Volume(G.main, "/mnt/v", G.driver, "").mount()
        for i in range(50):
            write_durably(v / f"durable{i}", bytes([i]) * 9000)
        write_durably(v / "open", b"o" * 8192)
        fd = os.open(v / "open", os.O_RDWR)
        with opened(v / "open", os.O_RDWR) as f:
            shared = mmap.mmap(f, 4096)
        with opened(v.dir) as d:
            os.fsync(d)
        (v / "late").write_bytes(b"l" * 20_000)
        os.rename(v / "durable0", v / "renamed")
        assert user(1000, lambda: ioctl_int(v.dir, SHUTDOWN, NOW)) == errno.EPERM
        fails(errno.EINVAL, ioctl_int, v.dir, SHUTDOWN, 7)
        (v / "still").touch()
        # Two sessions that were opened before; one has a reply that nobody read.
        status = struct.pack("<IHHQIIQ", 32, 1, 16, 1, 0, 0, 0)
        session, waiting = (open(v / ".vexfs", "r+b", buffering=0) for _ in range(2))
        waiting.write(status)
        ioctl_int(v.dir, SHUTDOWN, kind)
        for name, call in {
            "create": (v / "new").touch, "unlink": (v / "durable1").unlink, "write": lambda: os.write(fd, b"x"), "fsync": lambda: os.fsync(fd),
            "read": lambda: os.pread(fd, 10, 0), "rename": lambda: os.rename(v / "durable2", v / "x"), "mkdir": (v / "d").mkdir, "chmod": lambda: os.chmod(v / "durable3", 0o600),
            "readdir": lambda: os.listdir(v.dir), "truncate": lambda: os.ftruncate(fd, 1), "syncfs": lambda: syscall("syncfs", fd), "open": lambda: open(v / "durable4"),
            "setxattr": lambda: os.setxattr(v / "open", "user.x", b"1"), "fallocate": lambda: os.posix_fallocate(fd, 0, 1 << 20), "control file": lambda: open(v / ".vexfs", "r+b"),
            "request": lambda: session.write(status), "reply": lambda: waiting.read(100),
        }.items():
            try:
                call()
            except OSError as e:
                assert e.errno == errno.EIO, f"{name} after the shutdown: {e}"
            else:
                raise AssertionError(f"{name} succeeds after the shutdown")
        # Once more is fine; so is going down while files are open and mapped.
        ioctl_int(v.dir, SHUTDOWN, kind)
        shared.close()
        os.close(fd)
        session.close()
        waiting.close()
        v.umount()
        v.mount()
        for i in range(1, 50):
            assert (v / f"durable{i}").read_bytes() == bytes([i]) * 9000, f"durable{i} after a shutdown that wrote {text}"
        assert (v / "open").read_bytes() == b"o" * 8192
        late = (v / "late").read_bytes() if (v / "late").exists() else None
        moved = (v / "renamed").exists()
        assert moved != (v / "durable0").exists(), "a rename happened by half"
        if kind == FULL:
            assert late == b"l" * 20_000, "data was not written before the shutdown"
        if kind in (FULL, LOG):
            assert late is not None and moved and (v / "still").exists(), "names were not written before the shutdown"
        if kind == NOW:
            assert late is None and not moved and not (v / "still").exists(), "something was written by a shutdown that writes nothing"
        notes.append(f"{text} written: late file {'whole' if late else 'empty' if late == b'' else 'absent'}")
        v.umount()
        fsck()
    # Under load, many times: nothing that was durable is missing.
    mkfs()
    kept, rounds = {}, 4 if G.quick else 40
    for n in range(rounds):
        v = Volume(G.main, "/mnt/v", G.driver, "").mount()
        for name, data in kept.items():
            assert (v / name).read_bytes() == data, f"{name} after {n} shutdowns"
        stop = threading.Event()

        def load(k):
            i = 0
            while not stop.is_set():
                name, data = f"{n}-{k}-{i % 40}-{i}", random.Random(i).randbytes(3000)
                try:
                    (v / name).write_bytes(data)
                    if i % 3 == 0:
                        with opened(v / name, os.O_RDWR) as fd:
                            os.fsync(fd)
                        kept[name] = data
                    elif i % 3 == 1:
                        os.unlink(v / name)
                except OSError as e:
                    assert e.errno == errno.EIO, e
                    return
                i += 1

        threads = [threading.Thread(target=load, args=(k,)) for k in range(4)]
        for t in threads:
            t.start()
        time.sleep(0.4)
        ioctl_int(v.dir, SHUTDOWN, (FULL, LOG, NOW)[n % 3])
        stop.set()
        for t in threads:
            t.join(60)
            assert not t.is_alive(), "a writer hangs after a shutdown"
        v.umount()
    fsck()
    return "; ".join(notes) + f"; {rounds} shutdowns under load, {len(kept)} durable files"


# Handles.

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

@test(quick=True, limit=180)
def test_remount_writable():
    """A mount that began read-only, on a volume that needs recovery, writes after a remount; readers meanwhile notice nothing"""
    kernel_only()
    mkfs()
    v = Volume(G.main, "/mnt/v", G.driver, "").mount()
    (v / "d").mkdir()
    files = {f"f{i}": random.Random(i).randbytes(5000 + i) for i in range(200)}
    for name, data in files.items():
        (v / "d" / name).write_bytes(data)
    held = os.open(v / "d/f0", os.O_RDWR)
    os.unlink(v / "d/f0")
    del files["f0"]
    with opened(v.dir) as fd:
        syscall("syncfs", fd)
    ioctl_int(v.dir, SHUTDOWN, NOW)  # the log has to be replayed
    os.close(held)
    v.umount()
    before = hashlib.sha256(open(G.main, "rb").read(64 << 20)).digest()
    v.options = "ro"
    v.mount()
    replayed = figure("replayed_groups")
    assert replayed > 0 and figure("writes") == 0
    wrong, stop, reads = [], threading.Event(), [0]

    def read():
        rng = random.Random(4)
        while not stop.is_set():
            name = rng.choice(list(files))
            try:
                if (v / "d" / name).read_bytes() != files[name]:
                    wrong.append(f"{name} differs")
                if len(os.listdir(v / "d")) < len(files):
                    wrong.append("a name is missing")
                if reads[0] % 20 == 0:
                    drop_caches_only()
            except OSError as e:
                wrong.append(f"{name}: {e}")
            reads[0] += 1

    threads = [threading.Thread(target=read) for _ in range(3)]
    fd = os.open(v / "d/f1", os.O_RDONLY)
    for t in threads:
        t.start()
    time.sleep(0.5)
    fails(errno.EROFS, (v / "new").touch)
    assert hashlib.sha256(open(G.main, "rb").read(64 << 20)).digest() == before, "a read-only mount wrote"
    v.remount("rw")
    (v / "new").write_bytes(b"written after the remount")
    os.sync()
    time.sleep(0.5)
    stop.set()
    for t in threads:
        t.join(60)
        assert not t.is_alive(), "a reader hangs"
    assert os.pread(fd, 10000, 0) == files["f1"]
    os.close(fd)
    assert not wrong, wrong[:5]
    # Back and forth, with changes in between.
    for i in range(5):
        v.remount("ro")
        fails(errno.EROFS, (v / f"n{i}").touch)
        v.remount("rw")
        (v / f"n{i}").write_bytes(b"n")
    v.umount()
    v.options = ""
    v.mount()
    assert (v / "new").read_bytes() == b"written after the remount" and all((v / f"n{i}").exists() for i in range(5))
    for name, data in files.items():
        assert (v / "d" / name).read_bytes() == data, name
    v.umount()
    fsck()
    return f"{replayed} log groups replayed, {reads[0]} reads around the remount"


@test(quick=True, limit=180)
def test_attributes_under_requests():
    """What chmod says stays, though requests through the control file look the same inodes' attributes up meanwhile"""
    kernel_only()
    from h_power import DIM
    mkfs()
    vex.vexfs("collection", "create", f"{G.main}:/c", "--dim", DIM, "--metric", "l2", "--index", "flat")
    with mounted() as v:
        counts, others = mmap.mmap(-1, 4096), []

        def insert(k):
            c, n = open(v / "c/.vexfs", "r+b", buffering=0), 0
            while True:
                # Not durable: the device would be waited for.
                body = struct.pack("<IIIIQQ", 1, DIM, 1, 0, 0, 1_000_000 * k + n % 1000) + bytes(4 * DIM)
                c.write(struct.pack("<IHHQIIQ", 32 + len(body), 1, 5, n, 0, 0, 0) + body)
                status, = struct.unpack_from("<i", c.read(1 << 16), 16)
                assert status == 0, status
                n += 1
                counts[8 * k:8 * k + 8] = struct.pack("<Q", n)

        for k in range(3):
            pid = os.fork()
            if pid == 0:
                try:
                    insert(k)
                finally:
                    os._exit(1)
            others.append(pid)
        end, changes = time.time() + (6 if G.quick else 60), 0
        try:
            while time.time() < end:
                mode = 0o700 + changes % 64
                os.chmod(v / "c", mode)
                for _ in range(5):
                    got = stat.S_IMODE((v / "c").stat().st_mode)
                    assert got == mode, f"chmod {mode:o} was undone after {changes} changes: {got:o}"
                changes += 1
        finally:
            for pid in others:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
        done = struct.unpack_from("<3Q", counts)
        assert min(done) > 10, done
    fsck()
    return f"{changes} changes of the mode beside {sum(done)} inserts"


@test(quick=True, limit=240)
def test_session_memory():
    """What the control files of a user make the module hold is bounded; root and other users go on"""
    kernel_only()
    mkfs()
    with mounted() as v:
        part = struct.pack("<IHHQIIQ", 64 * MIB, 1, 5, 1, 0, 0, 0) + bytes(16 * MIB - 32)
        status = struct.pack("<IHHQIIQ", 32, 1, 16, 1, 0, 0, 0)

        def ask():
            with open(v / ".vexfs", "r+b", buffering=0) as f:
                f.write(status)
                assert len(f.read(1 << 16)) > 32

        def hold():
            files = []
            try:
                for taken in range(100):
                    files.append(open(v / ".vexfs", "r+b", buffering=0))
                    files[-1].write(part)
            except OSError as e:
                assert e.errno == errno.EBUSY, e
            assert 3 <= taken <= 18, taken
            assert figure("module_bytes") < 400 * MIB
            fails(errno.EBUSY, ask)
            os.write(pipe[1], b"x")
            os.read(back[0], 1)
            for f in files:
                f.close()
            ask()
            raise OSError(taken, "sessions")

        pipe, back = os.pipe(), os.pipe()
        holder = os.fork()
        if holder == 0:
            code = 255
            try:
                os.setgid(1000)
                os.setuid(1000)
                hold()
            except OSError as e:
                code = e.errno
            finally:
                os._exit(code)
        os.close(pipe[1])
        assert os.read(pipe[0], 1) == b"x", f"what one user held: {os.waitstatus_to_exitcode(os.waitpid(holder, 0)[1])}"
        ask()
        assert user(1001, ask) == 0, "another user"
        os.write(back[1], b"x")
        taken = os.waitstatus_to_exitcode(os.waitpid(holder, 0)[1])
        assert 3 <= taken <= 18, taken
    return f"{taken} requests of 16 MiB that were not complete, then EBUSY"


# Not in user-mode Linux: there the interpreter, with its threads, died of signal 11 in two runs of six, at no place that a handler saw.
@test(quick=True, limit=240, kinds=("x86", "debug"))
def test_space_set_aside():
    """What write() accepted finds its space: direct writes, fallocate and names leave what waits in the page cache its blocks"""
    kernel_only()
    rng = random.Random(11)
    piece = rng.randbytes(MIB)
    notes = []
    for n in range(3 if G.quick else 20):
        mkfs(G.main, "-s", "128M")
        with mounted() as v:
            free = os.statvfs(v.dir).f_bavail * 4096
            fd = os.open(v / "waits", os.O_RDWR | os.O_CREAT)
            accepted = 0
            stop, took = threading.Event(), {"direct": 0, "fallocate": 0, "names": 0}

            def until_full(what, f):
                while not stop.is_set():
                    try:
                        f(took[what])
                        took[what] += 1
                    except OSError as e:
                        assert e.errno == errno.ENOSPC, e
                        time.sleep(0.02)

            buffer = mmap.mmap(-1, MIB)
            buffer[:] = piece
            direct = os.open(v / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
            allocated = os.open(v / "allocated", os.O_RDWR | os.O_CREAT)
            jobs = {
                "direct": lambda i: os.pwrite(direct, buffer, i * MIB), "fallocate": lambda i: os.posix_fallocate(allocated, i * 4 * MIB, 4 * MIB),
                "names": lambda i: (v / f"with-a-name-of-some-length-{i}-{'x' * 100}").touch(),
            }
            # Half of it waits before the others begin.
            while accepted < free * (0.3 + 0.2 * (n % 3)):
                accepted += os.write(fd, piece)
            threads = [threading.Thread(target=until_full, args=job) for job in jobs.items()]
            for t in threads:
                t.start()
            full, end = 0, time.time() + 20
            while full < 20 and time.time() < end:
                try:
                    accepted += os.write(fd, piece[accepted % MIB:][:40_000])
                except OSError as e:
                    assert e.errno == errno.ENOSPC, e
                    full += 1
                    time.sleep(0.02)
            stop.set()
            for t in threads:
                t.join(60)
                assert not t.is_alive(), "a writer hangs on a full volume"
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            got = os.pread(fd, accepted + 1, 0)
            want = (piece * (accepted // MIB + 2))[:accepted]
            assert got == want, "what write() accepted is not what is read"
            for f in (fd, direct, allocated):
                os.close(f)
            notes.append(f"{accepted >> 20} MiB beside {took}")
            # A mapping gets no page that has no place: the process is told, and nothing that cannot be written is left behind.
            with open(v / "direct", "ab", buffering=0) as f:
                fails(errno.ENOSPC, lambda: [f.write(piece) for _ in range(200)])
                fails(errno.ENOSPC, lambda: [f.write(b"x" * 4096) for _ in range(500)])
            sparse = os.open(v / "waits", os.O_RDWR)
            os.ftruncate(sparse, accepted + 64 * MIB)

            def touch():
                m = mmap.mmap(sparse, accepted + 64 * MIB)
                for i in range(32 * MIB, 64 * MIB, 65536):
                    m[accepted + i] = 1

            pid = os.fork()
            if pid == 0:
                touch()
                os._exit(0)
            killed = os.waitpid(pid, 0)[1]
            assert killed == 7, f"a mapping on a full volume: status {killed} where SIGBUS is right"
            os.fsync(sparse)
            os.close(sparse)
            os.unlink(v / "allocated")
        fsck()
    return "; ".join(notes)


# Many threads.

@test(quick=True, limit=300)
def test_parallel():
    """No lock is held over I/O: while reads from a slow disk wait, names, files in memory and searches go on; searches run side by side"""
    kernel_only()
    mkfs(G.main, "-s", "1G")
    vex.vexfs("collection", "create", f"{G.main}:/c", "--dim", 32, "--metric", "l2", "--index", "hnsw")
    rng = random.Random(1)
    rows = 1000
    data = b"".join(struct.pack("<i32f", 32, *(rng.gauss(0, 1) for _ in range(32))) for _ in range(rows))
    (G.work / "p.fvecs").write_bytes(data)
    (G.work / "q.fvecs").write_bytes(data[:132 * 20])
    delay = 300  # milliseconds for each read
    slow_disk = lambda ms: f"0 {sectors(G.main)} delay {G.main} 0 {ms} {G.main} 0 0\n"
    m = Mapped(slow_disk(0))
    try:
        with mounted(m.path) as v:
            vex.vexfs("insert", v / "c", "--fvecs", G.work / "p.fvecs")
            for i in range(8):
                (v / f"cold{i}").write_bytes(os.urandom(200_000))
            for i in range(200):
                (v / f"warm{i}").write_bytes(bytes([i]) * 4096)
            v.again()
            vex.vexfs_json("search", v / "c", "--fvecs", G.work / "q.fvecs", "-k", 3)
            warm = [(v / f"warm{i}").read_bytes() for i in range(200)]
            sizes = [(v / f"cold{i}").stat().st_size for i in range(8)]
            m.change(slow_disk(delay))
            spent, stop, errors = {}, threading.Event(), []

            def cold(i):
                # One block after the other, each a request that takes long.
                begin = time.time()
                with opened(v / f"cold{i}", os.O_RDONLY | os.O_DIRECT) as fd:
                    b, n = mmap.mmap(-1, 4096), 0
                    while not stop.is_set():
                        assert os.preadv(fd, [b], n % 40 * 4096) == 4096
                        n += 1
                spent[i] = (time.time() - begin) / n

            readers = [threading.Thread(target=cold, args=(i,)) for i in range(8)]
            for t in readers:
                t.start()
            time.sleep(2 * delay / 1000)

            def timed(name, times, f):
                worst, begin = 0.0, time.time()
                for i in range(times):
                    at = time.time()
                    f(i)
                    worst = max(worst, time.time() - at)
                return name, worst, (time.time() - begin) / times

            def create(i):
                (v / f"new{i}").write_bytes(b"n")

            def look(i):
                assert (v / f"warm{i}").stat().st_size == 4096

            def miss(i):
                assert not (v / f"nothing{i}").exists()

            results = [timed("stat", 200, look), timed("lookup of what is not there", 200, miss), timed("create", 100, create),
                       timed("rename", 50, lambda i: os.rename(v / f"new{i}", v / f"moved{i}")), timed("read from memory", 200, lambda i: (v / f"warm{i}").read_bytes()),
                       timed("search", 5, lambda i: vex.vexfs_json("search", v / "c", "--fvecs", G.work / "q.fvecs", "-k", 3))]
            stop.set()
            for t in readers:
                t.join(60)
                assert not t.is_alive(), "a reader hangs"
            slow = sum(spent.values()) / len(spent)
            assert slow > 0.8 * delay / 1000, f"the disk is not slow: {slow:.3f} s for a read"
            # Eight at once wait no longer than one: the requests are under way together.
            assert slow < 3 * delay / 1000, f"{slow:.3f} s for a read of which the disk takes {delay} ms: they wait for each other"
            for name, worst, mean in results:
                limit = delay / 1000 if name != "search" else None
                assert limit is None or mean < limit / 4, f"{name}: {mean * 1000:.0f} ms on average while reads wait for a slow disk"
            # Searches by many at once: all get on, and on two processors faster than one after the other.
            m.change(slow_disk(0))
            control = [Searcher(v / "c") for _ in range(4)]
            query = struct.pack("<32f", *(rng.gauss(0, 1) for _ in range(32)))
            want = control[0].search(query)
            counts = [0] * 4
            end = time.time() + (2 if G.quick else 10)

            def search(k):
                while time.time() < end:
                    if control[k].search(query) != want:
                        errors.append(f"thread {k} got another answer")
                    counts[k] += 1

            def change():
                i = 0
                while time.time() < end:
                    (v / f"side{i % 10}").write_bytes(b"s" * 100)
                    counts_of_changes[0] += 1
                    i += 1

            counts_of_changes = [0]
            threads = [threading.Thread(target=search, args=(k,)) for k in range(4)] + [threading.Thread(target=change)]
            for t in threads:
                t.start()
            for t in threads:
                t.join(60)
                assert not t.is_alive(), "a search hangs"
            assert not errors, errors[:3]
            assert min(counts) > 0 and min(counts) * 10 > max(counts) and counts_of_changes[0] > 0, f"some got nothing done: {counts}, {counts_of_changes[0]} changes"
            for s in control:
                s.f.close()
            for i, x in enumerate(warm):
                assert (v / f"warm{i}").read_bytes() == x
            assert sizes == [200_000] * 8
        fsck(m.path)
    finally:
        m.remove()
    return (f"reads of {delay} ms, 8 at once: {slow * 1000:.0f} ms each; meanwhile " + ", ".join(f"{n} {mean * 1000:.1f} ms (worst {worst * 1000:.0f})" for n, worst, mean in results)
            + f"; searches of 4 threads: {counts}, beside {counts_of_changes[0]} changes")


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
