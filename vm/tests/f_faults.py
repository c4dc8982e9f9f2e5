# SPDX-License-Identifier: GPL-2.0-only
"""Faults of the device and of the allocator under a mounted volume: an error at worst, never a hang or an oops."""
import contextlib, fcntl, random, struct, threading
from vmtest import *


def sectors(dev):
    return size_of(dev) // 512


def dm(*args, table=None, ok=(0,)):
    p = subprocess.run(["dmsetup", "--noudevsync", "--noudevrules", *map(str, args)], input=table, capture_output=True, text=True, timeout=120)
    assert ok is None or p.returncode in ok, f"dmsetup {' '.join(map(str, args))}: {p.stderr.strip()}"
    return p.stdout


class Mapped:
    """A device-mapper device whose table can be changed under what is mounted."""

    def __init__(self, table):
        if not vex.shutil.which("dmsetup"):
            raise Skip("no dmsetup (.ci/need installs it)")
        self.name, self.path = "fault", "/dev/mapper/fault"
        dm("create", self.name, table=table)
        dm("mknodes", ok=None)

    def change(self, table):
        # Without freezing and flushing: a disk does not ask before it fails.
        dm("suspend", "--nolockfs", "--noflush", self.name)
        dm("load", self.name, table=table)
        dm("resume", self.name)

    def message(self, *text):
        # Without dmsetup: hundreds of programs that are started take minutes where the processor is emulated.
        words = " ".join(map(str, text)).encode() + b"\0"
        head = struct.pack("=3I4IiIIQ128s129s7x", 4, 0, 0, 312 + 8 + len(words), 312, 0, 0, 0, 0, 0, 0, self.name.encode(), b"")
        with open("/dev/mapper/control", "r+b", buffering=0) as f:
            fcntl.ioctl(f, 0xC138FD0E, bytearray(head + struct.pack("=Q", 0) + words))  # DM_TARGET_MSG, sector 0

    def remove(self):
        dm("remove", "--retry", self.name)


def linear(dev):
    return f"0 {sectors(dev)} linear {dev} 0\n"


def flakey(dev, *features):
    return f"0 {sectors(dev)} flakey {dev} 0 0 3600 {len(features)} {' '.join(features)}\n"


def durable(path, data):
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def write_until(v, seconds, wrong, prefix="w", during=contextlib.nullcontext):
    """Writes, syncs and deletes files; errors are expected, other exceptions are not. Gives what was durable."""
    rng, kept, errors, n = random.Random(seconds), {}, 0, 0
    end = time.time() + seconds
    while time.time() < end:
        n += 1
        data = rng.randbytes(rng.randrange(1, 100_000))
        try:
            with during():
                durable(v / f"{prefix}{n}", data)
            kept[f"{prefix}{n}"] = data
        except OSError as e:
            if e.errno not in (errno.EIO, errno.EROFS, errno.ENOMEM, errno.ENOSPC, errno.ENODEV, errno.ENXIO):
                wrong.append(f"{errno.errorcode.get(e.errno)}: {e}")
            errors += 1
            time.sleep(0.05)
    return kept, errors


def unmount_whatever(v):
    """Unmounting has to work after any error."""
    p = run("umount", v.dir, ok=None, timeout=120)
    assert p.returncode == 0, f"umount after the faults: {p.err}"


