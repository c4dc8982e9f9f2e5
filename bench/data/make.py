#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Cuts the sample in this folder out of the full set (20,000 Debian packages), and computes its ground truth.

    make.py FOLDER        # FOLDER holds packages-384.{base.npy,query.npy,jsonl,query.jsonl}; needs numpy
"""
import json, pathlib, sys
import numpy as np

ROWS, QUERIES, NEIGHBOURS, TEXT = 2000, 50, 100, 160

full, here = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
base = np.load(full / "packages-384.base.npy")[:ROWS]
query = np.load(full / "packages-384.query.npy")[:QUERIES]
np.save(here / "sample.base.npy", base)
np.save(here / "sample.query.npy", query)
for source, target, rows in (("packages-384.jsonl", "sample.jsonl", ROWS), ("packages-384.query.jsonl", "sample.query.jsonl", QUERIES)):
    with open(full / source) as f, open(here / target, "w") as out:
        for line, _ in zip(f, range(rows)):
            record = json.loads(line)
            record["text"] = record["text"][:TEXT]
            out.write(json.dumps(record, ensure_ascii=False) + "\n")

b, q = base.astype(np.float64), query.astype(np.float64)
b /= np.linalg.norm(b, axis=1, keepdims=True)
q /= np.linalg.norm(q, axis=1, keepdims=True)
order = np.argsort(1 - q @ b.T, axis=1, kind="stable")[:, :NEIGHBOURS].astype("<i4")
np.hstack([np.full((QUERIES, 1), NEIGHBOURS, "<i4"), order]).tofile(here / "sample.gt100.ivecs")
