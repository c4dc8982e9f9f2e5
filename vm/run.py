#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Tests the kernel module in a virtual machine, unattended.

    vm/run_vm_tests.sh --with-block-device --size=10GB      all tests
    vm/run_vm_tests.sh --with-block-device --quick          the amounts for a quick look
    vm/run_vm_tests.sh --test load-unload                   one test by name (--list names them)
    vm/run_vm_tests.sh --debug …                            on the kernel with KASAN, lockdep, kmemleak
    vm/run_vm_tests.sh --uml …                              on user-mode Linux: no emulation, one CPU
    vm/run_vm_tests.sh --measure                            kernel, FUSE and ext4 beside each other, with the table
    vm/run_vm_tests.sh --shell                              a shell in the guest, disks ready, module in $MODULE
    vm/run_vm_tests.sh --exec 'insmod $MODULE; …'           a command in the guest

Kernels and the module are built when they are not in the cache (the first time: 5 to 20 minutes). QEMU runs with KVM if
a boot proves that it works, else it emulates. In the guest the host's root is the userland, read-only under a layer
in memory, and also at /mnt/vexfs_host; disks are /dev/vda, /dev/vdb (of --size) and /dev/sda with three partitions.
No root rights are needed. Logs go to target/vm. Exit status 0: all passed; 1: not; 77: something is missing.
"""
import argparse, json, os, pathlib, re, shutil, signal, subprocess, sys, tempfile, time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import kernels, machine, vmtest

TOP = kernels.TOP
LOGS = TOP / "target/vm"
SKIP = 77
SPARE = 4 << 30
# What the kernel says when something is wrong with it.
TROUBLE = re.compile(
    r"\bBUG:|\bWARNING:|\bOops\b|general protection fault|Kernel panic|INFO: task .* blocked|INFO: .*(stall|hung)|possible (circular|recursive) locking"
    r"|inconsistent lock state|bad unlock balance|suspicious RCU|KASAN:|UBSAN:|kmemleak: [1-9]\d* new|soft lockup|hard LOCKUP|sleeping function called"
    r"|[Uu]nable to handle|refcount_t:|list_(add|del) corruption|kernel BUG at|rust_kernel: panicked|invalid opcode|double fault|Bad page|bad page state|stack guard page|segfault at"
    r"|Objects remaining in|still has objects|Out of memory:|invoked oom-killer")


def size(text):
    m = re.fullmatch(r"(\d+)\s*([KMGT]?)(i?B)?", text.strip(), re.I)
    if not m:
        raise argparse.ArgumentTypeError(f"{text}: a size is a number with K, M, G or T")
    return int(m[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[m[2].upper()]


def options():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--with-block-device", action="store_true", help="also the tests that need a disk, which are nearly all")
    ap.add_argument("--size", type=size, default=size("10GB"), help="size of /dev/vdb and of the partitioned disk (default 10GB; files with holes)")
    ap.add_argument("--quick", action="store_true", help="small amounts of everything, as the project's CI runs them")
    ap.add_argument("--test", action="append", default=[], metavar="NAME", help="only this test; may be repeated")
    ap.add_argument("--list", action="store_true", help="name the tests")
    ap.add_argument("--measure", action="store_true", help="measure instead of testing; with --quick only a look that is not kept")
    ap.add_argument("--debug", action="store_true", help="the debug kernel")
    ap.add_argument("--uml", action="store_true", help="user-mode Linux instead of QEMU")
    ap.add_argument("--shell", action="store_true", help="a shell in the guest instead of tests")
    ap.add_argument("--exec", metavar="COMMAND", help="this shell command in the guest instead of tests; $MODULE is vexfs.ko")
    ap.add_argument("--driver", choices=("kernel", "fuse"), default="kernel", help="what the tests of files mount with (default: the module)")
    ap.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto", help="how QEMU runs the guest (default: KVM if it works)")
    ap.add_argument("--memory", type=int, default=2048, help="MiB of the guest (default 2048)")
    ap.add_argument("--cpus", type=int, default=2)
    ap.add_argument("--module", type=pathlib.Path, help="this vexfs.ko instead of the one built from kmod/")
    ap.add_argument("--keep", action="store_true", help="keep the disks of the run and say where they are")
    ap.add_argument("--quiet", action="store_true", help="do not show the kernel's messages as they come")
    return ap.parse_args()


def embeddings():
    """The folder with the 20,000 embeddings, if there is one; the repository has a sample only."""
    folder = pathlib.Path(os.environ.get("VEXFS_DATA") or TOP / "../shared/data").resolve()
    return str(folder) if (folder / "packages-384.base.npy").exists() else None


def kvm_works(image, run):
    """Whether a guest boots under KVM; that the device file exists says little. Tried once after each start of the host."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    known = kernels.CACHE / "kernel" / f"kvm-{pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    if not known.exists():
        known.write_text("works" if kvm_boots(image, run) else "does not work")
    return known.read_text() == "works"


def kvm_boots(image, run):
    command = ["qemu-system-x86_64", "-machine", "q35", "-m", "256", "-accel", "kvm", "-cpu", "host", "-kernel", str(image), "-initrd", str(run / "probe.gz"),
               "-append", "console=ttyS0 panic=-1 quiet", "-display", "none", "-vga", "none", "-nic", "none", "-no-reboot", "-serial", "stdio", "-monitor", "none"]
    script = b"#!/bin/sh\nmount -t devtmpfs devtmpfs /dev\necho vexfs_probe: alive >/dev/console\npoweroff -f\n"
    machine.initramfs(run / "probe.gz", script)
    try:
        p = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
        return b"vexfs_probe: alive" in p.stdout
    except subprocess.TimeoutExpired:
        return False


class Run:
    """One call of the program: what it boots, and the results."""

    def __init__(self, opt, tests, folder):
        self.opt, self.tests, self.folder = opt, tests, folder
        self.rows, self.boots, self.marks, self.given = [], 0, [], []
        self.log = folder / "writes.log"
        self.kind = "uml" if opt.uml else "debug" if opt.debug else "x86"

    def prepare(self):
        opt = self.opt
        if not opt.uml:
            kernels.tool("qemu-system-x86_64")
            if not shutil.which("busybox", path="/bin:/usr/bin"):
                raise kernels.Missing("no busybox (.ci/need installs busybox-static)")
        kernels.tool("sfdisk")
        self.image = kernels.image(self.kind)
        self.module = opt.module.resolve() if opt.module else kernels.module(self.kind)
        self.bin = os.environ.get("VEXFS_BIN")
        if not self.bin:
            subprocess.run(["make", "-s", "build"], cwd=TOP, check=True)
            if any(t.measure for t in self.tests):
                subprocess.run(["cargo", "build", "--release", "-q", "-p", "vexfs-bench"], cwd=TOP, check=True)
            self.bin = str(TOP / "target/release")
        self.accel = "uml"
        if not opt.uml:
            machine.initramfs(self.folder / "initramfs.gz")
            self.accel = opt.accel if opt.accel != "auto" else "kvm" if kvm_works(self.image, self.folder) else "tcg"

    def disks(self, log=None):
        """Fresh disks, files with holes: spare, main and one with three partitions. `log`: file for the writes to main."""
        files = [("virtio", "spare", min(SPARE, self.opt.size)), ("virtio", "main", self.opt.size), ("sata", "partitioned", self.opt.size)]
        made = []
        for kind, name, length in files:
            path = self.folder / name
            path.unlink(missing_ok=True)
            with open(path, "wb") as f:
                f.truncate(length)
            if kind == "sata":
                subprocess.run([kernels.tool("sfdisk"), "-q", path], input=b"label: dos\n,64M\n,64M\n,\n", check=True)
            if log and name == "main":
                log.unlink(missing_ok=True)
                log.touch()
                made.append((kind, [
                    "-blockdev", f"driver=file,filename={path},node-name=mainfile,cache.no-flush=on",
                    "-blockdev", f"driver=file,filename={log},node-name=logfile,cache.no-flush=on",
                    "-blockdev", "driver=blklogwrites,file=mainfile,log=logfile,node-name=logged",
                    "-blockdev", f"driver=raw,file=logged,node-name=d{len(made)}"]))
                continue
            made.append((kind, str(path) if self.opt.uml else f"driver=raw,file.driver=file,file.filename={path},file.aio=threads,cache.no-flush=on,discard=unmap"))
        return made

    def boot(self, tests, spec):
        """Starts a guest that runs these tests."""
        self.boots += 1
        opt = self.opt
        memory = spec.get("memory", opt.memory * (2 if self.kind == "debug" else 1))
        ubd = self.kind == "uml"
        config = {
            "top": str(TOP), "bin": self.bin, "shell": opt.shell, "exec": opt.exec, "hurry": True, "tests": [t.name for t in tests],
            "limits": {t.name: self.limit(t) for t in tests}, "port": "/dev/ttyS0" if ubd else "/dev/vport*p1", "home": os.path.expanduser("~"),
            "path": f"{self.bin}:{kernels.CACHE}/tools/bin:{os.path.expanduser('~/.cargo/bin')}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "guest": {
                "kind": self.kind, "accel": self.accel, "driver": opt.driver, "module": str(self.module), "quick": opt.quick, "work": "/tmp/vexfs", "folder": str(self.folder), "data": embeddings(),
                "main": "/dev/ubdb" if ubd else "/dev/vdb", "spare": "/dev/ubda" if ubd else "/dev/vda", "part": "/dev/ubdc3" if ubd else "/dev/sda3"},
        }
        (self.folder / "config.json").write_text(json.dumps(config))
        words = [f"vexfs_top={TOP}", f"vexfs_run={self.folder}"]
        log = LOGS / f"console-{self.boots}.log"
        if ubd:
            return machine.uml(self.image, self.folder, self.disks(), memory, words, log, opt.shell)
        return machine.qemu(self.image, self.folder, self.accel, self.disks(self.log if spec.get("log") else None), memory, opt.cpus, words, log, opt.shell)

    def limit(self, test):
        return test.limit * (3 if self.kind == "debug" else 1)

    def show(self, text):
        print(text, flush=True)

    def result(self, test, ok, seconds, note):
        note = " ".join(note.split())
        self.rows.append((test.name, ok, seconds, note))
        self.show(f"== {test.name}: {ok}{', ' + note if note else ''} ({seconds:.1f} s)")

    def group(self, tests, spec):
        """Runs tests in one guest; in another one those that a hang or an oops kept from running."""
        left = []
        for t in tests:
            begun = time.time()
            try:
                if t.before:
                    t.before(self)
                left.append(t)
            except vmtest.Skip as e:
                self.result(t, "skipped", time.time() - begun, str(e))
            except Exception as e:
                self.result(t, "failed", time.time() - begun, f"before the guest: {type(e).__name__}: {e}")
        while left:
            before = len(left)
            self.guest(left, spec)
            if len(left) == before:
                for t in left:
                    self.result(t, "failed", 0, "the guest did not get to it")
                return

    def guest(self, left, spec):
        started = time.time()
        self.marks, self.given = [], []
        guest = self.boot(left, spec)
        by_name = {t.name: t for t in left}
        current, begun, note, trouble, waiting = None, started, "", [], []
        deadline = started + 120

        def finish(ok, why, seconds=None):
            nonlocal current, note, trouble
            text = "; ".join(x for x in (why, f"{len(trouble)} kernel reports: {trouble[0]}" if trouble else "", note) if x)
            self.result(current, "failed" if trouble and ok != "skipped" else ok, time.time() - begun if seconds is None else seconds, text)
            left.remove(current)
            current, note, trouble = None, "", []

        try:
            while True:
                event = guest.next(deadline - time.time())
                if event is None:
                    if current:
                        finish("failed", f"hangs: no answer from the guest {time.time() - begun:.0f} s after its start; killed")
                    else:
                        self.show(f"the guest does not answer; killed, see {LOGS}/console-{self.boots}.log")
                    return
                what, data = event
                if what == "console":
                    if not self.opt.quiet:
                        self.show("   | " + data)
                    if TROUBLE.search(data):
                        trouble.append(data.strip())
                elif what == "ended":
                    if current and current.panics and trouble and all(current.panics in t for t in trouble):
                        waiting.append((current, time.time() - begun, trouble[0]))
                        left.remove(current)
                    elif current:
                        time.sleep(0.2)
                        finish("failed", "the guest ended in the middle of it")
                    return
                else:
                    m = json.loads(data)
                    if "up" in m:
                        self.show(f"-- kernel {m['release']} ({self.kind}, {self.accel}), {m['cpus']} CPUs, {m['memory'] // 1024} MiB, agent up after {time.time() - started:.1f} s")
                        deadline = time.time() + 60
                    elif "start" in m:
                        current, begun = by_name[m["start"]], time.time()
                        deadline = begun + self.limit(current) + 90
                        self.show(f"== {current.name} …")
                    elif "line" in m:
                        self.show("   " + m["line"])
                    elif "mark" in m:
                        # What the log holds now is enough for it to be durable.
                        self.marks.append((self.log.stat().st_size if spec.get("log") else 0, m["mark"]))
                        guest.send("noted")
                    elif "given" in m:
                        self.given.append(m["given"])
                    elif "note" in m:
                        note = m["note"]
                    elif "result" in m:
                        self.drain(guest, trouble)
                        done = current
                        if m["ok"] == "passed" and not trouble and done.after:
                            waiting.append((done, m["seconds"], note))
                            left.remove(done)
                            current, note = None, ""
                        else:
                            finish(m["ok"], m["why"], m["seconds"])
                        deadline = time.time() + 60
                    elif "end" in m:
                        deadline = time.time() + 30
        finally:
            guest.close()
            for test, seconds, text in waiting:
                self.after(test, seconds, text)

    def after(self, test, seconds, note):
        """The part of a test that comes when the guest has gone."""
        begun = time.time()
        try:
            ok, text = "passed", test.after(self)
        except vmtest.Skip as e:
            ok, text = "skipped", str(e)
        except Exception as e:
            ok, text = "failed", f"{'' if isinstance(e, AssertionError) else type(e).__name__ + ': '}{e}"
        self.result(test, ok, seconds + time.time() - begun, "; ".join(x for x in (note, text) if x))

    def command(self):
        """Runs --exec; gives its exit status."""
        guest, status = self.boot([], {}), 1
        try:
            while (event := guest.next(3600)) and event[0] != "ended":
                if event[0] == "console":
                    self.show("   | " + event[1])
                else:
                    m = json.loads(event[1])
                    if "line" in m:
                        self.show(m["line"])
                    status = m.get("status", status)
        finally:
            guest.close()
        return status

    def drain(self, guest, trouble):
        """The console may be a little behind the port."""
        end = time.time() + 0.1
        held = []
        while (left := end - time.time()) > 0:
            event = guest.next(left)
            if event and event[0] == "console":
                if not self.opt.quiet:
                    self.show("   | " + event[1])
                if TROUBLE.search(event[1]):
                    trouble.append(event[1].strip())
            elif event:
                held.append(event)
                break
        for event in held:
            guest.events.queue.appendleft(event)

    def table(self):
        width = max([len(r[0]) for r in self.rows] + [4])
        line = "─" * (width + 60)
        self.show(f"\n{line}\n{'test':{width}}  result   seconds  figures ({self.kind}, {self.accel})\n{line}")
        for name, ok, seconds, note in self.rows:
            self.show(f"{name:{width}}  {ok:8} {seconds:7.1f}  {note}")
        self.show(line)
        count = lambda what: sum(r[1] == what for r in self.rows)
        if count("skipped"):
            self.show(f"{count('skipped')} skipped")
        self.show(f"{count('passed')} passed, {count('failed')} failed")
        (LOGS / "results.json").write_text(json.dumps([dict(zip(("test", "result", "seconds", "note"), r)) for r in self.rows], indent=1) + "\n")
        return 1 if count("failed") or not count("passed") else 0


