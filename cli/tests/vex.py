# SPDX-License-Identifier: GPL-2.0-only
"""What the end-to-end tests share: the programs, volumes that are mounted and killed, vectors, checks."""
import array, json, os, pathlib, random, shutil, signal, struct, subprocess, sys, tempfile, time

TOP = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("VEXFS_BIN") or TOP / "target/release")
SAMPLE = TOP / "bench/data"
SKIP = 77


def skip(why):
    print(why)
    sys.exit(SKIP)


def need_fuse():
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        skip("no /dev/fuse: this machine cannot mount FUSE filesystems")


def need_root():
    if os.geteuid() != 0:
        skip("needs root")


def need(tool):
    if not shutil.which(tool):
        skip(f"no {tool} (.ci/need installs it)")


def run(*args, ok=(0,), timeout=600, **kw):
    """Runs a program and gives its output; `ok` are the exit codes that are right, None for any."""
    args = [os.fsdecode(a) if isinstance(a, bytes) else str(a) for a in args]
    p = subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, **kw)
    if ok is not None and p.returncode not in ok:
        raise AssertionError(f"{' '.join(args)[:300]}: exit code {p.returncode}\n{p.stdout.decode(errors='replace')[-2000:]}{p.stderr.decode(errors='replace')[-2000:]}")
    p.out, p.err = p.stdout.decode(errors="surrogateescape"), p.stderr.decode(errors="surrogateescape")
    return p


def vexfs(*args, **kw):
    return run(BIN / "vexfs", *args, **kw)


def vexfs_json(*args, **kw):
    return [json.loads(line) for line in vexfs(*args, "--json", **kw).out.splitlines()]


def mkfs(image, *args, **kw):
    return run(BIN / "mkfs.vexfs", "-q", *args, image, **kw)


def fsck(image, *args, ok=(0,), **kw):
    return run(BIN / "fsck.vexfs", *(args or ("-n",)), image, ok=ok, **kw)


def build():
    """The programs, unless VEXFS_BIN says where they are."""
    if "VEXFS_BIN" not in os.environ:
        subprocess.run(["make", "-s", "build"], cwd=TOP, check=True)


class Dir:
    """A scratch directory that goes when the program ends; on a real filesystem, where images may be large."""

    def __init__(self, name):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix=f"vexfs-{name}-", dir=os.environ.get("TMPDIR") or "/var/tmp"))
        self.path.chmod(0o755)
        self.mounts = []

    def __truediv__(self, name):
        return self.path / name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for m in self.mounts:
            m.kill()
        shutil.rmtree(self.path, ignore_errors=True)

    def mount(self, image, *options, **kw):
        m = Mount(self, image, options, **kw)
        self.mounts.append(m)
        m.start()
        return m


class Mount:
    """A volume mounted by a FUSE daemon that can be stopped or killed."""

    def __init__(self, home, image, options=(), env=None):
        self.image, self.options, self.env = image, options, env
        self.dir = home / f"mnt{len(home.mounts)}"
        self.dir.mkdir(exist_ok=True)
        self.log = home / f"mnt{len(home.mounts)}.log"
        self.daemon = None

    def __truediv__(self, name):
        return self.dir / name

    def start(self, ok=True):
        args = [str(BIN / "vexfs"), "mount", "--foreground", str(self.image), str(self.dir)]
        for o in self.options:
            args += ["-o", o]
        with open(self.log, "ab") as log:
            self.daemon = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(self.env or {})})
        end = time.time() + 60
        while not os.path.ismount(self.dir):
            if self.daemon.poll() is not None or time.time() > end:
                text = self.log.read_text(errors="replace")[-2000:]
                if ok:
                    raise AssertionError(f"mount of {self.image} failed ({self.daemon.poll()}): {text}")
                return text
            time.sleep(0.005)
        return ""

    def stop(self):
        """Unmounts cleanly; gives the daemon's exit code."""
        run(BIN / "vexfs", "umount", self.dir)
        code = self.daemon.wait(120)
        self.daemon = None
        if code != 0:
            raise AssertionError(f"the daemon ended with {code}: {self.log.read_text(errors='replace')[-2000:]}")

    def term(self):
        """Ends the daemon with SIGTERM, which has to unmount cleanly."""
        self.daemon.send_signal(signal.SIGTERM)
        code = self.daemon.wait(120)
        self.daemon = None
        assert code == 0, f"after SIGTERM the daemon ended with {code}"
        assert not os.path.ismount(self.dir), "after SIGTERM it is still mounted"

    def kill(self):
        """kill -9."""
        if self.daemon:
            self.daemon.kill()
            self.daemon.wait()
            self.daemon = None
        subprocess.run(["fusermount3", "-u", "-z", str(self.dir)], stderr=subprocess.DEVNULL)

    def again(self):
        self.stop()
        self.start()


def read_npy(path):
    """(rows, dimension, array of float) of a float32 file in C order."""
    b = pathlib.Path(path).read_bytes()
    start = 10 + struct.unpack_from("<H", b, 8)[0]
    head = eval(b[10:start])  # our own sample files
    rows, dim = head["shape"]
    a = array.array("f")
    a.frombytes(b[start:start + 4 * rows * dim])
    return rows, dim, a


def write_npy(path, rows, dim, floats):
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    head += " " * (63 - (10 + len(head)) % 64) + "\n"
    with open(path, "wb") as f:
        f.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode())
        f.write(array.array("f", floats).tobytes())


def read_ivecs(path):
    b = pathlib.Path(path).read_bytes()
    rows, at = [], 0
    while at < len(b):
        n, = struct.unpack_from("<i", b, at)
        rows.append(list(struct.unpack_from(f"<{n}i", b, at + 4)))
        at += 4 + 4 * n
    return rows


def recall(found, truth, k):
    return sum(len(set(f[:k]) & set(t[:k])) for f, t in zip(found, truth)) / (k * len(truth))


class Checks:
    """Runs functions named test_… in order, prints how each ended, exits accordingly."""

    def __init__(self, functions):
        self.functions = functions

    def run(self, only=()):
        failed, skipped, passed = [], [], 0
        for f in self.functions:
            name = f.__name__.removeprefix("test_").replace("_", " ")
            if only and not any(o in f.__name__ for o in only):
                continue
            start = time.time()
            try:
                note = f()
                passed += 1
                print(f"ok      {name}{': ' + note if isinstance(note, str) else ''} ({time.time() - start:.1f} s)", flush=True)
            except Skip as s:
                skipped.append(name)
                print(f"skipped {name}: {s}", flush=True)
            except BaseException as e:
                failed.append(name)
                print(f"FAILED  {name}: {type(e).__name__}: {e}", flush=True)
                if isinstance(e, KeyboardInterrupt):
                    raise
                if not isinstance(e, AssertionError):
                    import traceback
                    traceback.print_exc()
        print(f"{passed} checks passed; {len(failed)} failed; {len(skipped)} skipped")
        sys.exit(1 if failed else 0)


class Skip(Exception):
    pass


def tests_of(module):
    return [f for n, f in sorted(vars(module).items(), key=lambda p: getattr(p[1], "__code__", None) and p[1].__code__.co_firstlineno or 0) if n.startswith("test_")]
