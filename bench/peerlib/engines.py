# SPDX-License-Identifier: GPL-2.0-only
"""The peers: one class for each engine from PyPI, all with the same few methods. Every engine runs with one thread.

An engine's index is made as its documentation says; graphs get the same size everywhere (16 links, 32 in the bottom
layer, 200 candidates while building). Nothing is chosen for a data set.
"""
import math
import os
import pathlib
import shutil

M, EF_CONSTRUCTION, SEED = 16, 200, 1


def tree_bytes(path):
    """Bytes that a file or everything under a folder takes on the disk."""
    path = pathlib.Path(path)
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_blocks * 512 for p in files)


class Engine:
    """What the worker asks of an engine. `effort` is the one number that trades time for recall, `outer` another
    setting of searches that is tried in a few values."""

    #: Package on PyPI, and what stands in the table.
    package = label = ""
    #: Kind of index, to compare like with like.
    kind = "hnsw"
    #: What an acknowledged insert has survived when it returns.
    durable = "no: in memory"
    #: Name and range of the effort; None if there is none.
    effort, low, high = "ef", 10, 1024
    #: Values of the other setting and its name.
    outer, outers = "", (None,)
    #: Whether it has a call for many queries.
    batches = True
    #: Whether 1,000,000 vectors are worth the time and memory.
    large = False

    def __init__(self, np, dim, metric, count, home):
        self.np, self.dim, self.metric, self.count, self.home = np, dim, metric, count, pathlib.Path(home)
        self.home.mkdir(parents=True, exist_ok=True)
        self.k = 10

    def unit(self, vectors):
        """The vectors, of unit length under cosine: for engines that only know the inner product. (The length of a query
        does not change the order, so queries go as they are.)"""
        if self.metric != "cosine":
            return vectors
        return vectors / self.np.linalg.norm(vectors, axis=1, keepdims=True)

    def train(self, vectors):
        """Looks at all vectors before the first is added."""

    def add(self, start, vectors):
        """Adds vectors whose ids begin with `start`."""
        raise NotImplementedError

    def finish(self):
        """After the last vector: until searches are as quick as they will be."""

    def set(self, effort, outer):
        """Chooses the effort of the searches that follow."""

    def one(self, query):
        """Searches for one query, given as a row of f32."""
        raise NotImplementedError

    def many(self, queries):
        """Searches for many."""
        raise NotImplementedError

    def ids(self, answer):
        """The ids in an answer of `many`, or of `one` if there is no `many`: a list for each query."""
        return [[int(i) for i in row] for row in answer]

    def insert(self, number, vector):
        """Inserts one vector as durably as the engine can; None if it cannot at all."""
        return None

    def disk(self):
        """Bytes that the index takes on the disk, once saved."""
        return None

    def facts(self):
        """What else the table should know, such as the size of a code."""
        return {}


class Hnswlib(Engine):
    package, label, large = "hnswlib", "hnswlib", True

    def __init__(self, *args):
        super().__init__(*args)
        import hnswlib
        self.index = hnswlib.Index(space=self.metric, dim=self.dim)
        self.index.init_index(max_elements=self.count + 10_000, M=M, ef_construction=EF_CONSTRUCTION, random_seed=SEED)
        self.index.set_num_threads(1)
        self.log = None

    def add(self, start, vectors):
        self.index.add_items(vectors, self.np.arange(start, start + len(vectors)), num_threads=1)

    def set(self, effort, outer):
        self.index.set_ef(effort)

    def one(self, query):
        return self.index.knn_query(query, k=self.k, num_threads=1)

    many = one

    def ids(self, answer):
        return super().ids(answer[0])

    def insert(self, number, vector):
        """What a user would build: a log of vectors, flushed, and the graph in memory."""
        self.log = self.log or open(self.home / "log", "wb", buffering=0)
        self.log.write(vector.tobytes())
        os.fdatasync(self.log.fileno())
        self.index.add_items(vector.reshape(1, -1), [number], num_threads=1)
        return "log with fdatasync beside it"

    def disk(self):
        self.index.save_index(str(self.home / "index"))
        return tree_bytes(self.home / "index")


