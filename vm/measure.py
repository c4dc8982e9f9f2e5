# SPDX-License-Identifier: GPL-2.0-only
"""Tables of what was measured in a guest: the module, the FUSE daemon and ext4 side by side, never two machines in one
table. Every figure is made from the raw samples in bench/results/kernel-*.json.

    python3 vm/measure.py     # makes the tables in vm/README.md again
"""
import json, pathlib, re, statistics

TOP = pathlib.Path(__file__).resolve().parent.parent
README = TOP / "vm/README.md"
MARKS = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.S)
KERNEL, FUSE, EXT4 = "VexFS-ANNS-KERNEL", "VexFS-ANNS-FUSE", "ext4"


def merge(rows):
    """One row of each measurement, with the samples of all rounds in their order."""
    out = {}
    for r in rows:
        key = (r["what"], r["driver"], r["machine"], json.dumps(r["params"], sort_keys=True))
        if key not in out:
            out[key] = dict(r, warmups=[], runs=[], latencies_us=[], recall=None)
        m = out[key]
        for name in ("warmups", "runs", "latencies_us"):
            m[name] += [round(x, 3) for x in r[name]]
        if r.get("recall") is not None:
            m["recall"] = min(r["recall"], 1.0 if m["recall"] is None else m["recall"])
    return [{k: v for k, v in r.items() if v is not None} for r in out.values()]


def number(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def label(row):
    p = row["params"]
    what = row["what"]
    if what.startswith("insert"):
        what += f", {p['index']}, batches of {p['batch']:,}" if p["batch"] > 1 else f", {p['index']}, one by one"
    elif what == "search":
        what += f", {p['index']}" + (f" at ef {p['ef']}" if "ef" in p else "") + f", recall {row['recall']:.3f}"
    return what + (" (MB/s)" if row["unit"] == "MB/s" else " (/s)")


def table(rows):
    """Markdown: a table for each machine."""
    out = []
    for machine in dict.fromkeys(r["machine"] for r in rows):
        here = [r for r in rows if r["machine"] == machine]
        lines = {}
        for r in here:
            lines.setdefault(label(r), {})[r["driver"]] = r
        rounds = [len(r["runs"]) for r in here]
        sets = dict.fromkeys(f"{r['params']['data']}, {r['params']['n']:,} × {r['params']['dim']}" for r in here if r["what"] == "search")
        out += [f"In {machine}, {here[0]['cpu']}; median of {min(rounds)} interleaved rounds" + (f" to {max(rounds)}" if max(rounds) > min(rounds) else "")
                + f"; searches in {', '.join(sets)}; commit {', '.join(dict.fromkeys(r['commit'] for r in here))}.", "",
                "| | kernel | FUSE | kernel ÷ FUSE | ext4 | kernel ÷ ext4 |", "|---|--:|--:|--:|--:|--:|"]
        for name, by in lines.items():
            mid = {d: statistics.median(r["runs"]) for d, r in by.items()}
            cell = lambda d: number(mid[d]) if d in mid else "–"
            ratio = lambda d: f"{mid[KERNEL] / mid[d]:.2f}" if d in mid and KERNEL in mid else "–"
            out.append(f"| {name} | {cell(KERNEL)} | {cell(FUSE)} | {ratio(FUSE)} | {cell(EXT4)} | {ratio(EXT4)} |")
        out.append("")
    return "\n".join(out)


def publish():
    """Puts the tables of all machines into vm/README.md."""
    rows = [r for p in sorted((TOP / "bench/results").glob("kernel-*.json")) for r in json.loads(p.read_text())["rows"]]
    text = README.read_text()
    assert MARKS.search(text), f"{README} has no place for figures"
    README.write_text(MARKS.sub(lambda m: m[1] + table(rows) + m[2], text))


if __name__ == "__main__":
    publish()
