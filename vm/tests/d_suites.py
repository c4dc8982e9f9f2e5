# SPDX-License-Identifier: GPL-2.0-only
"""The suites of others, and the project's end-to-end tests, on the mount."""
import hashlib, json, threading
from vmtest import *


def posix(suite, *args):
    Disks.take()
    module = end_to_end("posix", suite)
    import contextlib as c, io
    out = io.StringIO()
    with c.redirect_stdout(out):
        code = getattr(module, suite)(*args)
    text = out.getvalue().strip()
    assert code == 0, text[-3000:]
    return text.split("\n")[-1]


@test(limit=1800, quick=True)
def test_pjdfstest():
    """pjdfstest without a failure"""
    return posix("pjdfstest")


@test(limit=3600, quick=True)
def test_fsx():
    """fsx with mmap"""
    return posix("fsx", *((2, 3_000) if G.quick else (5, 100_000)))


@test(limit=1800, quick=True)
def test_fio():
    """fio writes and verifies: buffered, mapped, direct, uneven"""
    return posix("fio")


FILES = ("names_and_contents", "attributes_and_acls", "sparse_and_preallocated", "names_of_any_bytes_and_long_paths", "readdir_while_it_changes",
         "full_disk", "mmap_and_odirect", "locks", "many_threads")


@test(limit=2400, quick=True)
def test_files():
    """What people do with files, up to the limits (the end-to-end tests of the FUSE daemon)"""
    with scratch():
        module = end_to_end("e2e")
        names = [f"test_{n}" for n in FILES] + ([] if G.quick else ["test_100000_files_in_a_directory"])
        notes = []
        for name in names:
            begin = time.time()
            note = getattr(module, name)()
            G.say(f"{name.removeprefix('test_').replace('_', ' ')}: {note or 'ok'} ({time.time() - begin:.1f} s)")
            notes += [note] if isinstance(note, str) else []
    return f"{len(names)} tests; " + "; ".join(notes)


class scratch:
    """An ext4 on the spare disk for images, as TMPDIR."""

    def __enter__(self):
        run("mkfs.ext4", "-q", "-F", G.spare)
        self.dir = pathlib.Path("/mnt/scratch")
        self.dir.mkdir(exist_ok=True)
        run("mount", G.spare, self.dir)
        os.environ["TMPDIR"] = str(self.dir)
        return self.dir

    def __exit__(self, kind, *_):
        subprocess.run(["umount", *(["-l"] if kind else []), self.dir])


def tree_of(path):
    """name -> hash, for all files below a path."""
    out = {}
    for root, _, files in os.walk(path):
        for f in files:
            p = os.path.join(root, f)
            if os.path.isfile(p) and not os.path.islink(p):
                out[os.path.relpath(p, path)] = hashlib.file_digest(open(p, "rb"), "sha256").digest()
    return out


# What stands on the machines that these tests run on: sources of the kernel's compiler, in thousands of small files.
OTHERS = ("core", "alloc", "std", "compiler-builtins", "stdarch", "backtrace")


def sources():
    """(folder, its parts) of a source tree to unpack: the library of the kernel's compiler, or this project."""
    library = next(iter(sorted(pathlib.Path("/usr/src").glob("rustc-*/library"))), None)
    if library and not G.quick:
        return library, [p for p in OTHERS if (library / p).is_dir()]
    return TOP, ["core", "cli", "client", "embedded", "fuse", "sim", "blockdev-replay"]


def built(v, where):
    """The client library of this project is compiled and tested in a copy of the sources on the volume; its tests link, map and run
    what the compiler wrote there."""
    env = {**os.environ, "CARGO_TARGET_DIR": str(v / "target"), "CARGO_NET_OFFLINE": "true", "CARGO_INCREMENTAL": "1", "RUST_BACKTRACE": "0"}
    manifest = where / "Cargo.toml"
    members = ("core", "core/fp", "client")
    text = (TOP / "Cargo.toml").read_text()
    text = re.sub(r"members = \[.*?\]", f"members = {json.dumps(members)}", text, flags=re.S)
    text = re.sub(r"^exclude = .*$", "", text, flags=re.M)
    manifest.write_text(text)
    begin = time.time()
    p = run("cargo", "test", "--offline", "-q", "-j", os.cpu_count(), "--manifest-path", manifest, "-p", "vexfs-client", ok=None, timeout=2000, env=env)
    assert p.returncode == 0, (p.out + p.err)[-2000:]
    passed = sum(map(int, re.findall(r"(\d+) passed", p.out)))
    assert passed, p.out[-500:]
    made = sum(len(f) for _, _, f in os.walk(v / "target"))
    return f"client compiled to {made} files, {passed} of its tests passed ({time.time() - begin:.0f} s)"


