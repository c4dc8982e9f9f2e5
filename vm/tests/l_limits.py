# SPDX-License-Identifier: GPL-2.0-only
"""What mount options and limits do, seen from outside: memory that is asked back, the age of changes, discarding, panic; a server."""
import ctypes, random, struct, threading
from f_faults import Mapped, flakey, linear
from i_vfs import MIB, NOW, SHUTDOWN, figure, ioctl_int, kernel_only
from j_still import drop_caches_only
from vmtest import *


def many_names(v, count):
    """So many files in a directory, whose tree nodes stay in memory as long as they may."""
    (v / "d").mkdir()
    for i in range(count):
        (v / f"d/file-with-a-name-of-some-length-{i}").touch()
    os.sync()


@test(quick=True, limit=240)
def test_shrinker():
    """Memory that the kernel asks back is given: tree nodes go, and everything is still there"""
    kernel_only()
    count = 4000 if G.quick else 40_000
    mkfs()
    with mounted() as v:
        many_names(v, count)
        v.again()
        names = os.listdir(v / "d")
        for name in names:
            (v / "d" / name).lstat()
        full, bytes_full = figure("cached_nodes"), figure("module_bytes")
        assert full > count // 40, f"{full} nodes in memory after {count} names were read: too few to see anything"
        # Only slabs: it is the shrinker that is asked.
        for _ in range(3):
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("2\n")
        left, bytes_left = figure("cached_nodes"), figure("module_bytes")
        assert left < full / 10, f"{left} of {full} nodes are still in memory"
        assert bytes_full - bytes_left > (full - left) * 3000, f"{bytes_full - bytes_left} bytes came back with {full - left} nodes"
        reads = figure("reads")
        assert sorted(os.listdir(v / "d")) == sorted(names)
        for name in names[::7]:
            assert (v / "d" / name).lstat().st_size == 0
        assert figure("reads") > reads, "nothing was read again: the nodes had not gone"
        # What is not yet on the device cannot be given.
        for i in range(200):
            (v / f"new{i}").touch()
        for _ in range(3):
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("2\n")
        assert sum((v / f"new{i}").exists() for i in range(200)) == 200
        v.again()
        assert sum((v / f"new{i}").exists() for i in range(200)) == 200
    fsck()
    return f"{full} nodes ({bytes_full >> 10} KiB), asked back: {left} ({bytes_left >> 10} KiB)"


