# SPDX-License-Identifier: GPL-2.0-only
"""Cost of a search against the number of vectors, on prefixes of one synthetic set."""
from .data import SEED, Set, clustered
from .drive import Gone, Engine

SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
#: What is compared unless --engines says otherwise.
KEYS = ("vexfs-flat", "vexfs-hnsw", "vexfs-ivf", "vexfs-pq", "vexfs-lsh", "hnswlib")
TARGET = 0.95


def run(specs, most, work, tools, rounds, quick, asked, say):
    """Measures size after size; yields all points so far after each, so that a run that is stopped has what it has."""
    specs = specs if asked else [s for s in specs if s.key in KEYS]
    points = []
    vectors, queries = clustered(most, 200)
    for size in [s for s in SIZES if s < most] + [most]:
        data = Set(f"clustered-{size}", "l2", vectors[:size], queries, work, SEED)
        # One engine after the other: together they would not fit in memory.
        for spec in specs:
            e = Engine(spec, data, work / f"{data.name}-{spec.key}", tools, quick)
            say(f"{size}: {spec.label}")
            point = {"n": size, "key": spec.key, "label": spec.label, "dim": data.base.shape[1], "target": TARGET}
            try:
                e.start()
                answer = e.ask("build", batch=1000)
                point["build"] = answer.get("indexed")
                setting = e.cheapest(TARGET)
                if setting:
                    how = {"batch": 1, "effort": setting["effort"], "outer": setting["outer"], "least": 0.25, "most": 2}
                    setting["single"] = [e.ask("search", **how) for _ in range(rounds)]
                    point |= setting
            except Gone as error:
                point["failed"] = str(error)
            finally:
                e.stop()
                for file in e.home.glob("image"):
                    file.unlink()
            points.append(point)
            yield points
