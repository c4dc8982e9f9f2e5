#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs tests in a virtual machine as a user without any rights, from a copy of what they need.

    vm/unprivileged.py [x86|uml]      # as root; the kernel and the module have to be in the cache (vm/kernels.py)
"""
import os, pathlib, re, shutil, subprocess, sys, tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import kernels

NOBODY = 65534
TESTS = ("load", "virtio-disk", "mount-options")


def check(kind, module, programs):
    """Gives what it found as a text. `module` is a vexfs.ko, `programs` the folder of the programs."""
    image = kernels.image(kind)
    tree, source = kernels.tree(kind), kernels.source()
    with tempfile.TemporaryDirectory(prefix="vexfs-nobody-", dir=os.environ.get("TMPDIR") or "/var/tmp") as name:
        home = pathlib.Path(name)
        top, cache = home / "project", home / "cache/vexfs/kernel"
        skip = shutil.ignore_patterns("__pycache__", "target")
        for part in ("vm", "cli/tests", "bench/data"):
            shutil.copytree(kernels.TOP / part, top / part, ignore=skip)
        # The cache as an earlier run, or an administrator, has left it: the kernel is found, so its sources are not looked at.
        for file, copy in ((image, cache / tree.name / image.relative_to(tree)), (tree / "built", cache / tree.name / "built"), (source / "Makefile", cache / source.name / "Makefile"),
                           (pathlib.Path(module), home / "vexfs.ko"), *((pathlib.Path(programs) / p, home / "bin" / p) for p in ("vexfs", "mkfs.vexfs", "fsck.vexfs"))):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        (home / "tmp").mkdir()
        os.chown(home / "tmp", NOBODY, NOBODY)
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "VEXFS_BIN": str(home / "bin"), "TMPDIR": str(home / "tmp"), "LANG": "C.UTF-8"}
        words = [top / "vm/run_vm_tests.sh", "--with-block-device", "--size=256MB", "--quick", "--quiet", "--module", home / "vexfs.ko", *(["--uml"] if kind == "uml" else ["--accel=tcg"])]
        for t in TESTS:
            words += ["--test", t]
        p = subprocess.run(list(map(str, words)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=home, timeout=600,
                           user=NOBODY, group=NOBODY, extra_groups=[])
        assert p.returncode == 0 and re.search(rf"^{len(TESTS)} passed, 0 failed", p.stdout, re.M), f"exit code {p.returncode}: {p.stdout[-2500:]}"
        boot = next(l for l in p.stdout.splitlines() if l.startswith("-- kernel"))
        return f"as user {NOBODY}, {len(TESTS)} tests passed, {boot[3:]}"


if __name__ == "__main__":
    kind = sys.argv[1] if len(sys.argv) > 1 else "x86"
    try:
        print(check(kind, kernels.module(kind), os.environ.get("VEXFS_BIN") or kernels.TOP / "target/release"))
    except kernels.Missing as e:
        print(e)
        sys.exit(77)