@test(limit=600, quick=True, warns=True)
def test_write_errors():
    """The disk refuses writes for a while (dm-flakey): EIO, then read-only or going on as errors= says; nothing durable is lost"""
    if G.driver != "kernel":
        raise Skip("faults under the module")
    notes = []
    for policy in ("remount-ro", "continue"):
        m = Mapped(linear(G.main))
        mkfs(m.path, "-s", "1G")
        v = Volume(m.path, "/mnt/v", G.driver, f"errors={policy}").mount()
        wrong = []
        kept, errors = write_until(v, 2, wrong)
        assert kept and not errors, f"{errors} errors before there was a fault"
        m.change(flakey(G.main, "error_writes"))
        more, errors = write_until(v, 3, wrong, "x")
        assert errors, "no call failed though no write reached the disk"
        assert not more, f"{len(more)} fsyncs succeeded on a disk that refuses writes"
        read_only = "ro" in next(l.split()[3] for l in open("/proc/mounts") if l.split()[1] == str(v.dir)).split(",")
        assert read_only == (policy == "remount-ro"), f"errors={policy}, and the mount is {'read-only' if read_only else 'writable'}"
        again = 0
        for name, data in kept.items():
            try:
                assert (v / name).read_bytes() == data, f"{name} reads other bytes"
                again += 1
            except OSError as e:
                assert e.errno == errno.EIO, e
        m.change(linear(G.main))
        if policy == "continue":
            try:
                durable(v / "after", b"after")
                kept["after"] = b"after"
            except OSError:
                pass  # a failed commit may need a new mount
        unmount_whatever(v)
        assert not wrong, wrong[:5]
        v.mount()
        for name, data in kept.items():
            assert (v / name).read_bytes() == data, f"{name}, which was durable, is not there after the faults"
        durable(v / "new", b"new")
        v.umount()
        fsck(m.path)
        m.remove()
        notes.append(f"errors={policy}: {errors} calls failed, {'read-only' if read_only else 'writable'}, {len(kept)} durable files there")
    return "; ".join(notes)


@test(limit=600, quick=True, warns=True)
def test_bad_blocks():
    """Blocks that cannot be read (dm-dust): EIO for their file, metadata comes from the other copy"""
    if G.driver != "kernel":
        raise Skip("faults under the module")
    length = sectors(G.main)
    m = Mapped(f"0 {length} dust {G.main} 0 4096\n")
    mkfs(m.path, "-s", "1G")
    v = Volume(m.path, "/mnt/v", G.driver, "").mount()
    files = {f"f{i}": random.Random(i).randbytes(20_000) for i in range(200)}
    for name, data in files.items():
        (v / name).write_bytes(data)
    v.umount()
    # One block in 50 of the used area, never both copies of a thing: the second copies lie elsewhere.
    rng = random.Random(3)
    for block in rng.sample(range(32, 4000), 80):
        m.message("addbadblock", block)
    m.message("enable")
    v.mount()
    whole, failed = 0, 0
    for name, data in files.items():
        try:
            assert (v / name).read_bytes() == data, f"{name} reads other bytes"
            whole += 1
        except OSError as e:
            assert e.errno == errno.EIO, f"{name}: {e}"
            failed += 1
    assert failed > 0, "no bad block was in a file: nothing was tested"
    assert set(os.listdir(v.dir)) == set(files), "names are missing although metadata has two copies"
    m.message("disable")
    unmount_whatever(v)
    v.mount()
    for name, data in files.items():
        assert (v / name).read_bytes() == data, f"{name} after the fault is gone"
    v.umount()
    m.remove()
    fsck()
    return f"{whole} files read, {failed} gave EIO"