class Faiss(Engine):
    package = "faiss-cpu"

    def __init__(self, *args):
        super().__init__(*args)
        import faiss
        self.faiss = faiss
        faiss.omp_set_num_threads(1)
        self.distance = faiss.METRIC_INNER_PRODUCT if self.metric == "cosine" else faiss.METRIC_L2
        self.index = self.make()

    def make(self):
        raise NotImplementedError

    def refined(self, index):
        """The index with the full vectors behind it, for measuring candidates again."""
        self.base = index
        return self.faiss.IndexRefineFlat(index)

    def train(self, vectors):
        self.index.train(self.unit(vectors))

    def add(self, start, vectors):
        self.index.add(self.unit(vectors))

    def one(self, query):
        return self.index.search(query.reshape(1, -1), self.k)

    def many(self, queries):
        # For many queries a product of matrices is quicker than scans, for l2 ten times, and this version would not make
        # it; for one query it is slower.
        usual = self.faiss.cvar.distance_compute_blas_threshold
        self.faiss.cvar.distance_compute_blas_threshold = 20
        answer = self.index.search(queries, self.k)
        self.faiss.cvar.distance_compute_blas_threshold = usual
        return answer

    def ids(self, answer):
        return super().ids(answer[1])

    def disk(self):
        self.faiss.write_index(self.index, str(self.home / "index"))
        return tree_bytes(self.home / "index")


class FaissFlat(Faiss):
    label, kind, effort, large = "faiss Flat", "flat", None, True

    def make(self):
        return self.faiss.IndexFlat(self.dim, self.distance)


class FaissHnsw(Faiss):
    label, large = "faiss HNSW", True

    def make(self):
        index = self.faiss.IndexHNSWFlat(self.dim, M, self.distance)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        return index

    def set(self, effort, outer):
        self.index.hnsw.efSearch = effort


class FaissHnswSq(Faiss):
    label, outer, outers, large = "faiss HNSW, 8-bit codes, re-rank", "re-rank ×", (1.5, 2, 4), True

    def make(self):
        index = self.faiss.IndexHNSWSQ(self.dim, self.faiss.ScalarQuantizer.QT_8bit, M, self.distance)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        return self.refined(index)

    def set(self, effort, outer):
        self.base.hnsw.efSearch = effort
        self.index.k_factor = outer


def lists_of(count):
    """As many lists as VexFS makes of so many vectors."""
    return max(1, int(2 * math.sqrt(2 * count)))


class FaissIvf(Faiss):
    label, kind, effort, low, high, large = "faiss IVFFlat, as many lists as ours", "ivf", "nprobe", 1, 1 << 16, True

    def lists(self):
        return lists_of(self.count)

    def make(self):
        self.coarse = self.faiss.IndexFlat(self.dim, self.distance)
        return self.faiss.IndexIVFFlat(self.coarse, self.dim, self.lists(), self.distance)

    def set(self, effort, outer):
        self.index.nprobe = effort

    def facts(self):
        return {"lists": self.lists()}


class FaissIvfMore(FaissIvf):
    label, large = "faiss IVFFlat, 8√n lists", False

    def lists(self):
        return max(1, int(8 * math.sqrt(self.count)))


