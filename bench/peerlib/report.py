# SPDX-License-Identifier: GPL-2.0-only
"""Tables and plots of raw samples: every figure in results/peers.md is made here and from them alone."""
import json
import math
import pathlib

TARGETS = ("0.95", "0.99")
#: What each kind is measured against.
REFERENCE = {"hnsw": "hnswlib", "flat": "faiss-flat", "ivf": "faiss-ivf", "ivfpq": "faiss-ivf", "pq": "faiss-pq",
             "lsh": "faiss-lsh"}
KINDS = {"hnsw": "Graphs", "flat": "Exact scans", "ivf": "Inverted lists", "ivfpq": "Inverted lists of codes",
         "pq": "Product quantisation", "lsh": "Hashing"}


def number(x, digits=3):
    """About three significant digits, thousands apart."""
    if x is None or not math.isfinite(x):
        return "–"
    places = max(0, digits - 1 - math.floor(math.log10(abs(x)))) if x else 0
    return f"{x:,.{places}f}"


def rate(samples, clock="cpu"):
    """The best rate among samples, for each second of processor time or (`seconds`) by the wall clock."""
    rates = [s["count"] / s[clock] for s in samples or () if s and s[clock] > 0]
    return max(rates) if rates else None


def times(a, b):
    """How many times."""
    return f"{a / b:.2f}" if a and b else "–"


def ratio(samples, others):
    """The ratio by processor time and, in brackets, by the wall clock."""
    cpu = times(rate(samples), rate(others))
    return cpu if cpu == "–" else f"{cpu} ({times(rate(samples, 'seconds'), rate(others, 'seconds'))})"


def table(heads, rows, right=1):
    """A Markdown table whose columns from `right` on are figures."""
    line = "|" + "|".join("---" if i < right else "--:" for i in range(len(heads))) + "|"
    body = ["| " + " | ".join(str(c) for c in row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(heads) + " |", line, *body]) + "\n"