@test(limit=300, quick=True, kinds=("x86", "debug"), warns=True)
def test_device_removed():
    """The disk is removed under a mounted volume: calls fail, unmounting works, the module unloads"""
    if G.driver != "kernel":
        raise Skip("faults under the module")
    mkfs(G.part)
    v = Volume(G.part, "/mnt/v", G.driver, "").mount()
    for i in range(50):
        durable(v / f"f{i}", bytes([i]) * 10_000)
    wrong, result = [], {}
    t = threading.Thread(target=lambda: result.update(zip(("kept", "errors"), write_until(v, 4, wrong))))
    t.start()
    time.sleep(1)
    disk = pathlib.Path(G.part).name.rstrip("0123456789")
    host = pathlib.Path(f"/sys/block/{disk}/device").resolve().parts
    scan = pathlib.Path("/sys/class/scsi_host") / next(p for p in host if p.startswith("host")) / "scan"
    pathlib.Path(f"/sys/block/{disk}/device/delete").write_text("1")
    t.join(60)
    assert not t.is_alive(), "a call hangs after the disk was removed"
    assert result["errors"] and not wrong, (result["errors"], wrong[:3])
    unmount_whatever(v)
    unload()
    scan.write_text("- - -")
    end = time.time() + 30
    while not os.path.exists(G.part) and time.time() < end:
        time.sleep(0.1)
    v.mount()
    for i in range(50):
        assert (v / f"f{i}").read_bytes() == bytes([i]) * 10_000
    for name, data in result["kept"].items():
        assert (v / name).read_bytes() == data, f"{name}, which was durable, is gone"
    v.umount()
    fsck(G.part)
    return f"{len(result['kept'])} durable files before, {result['errors']} calls failed after"


def inject(name, probability, **more):
    """Fault injection of the kernel: switched on by writing to debugfs."""
    base = pathlib.Path("/sys/kernel/debug") / name
    if not base.exists():
        raise Skip(f"this kernel has no {name} (use --debug)")
    for key, value in {"interval": 1, "times": -1, "verbose": 0, "task-filter": "N", **more, "probability": probability}.items():
        if (base / key).exists():
            (base / key).write_text(f"{value}\n")


@test(limit=900, kinds=("debug",), warns=True)
def test_io_errors():
    """One request in a hundred fails (fail_make_request): EIO at worst, the volume is right afterwards"""
    mkfs()
    v = Volume(G.main, "/mnt/v", G.driver, "errors=continue").mount()
    for i in range(100):
        durable(v / f"f{i}", bytes([i]) * 10_000)
    switch = pathlib.Path(f"/sys/block/{pathlib.Path(G.main).name}/make-it-fail")
    wrong = []
    inject("fail_make_request", 1)
    switch.write_text("1")
    try:
        kept, errors = write_until(v, 10, wrong)
    finally:
        switch.write_text("0")
        inject("fail_make_request", 0)
    unmount_whatever(v)
    assert not wrong, wrong[:5]
    assert errors > 0, "no call failed: nothing was tested"
    v.mount()
    for name, data in [*kept.items(), *((f"f{i}", bytes([i]) * 10_000) for i in range(100))]:
        assert (v / name).read_bytes() == data, f"{name}, which was durable, is not there"
    v.umount()
    fsck()
    return f"{errors} calls failed, {len(kept)} succeeded"


class failing_allocations:
    """Allocations for this task fail, as the injection says; only its own, or the guest would not live long."""

    def __enter__(self):
        self.fd = os.open("/proc/thread-self/make-it-fail", os.O_WRONLY)
        os.pwrite(self.fd, b"1", 0)

    def __exit__(self, *_):
        os.pwrite(self.fd, b"0", 0)
        os.close(self.fd)


@test(limit=1200, kinds=("debug",), warns=True)
def test_no_memory():
    """One allocation in a hundred fails (failslab, fail_page_alloc) under a mixed load: ENOMEM at worst, fsck clean"""
    from h_power import DIM, Collection
    mkfs()
    vex.vexfs("collection", "create", f"{G.main}:/c", "--dim", DIM, "--metric", "l2", "--index", "hnsw")
    v = Volume(G.main, "/mnt/v", G.driver, "").mount()
    wrong, inserted, refused = [], 0, 0
    for name in ("failslab", "fail_page_alloc"):
        inject(name, 1, **{"task-filter": "Y", "ignore-gfp-wait": "N", "ignore-gfp-highmem": "N"})
    try:
        kept, errors = write_until(v, 15, wrong, during=failing_allocations)
        c = Collection(v / "c")
        for i in range(300):
            try:
                with failing_allocations():
                    c.insert([i])
                inserted += 1
            except (OSError, struct.error) as e:
                refused += 1
                if isinstance(e, OSError) and e.errno not in (errno.ENOMEM, errno.EIO, errno.EROFS):
                    wrong.append(str(e))
                c.f.close()
                c = Collection(v / "c")
        c.f.close()
    finally:
        for name in ("failslab", "fail_page_alloc"):
            inject(name, 0)
    unmount_whatever(v)
    assert not wrong, wrong[:5]
    assert errors + refused, "no call failed: nothing was tested"
    v.mount()
    for name, data in kept.items():
        assert (v / name).read_bytes() == data, f"{name}, which was durable, is not there"
    v.umount()
    fsck()
    return f"{len(kept)} files and {inserted} inserts succeeded, {errors} and {refused} failed"


