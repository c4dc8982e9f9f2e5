# SPDX-License-Identifier: GPL-2.0-only
"""Machines that boot a test kernel: QEMU and user-mode Linux. Both give the console, line by line, and a port for
results; both are gone, with all their processes, when they are closed."""
import ctypes, gzip, os, pathlib, queue, shutil, signal, socket, struct, subprocess, threading, time

VM = pathlib.Path(__file__).resolve().parent
APPLETS = ("sh", "mount", "mkdir", "cat", "ln", "ip", "chroot", "poweroff", "echo")


def cpio(entries):
    """An archive in the format of an initramfs: (name, mode, contents or link target or device)."""
    out = bytearray()
    for n, (name, mode, data, rdev) in enumerate([*entries, ("TRAILER!!!", 0, b"", 0)]):
        fields = (n + 1, mode, 0, 0, 1, 0, len(data), 0, 0, rdev >> 8, rdev & 255, len(name) + 1, 0)
        out += b"070701" + "".join(f"{f:08X}" for f in fields).encode() + name.encode() + b"\0"
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def initramfs(path, script=None):
    """The first root of a QEMU guest: busybox, and vm/guest/init or another script."""
    busybox = shutil.which("busybox", path="/bin:/usr/bin")
    entries = [(d, 0o040755, b"", 0) for d in ("bin", "dev", "proc", "sys", "lay")]
    entries += [("dev/console", 0o020600, b"", 5 << 8 | 1), ("initramfs", 0o100644, b"", 0)]
    entries += [("bin/busybox", 0o100755, pathlib.Path(busybox).read_bytes(), 0)]
    entries += [(f"bin/{a}", 0o120777, b"busybox", 0) for a in APPLETS]
    entries += [("init", 0o100755, script or (VM / "guest/init").read_bytes(), 0)]
    path.write_bytes(gzip.compress(cpio(entries), 1))
    return path


class Machine:
    """A running guest. Events come from `next`: ("console", line), ("port", line), ("ended", exit code)."""

    def __init__(self, command, port, log, interactive=False, pass_fds=()):
        self.events = queue.Queue()
        self.log = open(log, "ab")
        # With a shell in it the console is the caller's terminal.
        # The guest dies with this program, even if that is killed.
        die = lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        io = {} if interactive else {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, start_new_session=not interactive, pass_fds=pass_fds, preexec_fn=die, **io)
        self.port = None
        for target, args in ((self._read_console, ()), (self._read_port, (port,))):
            threading.Thread(target=target, args=args, daemon=True).start()

    def _read_console(self):
        for line in self.process.stdout or ():
            self.log.write(line)
            self.log.flush()
            self.events.put(("console", line.decode(errors="replace").rstrip("\r\n")))
        self.events.put(("ended", self.process.wait()))

    def _read_port(self, connect):
        try:
            self.port = connect(self)
            buffer = b""
            while data := self.port.recv(1 << 16):
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self.events.put(("port", line.decode(errors="replace")))
        except OSError:
            pass  # the machine is gone; the console tells

    def send(self, line):
        self.port.sendall(line.encode() + b"\n")

    def next(self, timeout):
        try:
            return self.events.get(timeout=max(0.01, timeout))
        except queue.Empty:
            return None

    def close(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except OSError:
            self.process.kill()
        self.process.wait()
        self.log.close()


def unix_port(path):
    def connect(machine):
        end = time.time() + 60
        while True:
            s = socket.socket(socket.AF_UNIX)
            try:
                s.connect(str(path))
                return s
            except OSError:
                s.close()
                if machine.process.poll() is not None or time.time() > end:
                    raise
                time.sleep(0.02)

    return connect


def qemu(image, run, accel, disks, memory, cpus, words, log, interactive=False):
    """Boots QEMU. `disks` are (kind, file, more blockdev arguments); kind is virtio or sata."""
    port = run / "port"
    port.unlink(missing_ok=True)
    command = ["qemu-system-x86_64", "-machine", "q35", "-m", str(memory), "-smp", str(cpus)]
    command += ["-accel", "kvm", "-cpu", "host"] if accel == "kvm" else ["-accel", "tcg,thread=multi", "-cpu", "max"]
    command += ["-kernel", str(image), "-initrd", str(run / "initramfs.gz")]
    command += ["-append", " ".join(["console=ttyS0 panic=-1 oops=panic loglevel=4 hung_task_panic=0", *words])]
    command += ["-display", "none", "-vga", "none", "-nic", "none", "-no-reboot", "-serial", "stdio", "-monitor", "none"]
    command += ["-fsdev", "local,id=h,path=/,security_model=none,readonly=on,multidevs=remap", "-device", "virtio-9p-pci,fsdev=h,mount_tag=hostroot"]
    command += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=port,path={port},server=on,wait=off", "-device", "virtserialport,chardev=port,name=vexfs"]
    command += ["-device", "virtio-rng-pci"]
    sata = 0
    for n, (kind, drive) in enumerate(disks):
        command += ["-blockdev", f"{drive},node-name=d{n}"] if isinstance(drive, str) else drive
        if kind == "virtio":
            command += ["-device", f"virtio-blk-pci,drive=d{n},write-cache=on"]
        else:
            command += ["-device", f"ide-hd,drive=d{n},bus=ide.{sata}"]
            sata += 1
    return Machine(command, unix_port(port), log, interactive=interactive)


def uml(image, run, disks, memory, words, log, interactive=False):
    """Boots user-mode Linux; the kernel is a program."""
    ours, theirs = socket.socketpair()
    command = [str(image), f"mem={memory}M", "rootfstype=hostfs", "ro", f"init={VM}/guest/init", "con=null", "con0=fd:0,fd:1", "ssl=null", f"ssl0=fd:{theirs.fileno()}", "loglevel=4", "panic=1"]
    command += [f"ubd{n}={drive}" for n, (_, drive) in enumerate(disks)] + words
    machine = Machine(command, lambda _: ours, log, interactive=interactive, pass_fds=(theirs.fileno(),))
    theirs.close()
    return machine
