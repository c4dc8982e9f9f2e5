# SPDX-License-Identifier: GPL-2.0-only
"""One peer in a process of its own: answers the same requests as `vexfs-bench peer`, a line of JSON each."""
import ctypes
import gc
import json
import os
import sys
import time

import numpy as np

from .engines import ENGINES


def memory():
    """Memory of this process that is backed by no file, after what was freed has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class Stopwatch:
    """Wall time, and processor time of this thread and of the process."""

    def __init__(self):
        self.start = time.perf_counter(), time.thread_time(), time.process_time()

    def past(self, seconds):
        """Whether so much time has passed."""
        return time.perf_counter() - self.start[0] >= seconds

    def stop(self, count):
        """What was done, and how long it took."""
        now = time.perf_counter(), time.thread_time(), time.process_time()
        wall, thread, process = (a - b for a, b in zip(now, self.start))
        return {"count": count, "seconds": wall, "thread_cpu": thread, "cpu": process}


class Worker:
    """The requests. See bench/src/peer.rs for what each means."""

    def __init__(self, name, data, queries, metric, home):
        self.make = lambda count, place: ENGINES[name](np, self.base.shape[1], metric, count, os.path.join(home, place))
        self.base = np.ascontiguousarray(np.load(data, mmap_mode="r"))
        self.queries = np.array(np.load(queries), dtype=np.float32)
        self.engine = self.ones = None
        # What libraries allocate once is not the index's.
        self.fill(self.make(300, "warm"), self.base[:300], 100)

    def fill(self, engine, vectors, batch):
        """Puts vectors into an engine and searches it once."""
        try:
            self.load(engine, vectors, batch)
            self.answer(engine, engine.low, engine.outers[0], self.queries[:1])
        except (RuntimeError, AssertionError):
            # So few vectors are too few for some (training); they need not be warmed up.
            pass

    def load(self, engine, vectors, batch):
        """Puts vectors into an engine."""
        engine.train(vectors)
        for at in range(0, len(vectors), batch):
            engine.add(at, vectors[at:at + batch])
        engine.finish()

    def answer(self, engine, effort, outer, queries):
        """Answers of an engine for some queries, as ids."""
        engine.set(effort, outer)
        if engine.batches:
            return engine.ids(engine.many(queries))
        return [row for q in queries for row in engine.ids(engine.one(q))]

    def build(self, batch):
        """Makes the index of all vectors."""
        self.engine = self.make(len(self.base), "index")
        before = memory()
        watch = Stopwatch()
        self.load(self.engine, self.base, batch)
        indexed = watch.stop(len(self.base))
        self.memory = max(0, memory() - before)
        return {"indexed": indexed, "params": self.engine.facts()}

    def found(self, effort, batch, outer=None):
        """Ids for all queries."""
        parts = [self.queries[i:i + batch] for i in range(0, len(self.queries), batch)]
        return {"ids": [row for part in parts for row in self.answer(self.engine, effort, outer, part)]}

    def search(self, effort, batch, least, most, outer=None):
        """Times searches."""
        self.engine.set(effort, outer)
        return self.timed(self.engine, batch, least, most)

    def timed(self, engine, batch, least, most):
        """Times searches of an engine that has been set up."""
        # Rows are made before, conversions into what the engine takes are timed.
        if batch == 1:
            call, parts = engine.one, list(self.queries)
        else:
            call, parts = engine.many, [self.queries[i:i + batch] for i in range(0, len(self.queries), batch)]
        gc.disable()
        count, watch = 0, Stopwatch()
        while count == 0 or not watch.past(least):
            for part in parts:
                call(part)
                count += 1 if batch == 1 else len(part)
                if watch.past(most):
                    out = watch.stop(count)
                    gc.enable()
                    return out
        out = watch.stop(count)
        gc.enable()
        return out

    def trivial(self, least):
        """What a call costs by itself: searches among as few vectors as the engine can index."""
        for count in (10, 300, 1000):
            engine = self.make(count, f"trivial-{count}")
            try:
                self.load(engine, self.base[:count], count)
            except RuntimeError:
                continue  # too few to train with
            engine.set(engine.low, engine.outers[0])
            return self.timed(engine, 1, least, least) | {"records": count}
        return None

    def one(self, count):
        """Inserts one by one, as durably as the engine can."""
        if self.ones is None:
            self.ones, self.next = self.make(len(self.base), "ones"), 0
        count = min(count, len(self.base) - self.next)
        watch = Stopwatch()
        how = None
        for i in range(self.next, self.next + count):
            how = self.ones.insert(i, self.base[i])
            if how is None:
                return None
        self.next += count
        return watch.stop(count) | {"durable": how}

    def size(self):
        """Memory and disk space of the index."""
        return {"memory": self.memory, "disk": self.engine.disk()}


def main(name, data, queries, metric, home):
    """Answers requests until there are no more."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(name, data, queries, metric, home)
    for line in sys.stdin:
        ask = json.loads(line)
        print(json.dumps(getattr(worker, ask.pop("do"))(**ask)), file=answers, flush=True)
    # Some engines' threads hold up an ordinary exit.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