# Ways in which a mount can go wrong; each leaves nothing mounted. The device has a volume when they are called.

FS_IOC_SHUTDOWN = 0x8004587D


def refused(v, device=None, options=""):
    p = run("mount", "-t", "vexfs", *(["-o", options] if options else []), device or v.dev, v.dir, ok=None, timeout=120)
    if p.returncode == 0:
        run("umount", v.dir)
        raise AssertionError(f"mounted {device or v.dev} with options '{options}'")


def goes_wrong_options(m, v, rng):
    refused(v, options=rng.choice(("frobnicate", "commit=", "errors=perhaps", "cache=1Q")))


def goes_wrong_no_device(m, v, rng):
    refused(v, device=rng.choice(("none", "/dev/null", "/dev/not-there", G.work)))


def goes_wrong_superblocks(m, v, rng):
    with open(m.path, "r+b", buffering=0) as f:
        for at in (16, 17, 1024, 1025):
            os.pwrite(f.fileno(), rng.choice((bytes(4096), rng.randbytes(4096))), at * 4096)
    refused(v)


def goes_wrong_metadata(m, v, rng):
    """Everything but the superblocks is damaged: a mount fails, late, or the volume is of little use."""
    with open(m.path, "r+b", buffering=0) as f:
        for at in range(32, 6000):
            if at not in (1024, 1025):
                head = os.pread(f.fileno(), 64, at * 4096)
                if any(head):
                    os.pwrite(f.fileno(), bytes(b ^ 0x55 for b in head), at * 4096)
    p = run("mount", "-t", "vexfs", v.dev, v.dir, ok=None, timeout=120)
    if p.returncode == 0:
        for call in (lambda: os.listdir(v.dir), lambda: durable(v / "f", b"f")):
            try:
                call()
            except OSError:
                pass
        unmount_whatever(v)


def goes_wrong_unreadable(m, v, rng):
    m.change(f"0 {sectors(G.spare)} error\n")
    refused(v)
    m.change(linear(G.spare))


def goes_wrong_halfway(m, v, rng):
    """The device fails while a mount reads, here or there."""
    m.change(f"0 {8 * rng.randrange(17, 3000)} linear {G.spare} 0\n")
    p = run("mount", "-t", "vexfs", v.dev, v.dir, ok=None, timeout=120)
    if p.returncode == 0:
        unmount_whatever(v)
    m.change(linear(G.spare))


def goes_wrong_writes(m, v, rng):
    v.mount()
    durable(v / "before", b"before")
    m.change(flakey(G.spare, "error_writes"))
    try:
        durable(v / "f", rng.randbytes(50_000))
        raise AssertionError("fsync succeeded on a disk that refuses writes")
    except OSError:
        pass
    m.change(linear(G.spare))
    unmount_whatever(v)


def goes_wrong_everything(m, v, rng):
    v.mount()
    for i in range(20):
        (v / f"f{i}").write_bytes(bytes([i]) * rng.randrange(100_000))
    m.change(f"0 {sectors(G.spare)} error\n")
    for call in (lambda: os.sync(), lambda: os.listdir(v.dir), lambda: (v / "f3").read_bytes(), lambda: durable(v / "g", b"g")):
        try:
            call()
        except OSError:
            pass
    unmount_whatever(v)
    m.change(linear(G.spare))


