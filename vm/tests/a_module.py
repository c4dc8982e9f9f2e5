# SPDX-License-Identifier: GPL-2.0-only
"""Loading and unloading."""
import statistics
from vmtest import *


def slab_objects():
    """Active objects in each of the module's slab caches."""
    return {l.split()[0]: int(l.split()[1]) for l in open("/proc/slabinfo").read().splitlines() if l.startswith("vexfs")}


class Unloads:
    """What the module says when it goes: it counts the bytes that it has allocated, and speaks if they are not zero."""

    def __init__(self):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.fd, 0, os.SEEK_END)

    def clean(self):
        """Fails if an unload since the last call left something."""
        while True:
            try:
                text = os.read(self.fd, 8192).decode(errors="replace")
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue
            assert "were not given back" not in text, text.split(";", 1)[1].split("\n")[0]
        left = slab_objects()
        assert not left, f"slab caches are left: {left}"


def available():
    """MemAvailable in KiB, and the free pages that each CPU keeps for itself, which it does not count: a guest in which nothing but
    `true` ran seemed to lose 80 KiB a cycle to them."""
    kept = re.findall(r"^ +count: +(\d+)", open("/proc/zoneinfo").read(), re.M)
    return meminfo("MemAvailable") + 4 * sum(map(int, kept))


def slope(points):
    """Median of the slopes between all pairs of (x, y): a leak shows in all of them, a single step of a cache does not
    (least squares over a machine that does nothing at all gave 7 KiB a cycle)."""
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for n, a in enumerate(points) for b in points[n + 1:])


@test(limit=120, quick=True, disk=False)
def test_load():
    """The module loads, is seen where the kernel shows modules and filesystems, and unloads without a trace"""
    assert "vexfs" not in filesystems() and not loaded()
    load()
    assert loaded(), "not in /proc/modules"
    assert pathlib.Path("/sys/module/vexfs").is_dir(), "not in /sys/module"
    kinds = filesystems()
    assert "vexfs" in kinds, "not in /proc/filesystems"
    assert kinds["vexfs"], "it is nodev in /proc/filesystems: a filesystem for block devices must not be"
    size = int(next(l for l in open("/proc/modules") if l.startswith("vexfs ")).split()[1])
    info = run("modinfo", G.module).out
    for field in ("license:", "author:", "description:", "version:", "alias:"):
        assert field in info, f"modinfo shows no {field[:-1]}"
    assert "fs-vexfs" in info, "no alias fs-vexfs"
    unload()
    assert not loaded() and "vexfs" not in filesystems() and not pathlib.Path("/sys/module/vexfs").exists()
    assert not slab_objects(), f"slab caches are left: {slab_objects()}"
    return f"{size} bytes of module"


def small_life(n):
    """mkfs, mount, files, vectors, search, unmount."""
    mkfs(G.spare, "-s", "256M")
    with mounted(G.spare) as v:
        os.makedirs(v / "a/b")
        for i in range(20):
            (v / f"a/b/file{i}").write_bytes(bytes([i]) * (1000 * i))
        vex.vexfs("collection", "create", v / "c", "--dim", 8, "--metric", "l2", "--index", "hnsw")
        rows = [[float((7 * i + j) % 31) for j in range(8)] for i in range(100)]
        vex.write_npy(G.work / "life.npy", 100, 8, [x for r in rows for x in r])
        vex.vexfs("insert", v / "c", "--npy", G.work / "life.npy")
        got = vex.vexfs_json("search", v / "c", "--vector", ",".join(map(str, rows[n % 31])), "-k", 1)[0]["results"]
        assert got[0]["distance"] == 0, got
        for i in range(20):
            assert (v / f"a/b/file{i}").read_bytes() == bytes([i]) * (1000 * i)
        os.unlink(v / "a/b/file3")
        # What must be zero after the unload is not now: the look at it can fail.
        assert slab_objects().get("vexfs_inode", 0) > 0, slab_objects()
        if G.driver == "kernel":
            assert int((pathlib.Path("/sys/fs/vexfs") / pathlib.Path(G.spare).name / "module_bytes").read_text()) > 0


