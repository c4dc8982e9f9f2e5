// SPDX-License-Identifier: GPL-2.0-only
//! Random inserts, deletes, replacements, reindexes and reopenings of a collection, beside brute force in f64: every index
//! kind, every metric, dimensions from 1 to 2,000. `PROPTEST_CASES` says how many (64), `VEXFS_SEED` with which numbers.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use vexfs_client::{Client, IndexKind, IndexParams, Insert, Metric, QueryResult, Schema, Search, Transport, Want};
use vexfs_core::check::{Check, Mode, Options};
use vexfs_core::format::BLOCK;
use vexfs_core::io::IoError;
use vexfs_core::op::{Cred, Ino, Op};
use vexfs_embedded::testing::Random;
use vexfs_embedded::{make, Device, Files, Host, HostOptions, MakeOptions, MemDevice};

/// How vectors lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// Everywhere in a cube.
    Uniform,
    /// Around a few centres.
    Clustered,
    /// Small whole numbers: many are equally far, some are equal.
    Whole,
    /// Lengths that differ by many orders of magnitude.
    Scaled,
}

#[derive(Clone, Debug)]
enum Act {
    /// `count` new records, or with `again` in place of some that exist.
    Insert {
        count: u16,
        seed: u64,
        again: bool,
    },
    Delete {
        count: u16,
        seed: u64,
    },
    Reindex(IndexKind),
    /// Close and open, or lose the process and open.
    Reopen {
        clean: bool,
    },
    Checkpoint,
    Search {
        queries: u8,
        k: u8,
        seed: u64,
    },
}

#[derive(Clone, Debug)]
struct Case {
    dim: usize,
    metric: Metric,
    kind: IndexKind,
    shape: Shape,
    cache: usize,
    acts: Vec<Act>,
}

fn one_of<T: Clone + std::fmt::Debug + 'static>(all: &[T]) -> impl Strategy<Value = T> {
    proptest::sample::select(all.to_vec())
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        5 => (1..600u16, any::<u64>(), any::<bool>()).prop_map(|(count, seed, again)| Act::Insert { count, seed, again }),
        2 => (1..300u16, any::<u64>()).prop_map(|(count, seed)| Act::Delete { count, seed }),
        1 => one_of(IndexKind::ALL).prop_map(Act::Reindex),
        1 => any::<bool>().prop_map(|clean| Act::Reopen { clean }),
        1 => Just(Act::Checkpoint),
        5 => (1..5u8, 1..30u8, any::<u64>()).prop_map(|(queries, k, seed)| Act::Search { queries, k, seed }),
    ];
    proptest::collection::vec(act, 1..20)
}

fn case() -> impl Strategy<Value = Case> {
    let dim = prop_oneof![3 => 1..9usize, 4 => 9..130usize, 1 => 130..2001usize];
    let shape = one_of(&[Shape::Uniform, Shape::Clustered, Shape::Whole, Shape::Scaled]);
    let cache = one_of(&[256 << 10, 64 << 20]);
    (dim, one_of(Metric::ALL), one_of(IndexKind::ALL), shape, cache, acts())
        .prop_map(|(dim, metric, kind, shape, cache, acts)| Case { dim, metric, kind, shape, cache, acts })
}

fn vector(shape: Shape, dim: usize, r: &mut Random) -> Vec<f32> {
    let unit = |r: &mut Random| (r.below(2_000_001) as f32 - 1e6) / 1e6;
    let mut v: Vec<f32> = match shape {
        Shape::Uniform | Shape::Scaled => (0..dim).map(|_| unit(r)).collect(),
        Shape::Clustered => {
            let mut centre = Random::new(1 + r.below(12));
            (0..dim).map(|_| unit(&mut centre) + unit(r) / 8.0).collect()
        }
        Shape::Whole => (0..dim).map(|_| r.below(5) as f32 - 2.0).collect(),
    };
    if shape == Shape::Scaled {
        let scale = 10f32.powi(r.below(13) as i32 - 6);
        v.iter_mut().for_each(|x| *x *= scale);
    }
    if v.iter().all(|x| *x == 0.0) {
        // Zero has no direction; cosine refuses it.
        v[0] = 1.0;
    }
    v
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

/// Distance, and by how much two ways to add it up may differ.
fn distance(metric: Metric, q: &[f32], v: &[f32]) -> (f64, f64) {
    let (qq, vv) = (dot(q, q), dot(v, v));
    match metric {
        Metric::L2 => {
            let sum = q.iter().zip(v).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
            (sum, 1e-12 * (qq + vv))
        }
        Metric::Cosine => (1.0 - dot(q, v) / (qq * vv).sqrt(), 1e-12),
        _ => (-dot(q, v), 1e-12 * (qq * vv).sqrt()),
    }
}

struct Direct(Arc<Host>, Ino);

impl Transport for Direct {
    fn call(&mut self, frame: Vec<u8>) -> std::io::Result<Vec<u8>> {
        self.0.request(self.1, Cred::default(), frame).map_err(|e| std::io::Error::from_raw_os_error(e.errno()))
    }
}

struct World<'a> {
    case: &'a Case,
    device: Arc<MemDevice>,
    host: Arc<Host>,
    ino: Ino,
    kind: IndexKind,
    model: BTreeMap<u64, Vec<f32>>,
    next: u64,
}

