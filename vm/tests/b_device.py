# SPDX-License-Identifier: GPL-2.0-only
"""Real block devices: a whole virtio disk, a partition of a SATA disk."""
import hashlib, stat
from vmtest import *


def device_life(dev):
    """Makes a volume on a device, uses it, mounts it again, checks it."""
    mkfs(dev, "-L", "life")
    with mounted(dev) as v:
        assert any(l.split()[:3] == [dev, str(v.dir), {"kernel": "vexfs", "fuse": "fuse.vexfs"}[G.driver]] for l in open("/proc/mounts")), open("/proc/mounts").read()
        total = os.statvfs(v.dir)
        assert 0.9 * size_of(dev) < total.f_blocks * total.f_frsize <= size_of(dev)
        data = os.urandom(3 << 20)
        (v / "big").write_bytes(data)
        os.mkdir(v / "d")
        (v / "d/small").write_bytes(b"small")
        os.setxattr(v / "d/small", "user.colour", b"blue")
        p = vex.run(vex.BIN / "mkfs.vexfs", "-f", dev, ok=None)
        assert p.returncode != 0 and ("mounted" in p.err or "in use" in p.err), f"mkfs.vexfs -f took a mounted device: {p.returncode} {p.err}"
        v.again()
        drop_caches()
        assert (v / "big").read_bytes() == data
        assert (v / "d/small").read_bytes() == b"small" and os.getxattr(v / "d/small", "user.colour") == b"blue"
        v.umount()
        fsck(dev)
        v.mount()
    fsck(dev)


@test(quick=True, limit=180)
def test_virtio_disk():
    """mkfs, mount, write, read after a remount, fsck on the whole virtio disk"""
    device_life(G.main)
    return f"{G.main}, {size_of(G.main) >> 20} MiB"


@test(quick=True, limit=180)
def test_sata_partition():
    """The same on the third partition of a SATA disk"""
    device_life(G.part)
    return f"{G.part}, {size_of(G.part) >> 20} MiB"


@test(quick=True, limit=60)
def test_host_is_shared():
    """The host's root is at /mnt/vexfs_host, read-only"""
    host = pathlib.Path("/mnt/vexfs_host")
    assert (host / str(TOP)[1:] / "DESIGN.md").read_bytes() == (TOP / "DESIGN.md").read_bytes()
    fails(errno.EROFS, (host / "tmp/vexfs-must-not-be").mkdir)


@test(quick=True, limit=120)
def test_mount_options():
    """Mount options are taken, shown in /proc/mounts, changed by a remount; wrong ones are refused"""
    if G.driver != "kernel":
        raise Skip("options of the module")

    def shown(v):
        return next(l.split()[3] for l in open("/proc/mounts") if l.split()[1] == str(v.dir)).split(",")

    mkfs()
    with mounted(options="commit=7,errors=continue,discard") as v:
        options = shown(v)
        for o in ("rw", "commit=7", "errors=continue", "discard"):
            assert o in options, f"{o} is not in {options}"
        (v / "f").write_bytes(b"1")
        v.remount("ro")
        assert "ro" in shown(v)
        fails(errno.EROFS, (v / "g").write_bytes, b"2")
        v.remount("rw,commit=9")
        assert "rw" in shown(v) and "commit=9" in shown(v), shown(v)
        (v / "g").write_bytes(b"2")
        names = list(pathlib.Path("/sys/fs/vexfs").iterdir())
        assert len(names) == 1 and names[0].name == pathlib.Path(G.main).name, names
        figures = {p.name for p in names[0].iterdir()}
        assert figures, "no statistics in /sys/fs/vexfs"
    with mounted(options="ro") as v:
        assert (v / "g").read_bytes() == b"2"
        fails(errno.EROFS, (v / "h").touch)
    before = hashlib.sha256(open(G.main, "rb").read(64 << 20)).digest()
    with mounted(options="ro") as v:
        (v / "g").read_bytes()
    assert hashlib.sha256(open(G.main, "rb").read(64 << 20)).digest() == before, "a read-only mount wrote"
    return ", ".join(sorted(figures))


@test(quick=True, limit=120, warns=True)
def test_refused_mounts():
    """A device without a volume, a damaged one and wrong options are refused, and leave nothing behind"""
    mkfs()
    with mounted() as v:
        (v / "f").write_bytes(b"there")
    with open(G.main, "r+b", buffering=0) as f:
        saved = [(at, os.pread(f.fileno(), 4096, at * 4096)) for at in (16, 17, 1024, 1025)]
        for at, _ in saved:
            os.pwrite(f.fileno(), bytes(4096), at * 4096)
    v = Volume(G.main, "/mnt/v", G.driver, "")
    refused = 0

    def refuse(options=""):
        nonlocal refused
        v.options = options
        try:
            v.mount()
        except AssertionError:
            refused += 1
            return
        v.umount()
        raise AssertionError(f"mounted with options '{options}'" if options else "mounted a device whose superblocks were wiped")

    for _ in range(5):
        refuse()
    with open(G.main, "r+b", buffering=0) as f:
        for at, data in saved:
            os.pwrite(f.fileno(), data, at * 4096)
    if G.driver == "kernel":
        for wrong in ("frobnicate", "commit=x", "errors=never", "commit=-1", "cache=0x"):
            refuse(wrong)
    v.options = ""
    v.mount()
    assert (v / "f").read_bytes() == b"there"
    v.umount()
    fsck()
    return f"{refused} mounts refused"
