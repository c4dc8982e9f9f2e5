#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs the tests inside the guest: agent.py RUN, where RUN is the folder of this run on the host.

Each test runs in a process of its own. Results go to the host as lines of JSON over a port beside the console, so that
kernel messages and results do not mix. After each test the agent unmounts and kills what the test left behind,
unloads the module, and looks at the kernel's messages and its taint flags.
"""
import ctypes, glob, json, os, pathlib, re, select, signal, subprocess, sys, termios, threading, time, traceback, tty

VM = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(VM))
RUN = pathlib.Path(sys.argv[1])
CONFIG = json.loads((RUN / "config.json").read_text())
WARNING = 4  # log level of the kernel
TAINT_OUT_OF_TREE = 1 << 12
BAD_MESSAGE = re.compile(r"vexfs", re.I)


class Port:
    """The line to the host."""

    def __init__(self, path):
        end = time.monotonic() + 30
        while not glob.glob(path) and time.monotonic() < end:
            time.sleep(0.02)  # the device is announced while the kernel boots on
        self.fd = os.open(glob.glob(path)[0], os.O_RDWR | os.O_NOCTTY)
        if os.isatty(self.fd):
            tty.setraw(self.fd, termios.TCSANOW)
        self.lock = threading.Lock()

    def send(self, **message):
        data = (json.dumps(message) + "\n").encode()
        while data:
            data = data[os.write(self.fd, data):]


    def ask(self, **message):
        """Sends a line and waits for the host's line."""
        with self.lock:
            self.send(**message)
            answer = b""
            while not answer.endswith(b"\n"):
                answer += os.read(self.fd, 1)


class Messages:
    """The kernel's messages since the last look, with their levels."""

    def __init__(self):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.fd, 0, os.SEEK_END)

    def new(self):
        found = []
        while True:
            try:
                record = os.read(self.fd, 8192).decode(errors="replace")
            except BlockingIOError:
                return found
            except BrokenPipeError:
                continue  # the oldest were overwritten; the console has them
            head, text = record.split(";", 1)
            found.append((int(head.split(",")[0]) & 7, text.split("\n")[0]))


def mounts():
    return [l.split() for l in open("/proc/mounts")]


def clean_up(before):
    """Takes away what a test left behind; says what could not be taken away."""
    wrong = []
    me = os.getpid()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) in before or int(pid) == me:
            continue
        try:
            if os.readlink(f"/proc/{pid}/exe"):
                os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass  # a kernel thread, or gone
    for line in reversed(mounts()):
        if line[1].startswith("/mnt/") and line[1] != "/mnt/vexfs_host":
            if subprocess.run(["umount", line[1]], stderr=subprocess.DEVNULL).returncode:
                # A loop device may hold a file on it; what is only hidden keeps its disk from the tests that follow.
                subprocess.run(["losetup", "-D"], stderr=subprocess.DEVNULL)
                if subprocess.run(["umount", line[1]], stderr=subprocess.DEVNULL).returncode:
                    subprocess.run(["umount", "-l", line[1]])
    for name in subprocess.run(["dmsetup", "ls"], capture_output=True, text=True).stdout.split("\n") if os.path.exists("/dev/mapper") else []:
        if name and not name.startswith("No devices"):
            subprocess.run(["dmsetup", "remove", "--force", "--retry", name.split()[0]], capture_output=True)
    if any(l.startswith("vexfs ") for l in open("/proc/modules")):
        end = time.time() + 20
        while True:
            p = subprocess.run(["rmmod", "vexfs"], capture_output=True, text=True)
            if p.returncode == 0:
                break
            if time.time() > end:
                wrong.append("the module cannot be unloaded: " + p.stderr.strip())
                break
            time.sleep(0.5)
    return wrong


def child(test, port):
    """The test itself, in its own process; ends it."""
    os.setsid()
    import vmtest
    vmtest.G.say = lambda text: port.send(line=str(text))
    vmtest.G.mark = lambda what: port.ask(mark=what)
    vmtest.G.give = lambda what: port.send(given=what)
    code = 1
    try:
        note = test.function()
        port.send(note=str(note or ""))
        code = 0
    except vmtest.Skip as s:
        port.send(note=str(s))
        code = 77
    except BaseException as e:
        text = str(e) if isinstance(e, AssertionError) and str(e) else f"{type(e).__name__}: {e}"
        frame = traceback.extract_tb(e.__traceback__)[-1]
        port.send(note=f"{text} ({pathlib.Path(frame.filename).name}:{frame.lineno})"[:2000])
        port.send(line=traceback.format_exc()[-3000:])
    sys.stdout.flush()
    os._exit(code)