class SetReport:
    """The tables of one set."""

    def __init__(self, data):
        self.data = data
        self.name = data["name"] + (", some engines again" if data["only"] else "")
        self.engines = {e["key"]: e for e in data["engines"]}

    def at(self, key, target):
        """What an engine did at a recall; nothing if it is not there or did not reach it."""
        return (self.engines.get(key) or {}).get("targets", {}).get(target) or {}

    def searches(self, target):
        """One table: everybody's rate at this recall."""
        rows = []
        for kind, title in KINDS.items():
            reference = self.at(REFERENCE[kind], target)
            for key, e in self.engines.items():
                if e["kind"] != kind:
                    continue
                t = self.at(key, target)
                trivial = rate([e.get("trivial")])
                overhead = number(1e6 / trivial, 2) if trivial else "–"
                if not t:
                    best = max((r["recall"] for r in e["recalls"]), default=0)
                    rows.append([title, e["label"], f"not reached, at most {best:.3f}"] + ["–"] * 5 + [overhead, e["durable"]])
                    continue
                rows.append([title, e["label"], t["setting"], f"{t['recall']:.4f}", number(rate(t["single"])),
                             ratio(t["single"], reference.get("single")), number(rate(t["batch"])),
                             ratio(t["batch"], reference.get("batch")), overhead, e["durable"]])
        heads = ["kind", "engine", "setting", "recall@10", "one a call, /s", "× reference", "many a call, /s", "× reference",
                 "a trivial call, µs", "inserts are durable?"]
        return table(heads, rows, 3)

    def builds(self):
        """Rates of building and of batches of 1,000."""
        rows = []
        reference = self.engines.get("hnswlib", {}).get("builds", [])
        base = [b["indexed"] for b in reference]
        for e in self.engines.values():
            indexed = [b["indexed"] for b in e.get("builds", [])]
            durable = [b["acknowledged"] for b in e.get("builds", []) if "acknowledged" in b]
            rows.append([e["label"], number(rate(indexed)), ratio(indexed, base), number(rate(durable, "seconds")), len(indexed),
                         e["durable"]])
        return table(["engine", "vectors/s until indexed", "× hnswlib", "durably acknowledged, vectors/s (wall)", "best of",
                      "inserts are durable?"], rows)

    def ones(self):
        """Rates of inserts one by one."""
        rows = []
        appends = [s for e in self.engines.values() for s in e.get("append", [])]
        rows.append(["append of a vector to a file, fdatasync each", number(rate(appends, "seconds")), "1.00", "yes"])
        for e in self.engines.values():
            if e.get("one"):
                how = e["one"][0].get("durable", "yes: flushed before it is acknowledged")
                one = rate(e["one"], "seconds")
                rows.append([e["label"], number(one), times(one, rate(appends, "seconds")), how])
        return table(["engine", "inserts/s, one by one", "× append", "durable how"], rows)

    def sizes(self):
        """Memory and disk."""
        n = self.data["n"]
        rows = []
        for e in self.engines.values():
            size = e.get("size") or {}
            open_ = e.get("reopen") or []
            after = min((o["memory"] for o in open_), default=None)
            cells = [size.get("memory"), after, size.get("disk")]
            params = {k: v for k, v in (e.get("params") or {}).items() if v}
            rows.append([e["label"], *(number(c / n) if c is not None else "–" for c in cells),
                         ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in params.items()) or "defaults"])
        return table(["engine", "memory after building, bytes a vector", "after opening again", "on disk, bytes a vector",
                      "parameters of the index"], rows)

    def opens(self):
        """Time from a cold start to the first answer."""
        rows = []
        for e in self.engines.values():
            if e.get("reopen"):
                first = min(o["seconds"] for o in e["reopen"])
                opened = min(o["open"] for o in e["reopen"])
                cpu = min(o["cpu"] for o in e["reopen"])
                rows.append([e["label"], *(f"{x * 1e3:,.1f}" for x in (opened, first, cpu))])
        return table(["engine", "volume open, ms", "first answer, ms", "of it processor time, ms"], rows)

    def drivers(self):
        """FUSE beside embedded."""
        rows = []
        for t in TARGETS:
            for key, e in self.engines.items():
                if e["driver"] != "FUSE":
                    continue
                here, there = self.at(key, t), self.at(key.replace("vexfs-fuse", "vexfs"), t)
                if here and there:
                    rows.append([e["kind"], f"≥ {t}", number(rate(here["single"])), ratio(here["single"], there["single"]),
                                 number(rate(here["batch10"])), ratio(here["batch10"], there["batch10"]),
                                 number(rate(here["batch"])), ratio(here["batch"], there["batch"])])
        return table(["kind", "recall", "one a call, /s", "× embedded", "10 a call, /s", "× embedded", "all in a call, /s",
                      "× embedded"], rows, 2)

    def targets(self):
        """What is aimed for, and what was measured."""
        out = []
        name = self.name

        def add(what, aim, value, text=None):
            if value is not None:
                out.append([name, what, f"≥ {aim}", text or f"{value:.2f}", "yes" if value >= aim else "**no**"])

        def best(t, keys, name):
            rates = [rate(self.at(k, t).get(name)) for k in keys]
            return max((r for r in rates if r), default=None)

        def over(a, b):
            return a / b if a and b else None

        rivals = {"flat": ["faiss-flat"], "ivf": ["faiss-ivf", "faiss-ivf-8"], "pq": ["faiss-pq"], "lsh": ["faiss-lsh"]}
        for t in TARGETS:
            for name_, how in (("single", "one a call"), ("batch", "many a call")):
                graph = rate(self.at("vexfs-hnsw", t).get(name_))
                add(f"hnsw × hnswlib at recall {t}, {how}", 1.5, over(graph, best(t, ["hnswlib"], name_)))
                svs = best(t, [k for k in self.engines if k.startswith("svs")], name_)
                add(f"hnsw × the fastest SVS at recall {t}, {how}", 1.0, over(graph, svs))
                for kind, keys in rivals.items():
                    if kind == "flat" and t != TARGETS[0]:
                        continue
                    value = over(rate(self.at(f"vexfs-{kind}", t).get(name_)), best(t, keys, name_))
                    recall = "" if kind == "flat" else f" at recall {t}"
                    add(f"{kind} × faiss's fastest of the kind{recall}, {how}", 1.0, value)
                scan = over(rate(self.at("vexfs-pq", t).get(name_)), best(t, ["faiss-pq-scan"], name_))
                add(f"pq × faiss's fast scan (4-bit codes, same size) at recall {t}, {how}", 1.0, scan)
        for t in TARGETS:
            here, there = self.at("vexfs-fuse-hnsw", t), self.at("vexfs-hnsw", t)
            add(f"hnsw through FUSE × embedded, batches of 10, recall {t}", 0.8,
                over(rate(here.get("batch10")), rate(there.get("batch10"))))
        peer = [b["indexed"] for b in self.engines.get("hnswlib", {}).get("builds", [])]
        for kind in ("hnsw", "flat", "ivf", "pq", "lsh"):
            builds = self.engines.get(f"vexfs-{kind}", {}).get("builds", [])
            durable = rate([b["acknowledged"] for b in builds], "seconds")
            if kind == "hnsw":
                add("hnsw, durable inserts in batches of 1,000 × hnswlib's undurable build", 1.0,
                    over(durable, rate(peer, "seconds")))
                add("hnsw, the same until all is in the graph", 1.0, over(rate([b["indexed"] for b in builds]), rate(peer)))
            elif durable:
                add(f"{kind}, durable inserts in batches of 1,000, /s", 50_000, durable, number(durable))
        appends = [s for e in self.engines.values() for s in e.get("append", [])]
        add("hnsw, durable inserts one by one × append and fdatasync", 0.8,
            over(rate(self.engines.get("vexfs-hnsw", {}).get("one"), "seconds"), rate(appends, "seconds")))
        opened = [o["seconds"] for o in self.engines.get("vexfs-hnsw", {}).get("reopen", [])]
        if opened and self.data["n"] >= 1_000_000:
            out.append([name, "open to first answer", "< 0.5 s", f"{min(opened):.2f} s", "yes" if min(opened) < 0.5 else "**no**"])
        return out


