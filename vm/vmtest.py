# SPDX-License-Identifier: GPL-2.0-only
"""What the tests in the guest share. The host imports the same modules to learn which tests there are; nothing here
or in vm/tests/ does anything when it is imported."""
import contextlib, ctypes, errno, os, pathlib, re, subprocess, sys, time

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "cli/tests"))
import vex
from vex import run, Skip  # noqa: F401: for the tests

TESTS = []


class Test:
    def __init__(self, function, **about):
        self.function = function
        self.name = function.__name__.removeprefix("test_").replace("_", "-")
        self.about = function.__doc__.split("\n")[0].rstrip(".") if function.__doc__ else ""
        # seconds it may take under TCG; quick: part of --quick; kinds: kernels that it makes sense on;
        # machine: what the guest has to be like; disk: needs one; warns: messages at level warning are part of what it provokes
        # before: runs on the host, with (run), before the guest is started
        # after: runs on the host when the guest has gone, with (run); its text is the result's
        # panics: what the kernel says when it stops, which it has to; the rest of such a test is its `after`
        # measure: not a test but a measurement, for --measure only
        self.before, self.after, self.panics, self.measure = None, None, None, False
        self.limit, self.quick, self.kinds, self.machine, self.warns, self.disk = 600, False, ("x86", "debug", "uml"), {}, False, True
        for key, value in about.items():
            assert hasattr(self, key), key
            setattr(self, key, value)


def test(**about):
    """Marks a function as a test. It returns its figures as a text and raises when it fails."""

    def mark(function):
        TESTS.append(Test(function, **about))
        return function

    return mark


def load_tests():
    """All tests, in the order of the files' names and of their place in them."""
    import importlib

    sys.path.insert(0, str(TOP / "vm/tests"))
    for p in sorted((TOP / "vm/tests").glob("*.py")):
        importlib.import_module(p.stem)
    return TESTS


class Guest:
    """The machine that the test runs in: set by the agent from what the host gave it."""

    kind = "x86"  # kernel: x86, debug or uml
    accel = "tcg"  # kvm, tcg or uml
    driver = "kernel"  # what the file tests mount with: kernel or fuse
    main = "/dev/vdb"  # the large disk
    spare = "/dev/vda"  # another one
    part = "/dev/sda3"  # third partition of a third one
    module = None  # path of vexfs.ko
    quick = False  # the small amounts of everything
    data = None  # folder with packages-384.*, the 20,000 embeddings, if there is one
    work = pathlib.Path("/tmp")  # scratch on tmpfs
    folder = None  # this run's on the host, read-only
    say = staticmethod(print)  # a line for the person who watches
    mark = None  # tells the host that something is durable now; returns when the host has noted it
    give = None  # gives the host something for what the test does when the guest has gone


G = Guest()


def size_of(dev):
    with open(dev, "rb") as f:
        return f.seek(0, 2)


# The module.

def loaded():
    return any(l.split()[0] == "vexfs" for l in open("/proc/modules"))


def filesystems():
    """name -> whether it needs a block device."""
    return {l.split()[-1]: not l.startswith("nodev") for l in open("/proc/filesystems")}


def load(*parameters):
    if not loaded():
        run("insmod", G.module, *parameters)


def unload():
    if loaded():
        run("rmmod", "vexfs")


def drop_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")


def meminfo(key):
    """A line of /proc/meminfo in KiB."""
    return int(re.search(rf"^{key}:\s+(\d+)", open("/proc/meminfo").read(), re.M)[1])


# Volumes.

def mkfs(dev=None, *args):
    vex.mkfs(dev or G.main, "-f", *args, timeout=600)


def fsck(dev=None, *args):
    vex.fsck(dev or G.main, *args, timeout=1200)


class Volume:
    """A mounted volume: by the module, by the FUSE daemon or by another filesystem of the kernel."""

    def __init__(self, dev, directory, driver, options):
        self.dev, self.dir, self.driver, self.options = str(dev), pathlib.Path(directory), driver, options
        self.daemon = None

    def __truediv__(self, name):
        return self.dir / name

    def mount(self):
        self.dir.mkdir(parents=True, exist_ok=True)
        if self.driver == "fuse":
            args = [str(vex.BIN / "vexfs"), "mount", "--foreground", self.dev, str(self.dir)]
            for o in filter(None, ["dev,suid,allow_other,default_permissions", self.options]):
                args += ["-o", o]
            self.log = open(f"{self.dir}.log", "ab+")
            self.daemon = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
            end = time.time() + 120
            while not os.path.ismount(self.dir):
                if self.daemon.poll() is not None or time.time() > end:
                    raise AssertionError(f"vexfs mount of {self.dev} failed: {pathlib.Path(self.log.name).read_text()[-1000:]}")
                time.sleep(0.02)
        else:
            if self.driver == "kernel":
                load()
            run("mount", "-t", {"kernel": "vexfs"}.get(self.driver, self.driver), *(["-o", self.options] if self.options else []), self.dev, self.dir)
        return self

    def umount(self):
        if self.driver == "fuse":
            run(vex.BIN / "vexfs", "umount", self.dir, timeout=300)
            code = self.daemon.wait(300)
            self.daemon = None
            assert code == 0, f"the daemon ended with {code}: {pathlib.Path(self.log.name).read_text()[-1000:]}"
        else:
            run("umount", self.dir, timeout=300)

    def again(self):
        self.umount()
        self.mount()

    def remount(self, options):
        run("mount", "-o", f"remount,{options}", self.dir)


