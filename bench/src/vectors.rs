// SPDX-License-Identifier: GPL-2.0-only
//! Inserts and searches. Data and queries are real files or, for a quick look, drawn from a seed.

use crate::raw::Row;
use crate::{Common, Measured};
use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{json, Map, Value};
use std::ffi::OsStr;
use std::time::{Duration, Instant};
use vexfs_cli::data::VectorSource;
use vexfs_cli::fail;
use vexfs_cli::fail::{code, Done};
use vexfs_cli::session::{Intent, Session};
use vexfs_client::{IndexKind, Insert, Metric, Schema, Search};

/// What the collection is made like.
#[derive(clap::Args, Debug, Clone)]
pub struct Shape {
    /// The vectors: .npy file; without it, random ones
    #[arg(long, value_name = "FILE.npy")]
    pub data: Option<std::path::PathBuf>,
    /// Use only the first N vectors of the file, or draw so many
    #[arg(long, value_name = "N")]
    pub records: Option<usize>,
    /// Dimension of random vectors
    #[arg(long, default_value_t = 128, value_name = "D")]
    pub dim: u32,
    /// Metric: l2, cosine or ip
    #[arg(long, default_value = "cosine")]
    pub metric: Metric,
    /// Index kind: flat, hnsw, ivf, pq or lsh
    #[arg(long, default_value = "hnsw")]
    pub index: IndexKind,
    /// HNSW: links per node and layer
    #[arg(long, default_value_t = 16)]
    pub m: u32,
    /// HNSW: candidates while building
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub ef_construction: u32,
}

/// Vectors, one after the other.
pub struct Vectors {
    /// Dimension.
    pub dim: u32,
    /// Elements.
    pub words: Vec<f32>,
}

impl Vectors {
    /// How many there are.
    #[allow(clippy::len_without_is_empty)] // nobody asks
    pub fn len(&self) -> usize {
        self.words.len() / self.dim as usize
    }

    /// One of them.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.words[i * self.dim as usize..(i + 1) * self.dim as usize]
    }

    pub(crate) fn cut(mut self, n: Option<usize>) -> Vectors {
        if let Some(n) = n {
            self.words.truncate(n.saturating_mul(self.dim as usize));
        }
        self
    }
}

