#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The suites of others on the FUSE mount: posix.py pjdfstest | fsx [--seeds N --ops N] | fio"""
import argparse, concurrent.futures, grp, pwd, re, sys
from vex import *

# The POSIX suites need device files, set-id bits and other users. Remounting needs the mount helper in /sbin, where
# a test has no business; the tests of crate fuse/ cover it.
OPTIONS = "dev,suid,allow_other,default_permissions"



def pjdfstest():
    need("pjdfstest")
    need_root()
    with Dir("pjdfstest") as home:
        image = home / "image"
        mkfs(image, "-s", "512M")
        m = home.mount(image, OPTIONS)
        os.chmod(m.dir, 0o755)
        os.mkdir(m / "t")
        second = home / "second"
        second.mkdir()
        entries = [(u.pw_name, grp.getgrgid(u.pw_gid).gr_name) for u in pwd.getpwall() if u.pw_name in ("nobody", "daemon")]
        (home / "config.toml").write_text(
            "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutime_now = {}\nutimensat = {}\nstat_st_birthtime = {}\n"
            "[settings]\nnaptime = 0.01\nallow_remount = false\n"
            f"[dummy_auth]\nentries = {json.dumps(entries)}\n")
        p = run("pjdfstest", "-c", home / "config.toml", "-p", m / "t", "-s", second, ok=None, timeout=1500)
        text = re.sub(r"\x1b\[[0-9;]*m", "", p.out + p.err)
        lines = text.splitlines()
        # Every skip with its reason; all that is printed about a failure.
        for a, b in zip(lines, lines[1:] + [""]):
            if a.endswith(" skipped"):
                print(f"skipped: {a.split()[0]}: {b.strip()}")
        if p.returncode:
            print("\n".join(lines))
        total = next((l for l in reversed(lines) if "passed" in l), "")
        m.stop()
        fsck(image)
        if p.returncode or not total:
            print(f"FAILED: exit code {p.returncode}: {total}")
            return 1
        print(f"pjdfstest; {total.strip()}")
        return 0


def fsx(seeds, ops):
    need("fsx")
    with Dir("fsx") as home:
        image = home / "image"
        mkfs(image, "-s", "512M")
        m = home.mount(image)
        (home / "fsx.toml").write_text(
            "flen = 1048576\n[opsize]\nmax = 65536\nmin = 1\nalign = 1\n[weights]\nclose_open = 1\ninvalidate = 1\nmapread = 10\n"
            "mapwrite = 10\nread = 10\nwrite = 10\ntruncate = 10\nfsync = 1\nfdatasync = 1\npunch_hole = 5\nposix_fallocate = 2\nsendfile = 1\ncopy_file_range = 2\nposix_fadvise = 1\n")
        def one(seed):
            p = run("fsx", "-q", "-f", home / "fsx.toml", "-P", home.path, "-S", seed, "-N", ops, m / f"file{seed}", ok=None, timeout=1800)
            if p.returncode:
                print(f"FAILED: fsx -S {seed} -N {ops}\n{p.out[-3000:]}{p.err[-3000:]}")
            return p.returncode

        with concurrent.futures.ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 2)) as pool:
            if any(pool.map(one, range(1, seeds + 1))):
                return 1
        m.stop()
        fsck(image)
        print(f"fsx; {seeds} seeds of {ops} operations, no mismatch")
        return 0


def fio():
    need("fio")
    with Dir("fio") as home:
        image = home / "image"
        mkfs(image, "-s", "1G")
        m = home.mount(image)
        common = ["--directory", m.dir, "--verify_state_save=0", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--size=48m", "--output-format=terse", "--ioengine=psync", "--group_reporting"]
        jobs = [
            ("sequential", ["--rw=write", "--bs=128k"]),
            ("random", ["--rw=randwrite", "--bs=4k", "--numjobs=2"]),
            ("random, uneven", ["--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned"]),
            ("random, direct", ["--rw=randwrite", "--bs=4k", "--direct=1"]),
            ("random, fsync", ["--rw=randwrite", "--bs=16k", "--fsync=64", "--size=16m"]),
            ("mapped", ["--rw=randwrite", "--bs=4k", "--ioengine=mmap", "--size=16m"]),
        ]
        for name, args in jobs:
            p = run("fio", "--name", name.replace(", ", "-"), *common, *args, ok=None, timeout=600)
            if p.returncode or "verify:" in p.err:
                print(f"FAILED: {name}\n{p.out[-1000:]}{p.err[-2000:]}")
                return 1
            print(f"fio {name}: verified")
        m.again()
        # Once more from the device, after a remount.
        p = run("fio", "--name", "sequential", *common, "--rw=read", "--bs=128k", ok=None)
        if p.returncode:
            print(f"FAILED: verification after a remount\n{p.out[-1000:]}{p.err[-2000:]}")
            return 1
        m.stop()
        fsck(image)
        print(f"fio; {len(jobs)} jobs written and verified, verified again after a remount")
        return 0


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("suite", choices=("pjdfstest", "fsx", "fio"))
    ap.add_argument("--seeds", type=int, default=5)
    ap.add_argument("--ops", type=int, default=100_000)
    opt = ap.parse_args()
    need_fuse()
    build()
    sys.exit({"pjdfstest": pjdfstest, "fsx": lambda: fsx(opt.seeds, opt.ops), "fio": fio}[opt.suite]())