@test(quick=True, limit=240)
def test_memory_pressure():
    """Processes that fill the memory get it from the module's cache, not from the out-of-memory killer"""
    kernel_only()
    count = 2500 if G.quick else 40_000
    mkfs()
    with mounted() as v:
        many_names(v, count)
        v.again()
        for name in os.listdir(v / "d"):
            (v / "d" / name).lstat()
        full = figure("cached_nodes")
        assert full > count // 40, full
        # The kernel is told to keep 128 MiB free, and a tmpfs, whose pages can go nowhere as there is no swap, takes what is more: so it looks
        # for memory in all caches, and yet no allocation fails.
        keep = 128 << 10
        setting = pathlib.Path("/proc/sys/vm/min_free_kbytes")
        before = setting.read_text()
        hog = pathlib.Path("/mnt/hog")
        hog.mkdir(exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", "size=100%", "tmpfs", hog)
        try:
            setting.write_text(f"{keep}\n")
            held, end, block = 0, time.time() + 120, bytes(MIB)
            with open(hog / "f", "wb", buffering=0) as f:
                while figure("cached_nodes") > full / 2 and time.time() < end:
                    # Half of what is too much, and so on, MiB by MiB at the end.
                    spare = int(meminfo("MemFree") - keep * 1.08) >> 10
                    for _ in range(-(-spare // 2)):
                        f.write(block)
                        held += 1
                    if spare <= 0:
                        time.sleep(0.01)
            left, free = figure("cached_nodes"), meminfo("MemFree")
        finally:
            setting.write_text(before)
            run("umount", hog)
        assert left <= full / 2, f"{left} of {full} nodes are in memory while {held} MiB are held and {free >> 10} MiB are free"
        assert len(os.listdir(v / "d")) == count
    fsck()
    return f"{held} MiB taken: {left} of {full} nodes left"


@test(quick=True, limit=240)
def test_cache_option():
    """cache= bounds the tree nodes in memory, also when a remount changes it"""
    kernel_only()
    count = 4000 if G.quick else 40_000
    mkfs()
    with mounted() as v:
        many_names(v, count)
    seen = {}

    def walk(v):
        for name in os.listdir(v / "d"):
            (v / "d" / name).lstat()
        return figure("cached_nodes")

    with mounted(options="cache=64M") as v:
        seen["64M"] = walk(v)
        # A smaller cache: what is too much goes at the next step.
        v.remount("cache=1M")
        (v / "d").stat()
        (v / "touched").touch()
        end = time.time() + 20
        while figure("cached_nodes") * 4096 > 2 * MIB and time.time() < end:
            time.sleep(0.1)
        seen["64M, then 1M"] = figure("cached_nodes")
    with mounted(options="cache=1M") as v:
        seen["1M"] = walk(v)
    assert seen["64M"] * 4096 > 1.2 * MIB, f"{seen}: the whole tree is not larger than the small cache"
    for name in ("1M", "64M, then 1M"):
        # Nodes that a step uses stay while it does, so a little more.
        assert seen[name] * 4096 <= 1.25 * MIB, f"cache={name}: {seen[name]} nodes, which is {seen[name] * 4 >> 10} MiB"
    fsck()
    return ", ".join(f"cache={k}: {n} nodes" for k, n in seen.items())


@test(quick=True, limit=240, warns=True)
def test_commit_option():
    """commit=: a change that nobody syncs is durable after so many seconds, and not long before"""
    kernel_only()
    found = {}
    for seconds, wait in ((1, 4.5), (60, 4.5)):
        mkfs(G.spare, "-s", "128M")
        v = Volume(G.spare, "/mnt/v", G.driver, f"commit={seconds}").mount()
        (v / "early").touch()
        with open(v / "early", "rb") as f:
            os.fsync(f.fileno())
        (v / "late").mkdir()
        time.sleep(wait)
        # As if the power went: nothing more is written.
        ioctl_int(v.dir, SHUTDOWN, NOW)
        v.umount()
        v.mount()
        assert (v / "early").exists()
        found[seconds] = (v / "late").exists()
        v.umount()
        fsck(G.spare)
    assert found == {1: True, 60: False}, f"{wait} s after mkdir, with commit= of so many seconds, it was durable: {found}"
    return f"{wait} s after a mkdir it was durable with commit=1 and not with commit=60"


@test(quick=True, limit=240)
def test_discard_option():
    """discard: space of deleted files goes back to the device by itself; without the option it does not"""
    kernel_only()
    notes = []
    for option in ("discard=1", "nodiscard"):
        image = G.work / "discard.img"
        image.touch()
        os.truncate(image, 512 * MIB)
        loop = run("losetup", "-f", "--show", image).out.strip()
        used = lambda: image.stat().st_blocks * 512
        try:
            mkfs(loop)
            with mounted(loop, options=f"{option},commit=1") as v:
                rng = random.Random(3)
                kept = rng.randbytes(3 * MIB)
                (v / "kept").write_bytes(kept)
                for i in range(8):
                    (v / f"f{i}").write_bytes(rng.randbytes(6 * MIB))
                os.sync()
                full = used()
                assert full > 50 * MIB, full
                for i in range(8):
                    (v / f"f{i}").unlink()
                os.sync()
                # Each change after which a commit is due lets it look for free space.
                end, n, least = time.time() + (40 if option != "nodiscard" else 8), 0, full
                while time.time() < end and least > full - 40 * MIB:
                    (v / f"change{n % 2}").write_bytes(bytes([n & 255]) * 5000)
                    n += 1
                    run("sync", "-f", v.dir)
                    time.sleep(0.3)
                    least = min(least, used())
                shown = next(l.split()[3] for l in open("/proc/mounts") if l.split()[1] == str(v.dir)).split(",")
                assert ("discard=1" in shown) == (option == "discard=1"), shown
                drop_caches()
                assert (v / "kept").read_bytes() == kept
            if option == "nodiscard":
                assert least > full - 10 * MIB, f"without the option {(full - least) >> 20} MiB were discarded"
            else:
                assert least <= full - 40 * MIB, f"the device holds {least >> 20} MiB of {full >> 20} after 48 MiB were deleted and {n} commits"
            fsck(loop)
        finally:
            run("losetup", "-d", loop, ok=None)
            image.unlink()
        notes.append(f"{option}: {full >> 20} MiB, then {least >> 20}")
    return "; ".join(notes)


@test(quick=True, limit=120, warns=True)
def test_errors_of_nobody():
    """A commit for which nobody waits fails: errors=remount-ro makes the mount read-only without another call"""
    kernel_only()
    notes = []
    for policy in ("remount-ro", "continue"):
        m = Mapped(linear(G.spare))
        mkfs(m.path, "-s", "64M")
        v = Volume(m.path, "/mnt/v", G.driver, f"errors={policy},commit=1").mount()
        (v / "durable").touch()
        os.sync()
        m.change(flakey(G.spare, "error_writes"))
        (v / "lost").mkdir()
        # The only mount that there is; device mapper's names are other ones than the kernel's.
        state, = pathlib.Path("/sys/fs/vexfs").glob("*/state")
        end = time.time() + 15
        while state.read_text() != "aborted\n" and time.time() < end:
            time.sleep(0.1)
        assert state.read_text() == "aborted\n", "no commit failed on a disk that refuses writes"
        time.sleep(1)
        # Only looked at: nothing is called that would be refused.
        shown = next(l.split()[3] for l in open("/proc/mounts") if l.split()[1] == str(v.dir)).split(",")
        assert ("ro" in shown) == (policy == "remount-ro"), f"errors={policy}, and the mount is {shown}"
        fails(errno.EROFS if policy == "remount-ro" else errno.EIO, (v / "more").mkdir)
        m.change(linear(G.spare))
        v.umount()
        v.mount()
        assert os.listdir(v.dir) == ["durable"], os.listdir(v.dir)
        v.umount()
        fsck(m.path)
        notes.append(f"errors={policy}: {shown[0]}")
        m.remove()
    return "; ".join(notes)


@test(quick=True, limit=120, warns=True, machine={"stops": True}, panics="Kernel panic - not syncing: vexfs", after=lambda run: stopped(run))
def test_errors_panic():
    """errors=panic: a failed write stops the machine, and what was durable is on the disk"""
    kernel_only()
    m = Mapped(linear(G.spare))
    mkfs(m.path, "-s", "64M")
    v = Volume(m.path, "/mnt/v", G.driver, "errors=panic").mount()
    with open(v / "durable", "wb") as f:
        f.write(b"d" * 10_000)
        f.flush()
        os.fsync(f.fileno())
    m.change(flakey(G.spare, "error_writes"))
    (v / "lost").mkdir()
    with contextlib.suppress(OSError):
        os.sync()
    # Whoever calls may be a moment faster than the machine.
    time.sleep(5)
    raise AssertionError("the machine goes on after a commit that failed")


def stopped(run):
    """On the host, when the guest has gone."""
    vex.BIN = pathlib.Path(run.bin)
    image = run.folder / "spare"
    vex.fsck(image, "-n")
    got = subprocess.run([vex.BIN / "vexfs", "cat", f"{image}:/durable"], capture_output=True)
    assert got.stdout == b"d" * 10_000, f"the durable file after the panic: {got.returncode}, {len(got.stdout)} bytes, {got.stderr.decode()[-300:]}"
    names = vex.vexfs("ls", f"{image}:/").out.split()
    return f"the disk holds {', '.join(names)} and is clean"


@test(quick=True, limit=180, kinds=("uml", "debug"))
def test_accounting():
    """What a request makes the module hold counts for the control group of who sends it; at its limit it gets ENOMEM"""
    kernel_only()
    groups = pathlib.Path("/mnt/groups")
    groups.mkdir(exist_ok=True)
    run("mount", "-t", "cgroup2", "none", groups)
    mkfs()
    notes = []
    try:
        (groups / "cgroup.subtree_control").write_text("+memory\n")
        group = groups / "vexfs"
        group.mkdir()
        with mounted() as v:
            # A request of 64 MiB of which 40 are sent.
            head = struct.pack("<IHHQIIQ", 64 * MIB, 1, 5, 1, 0, 0, 0)
            for limit in ("max", str(24 * MIB)):
                (group / "memory.max").write_text(limit + "\n")
                ready, more = os.pipe(), os.pipe()
                pid = os.fork()
                if pid == 0:
                    code = 255
                    try:
                        (group / "cgroup.procs").write_text(f"{os.getpid()}\n")
                        piece = bytes(MIB)
                        with open(v / ".vexfs", "r+b", buffering=0) as f:
                            f.write(head)
                            for _ in range(40):
                                f.write(piece)
                            os.write(ready[1], b"x")
                            os.read(more[0], 1)
                        code = 0
                    except OSError as e:
                        code = e.errno
                    finally:
                        os._exit(code)
                os.close(ready[1])
                sent = os.read(ready[0], 1) == b"x"
                held = int((group / "memory.current").read_text())
                os.write(more[1], b"x")
                status = os.waitpid(pid, 0)[1]
                for fd in (ready[0], *more):
                    os.close(fd)
                if limit == "max":
                    assert sent and status == 0, status
                    assert 40 * MIB <= held < 200 * MIB, f"the group is charged {held >> 20} MiB for a process that made the module hold 40 or more"
                    notes.append(f"{held >> 20} MiB charged")
                else:
                    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == errno.ENOMEM, f"at a limit of {int(limit) >> 20} MiB the process ended with status {status:#x}"
                    notes.append(f"ENOMEM at {int(limit) >> 20} MiB")
                end = time.time() + 20
                while int((group / "memory.current").read_text()) > 16 * MIB and time.time() < end:
                    time.sleep(0.1)
            left = int((group / "memory.current").read_text())
            assert left < 16 * MIB, f"{left >> 20} MiB are still charged when the process has gone"
        group.rmdir()
    finally:
        run("umount", "-l", groups, ok=None)
    fsck()
    return ", ".join(notes)