/// Elements between -1 and 1 from a seed.
pub(crate) fn random(seed: u64, dim: u32, n: usize) -> Vectors {
    let mut r = ChaCha8Rng::seed_from_u64(seed);
    let mut next = || (r.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
    Vectors { dim, words: (0..n * dim as usize).map(|_| next()).collect() }
}

/// Reads a .npy file.
pub fn load(path: &std::path::Path) -> Done<Vectors> {
    let source = VectorSource { vector: None, npy: Some(path.to_path_buf()), fvecs: None };
    let (dim, words) = source.read()?;
    Ok(Vectors { dim: dim as u32, words })
}

impl Shape {
    pub(crate) fn vectors(&self, default: usize) -> Done<Vectors> {
        match &self.data {
            Some(path) => Ok(load(path)?.cut(self.records)),
            None => Ok(random(1, self.dim, self.records.unwrap_or(default))),
        }
    }

    fn source(&self) -> String {
        let name = self.data.as_ref().and_then(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned());
        name.unwrap_or_else(|| "random".into())
    }

    pub(crate) fn schema(&self, dim: u32) -> Schema {
        let mut s = Schema::new(dim, self.metric, self.index);
        if self.index == IndexKind::Hnsw {
            s.params.m = self.m;
            s.params.ef_construction = self.ef_construction;
        }
        s.params.seed = 1;
        s
    }

    pub(crate) fn params(&self, v: &Vectors) -> Map<String, Value> {
        let mut p = Map::new();
        p.insert("data".into(), json!(self.source()));
        p.insert("n".into(), json!(v.len()));
        p.insert("dim".into(), json!(v.dim));
        p.insert("metric".into(), json!(self.metric.name()));
        p.insert("index".into(), json!(self.index.name()));
        if self.index == IndexKind::Hnsw {
            p.insert("m".into(), json!(self.m));
            p.insert("ef_construction".into(), json!(self.ef_construction));
        }
        p
    }
}

/// Waits until everything is in the index, mounted or not.
pub(crate) fn settle(s: &mut Session) -> Done {
    loop {
        let info = s.ask(|c| c.info())?;
        if info.pending == 0 && !info.catching_up && !info.populating {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The number that says how much an index of this kind looks at, and the values to try, from the quickest on.
fn efforts(index: IndexKind, a: &crate::SearchArgs) -> (&'static str, &[u32]) {
    match index {
        IndexKind::Flat => ("", &[0]),
        IndexKind::Hnsw => ("ef", &a.ef),
        IndexKind::Ivf => ("nprobe", &[1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256]),
        _ => ("rerank", &[10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400, 800]),
    }
}

/// Opens a directory that is no collection yet.
pub(crate) fn fresh(path: &OsStr, schema: &Schema) -> Done<Session> {
    let mut s = Session::open(path, Intent::Create)?;
    if s.ask(|c| Ok(c.info().is_ok()))? {
        fail!(code::EXISTS, "{}: is a collection already; measure in a directory of its own", s.name());
    }
    s.ask(|c| c.create(schema))?;
    Ok(s)
}

/// Durable inserts per second, for each batch size: a run makes a collection, inserts, and drops it. The time until
/// everything is in the index as well is a row of its own.
pub fn insert(path: &OsStr, shape: &Shape, batches: &[usize], common: &Common) -> Done<Vec<Row>> {
    let all = shape.vectors(20_000)?;
    let mut rows = Vec::new();
    for batch in batches {
        if *batch == 0 {
            fail!(code::USAGE, "a batch of 0 records");
        }
        // A small batch waits for the disk each time: fewer records give as many samples.
        let n = all.len().min(batch.saturating_mul(common.requests).max(1));
        let v = Vectors { dim: all.dim, words: all.words[..n * all.dim as usize].to_vec() };
        let mut params = shape.params(&v);
        params.insert("batch".into(), json!(batch));
        let mut s = fresh(path, &shape.schema(v.dim))?;
        let mut durable = Measured::default();
        let mut indexed = Measured::default();
        let mut first = true;
        for run in 0..common.warmups + common.runs {
            let warm = run < common.warmups;
            if !first {
                s.ask(|c| c.drop_collection())?;
                s.ask(|c| c.sync())?;
                s.ask(|c| c.create(&shape.schema(v.dim)))?;
            }
            first = false;
            let mut latencies = Vec::new();
            let start = Instant::now();
            for part in v.words.chunks(batch * v.dim as usize) {
                let t = Instant::now();
                s.ask(|c| c.insert(&Insert { dim: v.dim, vectors: part, durable: true, ..Insert::default() }))?;
                latencies.push(t.elapsed().as_secs_f64() * 1e6);
            }
            let acknowledged = start.elapsed();
            settle(&mut s)?;
            let ready = start.elapsed();
            durable.add(warm, n as f64 / acknowledged.as_secs_f64(), latencies);
            indexed.add(warm, n as f64 / ready.as_secs_f64(), Vec::new());
        }
        s.ask(|c| c.drop_collection())?;
        s.close()?;
        rows.push(common.row("insert, durable", path, params.clone(), "/s", durable));
        rows.push(common.row("insert until indexed", path, params, "/s", indexed));
    }
    Ok(rows)
}

/// Exact distance in f64, for the ground truth; smaller is nearer.
fn distance(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    match metric {
        Metric::L2 => a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum(),
        Metric::Cosine => 1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt(),
        _ => -dot(a, b),
    }
}

/// For each query the distance of its `k`-th nearest record.
fn truth(metric: Metric, base: &Vectors, queries: &Vectors, k: usize) -> Vec<f64> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let rows: Vec<usize> = (0..queries.len()).collect();
    let one = |q: &usize| {
        let mut d: Vec<f64> = (0..base.len()).map(|i| distance(metric, queries.row(*q), base.row(i))).collect();
        let at = k.min(d.len()).saturating_sub(1);
        *d.select_nth_unstable_by(at, f64::total_cmp).1
    };
    std::thread::scope(|s| {
        let parts: Vec<_> = rows.chunks(rows.len().div_ceil(threads).max(1)).collect();
        let run: Vec<_> = parts.into_iter().map(|p| s.spawn(move || p.iter().map(one).collect::<Vec<_>>())).collect();
        run.into_iter().flat_map(|h| h.join().unwrap_or_default()).collect()
    })
}

/// Searches per second, one query a request, for each `ef` (flat: once). With `target`: only the row of the smallest `ef` that
/// reaches this recall.
pub fn search(path: &OsStr, shape: &Shape, a: &crate::SearchArgs, common: &Common) -> Done<Vec<Row>> {
    let base = shape.vectors(20_000)?;
    let queries = match &a.queries {
        Some(path) => load(path)?.cut(Some(common.requests)),
        None => random(2, base.dim, common.requests),
    };
    if queries.dim != base.dim || queries.len() == 0 {
        fail!(code::USAGE, "the queries have dimension {}, the data has {}", queries.dim, base.dim);
    }
    let k = a.k as usize;
    let kth = truth(shape.metric, &base, &queries, k);
    let mut s = fresh(path, &shape.schema(base.dim))?;
    for part in base.words.chunks(1000 * base.dim as usize) {
        s.ask(|c| c.insert(&Insert { dim: base.dim, vectors: part, ..Insert::default() }))?;
    }
    s.ask(|c| c.sync())?;
    settle(&mut s)?;
    let (effort, efforts) = efforts(shape.index, a);
    let mut rows = Vec::new();
    for n in efforts {
        let of = |name: &str| if name == effort { *n } else { 0 };
        let ask = |s: &mut Session, q: usize| {
            let (ef, nprobe, rerank) = (of("ef"), of("nprobe"), of("rerank"));
            let asked =
                Search { dim: base.dim, queries: queries.row(q), k: a.k, ef, nprobe, rerank, ..Search::default() };
            s.ask(|c| c.search(&asked))
        };
        let (mut right, mut evaluations) = (0usize, 0u64);
        for (q, kth) in kth.iter().enumerate() {
            let found = ask(&mut s, q)?;
            evaluations += found.evaluations;
            // By distance and not by id: equally near records are equally right.
            let near = |id: u64| {
                usize::try_from(id).ok().filter(|i| *i < base.len()).is_some_and(|i| {
                    distance(shape.metric, queries.row(q), base.row(i)) <= kth + 1e-9 * kth.abs().max(1.0)
                })
            };
            right += found.queries.iter().flat_map(|r| &r.hits).filter(|h| near(h.id)).count();
        }
        let recall = right as f64 / (queries.len() * k.min(base.len())) as f64;
        if a.target.is_some_and(|t| recall < t) && efforts.last() != Some(n) {
            continue;
        }
        let mut m = Measured::default();
        for run in 0..common.warmups + common.runs {
            let mut latencies = Vec::with_capacity(queries.len());
            let start = Instant::now();
            for q in 0..queries.len() {
                let t = Instant::now();
                ask(&mut s, q)?;
                latencies.push(t.elapsed().as_secs_f64() * 1e6);
            }
            m.add(run < common.warmups, queries.len() as f64 / start.elapsed().as_secs_f64(), latencies);
        }
        let mut params = shape.params(&base);
        params.insert("k".into(), json!(k));
        if *n > 0 {
            params.insert(effort.into(), json!(n));
        }
        let mut row = common.row("search", path, params, "/s", m);
        row.recall = Some(recall);
        row.evaluations = Some(evaluations as f64 / queries.len() as f64);
        rows.push(row);
        if a.target.is_some() {
            break;
        }
    }
    s.ask(|c| c.drop_collection())?;
    s.close()?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_distances_and_truth() {
        assert_eq!(distance(Metric::L2, &[1.0, 2.0], &[3.0, 5.0]), 13.0);
        assert_eq!(distance(Metric::Ip, &[1.0, 2.0], &[3.0, 5.0]), -13.0);
        assert!((distance(Metric::Cosine, &[1.0, 0.0], &[1.0, 1.0]) - (1.0 - 0.5f64.sqrt())).abs() < 1e-12);
        let base = Vectors { dim: 1, words: vec![5.0, 1.0, 3.0, -2.0] };
        let queries = Vectors { dim: 1, words: vec![0.0, 4.0, 9.0] };
        assert_eq!(truth(Metric::L2, &base, &queries, 2), [4.0, 1.0, 36.0]);
        assert_eq!(truth(Metric::L2, &base, &queries, 99), [25.0, 36.0, 121.0]);
    }

    #[test]
    fn random_vectors_are_the_same_each_time() {
        let (a, b) = (random(1, 8, 100), random(1, 8, 100));
        assert_eq!(a.words, b.words);
        assert!(a.words.iter().all(|x| x.abs() <= 1.0));
        assert_eq!((a.len(), a.cut(Some(7)).len()), (100, 7));
    }
}
