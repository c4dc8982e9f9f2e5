#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Builds and installs the module as kmod/README.md says, with kmod/Makefile, into a folder of its own.

    vm/packaging.py [x86]      # builds for a kernel of the tests (vm/kernels.py), about a minute of one CPU
"""
import os, pathlib, shutil, subprocess, sys, tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import kernels


def make(folder, *words, ok=True):
    p = subprocess.run(["nice", "make", "-C", folder / "kmod", *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert (p.returncode == 0) == ok, f"make {' '.join(map(str, words))}: exit code {p.returncode}\n{p.stdout[-3000:]}"
    return p.stdout


def check(kind="x86"):
    """Builds, installs and refuses; gives what it found as a text."""
    build = kernels.tree(kind)
    with tempfile.TemporaryDirectory(prefix="vexfs-packaging-", dir=os.environ.get("TMPDIR") or "/var/tmp") as name, kernels.locked(build.name + ".module"):
        top = pathlib.Path(name)
        for folder in ("core", "kmod"):
            shutil.copytree(kernels.TOP / folder, top / folder, ignore=shutil.ignore_patterns("target", "*.o", "*.ko", "*.rmeta"))
        words = [f"KDIR={build}", *(w for w in kernels.variables(kind) if not w.startswith("RUST_LIB_SRC="))]
        make(top, *words)
        made = top / "kmod/vexfs.ko"
        assert made.exists(), "make leaves no vexfs.ko"
        root = top / "root"
        make(top, *words, f"INSTALL_MOD_PATH={root}", "install")
        release = (build / "include/config/kernel.release").read_text().strip()
        modules = root / "lib/modules" / release
        there = [str(p.relative_to(modules)) for p in modules.rglob("vexfs.ko*")]
        assert len(there) == 1, f"installed: {there}"
        # Without this no mount(8) loads it by itself.
        alias = (modules / "modules.alias").read_text()
        assert "alias fs-vexfs vexfs" in alias, "depmod does not know fs-vexfs"
        outside = pathlib.Path("/lib/modules") / release
        assert not outside.exists(), f"make install with INSTALL_MOD_PATH touched {outside}"
        # A kernel that was built without Rust, and none at all.
        plain = top / "plain"
        (plain / "include/config").mkdir(parents=True)
        (plain / "Makefile").write_text("modules:\n\t@echo built in spite of that\n")
        (plain / "include/config/auto.conf").write_text("CONFIG_MODULES=y\n")
        said = make(top, f"KDIR={plain}", ok=False)
        assert "built without Rust" in said and "vexfs mount" in said and "in spite" not in said, said
        said = make(top, f"KDIR={top / 'nothing'}", ok=False)
        assert "no kernel to build for" in said, said
        return f"built and installed as {there[0]}; kernels without Rust refused"


if __name__ == "__main__":
    try:
        print(check(*sys.argv[1:]))
    except kernels.Missing as e:
        print(e)
        sys.exit(77)