def kernels(raw):
    """A page on our kernels beside the crates' and memory."""
    best = {(k["set"], k["dim"], k["what"], k["whose"]): max(k["bytes_per_second"]) / 1e9 for k in raw["kernels"]}
    rows = []
    for (set_, dim, what, whose), ours in best.items():
        if not whose.startswith("VexFS"):
            continue
        crates = [(best.get((set_, dim, what, c)), c) for c in ("simsimd", "numkong")]
        theirs, crate = max((c for c in crates if c[0]), default=(None, "–"))
        memory = best.get((set_, dim, "reading", "memory"))
        rows.append([what, dim, set_, number(ours), f"{number(theirs)} ({crate})", times(ours, theirs), number(memory),
                     times(ours, memory)])
    rows.sort(key=lambda r: r[:2])
    text = (
        "# Distance kernels\n\nMade by bench/peers --kernels from kernels.json. " + ran(raw) + f", path {raw['path']}. Bytes of "
        f"stored vectors for each second of processor time, best of {raw['rounds']} rounds; sets that fit the caches and one that "
        "does not, beside the rate of only reading the same memory. simsimd sums f32 in f32, numkong in f64: each stands beside "
        "our kernel that does the same.\n\n")
    return text + table(["kernel", "dim", "set", "VexFS, GB/s", "the faster crate, GB/s", "×", "reading, GB/s", "× reading"], rows)


def ran(raw):
    """When and where."""
    where = "a virtual machine" if raw["hypervisor"] else "bare metal"
    return f"{raw['date']}, commit {raw['commit']}; {raw['cpu']}, {where}, Linux {raw['kernel']}"