/// For each kind: results that a search with defaults found of those that are nearest, and how many there are.
type Recall = BTreeMap<&'static str, (u64, u64)>;

impl<'a> World<'a> {
    fn new(case: &'a Case) -> World<'a> {
        let device = Arc::new(MemDevice::new(vec![0; 96 << 20]));
        make(&device, &MakeOptions::default()).unwrap();
        let host = World::open(case, &device);
        let ino = Files::new(&host).mkdir_all(b"/c", 0o755).unwrap().ino;
        let world = World { case, device, host, ino, kind: case.kind, model: BTreeMap::new(), next: 0 };
        world.client().create(&Schema::new(case.dim as u32, case.metric, case.kind)).unwrap();
        world
    }

    fn open(case: &Case, device: &Arc<MemDevice>) -> Arc<Host> {
        let options = HostOptions { cache_bytes: case.cache, log_bytes: 1 << 20, ..HostOptions::default() };
        Arc::new(Host::open(Box::new(device.clone()), "memory", &options).unwrap())
    }

    fn client(&self) -> Client<Direct> {
        Client::new(Direct(self.host.clone(), self.ino))
    }

    fn reopen(self, clean: bool) -> World<'a> {
        if clean {
            self.host.shut().unwrap();
            self.check().unwrap();
        }
        let World { case, device, host, ino, kind, model, next } = self;
        drop(host);
        let host = World::open(case, &device);
        World { case, device, host, ino, kind, model, next }
    }

    fn insert(&mut self, count: u16, seed: u64, again: bool) {
        let mut r = Random::new(seed);
        // Not more than a few megabytes in a case.
        let count = (count as usize).min(1 + 200_000 / self.case.dim);
        let known: Vec<u64> = self.model.keys().copied().collect();
        let mut ids = Vec::new();
        for _ in 0..count {
            if again && !known.is_empty() {
                ids.push(known[r.below(known.len() as u64) as usize]);
            } else {
                ids.push(self.next);
                self.next += 1;
            }
        }
        let vectors: Vec<Vec<f32>> = ids.iter().map(|_| vector(self.case.shape, self.case.dim, &mut r)).collect();
        let i = Insert {
            dim: self.case.dim as u32,
            vectors: &vectors.concat(),
            ids: Some(&ids),
            durable: true,
            ..Insert::default()
        };
        assert_eq!(self.client().insert(&i).unwrap().count, count as u64);
        // Of two in one request with the same id the later one stays.
        self.model.extend(ids.into_iter().zip(vectors));
    }

    fn delete(&mut self, count: u16, seed: u64) {
        let mut r = Random::new(seed);
        let known: Vec<u64> = self.model.keys().copied().collect();
        let mut ids: Vec<u64> = Vec::new();
        for id in known {
            if ids.len() < count as usize && r.below(2) == 0 {
                ids.push(id);
            }
        }
        if !ids.is_empty() {
            let done = self.client().delete(&ids, true).unwrap();
            assert_eq!((done.done, done.missing), (ids.len() as u64, 0));
        }
        ids.iter().for_each(|id| drop(self.model.remove(id)));
    }

    /// What was found is there, with its true distance, in order, and as much of it as there is; `exact`: and it is the
    /// nearest. Gives how many of the nearest were found.
    fn judge(&self, q: &[f32], k: usize, found: &QueryResult, exact: bool) -> Result<u64, TestCaseError> {
        let metric = self.case.metric;
        let mut truth: Vec<f64> = self.model.values().map(|v| distance(metric, q, v).0).collect();
        truth.sort_unstable_by(f64::total_cmp);
        truth.truncate(k);
        let hits = &found.hits;
        prop_assert_eq!(hits.len(), truth.len());
        prop_assert!(hits.windows(2).all(|w| (w[0].distance, w[0].id) < (w[1].distance, w[1].id)), "not in order");
        let mut near = 0;
        for (i, hit) in hits.iter().enumerate() {
            let v = self.model.get(&hit.id);
            prop_assert!(v.is_some(), "{} was found and does not exist", hit.id);
            let (d, slack) = distance(metric, q, v.unwrap());
            prop_assert!((d - hit.distance).abs() <= slack, "{}: {} instead of {d}", hit.id, hit.distance);
            if exact {
                prop_assert!((truth[i] - hit.distance).abs() <= slack, "{i}: {} instead of {}", hit.distance, truth[i]);
            }
            near += u64::from(truth.last().is_some_and(|t| d <= t + slack));
        }
        Ok(near)
    }

