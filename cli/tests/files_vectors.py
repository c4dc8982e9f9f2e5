#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""2,000 files that carry their package's embedding: renames, overwrites, links, unlinks, moves between collections,
kill -9; after each step a search names exactly the files that exist, with the names that they have now."""
import random, sys
from vex import *

ROWS, DIM, VECTORS = read_npy(SAMPLE / "sample.base.npy")
records = [json.loads(line) for line in open(SAMPLE / "sample.jsonl")]
home = Dir("files")
image = home / "image"
state = {}


def names_in(m, directory):
    """What a search for everything names in a collection: {(name, …)}; each record once."""
    q = ",".join(map(repr, VECTORS[:DIM]))
    hits = vexfs_json("search", m / directory, "--vector", q, "-k", 5000, "--exact")[0]["results"]
    ids = [h["id"] for h in hits]
    assert len(ids) == len(set(ids)), "a record was found twice"
    return {tuple(sorted(p["path"] for p in h["paths"])) if "paths" in h else (h["path"],) for h in hits}


def verify(m):
    """Every search against the model: {collection: {name: package}}; links share a package."""
    for directory, names in state["model"].items():
        by_file = {}
        for name, key in names.items():
            by_file.setdefault(key, []).append(name)
        want = {tuple(sorted(n)) for n in by_file.values()}
        got = names_in(m, directory)
        assert got == want, f"{directory}: found too much {sorted(got - want)[:5]}, too little {sorted(want - got)[:5]}"
        # A sample: the nearest to a package's vector is its own file, and its contents are its own.
        for name in random.Random(1).sample(sorted(names), min(20, len(names))):
            row = names[name][0]
            hit = vexfs_json("search", m / directory, "--vector", ",".join(map(repr, VECTORS[row * DIM:(row + 1) * DIM])), "-k", 1)[0]["results"][0]
            assert hit["distance"] < 1e-6, (name, hit)
            assert (m / directory / name).read_text().startswith(records[row]["name"])


def test_make_2000_files():
    mkfs(image, "-s", "512M")
    m = state["m"] = home.mount(image)
    a = {}
    for d in ("a", "b"):
        vexfs("collection", "create", m / d, "--dim", DIM, "--metric", "cosine", "--index", "hnsw" if d == "a" else "flat")
    for i, r in enumerate(records):
        name = f"{r['name']}.txt"
        (m / "a" / name).write_text(f"{r['name']}\n{r['text']}\n")
        os.setxattr(m / "a" / name, "user.section", r["section"].encode())
        os.setxattr(m / "a" / name, "user.installed_kib", str(r["installed_kib"]).encode())
        a[name] = (i, 0)
    start = time.time()
    vexfs("embed", "--npy", SAMPLE / "sample.base.npy", *[m / "a" / n for n in a])
    state["model"] = {"a": a, "b": {}}
    verify(m)
    return f"{len(a) / (time.time() - start):.0f} embeddings/s"


def test_attributes_of_files_are_filters():
    m = state["m"]
    q = ",".join(map(repr, VECTORS[:DIM]))
    got = vexfs_json("search", m / "a", "--vector", q, "-k", 5000, "--where", 'section = "libs" and installed_kib < 100')[0]["results"]
    want = {f"{r['name']}.txt" for r in records if r["section"] == "libs" and r["installed_kib"] < 100}
    assert {h["path"] for h in got} == want, (len(got), len(want))


def change(m, rng, steps):
    """Random changes of names, in the volume and in the model."""
    model = state["model"]
    for n in range(steps):
        src = rng.choice(["a", "a", "b"]) if model["b"] else "a"
        name = rng.choice(sorted(model[src]))
        dst = rng.choice(["a", "b"])
        kind = rng.randrange(6)
        if kind == 0:  # rename, maybe over another file, maybe into the other collection
            new = rng.choice(sorted(model[dst])) if model[dst] and rng.random() < 0.2 else f"r{state.setdefault('n', 0)}"
            state["n"] += 1
            if new in model[dst] and model[dst][new] == model[src][name]:
                continue  # two names of one file: rename does nothing
            os.rename(m / src / name, m / dst / new)
            model[dst][new] = model[src].pop(name) if (src, name) != (dst, new) else model[src][name]
        elif kind == 1:  # hard link
            new = f"l{n}-{rng.randrange(1 << 30)}"
            os.link(m / src / name, m / dst / new)
            model[dst][new] = model[src][name]
        elif kind == 2:  # unlink
            os.unlink(m / src / name)
            del model[src][name]
        elif kind == 3:  # overwrite: keeps the embedding, which is stale from then on
            row = model[src][name][0]
            (m / src / name).write_text(f"{records[row]['name']} again\n")
        elif kind == 4:  # replaced by a new file with an embedding of its own
            row = rng.randrange(ROWS)
            (m / src / "tmp").write_text(f"{records[row]['name']} new\n")
            os.setxattr(m / src / "tmp", "user.vexfs.embedding", VECTORS[row * DIM:(row + 1) * DIM].tobytes())
            os.rename(m / src / "tmp", m / src / name)
            model[src][name] = (row, f"new{n}-{rng.randrange(1 << 30)}")
        else:  # exchange names
            other = rng.choice(sorted(model[src]))
            os.rename(m / src / name, m / src / "x")
            if other != name:
                os.rename(m / src / other, m / src / name)
                os.rename(m / src / "x", m / src / other)
                model[src][name], model[src][other] = model[src][other], model[src][name]
            else:
                os.rename(m / src / "x", m / src / name)


def test_names_change():
    change(state["m"], random.Random(1), 600)
    verify(state["m"])


def test_after_remount():
    state["m"].again()
    verify(state["m"])


def test_kill_and_mount_again():
    rng = random.Random(2)
    m = state["m"]
    for _ in range(3):
        change(m, rng, 200)
        m.kill()
        fsck(image)
        m.start()
        verify(m)


def test_another_dimension_is_not_indexed():
    m = state["m"]
    vexfs("collection", "create", m / "small", "--dim", 3, "--metric", "l2", "--index", "flat")
    name = sorted(state["model"]["a"])[0]
    os.link(m / "a" / name, m / "small/big")
    (m / "small/fits").write_text("x")
    vexfs("embed", m / "small/fits", "--vector", "1,2,3")
    info = vexfs_json("collection", "info", m / "small")[0]
    assert (info["files"], info["unindexed"]) == (1, 1), info
    vexfs("embed", m / "small/fits", "--vector", "1,2", ok=(2,))
    os.unlink(m / "small/big")
    info = vexfs_json("collection", "info", m / "small")[0]
    assert (info["files"], info["unindexed"]) == (1, 0), info
    # By the attribute it succeeds, so that what copies files loses no embedding.
    os.setxattr(m / "small/fits", "user.vexfs.embedding", struct.pack("<2f", 1, 2))
    info = vexfs_json("collection", "info", m / "small")[0]
    assert (info["files"], info["unindexed"]) == (0, 1), info


def test_dropping_a_collection_keeps_files_and_embeddings():
    m = state["m"]
    vexfs("collection", "drop", m / "b")
    fails = vexfs("search", m / "b", "--vector", "1,2", ok=None)
    assert fails.returncode == 2 and "not a collection" in fails.err, fails.err
    name = sorted(state["model"]["b"])[0]
    assert len(os.getxattr(m / "b" / name, "user.vexfs.embedding")) == 4 * DIM
    # Made again, it takes its files in.
    vexfs("collection", "create", m / "b", "--dim", DIM, "--metric", "cosine", "--index", "hnsw")
    end = time.time() + 60
    while vexfs_json("collection", "info", m / "b")[0]["populating"] and time.time() < end:
        time.sleep(0.05)
    verify(m)
    m.stop()
    fsck(image)


def test_permissions():
    """Searching never names a file that the caller may not read; k results still come back."""
    need_root()
    m = home.mount(image, "allow_other,default_permissions")
    for d in ("a",):
        for n in sorted(state["model"][d])[::2]:
            os.chmod(m / d / n, 0o600)
    hidden = {n for n in os.listdir(m / "a") if not os.stat(m / "a" / n).st_mode & 4}
    q = ",".join(map(repr, VECTORS[:DIM]))
    code = (f"import os, subprocess; os.setgroups([]); os.setgid(12345); os.setuid(12345); "
            f"print(subprocess.run([{str(BIN / 'vexfs')!r}, 'search', {str(m / 'a')!r}, '--vector', {q!r}, '-k', '20', '--json'], capture_output=True, text=True))")
    os.chmod(m / "a", 0o755)
    out = run(sys.executable, "-c", code).out
    if "Permission denied: " in out and str(BIN) in out:
        raise Skip("another user may not run the program here")
    text = out.split("stdout='", 1)[1].split("\\n'", 1)[0]
    names = {p["path"] for h in json.loads(text)["results"] for p in h.get("paths", [h])}
    assert len(names) >= 20 and not names & hidden, (len(names), sorted(names & hidden)[:3])


if __name__ == "__main__":
    need_fuse()
    build()
    with home:
        Checks(tests_of(sys.modules[__name__])).run(sys.argv[1:])