@test(limit=3600, quick=True)
def test_source_tree():
    """A source tree is unpacked, put under version control, cloned, compiled and deleted; hashes compared with the origin each time"""
    mkfs()
    with mounted() as v:
        v.again()
        free = os.statvfs(v.dir).f_bfree
        top, parts = sources()
        archive = G.work / "tree.tar"
        run("tar", "-C", top, "--exclude=target", "--exclude=.git", "-cf", archive, *parts)
        (v / "t").mkdir()
        run("tar", "-C", v / "t", "-xf", archive)
        archive.unlink()
        origin = {}
        for p in parts:
            origin.update({f"{p}/{k}": h for k, h in tree_of(top / p).items() if not k.startswith("target/")})

        def same(where, what):
            got = tree_of(where)
            assert got == origin, f"{what}: {len(set(got) ^ set(origin))} names and {sum(got[k] != origin[k] for k in got if k in origin)} contents differ"

        v.again()
        same(v / "t", "unpacked, after a remount")
        # Version control keeps a hash of each file, packs them through mappings, and checks all of it.
        git = lambda *a: run("git", "-C", v / "t", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "core.fsync=all", "-c", "gc.auto=0", *a, timeout=1200)
        git("init", "-q")
        git("add", "-A", "-f")
        git("commit", "-q", "-m", "all")
        git("repack", "-q", "-a", "-d")
        drop_caches()
        git("fsck", "--full", "--strict")
        run("git", "clone", "-q", "--no-hardlinks", v / "t", v / "clone", timeout=1200)
        assert git("status", "--porcelain").out == ""
        run("rm", "-rf", v / "t/.git", v / "clone/.git")
        same(v / "clone", "cloned")
        run("cp", "-a", v / "clone", v / "copy")
        drop_caches()
        same(v / "copy", "copied")
        run("rm", "-rf", v / "clone")
        same(v / "t", "at the end")
        note = ""
        if G.quick or G.kind == "uml":
            # C programs, compiled and run from the volume, which maps them. In user-mode Linux a compiler of Rust dies, on ext4 as well: each of its pages
            # is a mapping of the host, which allows 65,530 ("Error flushing stub syscalls: 12").
            (v / "b").mkdir()
            for n in range(3):
                (v / f"b/p{n}.c").write_text(f'#include <stdio.h>\nint main(void) {{ printf("%d\\n", {n} * 7); return 0; }}\n')
                run("cc", "-O1", "-o", v / f"b/p{n}", v / f"b/p{n}.c", timeout=300)
                assert run(v / f"b/p{n}").out == f"{n * 7}\n"
            note = "3 programs compiled and run"
        else:
            (v / "project").mkdir()
            run("tar", "-C", TOP, "--exclude=target", "-cf", archive, "core", "client")
            run("tar", "-C", v / "project", "-xf", archive)
            note = built(v, v / "project")
        for name in os.listdir(v.dir):
            run("rm", "-r", v / name, timeout=1200)
        assert os.listdir(v.dir) == []
        v.again()
        # What is left over is the log, which may have become larger.
        gone = (free - os.statvfs(v.dir).f_bfree) * 4096
        assert gone < 80 << 20, f"{gone} bytes are not free again"
    fsck()
    return f"{len(origin)} files unpacked, committed, cloned, copied, deleted; {note}"


@test(limit=1500)
def test_stress_ng():
    """stress-ng's class of filesystem stressors: each for itself, then all at once for a minute"""
    if not vex.shutil.which("stress-ng"):
        raise Skip("no stress-ng (.ci/need installs it)")
    p = run("stress-ng", "--class", "filesystem?", ok=None)
    names = (p.out + p.err).split("stressors:")[1].split()
    mkfs()
    absent = []

    def stress(what, *args, seconds):
        p = run("stress-ng", "--temp-path", v.dir, "--timeout", f"{seconds}s", "--verify", "--hdd-bytes", "32m", *args, ok=None, timeout=seconds + 240)
        # 3: no resources, 4: not implemented here; and some may bring the machine down on purpose
        refused = "disabled" in p.err and "No stress workers" in p.err
        assert p.returncode in (0, 3, 4) or refused, f"stress-ng {what}: exit code {p.returncode}: {(p.out + p.err)[-1500:]}"
        if p.returncode:
            absent.append(what)

    with mounted() as v:
        for name in names:
            stress(name, f"--{name}", 2, seconds=2)
        stress("all", *[a for name in names for a in (f"--{name}", 1)], seconds=5 if G.quick else 60)
        # Still a volume that works.
        (v / "after").write_bytes(b"after")
        v.again()
        assert (v / "after").read_bytes() == b"after"
    fsck()
    return f"{len(names)} stressors, 2 s each, then all at once for {5 if G.quick else 60} s" + (f"; not here: {', '.join(absent)}" if absent else "")


@test(limit=600)
def test_dbench():
    """dbench with four clients"""
    if not vex.shutil.which("dbench"):
        raise Skip("no dbench (.ci/need installs it)")
    mkfs()
    with mounted() as v:
        p = run("dbench", "-D", v.dir, "-t", 5 if G.quick else 60, "-c", "/usr/share/dbench/client.txt", 4, ok=None, timeout=400)
        assert p.returncode == 0 and "Throughput" in p.out, (p.out + p.err)[-1500:]
        figure = next(l for l in p.out.splitlines() if l.startswith("Throughput"))
    fsck()
    return figure


@test(limit=2400)
def test_two_at_once():
    """fsx and the source tree on one volume at the same time"""
    mkfs()
    with mounted() as v:
        (v / "x").mkdir()
        config = G.work / "fsx.toml"
        config.write_text("flen = 1048576\n[opsize]\nmax = 65536\nmin = 1\nalign = 1\n[weights]\nclose_open = 1\ninvalidate = 1\nmapread = 10\nmapwrite = 10\nread = 10\nwrite = 10\n"
                          "truncate = 10\nfsync = 1\nfdatasync = 1\npunch_hole = 5\n")
        ops = 2_000 if G.quick else 30_000
        others = [subprocess.Popen(["fsx", "-q", "-f", config, "-P", G.work, "-S", str(s), "-N", str(ops), v / f"x/f{s}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for s in (11, 12)]
        want = tree_of(TOP / "core/src")
        rounds = 0
        while rounds == 0 or any(p.poll() is None for p in others):
            run("cp", "-r", TOP / "core/src", v / "tree")
            drop_caches()
            assert tree_of(v / "tree") == want
            run("rm", "-r", v / "tree")
            rounds += 1
        for p in others:
            assert p.wait() == 0, p.stdout.read()[-2000:]
    fsck()
    return f"2 × {ops} operations of fsx beside {rounds} copies of {len(want)} files"
