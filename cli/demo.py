#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The demonstration behind `make demo`: files and real embeddings in one filesystem, searched, crashed, recovered.

Uses the sample in bench/data; with the full set of 20,000 embeddings (folder in VEXFS_DATA, or ../shared/data
beside the project) it stores and searches that too. `--readme` puts the end of its output into README.md.
"""
import random, sys, textwrap, threading
sys.path.insert(0, str(__import__("pathlib").Path(__file__).parent / "tests"))
from vex import *
import crash

COLOUR = sys.stdout.isatty()
started = time.time()


said = []


def say(text, style=""):
    said.extend(text.split("\n"))
    codes = {"head": "1;36", "good": "1;32", "dim": "2", "": ""}
    print(f"\x1b[{codes[style]}m{text}\x1b[0m" if COLOUR and codes[style] else text, flush=True)


def head(text):
    say(f"\n▸ {text}", "head")


def shown(*args):
    """A command as a person would type it."""
    say("  $ " + " ".join(str(a) if " " not in str(a) else f"'{a}'" for a in args), "dim")


def full_data():
    for folder in (os.environ.get("VEXFS_DATA"), TOP.parent / "shared/data"):
        if folder and (pathlib.Path(folder) / "packages-384.base.npy").exists():
            return pathlib.Path(folder)
    return None


def searched(where, query, truth, k=10, *more):
    """(recall, queries a second, evaluations a query, lines of JSON)"""
    ids = home / "found.ivecs"
    p = vexfs("search", where, "--npy", query, "-k", k, "--stats", "--ivecs", ids, *more)
    rate = float(p.err.split("(")[1].split("/s")[0])
    evaluations = float(p.err.split(" distance evaluations")[0].rsplit(" ", 1)[1])
    return recall(read_ivecs(ids), truth, k), rate, evaluations


def main():
    need_fuse()
    rows, dim, vectors = read_npy(SAMPLE / "sample.base.npy")
    records = [json.loads(l) for l in open(SAMPLE / "sample.jsonl")]
    queries = [json.loads(l) for l in open(SAMPLE / "sample.query.jsonl")]
    table = []

    head("A filesystem in an image file, mounted")
    image = home / "vexfs.img"
    shown("mkfs.vexfs", "-s", "1G", "vexfs.img")
    mkfs(image, "-s", "1G")
    shown("vexfs", "mount", "vexfs.img", "mnt")
    m = home.mount(image)

    head(f"{rows:,} files, each with the embedding of its text")
    packages = m / "packages"
    shown("vexfs", "collection", "create", "mnt/packages", "--dim", dim, "--metric", "cosine", "--index", "hnsw")
    vexfs("collection", "create", packages, "--dim", dim, "--metric", "cosine", "--index", "hnsw")
    start = time.time()
    for r in records:
        p = packages / r["name"]
        p.write_text(r["text"] + "\n")
        os.setxattr(p, "user.section", r["section"].encode())
        os.setxattr(p, "user.installed_kib", str(r["installed_kib"]).encode())
    wrote = time.time() - start
    shown("vexfs", "embed", "--npy", "sample.base.npy", "mnt/packages/*")
    start = time.time()
    vexfs("embed", "--sync", "--npy", SAMPLE / "sample.base.npy", *[packages / r["name"] for r in records])
    embedded = time.time() - start
    table.append(("files written, with two attributes each", f"{rows:,}", f"{rows / wrote:,.0f}/s"))
    table.append(("files given their embedding, durable", f"{rows:,}", f"{rows / embedded:,.0f}/s"))

    head("Ask it something: the files whose text is nearest in meaning")
    rng = random.Random(4)
    for q in rng.sample(range(len(queries)), 3):
        _, _, qv = QUERY
        hits = vexfs_json("search", packages, "--vector", ",".join(map(repr, qv[q * dim:(q + 1) * dim])), "-k", 3)[0]["results"]
        say("  “" + textwrap.shorten(queries[q]["text"], 88, placeholder=" …") + "”")
        for h in hits:
            text = (packages / h["path"]).read_text().split(": ", 1)[-1]
            print(f"      {h['distance']:.3f}  {h['path']:28.28}  {textwrap.shorten(text, 52, placeholder=' …')}")
    where = 'section = "libs" and installed_kib < 1000'
    shown("vexfs", "search", "mnt/packages", "--npy", "sample.query.npy", "-k", "3", "--where", where)
    got = vexfs_json("search", packages, "--npy", SAMPLE / "sample.query.npy", "-k", "3", "--where", where)
    assert all(len(g["results"]) == 3 for g in got)

    data = full_data()
    base, query, attrs, truth = ([data / f"packages-384.{x}" for x in ("base.npy", "query.npy", "jsonl", "gt100.ivecs")] if data
                                 else [SAMPLE / f"sample.{x}" for x in ("base.npy", "query.npy", "jsonl", "gt100.ivecs")])
    truth = read_ivecs(truth)
    count = read_npy(base)[0]
    head(f"{count:,} embeddings as records, without a file each")
    for index in ("flat", "hnsw"):
        shown("vexfs", "insert", f"mnt/{index}", "--npy", base.name, "--attrs", attrs.name, "--sync", "batch")
        vexfs("collection", "create", m / index, "--dim", dim, "--metric", "cosine", "--index", index)
        done = vexfs_json("insert", m / index, "--npy", base, "--attrs", attrs, "--sync", "batch")[0]
        table.append((f"records inserted into {index}, durable", f"{done['inserted']:,}", f"{done['per_second']:,.0f}/s"))
    end = time.time() + 90
    while vexfs_json("collection", "info", m / "hnsw")[0]["pending"] and time.time() < end:
        time.sleep(0.1)
    for index, ef in (("flat", None), ("hnsw", 64), ("hnsw", 256)):
        r, rate, evaluations = searched(m / index, query, truth, 10, *(("--ef", ef) if ef else ()))
        name = index + (f", ef {ef}" if ef else "")
        # The exact scan measures a few twice: first a bound, then exactly.
        part = "all" if evaluations >= count else f"{100 * evaluations / count:.1f} %"
        table.append((f"search {name}: recall@10 {r:.4f}, {part} looked at", f"{len(truth):,}", f"{rate:,.0f}/s"))

    head("kill -9 in the middle of writing")
    before = vexfs("search", m / "hnsw", "--npy", query, "-k", 10, "--json").out
    files_before = vexfs("search", packages, "--npy", SAMPLE / "sample.query.npy", "-k", 10, "--json").out
    for name in ("vectors", "files"):
        vexfs("collection", "create", m / name, "--dim", crash.DIM, "--metric", "l2", "--index", "hnsw")
    known, files, stop = {"next": 0, "records": set(), "begun": set()}, {}, threading.Event()
    threads = [threading.Thread(target=crash.Client(m, known).run, args=(rng, False, stop)),
               threading.Thread(target=crash.writer, args=(m, random.Random(1), files, False, stop))]
    [t.start() for t in threads]
    time.sleep(2)
    m.kill()
    stop.set()
    [t.join() for t in threads]
    say(f"  the daemon is dead; it had acknowledged {len(known['records']):,} records and {len(files) - 1} files")
    shown("fsck.vexfs", "-n", "vexfs.img")
    start = time.time()
    out = fsck(image).out
    checked = time.time() - start
    say("  " + out.strip().replace(str(image), "vexfs.img"))
    shown("vexfs", "mount", "vexfs.img", "mnt")
    start = time.time()
    m.start()
    recovered = time.time() - start
    acknowledged, kept = len(known["records"]), len(files) - 1
    wrong = crash.check(m, known, files)
    assert not wrong, wrong
    assert vexfs("search", m / "hnsw", "--npy", query, "-k", 10, "--json").out == before, "searches differ after the crash"
    assert vexfs("search", packages, "--npy", SAMPLE / "sample.query.npy", "-k", 10, "--json").out == files_before
    say("  nothing acknowledged is missing, and every search gives the same results as before the crash", "good")
    m.stop()
    fsck(image)
    table.append((f"acknowledged before kill -9: records and files", f"{acknowledged:,} + {kept}", "0 lost"))
    table.append(("mounted again after the crash", "", f"{recovered * 1000:,.0f} ms"))
    table.append(("fsck.vexfs -n, every block verified", "clean", f"{checked * 1000:,.0f} ms"))

    width = max(len(a) for a, _, _ in table)
    side = max(len(b) for _, b, _ in table)
    last = max(len(c) for *_, c in table)
    line = "─" * (width + 2)
    say("\n  ┌" + line + "┬" + "─" * (side + 2) + "┬" + "─" * (last + 2) + "┐")
    for a, b, c in table:
        say(f"  │ {a:{width}} │ {b:>{side}} │ {c:>{last}} │")
    say("  └" + line + "┴" + "─" * (side + 2) + "┴" + "─" * (last + 2) + "┘")
    say(f"  through FUSE on this machine, in {time.time() - started:.0f} s; repeat it: make demo", "dim")
    if "--readme" in sys.argv:
        text = (TOP / "README.md").read_text()
        begin, end = "<!-- demo -->\n", "<!-- end of demo -->"
        before, rest = text.split(begin)
        ending = said[next(i for i, l in enumerate(said) if "kill -9 in" in l):]
        (TOP / "README.md").write_text(before + begin + "```\n" + "\n".join(ending).strip("\n") + "\n```\n" + end + rest.split(end)[1])
    if not data:
        say("  (with 20,000 embeddings: VEXFS_DATA=FOLDER make demo, see bench/data/README.md)", "dim")


QUERY = read_npy(SAMPLE / "sample.query.npy")
with Dir("demo") as home:
    main()