def run_test(test, port, messages):
    limit = CONFIG["limits"][test.name]
    before = {int(p) for p in os.listdir("/proc") if p.isdigit()}
    messages.new()
    taint = int(open("/proc/sys/kernel/tainted").read()) | TAINT_OUT_OF_TREE
    port.send(start=test.name)
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        child(test, port)
    watch = os.pidfd_open(pid)
    ended = select.select([watch], [], [], limit)[0]
    wrong = []
    if not ended:
        port.send(line=f"not finished after {limit} s; its tasks:")
        for name in ("w", "l"):
            try:
                pathlib.Path("/proc/sysrq-trigger").write_text(name)
            except OSError:
                pass
        wrong.append(f"hangs: not finished after {limit} s")
        try:
            os.killpg(pid, signal.SIGKILL)
        except OSError:
            pass
        if not select.select([watch], [], [], 30)[0]:
            port.send(result=test.name, ok="failed", why=wrong[0] + "; cannot be killed", seconds=time.monotonic() - begin)
            return False
    _, status = os.waitpid(pid, 0)
    seconds = time.monotonic() - begin
    code = os.waitstatus_to_exitcode(status)
    os.close(watch)
    wrong += clean_up(before)
    for level, text in messages.new():
        if level <= WARNING and BAD_MESSAGE.search(text) and not test.warns and "module verification failed" not in text and "loading out-of-tree module" not in text:
            wrong.append("kernel message at level warning or above: " + text)
    now = int(open("/proc/sys/kernel/tainted").read())
    if now & ~taint:
        wrong.append(f"the kernel is tainted: {now & ~taint:#x}")
    if code == 77 and not wrong:
        result = "skipped"
    else:
        result = "passed" if code == 0 and not wrong else "failed"
    if code < 0:
        wrong.append(f"killed by signal {-code}")
    port.send(result=test.name, ok=result, why="; ".join(wrong[:5]), seconds=seconds)
    return True


def main():
    import vmtest
    port = Port(CONFIG["port"])
    for key, value in CONFIG["guest"].items():
        setattr(vmtest.G, key, pathlib.Path(value) if key == "work" else value)
    os.environ["VEXFS_BIN"] = CONFIG["bin"]
    vmtest.vex.BIN = pathlib.Path(CONFIG["bin"])
    os.environ["PATH"] = CONFIG["path"]
    os.environ["HOME"] = CONFIG["home"]
    vmtest.G.work.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(vmtest.G.work)
    messages = Messages()
    up = float(open("/proc/uptime").read().split()[0])
    port.send(up=up, release=os.uname().release, cpus=os.cpu_count(), memory=int(re.search(r"MemTotal:\s+(\d+)", open("/proc/meminfo").read())[1]))
    pathlib.Path("/proc/sys/kernel/printk").write_text("8 4 1 7\n")
    os.environ["MODULE"] = vmtest.G.module
    if CONFIG["exec"]:
        p = subprocess.Popen(["bash", "-c", CONFIG["exec"]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=CONFIG["top"])
        for line in p.stdout:
            port.send(line=line.decode(errors="replace").rstrip("\n"))
        port.send(status=p.wait())
    elif CONFIG["shell"]:
        subprocess.run(["setsid", "-c", "bash", "-i"], stdin=open("/dev/console"), stdout=open("/dev/console", "w"), stderr=subprocess.STDOUT, cwd=CONFIG["top"])
    else:
        tests = {t.name: t for t in vmtest.load_tests()}
        for name in CONFIG["tests"]:
            if not run_test(tests[name], port, messages):
                break
    port.send(end=True)
    os.sync() if not CONFIG["hurry"] else None
    time.sleep(0.1)
    ctypes.CDLL(None).reboot(0x4321FEDC)


main()