def main():
    opt = options()
    tests = vmtest.load_tests()
    if opt.list:
        for t in tests:
            print(f"{t.name:28} {t.about}")
        return 0
    kind = "uml" if opt.uml else "debug" if opt.debug else "x86"
    if opt.test:
        unknown = set(opt.test) - {t.name for t in tests}
        if unknown:
            raise SystemExit(f"no such test: {', '.join(sorted(unknown))} (--list names them)")
        chosen = [t for t in tests if t.name in opt.test]
    elif opt.measure:
        chosen = [t for t in tests if t.measure]
    else:
        chosen = [t for t in tests if kind in t.kinds and not t.measure and (t.quick or not opt.quick) and (opt.with_block_device or not t.disk)]
        if not (opt.with_block_device or opt.exec or opt.shell):
            print("without --with-block-device: only the tests that need no disk")
    LOGS.mkdir(parents=True, exist_ok=True)
    for old in LOGS.glob("console-*.log"):
        old.unlink()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="vexfs-vm-", dir=os.environ.get("TMPDIR") or "/var/tmp"))
    try:
        this = Run(opt, chosen, folder)
        this.prepare()
        if opt.shell:
            guest = this.boot([], {})
            guest.process.wait()
            return 0
        if opt.exec:
            return this.command()
        groups = {}
        for t in [t for t in chosen if kind not in t.kinds]:
            this.result(t, "skipped", 0, f"not on the {kind} kernel, but on {', '.join(t.kinds)}")
            chosen.remove(t)
        for t in chosen:
            groups.setdefault(tuple(sorted(t.machine.items())), []).append(t)
        for spec, members in groups.items():
            this.group(members, dict(spec))
        return this.table()
    except kernels.Missing as e:
        print(e)
        return SKIP
    finally:
        if opt.keep:
            print(f"the disks are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
