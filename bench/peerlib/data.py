# SPDX-License-Identifier: GPL-2.0-only
"""Vectors to compare with, and the exact truth about them."""
import hashlib
import pathlib

import numpy as np

#: Of the synthetic sets.
SEED = 20260101
CENTRES, INNER, DIM = 1000, 32, 128


def clustered(count, queries):
    """Vectors around 1,000 centres, from a fixed seed: inside a cluster they vary in 32 directions of 128, and a little in
    all. The first vectors of a larger set are those of a smaller one."""
    rng = np.random.Generator(np.random.PCG64(SEED))
    into = np.linalg.qr(rng.standard_normal((DIM, INNER)))[0].T.astype(np.float32)
    centres = rng.standard_normal((CENTRES, INNER), dtype=np.float32)

    def draw(rng, n):
        inner = centres[rng.integers(0, CENTRES, n)] + 0.5 * rng.standard_normal((n, INNER), dtype=np.float32)
        return inner @ into + 0.02 * rng.standard_normal((n, DIM), dtype=np.float32)

    asked = draw(rng, queries)
    # In blocks of one size, so that a prefix stays a prefix.
    block = 10_000
    parts = [draw(np.random.Generator(np.random.PCG64([SEED, b])), block) for b in range(-(-count // block))]
    return np.concatenate(parts)[:count], asked


class Set:
    """Vectors and queries in files that all engines read, and the distance of each query's k-th nearest vector, computed
    in f64 over all vectors. What an engine found is right if it is no farther than that: ties count for everybody."""

    K = 10

    def __init__(self, name, metric, base, queries, home, seed=None):
        self.name, self.metric, self.seed = name, metric, seed
        self.base, self.queries = np.ascontiguousarray(base, np.float32), np.ascontiguousarray(queries, np.float32)
        home = pathlib.Path(home)
        self.base_file, self.query_file = home / f"{name}.base.npy", home / f"{name}.query.npy"
        np.save(self.base_file, self.base)
        np.save(self.query_file, self.queries)
        self.kth, self.nearest = self.truth()

    def scaled(self, vectors):
        """In f64; of unit length under cosine, where l2 then gives the same order."""
        v = vectors.astype(np.float64)
        return v / np.linalg.norm(v, axis=1, keepdims=True) if self.metric == "cosine" else v

    def truth(self):
        """Squared distance of the k-th nearest of each query, and the ids of the k nearest."""
        q = self.scaled(self.queries)
        best = np.full((len(q), 0), 0.0)
        ids = np.zeros((len(q), 0), np.int64)
        for at in range(0, len(self.base), 50_000):
            b = self.scaled(self.base[at:at + 50_000])
            d = np.square(q).sum(1)[:, None] - 2 * q @ b.T + np.square(b).sum(1)[None, :]
            best = np.concatenate([best, d], axis=1)
            ids = np.concatenate([ids, np.broadcast_to(np.arange(at, at + len(b)), d.shape)], axis=1)
            keep = np.argsort(best, axis=1, kind="stable")[:, :self.K]
            best, ids = np.take_along_axis(best, keep, 1), np.take_along_axis(ids, keep, 1)
        # Once more without the cancellation of the formula above.
        exact = self.distances(ids)
        return exact.max(axis=1), ids

    def distances(self, ids):
        """Exact squared distances from each query to the records `ids`."""
        q = self.scaled(self.queries)
        return np.stack([np.square(self.scaled(self.base[row]) - x).sum(1) for row, x in zip(ids, q)])

    def recall(self, found):
        """The part of the k nearest that is in `found`, a list of ids for each query."""
        right = 0
        q = self.scaled(self.queries)
        for x, row, kth in zip(q, found, self.kth):
            row = np.unique([i for i in row if 0 <= i < len(self.base)]).astype(np.int64)[:self.K]
            far = np.square(self.scaled(self.base[row]) - x).sum(1)
            right += int((far <= kth * (1 + 1e-9) + 1e-12).sum())
        return right / (len(q) * min(self.K, len(self.base)))

    def agrees(self, file):
        """Whether an .ivecs file of nearest ids says the same: the recall of its first k."""
        rows = np.fromfile(file, np.int32)
        rows = rows.reshape(-1, rows[0] + 1)[:, 1:1 + self.K]
        return self.recall(rows[:len(self.queries)].tolist())

    def facts(self):
        """What identifies the set; the digest is over vectors, queries and truth."""
        h = hashlib.sha256()
        for part in (self.base, self.queries, self.nearest):
            h.update(np.ascontiguousarray(part).tobytes())
        count, dim = self.base.shape
        return {"name": self.name, "n": count, "dim": dim, "metric": self.metric, "queries": len(self.queries), "k": self.K,
                "seed": self.seed, "sha256": h.hexdigest()}