    fn search(&self, queries: u8, k: u8, seed: u64, recall: &RefCell<Recall>) -> Result<(), TestCaseError> {
        let mut r = Random::new(seed);
        let (dim, k) = (self.case.dim, k as usize);
        let queries: Vec<Vec<f32>> = (0..queries).map(|_| vector(self.case.shape, dim, &mut r)).collect();
        let all = queries.concat();
        let s = Search { dim: dim as u32, queries: &all, k: k as u32, ..Search::default() };
        let most = self.model.len().max(1) as u32;
        for (s, effort) in
            [(s, 0), (Search { ef: most, nprobe: most, rerank: most, ..s }, 1), (Search { exact: true, ..s }, 2)]
        {
            let found = self.client().search(&s).unwrap();
            prop_assert_eq!(found.queries.len(), queries.len());
            for (q, found) in queries.iter().zip(&found.queries) {
                let near = self.judge(q, k, found, effort > 0 || self.kind == IndexKind::Flat)?;
                if effort == 0 {
                    let mut all = recall.borrow_mut();
                    let sum = all.entry(self.kind.name()).or_default();
                    *sum = (sum.0 + near, sum.1 + found.hits.len() as u64);
                }
            }
        }
        Ok(())
    }

    /// The checker finds nothing on the device.
    fn check(&self) -> Result<(), TestCaseError> {
        let env = vexfs_embedded::env(&HostOptions::default());
        let blocks = self.device.len() / BLOCK as u64;
        let mut check = Check::new(env, blocks, Options { mode: Mode::Look, metadata_only: false });
        let figures =
            check.run(&mut |io| self.device.read_at(io.block * BLOCK as u64, &mut io.buf).map_err(|_| IoError));
        prop_assert_eq!(figures.unwrap().errors, 0, "{:?}", check.findings());
        Ok(())
    }

    /// Every vector is there, bit for bit.
    fn all_there(&self) -> Result<(), TestCaseError> {
        let mut client = self.client();
        for ids in self.model.keys().copied().collect::<Vec<_>>().chunks(500) {
            for record in client.get(ids, Want { vectors: true, ..Want::default() }).unwrap().records {
                prop_assert!(record.present, "{} is gone", record.id);
                let same =
                    record.vector.iter().map(|x| x.to_bits()).eq(self.model[&record.id].iter().map(|x| x.to_bits()));
                prop_assert!(same, "{} is another vector", record.id);
            }
        }
        prop_assert_eq!(client.info().unwrap().records, self.model.len() as u64);
        Ok(())
    }
}

/// Cases that failed once.
fn failed_once() -> Vec<Case> {
    let insert = |count, again| Act::Insert { count, seed: 0, again };
    let replaced_in_one_request = |dim| Case {
        dim,
        metric: Metric::L2,
        kind: IndexKind::Flat,
        shape: Shape::Uniform,
        cache: 256 << 10,
        acts: vec![insert(1, false), insert(256, true), Act::Reopen { clean: true }],
    };
    // The slots that the replaced ones had had were missing in the stream, and the collection could not be loaded.
    vec![replaced_in_one_request(1), replaced_in_one_request(700)]
}

fn run(case: &Case, recall: &RefCell<Recall>) -> Result<(), TestCaseError> {
    let mut w = World::new(case);
    for act in &case.acts {
        match *act {
            Act::Insert { count, seed, again } => w.insert(count, seed, again),
            Act::Delete { count, seed } => w.delete(count, seed),
            Act::Reindex(kind) => {
                w.client().reindex(Some(kind), &IndexParams::default()).unwrap();
                w.kind = kind;
            }
            Act::Reopen { clean } => w = w.reopen(clean),
            Act::Checkpoint => drop(w.host.call(Op::Checkpoint).unwrap()),
            Act::Search { queries, k, seed } => w.search(queries, k, seed, recall)?,
        }
    }
    w.search(3, 10, 1, recall)?;
    w.all_there()?;
    w.host.shut().unwrap();
    w.check()
}

#[test]
fn all_kinds_and_metrics_beside_brute_force() {
    let number = |name: &str, or| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(or);
    let config = Config { cases: number("PROPTEST_CASES", 64) as u32, failure_persistence: None, ..Config::default() };
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number("VEXFS_SEED", 1u64).to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let recall = RefCell::new(Recall::new());
    for case in failed_once() {
        run(&case, &recall).unwrap();
    }
    match runner.run(&case(), |case| run(&case, &recall)) {
        Ok(()) => {}
        Err(TestError::Fail(why, case)) => panic!("{why}\n{case:#?}"),
        Err(e) => panic!("{e}"),
    }
    for (kind, (near, all)) in recall.into_inner() {
        let r = near as f64 / all as f64;
        println!("{kind}: recall {r:.4} over {all} results with defaults");
        assert!(r >= if kind == "flat" { 1.0 } else { 0.9 }, "{kind}: recall {r} with defaults");
    }
}