def goes_wrong_shutdown(m, v, rng):
    v.mount()
    (v / "f").write_bytes(rng.randbytes(rng.randrange(1, 100_000)))
    d = os.open(v.dir, os.O_RDONLY)
    fcntl.ioctl(d, FS_IOC_SHUTDOWN, struct.pack("<I", rng.randrange(3)))
    os.close(d)
    fails(errno.EIO, durable, v / "g", b"g")
    unmount_whatever(v)


def goes_wrong_busy(m, v, rng):
    v.mount()
    f = open(v / "f", "wb")
    assert run("umount", v.dir, ok=None).returncode, "a file is open, and yet it was unmounted"
    assert run("rmmod", "vexfs", ok=None).returncode, "it is mounted, and yet the module was unloaded"
    if rng.random() < 0.5:
        run("umount", "-l", v.dir)
        f.write(rng.randbytes(10_000))
        f.close()
    else:
        f.close()
        run("umount", v.dir)


def goes_wrong_session(m, v, rng):
    """Half a request, and an unread reply, when the last file is closed."""
    v.mount()
    vex.vexfs("collection", "create", v / "c", "--dim", 4, "--metric", "l2", "--index", "hnsw")
    with open(v / "c/.vexfs", "r+b", buffering=0) as f:
        f.write(struct.pack("<IHHQIIQ", 32 + 8, 1, 999, 1, 1, 0, 0) + bytes(8))
        f.write(struct.pack("<IHHQIIQ", 32 + 1000, 1, 5, 1, 1, 0, 0) + bytes(rng.randrange(900)))
        run("umount", "-l", v.dir)


def goes_wrong_read_only(m, v, rng):
    v.mount()
    (v / "f").write_bytes(b"f")
    v.remount("ro")
    fails(errno.EROFS, (v / "g").touch)
    refused(v, options="rw,errors=perhaps")
    run("umount", v.dir)


@test(limit=1200, quick=True, warns=True)
def test_unload_after_errors():
    """Any sequence of refused and failed mounts, errors, shutdowns: the module unloads after it and has given everything back"""
    if G.driver != "kernel":
        raise Skip("faults under the module")
    from a_module import Unloads
    ways = [f for name, f in globals().items() if name.startswith("goes_wrong_")]
    rng = random.Random(5)
    m = Mapped(linear(G.spare))
    unloads = Unloads()
    steps, sequences, seen = 0, 4 if G.quick else 40, set()
    for n in range(sequences):
        load()
        v = Volume(m.path, "/mnt/v", G.driver, "")
        v.dir.mkdir(parents=True, exist_ok=True)
        # Each way comes in each few sequences, in any order.
        left = [w for w in ways if w not in seen] or ways
        chosen = rng.sample(left, min(len(left), 3)) + rng.sample(ways, 2)
        rng.shuffle(chosen)
        for f in chosen:
            mkfs(m.path, "-s", "64M")
            try:
                f(m, v, rng)
            except BaseException as e:
                raise AssertionError(f"sequence {n}, {f.__name__.removeprefix('goes_wrong_')} of {[g.__name__.removeprefix('goes_wrong_') for g in chosen]}: {type(e).__name__}: {e}")
            seen.add(f)
            steps += 1
        # What is closed last may be put away a moment later.
        end = time.time() + 10
        while run("rmmod", "vexfs", ok=None).returncode:
            assert time.time() < end, f"the module does not unload after {[f.__name__.removeprefix('goes_wrong_') for f in chosen]}"
            time.sleep(0.05)
        unloads.clean()
    m.remove()
    assert G.quick or seen == set(ways)
    return f"{sequences} sequences of {steps} errors of {len(seen)} kinds; unloaded after each, 0 bytes and slab objects left"
