# SPDX-License-Identifier: GPL-2.0-only
"""Holding still: stable pages, freezing, trimming, shutting down."""
import fcntl, hashlib, mmap, random, struct, threading
from f_faults import Mapped, sectors
from i_vfs import FIFREEZE, FITHAW, FITRIM, FULL, LOG, MIB, NOW, SHUTDOWN, figure, ioctl_int, kernel_only, opened, read_direct, user, write_durably
from vmtest import *


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