def markdown(raw):
    """The page."""
    out = ["# VexFS beside other engines\n",
           "Made by bench/peers from peers.json; `bench/peers --report` makes it again. No figure is typed by hand.\n"]
    out.append(
        f"{ran(raw)}. Each set is a comparison of its own: everything ran on one processor, "
        "one thread each, in turns, and the best of the rounds counts. Queries are converted inside the timing. Each engine "
        "searches with the smallest effort that reaches the recall; all are compared with one exact truth. Ratios are to the "
        "reference of the kind (" + ", ".join(f"{k}: {v}" for k, v in REFERENCE.items()) + "). Searches and building are given for "
        "each second of processor time, all threads of the engine (and the FUSE daemon) counted, because others used the "
        "machine too; in brackets are the ratios by the wall clock. What waits for the disk is given by the wall clock. A trivial call is a search among 10 vectors (300 or 1,000 where fewer cannot be "
        "indexed). VexFS returns distances in f64 from full vectors for every kind. All indexes are as their defaults make them; "
        "graphs have 16 links (32 in the bottom layer) and 200 candidates while building. Codes of pq take a byte for 8 elements "
        "and those of lsh 48 × (log2 n − 3) bits, here and there. LanceDB's ef is at least the number of "
        "candidates that are measured again.\n")
    if any(s["quick"] for s in raw["sets"]):
        out.append("**There is a --quick run among these: small sets and short rounds. The figures mean nothing.**\n")
    reports = [SetReport(s) for s in raw["sets"]]
    rows = [row for r in reports for row in r.targets()]
    out += ["## Targets\n", table(["set", "what", "aim", "measured", "met"], rows, 3)]
    for r in reports:
        d = r.data
        out.append(f"## {r.name}: {d['n']:,} × {d['dim']}, {d['metric']}, {d['queries']} queries\n")
        out.append(f"Commit {d['commit']}, {d['date']}, best of {d['rounds']} rounds.\n")
        for t in TARGETS:
            out += [f"### Searches at recall@10 ≥ {t}\n", r.searches(t)]
        if any(e["driver"] == "FUSE" for e in d["engines"]):
            out += ["### Through FUSE\n", "Client and daemon share the one processor.\n", r.drivers()]
        out += ["### Building\n", "In batches of 1,000. VexFS acknowledges a batch when it is durable and found by every search; "
                "the index takes it in behind that, and `until indexed` is when it has.\n", r.builds()]
        out += ["### Durable inserts one by one\n", r.ones()]
        out += ["### Size\n", "Memory is what the process grew by, not counting pages of files; disk includes the vectors.\n",
                r.sizes()]
        if any(e.get("reopen") for e in d["engines"]):
            out += ["### Cold open\n", "The image out of the page cache, then open until the first answer.\n", r.opens()]
    left = [[x["engine"], x.get("set", "all"), x.get("while", "installing"), x["reason"]]
            for x in raw["left_out"] + [y for s in raw["sets"] for y in s["left_out"]]]
    out += ["## Left out\n", table(["engine", "set", "while", "reason"], left, 4)]
    out += ["## Versions\n", ", ".join(f"{k} {v}" for k, v in raw["versions"].items()) + "\n"]
    return "\n".join(out)


def plot(raw, file):
    """Search cost against size, both on logarithmic axes."""
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "vexfs"
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(8, 5.5))
    for label in dict.fromkeys(p["label"] for p in raw["points"]):
        points = [(p["n"], 1e6 / rate(p["single"])) for p in raw["points"] if p["label"] == label and p.get("single")]
        if points:
            axes.plot(*zip(*points), marker="o", label=label)
    sizes = sorted({p["n"] for p in raw["points"]})
    axes.set(xscale="log", yscale="log", xlabel="vectors", ylabel="processor time of a search, µs",
             title=f"Search cost against size, recall@10 ≥ {raw['points'][0]['target']}\n"
             f"clustered synthetic, {raw['points'][0]['dim']} dimensions, l2; {sizes[0]:,} to {sizes[-1]:,}; {raw['cpu']}, one core")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def scale_table(raw):
    """The plot in figures."""
    rows = []
    for p in raw["points"]:
        single = p.get("single")
        cost = [number(1e6 / rate(single, c)) for c in ("seconds", "cpu")] if single else ["–", "–"]
        rows.append([p["label"], f"{p['n']:,}", p.get("setting", p.get("failed", "recall not reached")),
                     f"{p['recall']:.4f}" if single else "–", *cost, number(rate([p.get("build")]))])
    rows.sort(key=lambda r: r[0])
    return table(["engine", "vectors", "setting", "recall@10", "µs a search", "of processor time", "built, vectors/s"], rows, 3)


def write(folder):
    """Makes everything that there are raw samples for."""
    folder = pathlib.Path(folder)
    found = False
    if (folder / "peers.json").exists():
        found = True
        (folder / "peers.md").write_text(markdown(json.loads((folder / "peers.json").read_text())))
    if (folder / "scale.json").exists():
        found = True
        raw = json.loads((folder / "scale.json").read_text())
        plot(raw, folder / "scale.svg")
        text = (f"# Search cost against size\n\nMade by bench/peers --scale from scale.json. {ran(raw)}; one core, one query a "
                f"call, best of {raw['rounds']} rounds.\n\n![plot](scale.svg)\n\n")
        (folder / "scale.md").write_text(text + scale_table(raw))
    if (folder / "kernels.json").exists():
        found = True
        (folder / "kernels.md").write_text(kernels(json.loads((folder / "kernels.json").read_text())))
    if not found:
        raise SystemExit(f"peers: {folder} has no peers.json, kernels.json or scale.json; run bench/peers first")
