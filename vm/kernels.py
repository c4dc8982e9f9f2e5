#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Builds the kernels of the tests and the module for them, once, in the cache.

    vm/kernels.py uml|x86|debug            # prints the build tree; builds it if it is not there (5 to 20 minutes)
    vm/kernels.py uml|x86|debug --make     # prints the make line for a module outside the tree
    vm/kernels.py uml|x86|debug --module   # builds kmod/ for it and prints where vexfs.ko is

Sources and build trees lie in ${XDG_CACHE_HOME:-~/.cache}/vexfs/kernel, named after the package's version, the
configuration and the recipe below, so that a change of any of them makes a new tree and never mixes with an old one.
"""
import argparse, fcntl, glob, hashlib, os, pathlib, re, shlex, shutil, subprocess, sys, time

VM = pathlib.Path(__file__).resolve().parent
TOP = VM.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "vexfs"
SERIES = "6.12"
TARBALL = pathlib.Path(f"/usr/src/linux-source-{SERIES}.tar.xz")
RECIPE = 1  # raise it when what is built changes without a change of the configuration
LLVM = "22"

# kind: configuration files in order, make variables, targets, the image that boots
KINDS = {
    "uml": (["common", "uml"], ["ARCH=um", "KRUSTFLAGS=-Crelocation-model=static -Ccode-model=large"], ["linux", "modules"], "linux"),
    "x86": (["common", "x86"], [], ["bzImage", "modules"], "arch/x86/boot/bzImage"),
    "debug": (["common", "x86", "debug"], [], ["bzImage", "modules"], "arch/x86/boot/bzImage"),
}


class Missing(Exception):
    """Something that has to be installed."""


def out(*cmd):
    return subprocess.run(cmd, check=True, capture_output=True, text=True).stdout.strip()


def tool(name):
    """A program that `.ci/need` may have put beside the caches."""
    path = shutil.which(name, path=f"{CACHE}/tools/bin:{os.path.expanduser('~/.cargo/bin')}:{os.environ['PATH']}:/usr/sbin:/sbin")
    if not path:
        raise Missing(f"no {name} (.ci/need installs it)")
    return path


def rust_sources():
    found = sorted(glob.glob("/usr/src/rustc-*/library"))
    if not found:
        raise Missing("no Rust library sources (.ci/need installs rust-web-src)")
    return found[-1]


def version():
    """Version of the installed package with the kernel's source."""
    if not TARBALL.exists():
        raise Missing(f"no linux-source-{SERIES} (.ci/need installs it)")
    try:
        return out("dpkg-query", "-W", "-f=${Version}", f"linux-source-{SERIES}").replace("~", "-")
    except (OSError, subprocess.CalledProcessError):
        return hashlib.sha256(TARBALL.read_bytes()).hexdigest()[:12]


def settings(kind):
    """The configuration as a list of (option, value)."""
    pairs = {}
    for name in KINDS[kind][0]:
        for line in (VM / "kernel" / f"{name}.config").read_text().splitlines():
            if line.startswith("CONFIG_"):
                option, value = line.split("=", 1)
                pairs[option] = value
    return pairs


def variables(kind):
    """What make has to know, as a list of words."""
    if not os.path.exists("/usr/bin/rustc"):
        raise Missing("no /usr/bin/rustc (.ci/need installs rustc-web)")
    tool(f"clang-{LLVM}")
    return [f"LLVM=-{LLVM}", "RUSTC=/usr/bin/rustc", f"BINDGEN={tool('bindgen')}", f"RUST_LIB_SRC={rust_sources()}", *KINDS[kind][1]]


def key(kind):
    text = repr((RECIPE, source().name, sorted(settings(kind).items()), KINDS[kind][1:], out("/usr/bin/rustc", "--version"), LLVM))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def jobs():
    return os.cpu_count() or 1