@contextlib.contextmanager
def mounted(dev=None, directory="/mnt/v", driver=None, options=""):
    """A volume that is mounted inside, cleanly unmounted after it; after a failure as well as it goes."""
    v = Volume(dev or G.main, directory, driver or G.driver, options).mount()
    try:
        yield v
    except BaseException:
        subprocess.run(["umount", "-l", v.dir], stderr=subprocess.DEVNULL)
        raise
    v.umount()


# The end-to-end tests of the FUSE daemon (cli/tests), on the driver under test.

FUSE_ONLY = {"dev", "suid", "allow_other", "default_permissions"}


class KernelMount(vex.Mount):
    """Stands in for the daemon's mounts: an image is mounted over a loop device, a device as it is."""

    def start(self, ok=True):
        load()
        device = Disks.of(self.image)
        options = [o for text in self.options for o in text.split(",") if o not in FUSE_ONLY]
        # Not with mount's option `loop`: it keeps the device open, which a kernel that guards mounted devices refuses.
        self.loop = device = run("losetup", "-f", "--show", device).out.strip() if os.path.isfile(device) else device
        p = run("mount", "-t", "vexfs", *(["-o", ",".join(options)] if options else []), device, self.dir, ok=None)
        if p.returncode:
            self.detach()
            if ok:
                raise AssertionError(f"mount of {self.image} failed: {p.err.strip()}")
            return p.err
        self.daemon = True
        return ""

    def stop(self):
        run("umount", self.dir, timeout=300)
        self.daemon = None
        self.detach()

    def detach(self):
        if str(self.loop).startswith("/dev/loop"):
            run("losetup", "-d", self.loop, ok=None)

    def term(self):
        raise Skip("the module is no daemon")

    def kill(self):
        # What remains to be cleaned up after a failure; a module cannot be killed.
        if self.daemon:
            subprocess.run(["umount", "-l", self.dir], stderr=subprocess.DEVNULL)
            self.daemon = None
            self.detach()


class Disks:
    """Puts the volumes of those tests on the guest's disks instead of into image files."""

    free, used = [], {}

    @classmethod
    def take(cls):
        """From now on each new image is the next disk."""
        cls.free = [G.main, G.part, G.spare]
        make, check = vex.mkfs, vex.fsck

        def mkfs(image, *args, **kw):
            if str(image) not in cls.used and cls.free:
                cls.used[str(image)] = cls.free.pop(0)
            return make(cls.of(image), "-f", *args, **kw)

        vex.mkfs, vex.fsck = mkfs, lambda image, *args, **kw: check(cls.of(image), *args, **kw)

    @classmethod
    def of(cls, image):
        return cls.used.get(str(image), image)


def end_to_end(module, *argv):
    """A module of cli/tests whose volumes are mounted with the driver under test."""
    import importlib.util
    if G.driver == "kernel":
        vex.Mount = KernelMount
    else:
        start = vex.Mount.start

        def on_disk(self, ok=True):
            self.image = Disks.of(self.image)
            return start(self, ok)

        vex.Mount.start = on_disk
    vex.build = lambda: None
    sys.argv = [module, *argv]
    # By its path: one is called like a module of Python's own.
    spec = importlib.util.spec_from_file_location(f"vexfs_{module}", TOP / f"cli/tests/{module}.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


# System calls that Python lacks.

LIBC = ctypes.CDLL(None, use_errno=True)


def syscall(name, *args):
    """Calls a function of libc; raises OSError."""
    r = getattr(LIBC, name)(*args)
    if r < 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e), name)
    return r


def fails(number, function, *args):
    """Whether the call fails with this errno; anything else is a failure of the test."""
    try:
        function(*args)
    except OSError as e:
        assert e.errno == number, f"{function.__name__}: {errno.errorcode.get(e.errno, e.errno)} where {errno.errorcode[number]} is right"
        return True
    raise AssertionError(f"{getattr(function, '__name__', function)} succeeded where {errno.errorcode[number]} is right")
