# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's NFS server over a volume, and its client, in one guest."""
import ctypes, fcntl, random, select, socket, struct, threading
from i_vfs import NOW, SHUTDOWN, ioctl_int, kernel_only, opened
from j_still import drop_caches_only
from vmtest import *

# Flags of an export: its number is 0, the root of NFS 4; any port; handles without the way to the file in them.
EXPORT = 0x2000 | 0x2 | 0x400
RPC = pathlib.Path("/proc/net/rpc")
NFSD = pathlib.Path("/proc/fs/nfsd")


class Answers(threading.Thread):
    """What rpc.mountd does: the kernel asks who a client is, what it may see, and which path a handle means."""

    CHANNELS = ("auth.unix.ip", "nfsd.export", "nfsd.fh")

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.over = str(path), threading.Event()
        self.fds = {os.open(RPC / c / "channel", os.O_RDWR): c for c in self.CHANNELS}
        self.questions = 0

    def run(self):
        for_ever = 0x7FFFFFFF
        while not self.over.is_set():
            for fd in select.select(list(self.fds), [], [], 0.1)[0]:
                words = os.read(fd, 4096).decode().split()
                if not words:
                    continue
                self.questions += 1
                kind = self.fds[fd]
                if kind == "auth.unix.ip":
                    answer = f"{words[0]} {words[1]} {for_ever} everybody"
                elif kind == "nfsd.export":
                    mine = words[1] == self.path
                    answer = f"{words[0]} {words[1]} {for_ever}" + (f" {EXPORT} 65534 65534 0" if mine else "")
                else:
                    # Type 1: a number.
                    mine = words[1] == "1"
                    answer = f"{words[0]} {words[1]} {words[2]} {for_ever}" + (f" {self.path}" if mine else "")
                os.write(fd, answer.encode() + b"\n")

    def end(self):
        self.over.set()
        self.join()
        for c in self.CHANNELS:
            (RPC / c / "flush").write_text(f"{int(time.time()) + 10}\n")
        for fd in self.fds:
            os.close(fd)


def loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        name = struct.pack("16sH14x", b"lo", 0)
        flags, = struct.unpack_from("16xH", fcntl.ioctl(s, 0x8913, name))
        fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", flags | 1))


@contextlib.contextmanager
def served(v, at):
    """The volume through NFS, mounted at `at`."""
    if not any(l.split()[-1] == "nfsd" for l in open("/proc/filesystems")):
        raise Skip("this kernel has no NFS server (use --uml or --debug)")
    loopback_up()
    run("mount", "-t", "nfsd", "nfsd", NFSD)
    answers = Answers(v.dir)
    answers.start()
    at.mkdir(exist_ok=True)
    try:
        (NFSD / "versions").write_text("-3 +4 +4.1 +4.2\n")
        for name in ("nfsv4leasetime", "nfsv4gracetime"):
            (NFSD / name).write_text("10\n")
        (NFSD / "portlist").write_text("tcp 2049\n")
        (NFSD / "threads").write_text("4\n")
        # Nobody was a client before, so nobody has to be waited for; without a record of clients the server knows that itself.
        if (NFSD / "v4_end_grace").read_text() != "Y\n":
            with contextlib.suppress(OSError):
                (NFSD / "v4_end_grace").write_text("Y\n")
        options = b"vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,sec=sys,actimeo=0,softerr,timeo=50,retrans=2"
        syscall("mount", b"127.0.0.1:/", os.fsencode(at), b"nfs", 0, options)
        try:
            yield answers
        except BaseException:
            # Nothing may wait for a server that is gone.
            subprocess.run(["umount", "-f", "-l", at])
            raise
        run("umount", at, timeout=60)
    finally:
        (NFSD / "threads").write_text("0\n")
        answers.end()
        run("umount", NFSD)


@test(quick=True, limit=300, kinds=("uml", "debug"), warns=True)
def test_nfs():
    """The kernel's NFS server over a volume: files both ways, handles that the cache has forgotten, ESTALE, durable when committed"""
    kernel_only()
    mkfs(G.main, "-s", "512M")
    far = pathlib.Path("/mnt/far")
    count = 60 if G.quick else 400
    files = {f"d{i % 5}/e/f{i}": random.Random(i).randbytes(1 + i * 977 % 60_000) for i in range(count)}
    v = Volume(G.main, "/mnt/v", G.driver, "commit=300").mount()
    with served(v, far) as answers:
        for d in range(5):
            os.makedirs(far / f"d{d}/e")
        for name, data in files.items():
            with open(far / name, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        for name, data in files.items():
            assert (v / name).read_bytes() == data, f"{name}, written by the client, read on the server"
        for d in range(5):
            (v / f"d{d}/near").write_bytes(b"near %d" % d)
        # The server has forgotten everything: it finds files by their handles, and directories by the way up from them.
        held = {name: os.open(far / name, os.O_RDONLY) for name in list(files)[:20]}
        for _ in range(3):
            drop_caches_only()
        for name, fd in held.items():
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(fd, 1 << 20, 0) == files[name], name
        for name, data in files.items():
            assert (far / name).read_bytes() == data, name
        assert {p.name for p in (far / "d1/e").iterdir()} == {n.rsplit("/", 1)[1] for n in files if n.startswith("d1/")}
        assert (far / "d3/near").read_bytes() == b"near 3"
        # Names, links, attributes.
        os.rename(far / "d0/e", far / "d1/moved")
        os.link(far / "d1/near", far / "linked")
        os.symlink("d1/near", far / "pointer")
        os.chmod(far / "linked", 0o640)
        os.utime(far / "linked", ns=(1_000_000_001, 2_000_000_002))
        s, t = (far / "linked").stat(), (v / "d1/near").stat()
        assert (s.st_ino, s.st_mode, s.st_nlink, s.st_mtime_ns) == (t.st_ino, t.st_mode, 2, 2_000_000_002), (s, t)
        assert os.readlink(v / "pointer") == "d1/near" and (v / "d1/moved").is_dir()
        # A rename on the server changes no handle; what is deleted there is stale here, unless a client has it open.
        gone, kept, still = list(files)[32], list(held)[2], list(held)[3]
        looked_up = os.open(far / gone, os.O_PATH)
        os.rename(v / kept, v / "elsewhere")
        os.unlink(v / gone)
        os.unlink(v / still)
        for _ in range(3):
            drop_caches_only()
        os.posix_fadvise(held[kept], 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(held[kept], 1 << 20, 0) == files[kept]
        fails(errno.ESTALE, os.fstat, looked_up)
        os.close(looked_up)
        os.posix_fadvise(held[still], 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(held[still], 1 << 20, 0) == files[still]
        for fd in held.values():
            os.close(fd)
        # The control file is not a name that a client can see, and a lookup of it gives nothing that lives on.
        assert ".vexfs" not in os.listdir(far)
        # What the client was told is durable is so.
        with open(far / "committed", "wb") as f:
            f.write(b"c" * 50_000)
            f.flush()
            os.fsync(f.fileno())
        os.mkdir(far / "made")
        ioctl_int(v.dir, SHUTDOWN, NOW)
    v.umount()
    v.mount()
    assert (v / "committed").read_bytes() == b"c" * 50_000, "what the client was told is durable"
    assert (v / "made").is_dir(), "a directory that the client was told is there"
    v.umount()
    fsck()
    return f"{count} files, {answers.questions} questions of the server answered"