def locked(name):
    """One process at a time works on what is called `name`; the lock goes with the file."""
    (CACHE / "kernel").mkdir(parents=True, exist_ok=True)
    lock = open(CACHE / "kernel" / f"{name}.lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def patches():
    return sorted((VM / "kernel").glob("*.patch"))


def source():
    """The unpacked source, with the patches in vm/kernel."""
    path = CACHE / "kernel" / f"source-{version()}-{hashlib.sha256(b''.join(p.read_bytes() for p in patches())).hexdigest()[:8]}"
    if (path / "Makefile").exists():
        return path
    with locked("source"):
        if not (path / "Makefile").exists():
            say(f"unpacking {TARBALL.name}")
            part = path.with_name(path.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            subprocess.run(["tar", "xf", TARBALL, "-C", part, "--strip-components=1"], check=True)
            for patch in patches():
                subprocess.run(["patch", "-s", "-p1", "-d", part, "-i", patch], check=True)
            part.rename(path)
    return path


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(log, *cmd):
    """Runs a command with its output in `log`; shows the end of it when it fails."""
    with open(log, "ab") as f:
        f.write(("\n$ " + shlex.join(map(str, cmd)) + "\n").encode())
        f.flush()
        if subprocess.run(cmd, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT).returncode:
            say("\n".join(pathlib.Path(log).read_text(errors="replace").splitlines()[-40:]))
            raise SystemExit(f"failed, see {log}: {shlex.join(map(str, cmd))}")


def tree(kind):
    """The build tree of a kernel; builds it if it is not there."""
    path = CACHE / "kernel" / f"{kind}-{version()}-{key(kind)}"
    if (path / "built").exists():
        return path
    words = variables(kind)
    src = source()
    tool("flex"), tool("bison"), tool("bc")
    with locked(f"{kind}-{key(kind)}"):
        if (path / "built").exists():
            return path
        path.mkdir(parents=True, exist_ok=True)
        log = path / "build.log"
        say(f"building the {kind} kernel, once (5 to 20 minutes); see {log}")
        start = time.time()
        fragment = path / "fragment"
        fragment.write_text("".join(f"{o}={v}\n" for o, v in settings(kind).items()))
        make = ["nice", "-n", "5", "make", "-C", src, f"O={path}", f"-j{jobs()}", *words]
        run(log, *make, "rustavailable")
        run(log, *make, f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig")
        check(kind, path / ".config")
        run(log, *make, *KINDS[kind][2])
        slim(path)
        (path / "built").write_text(f"{time.time() - start:.0f} s\n")
        say(f"built in {time.time() - start:.0f} s")
    return path


def check(kind, config):
    """Says which settings the kernel's configuration did not take, instead of a test that fails later."""
    got = dict(l.split("=", 1) for l in config.read_text().splitlines() if l.startswith("CONFIG_"))
    lost = [f"{o}={v}" for o, v in settings(kind).items() if got.get(o, "n") != v]
    if lost:
        raise SystemExit(f"the {kind} kernel's configuration did not take {', '.join(lost)}")


def slim(path):
    """Drops objects that neither booting nor building a module needs, so that the cache stays small."""
    for name in ("vmlinux.o", "vmlinux.a"):
        (path / name).unlink(missing_ok=True)
    for top in ("arch", "block", "certs", "crypto", "drivers", "fs", "init", "io_uring", "ipc", "kernel", "lib", "mm", "net", "security", "sound", "virt"):
        for p in (path / top).rglob("*"):
            if p.suffix in (".o", ".a", ".cmd") or p.name.endswith(".mod.c"):
                if "module" not in p.name and p.is_file():
                    p.unlink()


def make_line(kind, build):
    return ["make", "-C", str(source()), f"O={build}", *variables(kind)]


def image(kind):
    return tree(kind) / KINDS[kind][3]


def module(kind, log=None):
    """Builds kmod/ for a kernel, outside the checkout, and gives the path of vexfs.ko."""
    build = tree(kind)
    words = make_line(kind, build)
    name = hashlib.sha256(str(TOP).encode()).hexdigest()[:8]
    work = CACHE / "kernel" / f"module-{kind}-{build.name.rsplit('-', 1)[1]}-{name}"
    # One at a time on a kernel: the compiler's temporary files lie in the kernel's tree.
    with locked(build.name + ".module"):
        for folder in ("core", "kmod"):
            (work / folder).mkdir(parents=True, exist_ok=True)
            mirror(TOP / folder, work / folder)
        run(log or work / "build.log", "nice", "-n", "5", *words, f"-j{jobs()}", f"M={work / 'kmod'}", "modules")
    return work / "kmod" / "vexfs.ko"


MADE = re.compile(r"\.(o|ko|cmd|rmeta|mod|mod\.c|symvers|order|log|tmp)$|(^|/)(bindings\.rs|Module\.symvers|modules\.order)$|^(target|fuzz)/")


def mirror(src, dst):
    """Makes the sources in `dst` those in `src`; what did not change keeps its time, so make builds only the rest."""
    sources = lambda top: {r for p in top.rglob("*") if p.is_file() and not MADE.search(str(r := p.relative_to(top)))}
    keep = sources(src)
    for r in keep:
        p, q = src / r, dst / r
        if not q.exists() or q.read_bytes() != p.read_bytes():
            q.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(p, q)
            shutil.copymode(p, q)
    for r in sources(dst) - keep:
        (dst / r).unlink()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("kind", choices=KINDS)
    ap.add_argument("--make", action="store_true", help="print the make line for a module outside the tree")
    ap.add_argument("--module", action="store_true", help="build kmod/ for it")
    opt = ap.parse_args()
    try:
        build = tree(opt.kind)
        if opt.make:
            print(shlex.join(make_line(opt.kind, build)))
        elif opt.module:
            print(module(opt.kind))
        else:
            print(build)
    except Missing as e:
        raise SystemExit(str(e))


if __name__ == "__main__":
    main()
