# SPDX-License-Identifier: GPL-2.0-only
"""Runs all engines side by side on one processor: each in a process of its own that waits while another is asked."""
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import time

from .engines import ENGINES, M, EF_CONSTRUCTION

TARGETS = (0.95, 0.99)
KINDS = ("flat", "hnsw", "ivf", "pq", "lsh")
#: One thread everywhere. faiss brings an OpenBLAS, which is to choose its own kernel for this processor.
#: (LanceDB waits for itself for ever with one thread; like all it has one processor.)
THREADS = {v: "1" for v in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
#: Seconds after which an engine that does not answer is given up.
PATIENCE, PATIENCE_QUICK = 3600, 60


class Gone(Exception):
    """An engine's process ended; the text is the last that it said."""


class Spec:
    """An engine as the driver sees it."""

    def __init__(self, key, label, kind, effort, low, high, outer="", outers=(None,), batches=True, durable="no: in memory",
                 large=False, driver=None, package=None):
        self.key, self.label, self.kind, self.effort, self.low, self.high = key, label, kind, effort, low, high
        self.outer, self.outers, self.batches, self.durable = outer, outers, batches, durable
        self.large, self.driver, self.package = large, driver, package

    def setting(self, effort, outer):
        """The setting of a search in words."""
        parts = [f"{self.effort} {effort}"] if self.effort else []
        parts += [f"{self.outer} {outer}"] if outer is not None else []
        return ", ".join(parts) or "exact"


def ours(driver):
    """The specs of VexFS's five kinds through a driver."""
    efforts = {"flat": (None, 0, 0), "hnsw": ("ef", 10, 1024), "ivf": ("nprobe", 1, 1 << 16),
               "pq": ("rerank", 10, 8192), "lsh": ("rerank", 10, 8192)}
    short = {"embedded": "vexfs", "FUSE": "vexfs-fuse"}[driver]
    return [Spec(f"{short}-{k}", f"VexFS {k}, {driver}", k, *efforts[k], durable="yes: flushed before it is acknowledged",
                 large=driver == "embedded", driver=driver) for k in KINDS]


def peers():
    """The specs of the engines from PyPI."""
    return [Spec(key, e.label, e.kind, e.effort, e.low if e.effort else 0, e.high if e.effort else 0, e.outer, e.outers,
                 e.batches, e.durable, e.large, package=e.package) for key, e in ENGINES.items()]


class Engine:
    """An engine at work on a set."""

    def __init__(self, spec, data, home, tools, quick):
        self.spec, self.data, self.home, self.tools, self.quick = spec, data, pathlib.Path(home), tools, quick
        self.process = self.daemon = None
        self.recalls, self.facts = {}, {}

    def start(self):
        """Starts the process (and mounts the volume)."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.errors = open(self.home / "errors", "w+")
        if self.spec.driver:
            command = self.volume()
        else:
            key, data = self.spec.key, self.data
            command = [sys.executable, "-m", "peerlib.worker", key, data.base_file, data.query_file, data.metric, self.home]
        env = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")} | THREADS
        here = pathlib.Path(__file__).parent.parent
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.errors, text=True, env=env, cwd=here)

    def volume(self):
        """Makes a volume; the command that measures on it."""
        image = self.home / "image"
        image.unlink(missing_ok=True)
        size = max(1 << 30, 8 * self.data.base.nbytes)
        subprocess.run([self.tools / "vexfs", "mkfs", "-q", "-s", str(size), image], check=True)
        place = f"{image}:/set"
        if self.spec.driver == "FUSE":
            mount = self.home / "mount"
            mount.mkdir(exist_ok=True)
            self.daemon = subprocess.Popen([self.tools / "vexfs", "mount", "-f", image, mount], stdout=self.errors,
                                           stderr=self.errors)
            for _ in range(200):
                if os.path.ismount(mount):
                    break
                if self.daemon.poll() is not None:
                    raise Gone(self.said())
                time.sleep(0.05)
            place = mount / "set"
        kind = self.spec.kind
        return [self.tools / "vexfs-bench", "peer", place, "--data", self.data.base_file, "--queries", self.data.query_file,
                "--metric", self.data.metric, "--index", kind]

    def said(self):
        """The last line that the engine wrote to its standard error."""
        self.errors.flush()
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read().splitlines() if line.strip()]
        text = lines[-1] if lines else "it ended without a word"
        return text.replace(str(self.home), "…")

    def daemon_cpu(self):
        """Processor time of the FUSE daemon in seconds."""
        total = 0
        for task in pathlib.Path(f"/proc/{self.daemon.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def ask(self, do, **args):
        """Asks the engine, waits for the answer."""
        before = self.daemon_cpu() if self.daemon else 0
        if args.get("outer", 0) is None:
            del args["outer"]
        try:
            self.process.stdin.write(json.dumps({"do": do, **args}) + "\n")
            self.process.stdin.flush()
            patience = PATIENCE_QUICK if self.quick else PATIENCE
            if not select.select([self.process.stdout], [], [], patience)[0]:
                raise Gone(f"no answer to '{do}' in {patience} s")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            raise Gone(self.said())
        answer = json.loads(line)
        if self.daemon and isinstance(answer, dict):
            # Of building, the time until all is indexed is the whole.
            timed = answer.get("indexed", answer)
            if "cpu" in timed:
                timed["cpu"] += self.daemon_cpu() - before
        return answer

    def stop(self):
        """Ends the process and unmounts."""
        if self.process:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process.stdout.close()
        if self.daemon:
            self.daemon.send_signal(signal.SIGTERM)
            self.daemon.wait(60)
        self.process = self.daemon = None

    def recall(self, effort, outer):
        """Recall at a setting; measured once."""
        if (effort, outer) not in self.recalls:
            found = self.ask("found", effort=effort, batch=100, outer=outer)["ids"]
            self.recalls[effort, outer] = self.data.recall(found)
        return self.recalls[effort, outer]

    def least(self, target, outer):
        """The smallest effort with which the recall is at least `target`; None if none is enough."""
        low, high = self.spec.low, min(self.spec.high, len(self.data.base))
        if self.recall(low, outer) >= target:
            return low
        top = low
        while self.recall(top, outer) < target:
            if top >= high:
                return None
            low, top = top, min(high, top * 2)
        while top - low > 1:
            middle = (low + top) // 2
            if self.recall(middle, outer) >= target:
                top = middle
            else:
                low = middle
        return top

    def cheapest(self, target):
        """The quickest setting with at least this recall, among the smallest efforts of all values of the other setting."""
        best = None
        for outer in self.spec.outers:
            effort = self.least(target, outer)
            if effort is None:
                continue
            cost = 0
            if len(self.spec.outers) > 1:
                runs = [self.ask("search", effort=effort, batch=1, least=0.1, most=0.5, outer=outer) for _ in range(2)]
                cost = min(r["cpu"] / r["count"] for r in runs)
            if best is None or cost < best[0]:
                best = (cost, effort, outer)
        if best is None:
            return None
        _, effort, outer = best
        return {"effort": effort, "outer": outer, "setting": self.spec.setting(effort, outer),
                "recall": self.recall(effort, outer), "single": [], "batch": [], "batch10": []}


class Run:
    """A measurement of some engines on a set."""

    def __init__(self, data, specs, home, tools, rounds, builds, quick, say):
        self.data, self.home, self.rounds, self.builds, self.quick, self.say = data, home, rounds, builds, quick, say
        self.engines = [Engine(s, data, pathlib.Path(home) / f"{data.name}-{s.key}", tools, quick) for s in specs]
        self.left_out = []
        self.seconds = (0.05, 0.2) if quick else (0.25, 1.5)

    def each(self, what, f):
        """Calls `f` for each engine; one that fails is left out from then on, with its reason."""
        for e in list(self.engines):
            try:
                self.say(f"{self.data.name}: {what}: {e.spec.label}")
                f(e)
            except (Gone, OSError, subprocess.CalledProcessError) as error:
                reason = str(error)
                self.left_out.append({"engine": e.spec.label, "set": self.data.name, "while": what, "reason": reason})
                self.engines.remove(e)
                e.stop()

    def run(self):
        """Measures; gives back what is known about each engine."""
        try:
            for n in range(self.builds):
                self.each(f"build {n + 1} of {self.builds}", lambda e: self.build(e, n))
            self.each("recall", self.settings)
            self.check()
            for n in range(self.rounds):
                self.each(f"search, round {n + 1} of {self.rounds}", self.search)
            for n in range(self.rounds):
                self.each(f"inserts one by one, round {n + 1} of {self.rounds}", self.one)
            self.each("size", self.size)
            return {**self.data.facts(), "engines": [self.result(e) for e in self.engines], "left_out": self.left_out}
        finally:
            for e in self.engines:
                e.stop()

    def build(self, e, n):
        e.stop()
        e.start()
        answer = e.ask("build", batch=1000)
        e.facts.setdefault("builds", []).append({k: answer[k] for k in ("acknowledged", "indexed") if k in answer})
        e.facts["params"] = answer["params"]

    def settings(self, e):
        e.facts["targets"] = {str(t): e.cheapest(t) for t in TARGETS}
        e.facts["trivial"] = e.ask("trivial", least=self.seconds[0])

    def check(self):
        """Everybody is compared with one truth; engines that look at everything have to find it."""
        for e in self.engines:
            if e.spec.effort is None and e.facts["targets"]["0.99"] is None:
                recall = e.recalls[e.spec.low, None]
                raise SystemExit(f"peers: {self.data.name}: {e.spec.label} compares everything and has a recall of {recall}: "
                                 "the truth or the engine is wrong; nothing was written")

    def search(self, e):
        least, most = self.seconds
        done = {}
        for t in e.facts["targets"].values():
            if t is None:
                continue
            key = t["effort"], t["outer"]
            if key not in done:
                how = {"effort": t["effort"], "outer": t["outer"], "least": least, "most": most}
                single = e.ask("search", batch=1, **how)
                # A slow engine gets no more queries than it can answer in the time.
                count = min(len(self.data.queries), max(20, int(most * single["count"] / single["seconds"])))
                many = e.ask("search", batch=count, **how) | {"batch": count} if e.spec.batches else None
                ten = e.ask("search", batch=10, **how) if e.spec.driver else None
                done[key] = single, many, ten
            for name, sample in zip(("single", "batch", "batch10"), done[key]):
                if sample:
                    t[name].append(sample)

    def one(self, e):
        if e.spec.kind not in ("flat", "hnsw"):
            return
        count = 20 if self.quick else 60
        answer = e.ask("one", count=count)
        if answer:
            e.facts.setdefault("one", []).append(answer)
        if e.spec.driver == "embedded":
            file = str(pathlib.Path(self.home) / "append")
            e.facts.setdefault("append", []).append(e.ask("append", count=count, file=file))

    def size(self, e):
        e.facts["size"] = e.ask("size")
        if e.spec.driver == "embedded":
            e.facts["reopen"] = [e.ask("reopen") for _ in range(self.rounds)]

    def result(self, e):
        s = e.spec
        return {"key": s.key, "label": s.label, "kind": s.kind, "driver": s.driver, "package": s.package, "durable": s.durable,
                "recalls": [{"setting": s.setting(*k), "effort": k[0], "outer": k[1], "recall": r}
                            for k, r in sorted(e.recalls.items(), key=lambda x: (x[0][1] or 0, x[0][0]))], **e.facts}
