#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Search quality on real embeddings, through FUSE and embedded: exactness, recall, filters, the same results in
both drivers and after reopening, export and import. `recall.py [--full FOLDER]` takes the 20,000 vectors of that folder."""
import argparse, math, sys
from vex import *

ap = argparse.ArgumentParser()
ap.add_argument("--full", type=pathlib.Path, help="folder with packages-384.*")
ap.add_argument("only", nargs="*")
opt = ap.parse_args()
BASE, QUERY, ATTRS, TRUTH = (
    [opt.full / f"packages-384.{x}" for x in ("base.npy", "query.npy", "jsonl", "gt100.ivecs")] if opt.full
    else [SAMPLE / f"sample.{x}" for x in ("base.npy", "query.npy", "jsonl", "gt100.ivecs")])
ROWS, DIM, VECTORS = read_npy(BASE)
QUERIES, _, QV = read_npy(QUERY)
truth = read_ivecs(TRUTH)
records = [json.loads(line) for line in open(ATTRS)]
home = Dir("recall")
image = home / "image"
state = {}


def search(where, *args, k=10):
    """(ids of each query, evaluations a query)"""
    out = home / "out.ivecs"
    p = vexfs("search", where, "--npy", QUERY, "-k", k, "--stats", "--ivecs", out, *args)
    evaluations = float(p.err.split(" distance evaluations")[0].rsplit(" ", 1)[1])
    return read_ivecs(out), evaluations


def test_insert_embedded_and_through_fuse():
    mkfs(image, "-s", "1G")
    vexfs("collection", "create", f"{image}:/flat", "--dim", DIM, "--metric", "cosine", "--index", "flat")
    a = vexfs_json("insert", f"{image}:/flat", "--npy", BASE, "--attrs", ATTRS, "--sync", "batch")[0]
    m = home.mount(image)
    vexfs("collection", "create", m / "hnsw", "--dim", DIM, "--metric", "cosine", "--index", "hnsw", "--m", 16, "--ef-construction", 200)
    b = vexfs_json("insert", m / "hnsw", "--npy", BASE, "--attrs", ATTRS, "--sync", "batch")[0]
    assert a["inserted"] == b["inserted"] == ROWS
    state["m"] = m
    end = time.time() + 600
    while vexfs_json("collection", "info", m / "hnsw")[0]["pending"] and time.time() < end:
        time.sleep(0.2)
    return f"embedded flat {a['per_second']:.0f}/s, FUSE hnsw {b['per_second']:.0f}/s"


def test_flat_is_exact():
    m = state["m"]
    found, evaluations = search(m / "flat")
    # Every record is looked at, and the few that its bound does not rule out are measured once more.
    assert recall(found, truth, 10) == 1.0 and ROWS <= evaluations <= 1.1 * ROWS, (recall(found, truth, 10), evaluations)
    assert search(m / "flat", k=100)[0] == truth
    state["flat"] = vexfs("search", m / "flat", "--npy", QUERY, "-k", 10, "--json").out


def test_hnsw_recall_and_evaluations():
    m = state["m"]
    results = [(ef, *search(m / "hnsw", "--ef", ef)) for ef in (16, 32, 64, 128, 256)]
    rows = [(ef, recall(found, truth, 10), evaluations) for ef, found, evaluations in results]
    text = ", ".join(f"ef {ef}: {r:.4f} with {e:.0f}" for ef, r, e in rows)
    by = {ef: (r, e) for ef, r, e in rows}
    assert by[64][0] >= 0.95 and by[256][0] >= 0.99, text
    assert all(a[1] <= b[1] + 0.005 and a[2] < b[2] for a, b in zip(rows, rows[1:])), "recall and evaluations have to rise with ef: " + text
    if ROWS >= 20_000:
        assert by[64][1] < 0.1 * ROWS, text
    state["hnsw"] = vexfs("search", m / "hnsw", "--npy", QUERY, "-k", 10, "--ef", 64, "--json").out
    return text


# Options and number of a search that finds at least 0.95 of the ten nearest; the last one is the default.
OTHERS = {"ivf": ("--nprobe", (4, 16, 60)), "pq": ("--rerank", (10, 50, 100)), "lsh": ("--rerank", (20, 100, 300))}


def test_ivf_pq_and_lsh_recall():
    m = state["m"]
    notes = []
    for index, (option, efforts) in OTHERS.items():
        vexfs("collection", "create", m / index, "--dim", DIM, "--metric", "cosine", "--index", index)
        done = vexfs_json("insert", m / index, "--npy", BASE, "--attrs", ATTRS, "--sync", "batch")[0]
        assert done["inserted"] == ROWS
        # Found at once, whatever the index has taken in; and ready after some time.
        one = vexfs_json("search", m / index, "--vector", ",".join(map(repr, VECTORS[:DIM])), "-k", 1)[0]["results"][0]
        assert abs(one["distance"]) < 1e-6, one
        end = time.time() + 600
        while True:
            info = vexfs_json("collection", "info", m / index)[0]
            if not info["pending"] and not info["catching_up"]:
                break
            assert time.time() < end, info
            time.sleep(0.2)
        rows = []
        for effort in (*efforts, None):
            found, evaluations = search(m / index, *([option, effort] if effort else []))
            rows.append((recall(found, truth, 10), evaluations))
        text = f"{index}: " + ", ".join(f"{e or 'default'} {r:.4f} with {n:.0f}" for e, (r, n) in zip((*efforts, None), rows))
        assert rows[-2][0] >= 0.95 and rows[-1][0] >= 0.95, text
        assert all(a[0] <= b[0] + 0.005 and a[1] < b[1] for a, b in zip(rows[:-1], rows[1:-1])), text
        assert rows[-1][1] < 0.75 * ROWS, text
        assert search(m / index, "--exact", k=100)[0] == truth
        for wrong in {"--ef", "--nprobe", "--rerank"} - {option}:
            p = vexfs("search", m / index, "--npy", QUERY, wrong, 5, ok=None)
            assert p.returncode == 2 and option in p.err, p.err
        state[index] = vexfs("search", m / index, "--npy", QUERY, "-k", 10, "--json").out
        notes.append(text)
    return "; ".join(notes)


def matching(f):
    return [i for i, r in enumerate(records) if f(r)]


FILTERS = [
    ('section = "libs"', lambda r: r["section"] == "libs"),
    ("installed_kib < 1000", lambda r: r["installed_kib"] < 1000),
    ("installed_kib >= 100 and installed_kib < 200", lambda r: 100 <= r["installed_kib"] < 200),
    ('section in ("python", "perl") and not installed_kib > 500', lambda r: r["section"] in ("python", "perl") and r["installed_kib"] <= 500),
    ('section = "libs" and installed_kib < 100 or section = "haskell"', lambda r: r["section"] == "libs" and r["installed_kib"] < 100 or r["section"] == "haskell"),
    ('installed_kib < 12', lambda r: r["installed_kib"] < 12),
    ('section = "games" and installed_kib > 2000', lambda r: r["section"] == "games" and r["installed_kib"] > 2000),
]


def test_filters():
    m = state["m"]
    notes = []
    # Distances in float64, as the ground truth; a sample of the queries is enough.
    queries = range(0, QUERIES, max(1, QUERIES // 25))
    write_npy(home / "some.npy", len(queries), DIM, [x for q in queries for x in QV[q * DIM:(q + 1) * DIM]])
    dist = {}
    for q in queries:
        v = QV[q * DIM:(q + 1) * DIM]
        dist[q] = [math.sumprod(v, VECTORS[i * DIM:(i + 1) * DIM]) if hasattr(math, "sumprod") else sum(map(float.__mul__, v, VECTORS[i * DIM:(i + 1) * DIM])) for i in range(ROWS)]
    for text, f in FILTERS:
        ids = matching(f)
        want = [sorted(ids, key=lambda i: (-dist[q][i], i))[:10] for q in queries]
        for index in ("flat", "hnsw", *OTHERS):
            out = home / "f.ivecs"
            vexfs("search", m / index, "--npy", home / "some.npy", "-k", 10, "--where", text, *([] if index in OTHERS else ["--ef", 64]), "--ivecs", out)
            got = read_ivecs(out)
            for g in got:
                assert len(g) == min(10, len(ids)), f"{index}: {text}: {len(g)} results, {len(ids)} match"
                assert set(g) <= set(ids), f"{index}: {text}: results that do not match"
            r = sum(len(set(a) & set(b)) for a, b in zip(got, want)) / max(1, sum(map(len, want)))
            assert r >= (0.9999 if index == "flat" else 0.95), f"{index}: {text}: recall {r}"
            if index == "hnsw":
                notes.append(f"{100 * len(ids) / ROWS:.2g}%: {r:.3f}")
    return ", ".join(notes)


def test_radius():
    m = state["m"]
    q = ",".join(map(repr, QV[:DIM]))
    near = vexfs_json("search", m / "flat", "--vector", q, "-k", 50)[0]["results"]
    radius = near[20]["distance"]
    for index in ("flat", "hnsw"):
        got = vexfs_json("search", m / index, "--vector", q, "-k", 1000, "--radius", radius)[0]["results"]
        assert got == near[:21] if index == "flat" else len(set(g["id"] for g in got) & set(n["id"] for n in near[:21])) >= 19, (index, len(got))
        assert all(g["distance"] <= radius for g in got)
    assert vexfs_json("search", m / "flat", "--vector", q, "-k", 10, "--radius", 0)[0]["results"] == []


def test_the_same_after_reopening_and_in_both_drivers():
    m = state["m"]
    flat = state["flat"]
    m.again()
    assert vexfs("search", m / "hnsw", "--npy", QUERY, "-k", 10, "--ef", 64, "--json").out == state["hnsw"]
    for index in OTHERS:
        assert vexfs("search", m / index, "--npy", QUERY, "-k", 10, "--json").out == state[index], index
    m.stop()
    for name, want, more in (("flat", flat, ()), ("hnsw", state["hnsw"], ("--ef", 64)), *((i, state[i], ()) for i in OTHERS)):
        got = vexfs("search", f"{image}:/{name}", "--npy", QUERY, "-k", 10, *more, "--json").out
        assert got == want, f"{name}: results differ between FUSE and embedded"
    m.start()


def test_the_same_with_little_memory():
    """With caches of a tenth of the vectors (at least 1 MiB) the results are the same, and pages are read."""
    m = state["m"]
    m.stop()
    mib = max(1, ROWS * DIM * 4 // 10 >> 20)
    small = home.mount(image, f"cache={mib}m")
    reads = []
    try:
        for name, want, more in (("flat", state["flat"], ()), ("hnsw", state["hnsw"], ("--ef", 64)), *((i, state[i], ()) for i in OTHERS)):
            got = vexfs("search", small / name, "--npy", QUERY, "-k", 10, *more, "--json").out
            assert got == want, f"{name}: results differ with little memory"
            p = vexfs("search", small / name, "--npy", QUERY, "-k", 10, *more, "--stats", "--ivecs", home / "out.ivecs")
            reads.append((name, int(p.err.split(" pages of vectors read")[0].rsplit(" ", 1)[1])))
    finally:
        small.stop()
        m.start()
    assert dict(reads)["flat"] > 0, reads
    return f"{mib} MiB for {ROWS * DIM * 4 >> 20} MiB; pages read again: " + ", ".join(f"{n} {r}" for n, r in reads)


def test_export_and_import_round_trip():
    m = state["m"]
    vexfs("export", m / "hnsw", home / "out1")
    a = (home / "out1/vectors.npy").read_bytes()
    assert a[-4 * ROWS * DIM:] == VECTORS.tobytes(), "exported vectors differ from those inserted"
    want = [json.dumps(r, sort_keys=True) for r in records]
    got = [json.dumps(json.loads(l), sort_keys=True) for l in open(home / "out1/attrs.jsonl")]
    assert got == want, "exported attributes differ"
    other = home / "other"
    mkfs(other, "-s", "1G")
    vexfs("import", f"{other}:/back", home / "out1")
    vexfs("export", f"{other}:/back", home / "out2")
    for f in sorted(os.listdir(home / "out1")):
        assert (home / "out1" / f).read_bytes() == (home / "out2" / f).read_bytes(), f"{f} differs after a round trip"
    fsck(other)


def test_update_delete_and_list():
    m = state["m"]
    (home / "up.jsonl").write_text('{"id": 5, "mark": true}\n{"id": 7, "mark": true, "section": null}\n')
    vexfs("update", m / "hnsw", "--attrs", home / "up.jsonl")
    got = vexfs_json("list", m / "hnsw", "--where", "mark = true")
    assert [r["id"] for r in got] == [5, 7] and got[0]["attrs"]["section"] == records[5]["section"] and "section" not in got[1]["attrs"]
    gone = vexfs_json("delete", m / "hnsw", "--where", 'section = "libs"')[0]["deleted"]
    assert gone == len(matching(lambda r: r["section"] == "libs")) - (records[7]["section"] == "libs")
    assert vexfs_json("list", m / "hnsw", "--where", 'section = "libs"') == []
    found, _ = search(m / "hnsw", "--ef", 64)
    left = set(r["id"] for r in vexfs_json("list", m / "hnsw"))
    assert all(len(f) == 10 and set(f) <= left for f in found)
    want = [[i for i in t if i in left][:10] for t in truth]
    r = sum(len(set(a) & set(b)) for a, b in zip(found, want)) / sum(map(len, want))
    assert r >= 0.95, f"recall {r} after deletions"
    m.stop()
    fsck(image)
    return f"{gone} deleted, recall {r:.4f} after it"


def test_reindex_online():
    other = home / "reindex"
    mkfs(other, "-s", "1G")
    c = f"{other}:/c"
    vexfs("collection", "create", c, "--dim", DIM, "--metric", "cosine", "--index", "pq", "--bits", 4)
    vexfs("insert", c, "--npy", BASE)
    notes = []
    for index in ("lsh", "ivf", "hnsw", "pq", "flat"):
        vexfs("collection", "reindex", c, "--index", index)
        info = vexfs_json("collection", "info", c)[0]
        assert info["index"] == index and info["pending"] == 0, info
        r = recall(search(c)[0], truth, 10)
        assert r >= (1.0 if index == "flat" else 0.95), f"{index}: recall {r}"
        notes.append(f"{index} {r:.4f}")
    fsck(other)
    return ", ".join(notes)


if __name__ == "__main__":
    need_fuse()
    build()
    with home:
        Checks(tests_of(sys.modules[__name__])).run(opt.only)