class FaissIvfPq(Faiss):
    label, kind, effort, low, high = "faiss IVFPQ, re-rank", "ivfpq", "nprobe", 1, 1 << 16
    outer, outers = "candidates", (20, 50, 100, 200)

    def make(self):
        self.coarse = self.faiss.IndexFlat(self.dim, self.distance)
        parts = max(1, self.dim // 8)
        index = self.faiss.IndexIVFPQ(self.coarse, self.dim, lists_of(self.count), parts, 8, self.distance)
        return self.refined(index)

    def set(self, effort, outer):
        self.base.nprobe = effort
        self.index.k_factor = outer / self.k

    def facts(self):
        return {"lists": lists_of(self.count), "code_bytes": max(1, self.dim // 8)}


class FaissPq(Faiss):
    """As many bytes for a code as VexFS takes by default: one for 8 elements."""
    label, kind, effort, low, high, large = "faiss PQ, 8-bit codes, refine", "pq", "candidates", 10, 8192, True

    def make(self):
        return self.refined(self.faiss.IndexPQ(self.dim, max(1, self.dim // 8), 8, self.distance))

    def set(self, effort, outer):
        self.index.k_factor = effort / self.k

    def facts(self):
        return {"code_bytes": max(1, self.dim // 8)}


class FaissPqScan(FaissPq):
    """The same number of bytes, in codes of 4 bits that are looked up in registers."""
    label, large = "faiss PQ, 4-bit codes (fast scan), refine", False

    def make(self):
        return self.refined(self.faiss.IndexPQFastScan(self.dim, max(2, self.dim // 4), 4, self.distance))


class FaissLsh(Faiss):
    """As many bits for a code as VexFS takes by default."""
    label, kind, effort, low, high, large = "faiss LSH, refine", "lsh", "candidates", 10, 8192, True

    def bits(self):
        # 48 tables of log2(n) - 3 bits, see core/src/index/lsh.
        return 48 * min(max(int(math.log2(self.count)) - 3, 4), 20)

    def make(self):
        # Rotated and with thresholds in the middle, its better form. It measures by l2, the same order for unit vectors.
        return self.refined(self.faiss.IndexLSH(self.dim, self.bits(), True, True))

    def one(self, query):
        return self.index.search(self.unit(query.reshape(1, -1)), self.k)

    def many(self, queries):
        return self.index.search(self.unit(queries), self.k)

    def set(self, effort, outer):
        self.index.k_factor = effort / self.k

    def facts(self):
        return {"code_bytes": self.bits() // 8}


class Usearch(Engine):
    package, label, dtype = "usearch", "usearch, f32", "f32"

    def __init__(self, *args):
        super().__init__(*args)
        from usearch.index import Index
        metric = {"cosine": "cos", "l2": "l2sq"}[self.metric]
        self.index = Index(ndim=self.dim, metric=metric, dtype=self.dtype, connectivity=M, expansion_add=EF_CONSTRUCTION)

    def add(self, start, vectors):
        self.index.add(self.np.arange(start, start + len(vectors)), vectors, threads=1)

    def set(self, effort, outer):
        self.index.expansion_search = effort

    def one(self, query):
        return self.index.search(query, self.k, threads=1)

    many = one

    def ids(self, answer):
        return super().ids(self.np.atleast_2d(answer.keys))

    def disk(self):
        self.index.save(str(self.home / "index"))
        return tree_bytes(self.home / "index")


class UsearchF16(Usearch):
    label, dtype = "usearch, f16", "f16"


class Svs(Engine):
    """Intel's graph (Vamana), with as many links as hnswlib has in its bottom layer."""
    package, label, effort, large = "scalable-vs", "SVS Vamana, f32", "window", True

    def __init__(self, *args):
        super().__init__(*args)
        import svs
        self.svs, self.parts = svs, []
        self.distance = svs.MIP if self.metric == "cosine" else svs.L2
        alpha = 0.95 if self.metric == "cosine" else 1.2
        self.build = svs.VamanaBuildParameters(alpha=alpha, graph_max_degree=2 * M, window_size=EF_CONSTRUCTION)

    def add(self, start, vectors):
        self.parts.append(self.unit(vectors).astype(self.np.float32))

    def data(self, vectors):
        return vectors

    def finish(self):
        vectors = self.np.concatenate(self.parts)
        self.parts = []
        self.index = self.svs.Vamana.build(self.build, self.data(vectors), self.distance, num_threads=1)

    def set(self, effort, outer):
        self.index.search_window_size = effort

    def one(self, query):
        return self.index.search(query, self.k)

    many = one

    def ids(self, answer):
        return super().ids(answer[0])

    def disk(self):
        folders = [str(self.home / f) for f in ("config", "graph", "data")]
        self.index.save(*folders)
        return sum(tree_bytes(f) for f in folders)


class SvsF16(Svs):
    label = "SVS Vamana, f16"

    def data(self, vectors):
        return vectors.astype(self.np.float16)

    def one(self, query):
        return self.index.search(query, self.k)

    many = one


class SvsInt8(Svs):
    """Bytes with one scale for all vectors; the candidates are measured again with the full ones, in numpy."""
    label, outer, outers = "SVS Vamana, int8, re-rank", "re-rank", (0, 20, 50)

    def data(self, vectors):
        self.full, self.scale = vectors, 127 / self.np.abs(vectors).max()
        return self.coded(vectors)

    def coded(self, vectors):
        """The nearest codes."""
        return self.np.clip(self.np.rint(vectors * self.scale), -127, 127).astype(self.np.int8)

    def set(self, effort, outer):
        self.again = outer
        self.index.search_window_size = max(effort, outer)

    def many(self, queries):
        found = self.index.search(self.coded(queries), max(self.k, self.again))[0]
        if not self.again:
            return found, None
        near = self.full[found]
        if self.distance == self.svs.MIP:
            far = -self.np.einsum("qcd,qd->qc", near, queries)
        else:
            far = self.np.square(near - queries[:, None, :]).sum(axis=2)
        best = self.np.argpartition(far, self.k - 1, axis=1)[:, :self.k]
        return self.np.take_along_axis(found, best, axis=1), None

    def one(self, query):
        return self.many(query.reshape(1, -1))


class SvsLvq(Svs):
    """Codes of 8 bits with a scale for each vector, no second look."""
    label, primary, residual = "SVS Vamana, LVQ8", 8, 0

    def data(self, vectors):
        plain, file = str(self.home / "vectors.fvecs"), str(self.home / "vectors.svs")
        self.svs.write_vecs(vectors, plain)
        self.svs.convert_vecs_to_svs(plain, file, dtype=self.svs.float32)
        loader = self.svs.VectorDataLoader(file, self.svs.float32, dims=self.dim)
        return self.svs.LVQLoader(loader, primary=self.primary, residual=self.residual)


class SvsLvq4x8(SvsLvq):
    """Codes of 4 bits, 8 more for a second look."""
    label, primary, residual = "SVS Vamana, LVQ4x8", 4, 8


class Qdrant(Engine):
    """Qdrant's engine in the process (`qdrant-edge-py`); `qdrant-client` in local mode is a scan in numpy and no peer."""
    package, label, durable = "qdrant-edge-py", "Qdrant (its embedded engine)", "written, not flushed; flushed when asked"

    def __init__(self, *args):
        super().__init__(*args)
        import qdrant_edge as q
        self.q, self.params = q, None
        shutil.rmtree(self.home)
        self.home.mkdir()
        distance = q.Distance.Cosine if self.metric == "cosine" else q.Distance.Euclid
        config = q.EdgeConfig(
            vectors=q.EdgeVectorParams(size=self.dim, distance=distance),
            hnsw_config=q.HnswIndexConfig(M, EF_CONSTRUCTION, 1, max_indexing_threads=1),
            optimizers=q.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1),
            max_search_threads=1,
        )
        self.shard = q.EdgeShard.create(str(self.home), config)

    def add(self, start, vectors):
        points = [self.q.Point(start + i, v) for i, v in enumerate(vectors.tolist())]
        self.shard.update(self.q.UpdateOperation.upsert_points(points))

    def finish(self):
        self.shard.optimize()
        self.shard.flush()

    def set(self, effort, outer):
        self.params = self.q.SearchParams(hnsw_ef=effort)

    def request(self, query):
        return self.q.QueryRequest(query=self.q.Query.Nearest(query.tolist()), limit=self.k, params=self.params)

    def one(self, query):
        return self.shard.query(self.request(query))

    def many(self, queries):
        return self.shard.query_batch(self.q.QueryBatchRequest([self.request(q) for q in queries]))

    def ids(self, answer):
        return [[int(p.id) for p in row] for row in answer]

    def insert(self, number, vector):
        self.add(number, vector.reshape(1, -1))
        self.shard.flush()
        return "flushed"

    def disk(self):
        self.shard.flush()
        return tree_bytes(self.home)


class Chroma(Engine):
    package, label, durable = "chromadb", "ChromaDB", "committed by SQLite as ChromaDB sets it up"

    def __init__(self, *args):
        super().__init__(*args)
        import chromadb
        from chromadb.config import Settings
        shutil.rmtree(self.home)
        self.open = lambda: chromadb.PersistentClient(str(self.home), settings=Settings(anonymized_telemetry=False))
        self.client, self.now = self.open(), None
        hnsw = {"space": self.metric, "ef_construction": EF_CONSTRUCTION, "max_neighbors": M, "num_threads": 1}
        self.made = self.client.create_collection("peers", configuration={"hnsw": hnsw}, embedding_function=None)

    def add(self, start, vectors):
        self.made.add(ids=[str(start + i) for i in range(len(vectors))], embeddings=vectors)

    def set(self, effort, outer):
        if effort == self.now:
            return
        self.now = effort
        self.made.modify(configuration={"hnsw": {"ef_search": effort}})
        # It takes effect when the collection is opened next.
        self.client.clear_system_cache()
        self.client = self.open()
        self.made = self.client.get_collection("peers", embedding_function=None)
        self.made.query(query_embeddings=self.np.zeros((1, self.dim), self.np.float32) + 1, n_results=1, include=[])

    def one(self, query):
        return self.made.query(query_embeddings=query.reshape(1, -1), n_results=self.k, include=[])

    def many(self, queries):
        return self.made.query(query_embeddings=queries, n_results=self.k, include=[])

    def ids(self, answer):
        return super().ids(answer["ids"])

    def insert(self, number, vector):
        self.add(number, vector.reshape(1, -1))
        return "committed by SQLite as ChromaDB sets it up"

    def disk(self):
        return tree_bytes(self.home)


class SqliteVec(Engine):
    package, label, kind, effort, batches = "sqlite-vec", "sqlite-vec", "flat", None, False
    durable = "yes: SQLite, a transaction for each batch, synchronous=FULL"

    def __init__(self, *args):
        super().__init__(*args)
        # Python's own sqlite3 is often built without the loading of extensions.
        import apsw
        import sqlite_vec
        file = self.home / "db"
        file.unlink(missing_ok=True)
        self.db = apsw.Connection(str(file))
        self.db.enable_load_extension(True)
        self.db.load_extension(sqlite_vec.loadable_path())
        # The whole file may stay in memory, as for the others.
        self.db.execute("pragma journal_mode=wal; pragma synchronous=full; pragma cache_size=-4000000;")
        metric = {"cosine": "cosine", "l2": "l2"}[self.metric]
        self.db.execute(f"create virtual table v using vec0(e float[{self.dim}] distance_metric={metric})")

    def add(self, start, vectors):
        rows = [(start + i + 1, v.tobytes()) for i, v in enumerate(vectors)]
        self.db.execute("begin")
        self.db.executemany("insert into v(rowid, e) values (?, ?)", rows)
        self.db.execute("commit")

    def one(self, query):
        ask = "select rowid from v where e match ? and k = ? order by distance"
        return self.db.execute(ask, (query.tobytes(), self.k)).fetchall()

    def ids(self, answer):
        return [[r[0] - 1 for r in answer]]

    def insert(self, number, vector):
        self.db.execute("insert into v(rowid, e) values (?, ?)", (number + 1, vector.tobytes()))
        return "SQLite, synchronous=FULL"

    def disk(self):
        self.db.execute("pragma wal_checkpoint(truncate)")
        return tree_bytes(self.home)


class Lance(Engine):
    package, label, kind, batches = "lancedb", "LanceDB, IVF_HNSW_SQ, re-rank", "hnsw", False
    durable = "files written, not flushed"
    # ef is at least the number of candidates that are measured again.
    outer, outers = "re-rank ×", (2, 5)

    def __init__(self, *args):
        super().__init__(*args)
        import lancedb
        import pyarrow
        self.arrow = pyarrow
        shutil.rmtree(self.home)
        self.db = lancedb.connect(str(self.home))
        kind = pyarrow.list_(pyarrow.float32(), self.dim)
        self.schema = pyarrow.schema([("id", pyarrow.int64()), ("vector", kind)])
        self.table = self.db.create_table("peers", schema=self.schema)

    def rows(self, start, vectors):
        flat = self.arrow.array(vectors.reshape(-1))
        ids = self.arrow.array(range(start, start + len(vectors)), self.arrow.int64())
        lists = self.arrow.FixedSizeListArray.from_arrays(flat, self.dim)
        return self.arrow.table([ids, lists], schema=self.schema)

    def add(self, start, vectors):
        self.table.add(self.rows(start, vectors))

    def finish(self):
        self.table.optimize()
        if self.count >= 256:  # fewer cannot be indexed
            self.table.create_index(
                metric=self.metric, num_partitions=1, index_type="IVF_HNSW_SQ", m=M, ef_construction=EF_CONSTRUCTION)

    def set(self, effort, outer):
        self.now = (effort, outer)

    def one(self, query):
        effort, outer = self.now
        ask = self.table.search(query).distance_type(self.metric).ef(max(effort, int(outer * self.k)))
        return ask.nprobes(1).refine_factor(int(outer)).limit(self.k).select(["id"]).to_arrow()

    def ids(self, answer):
        return [answer["id"].to_pylist()]

    def insert(self, number, vector):
        self.table.add(self.rows(number, vector.reshape(1, -1)))
        return "files written, not flushed"

    def disk(self):
        return tree_bytes(self.home)


#: By the name that --engines takes.
ENGINES = {
    "hnswlib": Hnswlib,
    "faiss-hnsw": FaissHnsw,
    "faiss-hnsw-sq8": FaissHnswSq,
    "usearch": Usearch,
    "usearch-f16": UsearchF16,
    "svs": Svs,
    "svs-f16": SvsF16,
    "svs-int8": SvsInt8,
    "svs-lvq8": SvsLvq,
    "svs-lvq4x8": SvsLvq4x8,
    "qdrant": Qdrant,
    "chroma": Chroma,
    "lancedb": Lance,
    "faiss-flat": FaissFlat,
    "sqlite-vec": SqliteVec,
    "faiss-ivf": FaissIvf,
    "faiss-ivf-8": FaissIvfMore,
    "faiss-ivfpq": FaissIvfPq,
    "faiss-pq": FaissPq,
    "faiss-pq-scan": FaissPqScan,
    "faiss-lsh": FaissLsh,
}