@test(limit=900, quick=True)
def test_load_unload_cycles():
    """120 cycles of loading and unloading, each tenth with a volume's small life; memory must not go"""
    cycles = 30 if G.quick else 120
    free = []
    unloads = Unloads()
    begin = time.time()
    for n in range(1, cycles + 1):
        load()
        if n % 10 == 0:
            small_life(n)
        unload()
        assert "vexfs" not in filesystems()
        unloads.clean()
        if n >= 20 and n % 2 == 0:
            drop_caches()
            free.append((n, available()))
    drop_caches()
    unloads.clean()
    lost = -slope(free) if len(free) > 2 else 0.0
    # A short run says nothing about the slope: what the first cycles leave in caches weighs more.
    assert lost < 4 or cycles < 120, f"MemAvailable falls by {lost:.1f} KiB a cycle"
    return f"{cycles} cycles in {time.time() - begin:.0f} s, MemAvailable changes by {-lost:+.2f} KiB a cycle; bytes and slab objects of the module after each: 0"


@test(limit=1500, quick=True, kinds=("debug",))
def test_kmemleak():
    """20 cycles of loading, with volumes, and unloading: kmemleak finds nothing"""
    leaks = pathlib.Path("/sys/kernel/debug/kmemleak")
    if not leaks.exists():
        raise Skip("this kernel has no kmemleak (use --debug)")
    # What the kernel itself lost before is not the module's.
    leaks.write_text("scan")
    leaks.write_text("clear")
    unloads = Unloads()
    for n in range(1, 21):
        load()
        if n % 5 == 0:
            small_life(n)
        unload()
        unloads.clean()
    drop_caches()
    for _ in range(2):
        time.sleep(6)  # younger objects are not reported
        leaks.write_text("scan")
    found = leaks.read_text()
    assert not found, f"{found.count('unreferenced object')} objects: {found[:1500]}"
    return "20 cycles, 4 of them with a volume; two scans: no unreferenced object"


@test(limit=240, quick=True)
def test_autoload():
    """mount -t vexfs loads the module by itself from where `make install` puts it"""
    if G.driver != "kernel":
        raise Skip("the module's own")
    release = os.uname().release
    modules = pathlib.Path("/lib/modules") / release
    (modules / "updates").mkdir(parents=True)
    (modules / "updates/vexfs.ko").write_bytes(pathlib.Path(G.module).read_bytes())
    run("depmod", "-a", release)
    # The kernel calls modprobe in the root that it booted with; this one's is elsewhere in it.
    helper = G.work / "modprobe"
    helper.parent.mkdir(parents=True, exist_ok=True)
    root = {"uml": "/mnt/root"}.get(G.kind, "/lay/root")
    helper.write_text(f'#!/bin/busybox sh\nexec /bin/busybox chroot {root} /sbin/modprobe "$@"\n')
    helper.chmod(0o755)
    setting = pathlib.Path("/proc/sys/kernel/modprobe")
    before = setting.read_text()
    mkfs(G.spare, "-s", "64M")
    try:
        unload()
        setting.write_text(f"{root}{helper}\n")
        directory = pathlib.Path("/mnt/v")
        directory.mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "vexfs", G.spare, directory)
        assert loaded()
        (directory / "f").write_bytes(b"f")
        run("umount", directory)
        # And by its name.
        run("modprobe", "-r", "vexfs")
        assert not loaded()
        run("modprobe", "vexfs")
        assert loaded()
        unload()
    finally:
        setting.write_text(before)
        vex.shutil.rmtree(modules)
    return f"loaded from {modules}/updates"


@test(limit=120, disk=False, kinds=("x86",))
def test_packaging():
    """`make` and `make install` of kmod/ as its README says; a kernel without Rust is refused in clear words (on the host)"""


def packaged(run):
    import packaging
    return packaging.check(run.kind)


TESTS[-1].after = packaged


@test(limit=120, quick=True, disk=False, kinds=("x86", "uml"))
def test_without_root():
    """A user without any rights runs tests with the kernel and the module that are there (on the host)"""


def without_root(run):
    if os.geteuid():
        raise Skip("this run has no root rights itself, and shows it")
    import unprivileged
    return unprivileged.check(run.kind, run.module, run.bin)


TESTS[-1].after = without_root
