// SPDX-License-Identifier: GPL-2.0-only
//! Long random histories of names, embeddings and requests against a plain model: after every few steps
//! each collection must list exactly what the model has, and find what brute force over the model finds.

use super::*;
use crate::dist::{Meter, Metric, Query};
use std::collections::{BTreeMap, BTreeSet};
use std::format;

#[derive(Default)]
struct File {
    embedding: Option<Vec<u32>>,
    names: BTreeSet<(Ino, String)>,
    n: Option<i64>,
    hidden: bool,
}

struct Coll {
    dim: usize,
    metric: u32,
    index: u32,
    next_id: u64,
    records: BTreeMap<u64, (Vec<u32>, Option<i64>)>,
}

struct Model {
    w: World,
    rng: Rng,
    dirs: Vec<Ino>,
    colls: BTreeMap<Ino, Coll>,
    files: BTreeMap<Ino, File>,
}

/// What a filter means for the attribute `n`.
type Holds = fn(Option<i64>) -> bool;

/// Filters, and what they mean for the attribute `n`.
const FILTERS: &[(&str, Holds)] = &[
    ("", |_| true),
    ("n < 5", |n| n.is_some_and(|n| n < 5)),
    ("n = 3 or n = 7.0", |n| n == Some(3) || n == Some(7)),
    ("not (n >= 2)", |n| n.is_none_or(|n| n < 2)),
    ("exists(n) and n != 4", |n| n.is_some_and(|n| n != 4)),
    ("n in (1, 2, 8)", |n| matches!(n, Some(1 | 2 | 8))),
    ("n > 100", |_| false),
];

fn attrs_of(n: Option<i64>) -> Vec<u8> {
    n.map_or(Vec::new(), |n| encode(&[("n", Value::I64(n))]))
}

fn is_zero(v: &[u32]) -> bool {
    v.iter().all(|w| f32::from_bits(*w) == 0.0)
}

impl Coll {
    fn searches(&self, v: &[u32]) -> bool {
        v.len() == self.dim && !(self.metric == metric::COSINE && is_zero(v))
    }
}

impl Model {
    fn new(seed: u64) -> Model {
        let mut w = World::new([0, 3, 10, 40][(seed % 4) as usize]);
        let dirs = (0..4).map(|i| w.mkdir(1, &format!("dir{i}"))).collect();
        let rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        Model { w, rng, dirs, colls: BTreeMap::new(), files: BTreeMap::new() }
    }

    fn dir(&mut self) -> Ino {
        self.dirs[self.rng.below(self.dirs.len() as u64) as usize]
    }

    /// Small whole numbers, so that distances are exact and ties are common.
    fn vector(&mut self, dim: usize) -> Vec<u32> {
        let zero = self.rng.chance(30);
        (0..dim).map(|_| if zero { 0 } else { (self.rng.below(9) as f32 - 4.0).to_bits() }).collect()
    }

    fn n(&mut self) -> Option<i64> {
        if self.rng.chance(5) {
            None
        } else {
            Some(self.rng.below(10) as i64)
        }
    }

    fn some_file(&mut self) -> Option<(Ino, Ino, String)> {
        let all: Vec<(Ino, Ino, String)> =
            self.files.iter().flat_map(|(i, f)| f.names.iter().map(|(d, n)| (*i, *d, n.clone()))).collect();
        if all.is_empty() {
            return None;
        }
        Some(all[self.rng.below(all.len() as u64) as usize].clone())
    }

    fn name_taken(&self, dir: Ino, name: &str) -> bool {
        self.files.values().any(|f| f.names.contains(&(dir, String::from(name))))
    }

    fn step(&mut self) {
        let dir = self.dir();
        match self.rng.below(24) {
            0 | 1 => self.create_or_drop(dir),
            2 => self.reindex(dir),
            3..=7 => self.insert(dir),
            8 => self.delete(dir),
            9 => self.delete_where(dir),
            10 => self.update(dir),
            11..=13 => self.embed(),
            14..=16 => self.make(dir),
            17 => self.link(dir),
            18 => self.unlink(),
            19 | 20 => self.rename(dir),
            21 => self.xattr(),
            22 => self.chmod(),
            _ => {
                let with_index = self.rng.chance(2);
                self.w.reload(dir, with_index);
            }
        }
    }

    fn create_or_drop(&mut self, dir: Ino) {
        if self.colls.contains_key(&dir) {
            if self.rng.chance(3) {
                self.w.ask(dir, &root(), op::DROP, &[]).unwrap();
                self.colls.remove(&dir);
            }
            return;
        }
        let dim = 1 + self.rng.below(3) as usize;
        let metric = 1 + self.rng.below(3) as u32;
        let index = 1 + self.rng.below(2) as u32;
        create(&mut self.w, dir, schema(dim as u32, metric, index));
        self.colls.insert(dir, Coll { dim, metric, index, next_id: 0, records: BTreeMap::new() });
    }

    fn reindex(&mut self, dir: Ino) {
        let index = 1 + self.rng.below(2) as u32;
        let Some(c) = self.colls.get_mut(&dir) else { return };
        c.index = index;
        let s = wire::Schema { index, ..Default::default() };
        self.w.ask(dir, &root(), op::REINDEX, &[&s.bytes()]).unwrap();
    }

    fn insert(&mut self, dir: Ino) {
        let Some(dim) = self.colls.get(&dir).map(|c| c.dim) else { return };
        let count = 1 + self.rng.below(12) as usize;
        let vectors: Vec<Vec<u32>> = (0..count).map(|_| self.vector(dim)).collect();
        let ns: Vec<Option<i64>> = (0..count).map(|_| self.n()).collect();
        let attrs: Vec<Vec<u8>> = ns.iter().map(|n| attrs_of(*n)).collect();
        let ids: Option<Vec<u64>> =
            if self.rng.chance(2) { Some((0..count).map(|_| self.rng.below(60)).collect()) } else { None };
        let absent = self.rng.chance(4);
        let got = insert(&mut self.w, dir, &root(), ids.as_deref(), &vectors, Some(&attrs), absent);
        let c = self.colls.get_mut(&dir).unwrap();
        if let Some(i) = vectors.iter().position(|v| !c.searches(v)) {
            let e = got.unwrap_err();
            assert_eq!((e.errno, e.position as usize, e.done), (22, i, 0));
            return;
        }
        let first = c.next_id;
        let ids = ids.unwrap_or_else(|| (first..first + count as u64).collect());
        if absent {
            if let Some(i) = ids.iter().position(|id| c.records.contains_key(id)) {
                let e = got.unwrap_err();
                assert_eq!((e.errno, e.position as usize, e.done), (17, i, 0));
                return;
            }
        }
        for (i, id) in ids.iter().enumerate() {
            if absent && c.records.contains_key(id) {
                let e = got.unwrap_err();
                assert_eq!((e.errno, e.position as usize, e.done), (17, i, i as u64));
                return;
            }
            c.records.insert(*id, (vectors[i].clone(), ns[i]));
            c.next_id = c.next_id.max(id + 1);
        }
        assert_eq!(got, Ok((count as u64, ids[0])));
    }

    fn delete(&mut self, dir: Ino) {
        if !self.colls.contains_key(&dir) {
            return;
        }
        let mut ids: Vec<u64> = (0..1 + self.rng.below(6)).map(|_| self.rng.below(70)).collect();
        if self.rng.chance(2) {
            if let Some((ino, _, _)) = self.some_file() {
                ids.insert(self.rng.below(ids.len() as u64 + 1) as usize, FILE_ID_BASE + ino);
            }
        }
        let got = delete(&mut self.w, dir, &root(), &ids).unwrap();
        let (mut done, mut missing) = (0, 0);
        for id in ids {
            let hit = if id >= FILE_ID_BASE {
                let f = self.files.get_mut(&(id - FILE_ID_BASE)).unwrap();
                let here = f.names.iter().any(|(d, _)| *d == dir);
                here && f.embedding.take().is_some()
            } else {
                self.colls.get_mut(&dir).unwrap().records.remove(&id).is_some()
            };
            *(if hit { &mut done } else { &mut missing }) += 1;
        }
        assert_eq!(got, (done, missing));
    }

    fn delete_where(&mut self, dir: Ino) {
        let (text, holds) = FILTERS[1 + self.rng.below(FILTERS.len() as u64 - 1) as usize];
        let Some(c) = self.colls.get_mut(&dir) else { return };
        let before = c.records.len();
        c.records.retain(|_, (_, n)| !holds(*n));
        let gone = (before - c.records.len()) as u64;
        assert_eq!(delete_where(&mut self.w, dir, &root(), text), Ok(gone));
    }

    fn update(&mut self, dir: Ino) {
        if !self.colls.contains_key(&dir) {
            return;
        }
        let ids: Vec<u64> = (0..1 + self.rng.below(6)).map(|_| self.rng.below(70)).collect();
        let ns: Vec<Option<i64>> = ids.iter().map(|_| self.n()).collect();
        let attrs: Vec<Vec<u8>> = ns.iter().map(|n| attrs_of(*n)).collect();
        let replace = self.rng.chance(2);
        let got = update(&mut self.w, dir, &ids, &attrs, replace).unwrap();
        let (mut done, mut missing) = (0, 0);
        for (id, n) in ids.iter().zip(ns) {
            match self.colls.get_mut(&dir).unwrap().records.get_mut(id) {
                None => missing += 1,
                Some(r) => {
                    done += 1;
                    if replace || n.is_some() {
                        r.1 = n;
                    }
                }
            }
        }
        assert_eq!(got, (done, missing));
    }

    fn embed(&mut self) {
        let Some((ino, dir, name)) = self.some_file() else { return };
        if self.rng.chance(5) {
            let got = embed(&mut self.w, dir, &root(), &name, None);
            let had = self.files.get_mut(&ino).unwrap().embedding.take().is_some();
            assert_eq!(got.is_ok(), had);
            return;
        }
        let dim = 1 + self.rng.below(3) as usize;
        let v = self.vector(dim);
        embed(&mut self.w, dir, &root(), &name, Some(&v)).unwrap();
        self.files.get_mut(&ino).unwrap().embedding = Some(v);
    }

    fn make(&mut self, dir: Ino) {
        let name = format!("f{}", self.rng.below(12));
        if self.name_taken(dir, &name) {
            return;
        }
        let ino = self.w.file(dir, &name);
        let names = BTreeSet::from([(dir, name.clone())]);
        self.files.insert(ino, File { names, ..File::default() });
        if self.rng.chance(2) {
            let dim = 1 + self.rng.below(3) as usize;
            let v = self.vector(dim);
            embed(&mut self.w, dir, &root(), &name, Some(&v)).unwrap();
            self.files.get_mut(&ino).unwrap().embedding = Some(v);
        }
    }

    fn link(&mut self, dir: Ino) {
        let Some((ino, _, _)) = self.some_file() else { return };
        let name = format!("f{}", self.rng.below(12));
        if self.name_taken(dir, &name) {
            return;
        }
        self.w.ns(Op::Link { ino, dir, name: name.as_bytes().to_vec() }).unwrap();
        self.files.get_mut(&ino).unwrap().names.insert((dir, name));
    }

    fn forget(&mut self, ino: Ino, dir: Ino, name: &str) {
        let f = self.files.get_mut(&ino).unwrap();
        f.names.remove(&(dir, String::from(name)));
        if f.names.is_empty() {
            self.files.remove(&ino);
        }
    }

    fn unlink(&mut self) {
        let Some((ino, dir, name)) = self.some_file() else { return };
        unlink(&mut self.w, dir, &name);
        self.forget(ino, dir, &name);
    }

    fn rename(&mut self, to: Ino) {
        let Some((ino, dir, name)) = self.some_file() else { return };
        let exchange = self.rng.chance(3);
        let new = format!("f{}", self.rng.below(12));
        let old = self.files.iter().find(|(_, f)| f.names.contains(&(to, new.clone()))).map(|(i, _)| *i);
        if old == Some(ino) || (exchange && old.is_none()) {
            return;
        }
        let flags = if exchange { crate::op::RENAME_EXCHANGE } else { 0 };
        let (from, into) = (name.as_bytes().to_vec(), new.as_bytes().to_vec());
        self.w.ns(Op::Rename { dir, name: from, new_dir: to, new_name: into, flags }).unwrap();
        if let Some(old) = old {
            self.forget_or_swap(old, to, &new, exchange.then_some((dir, name.clone())));
        }
        let f = self.files.get_mut(&ino).unwrap();
        f.names.remove(&(dir, name));
        f.names.insert((to, new));
    }

    fn forget_or_swap(&mut self, old: Ino, dir: Ino, name: &str, goes: Option<(Ino, String)>) {
        if let Some(place) = goes {
            self.files.get_mut(&old).unwrap().names.insert(place);
        }
        self.forget(old, dir, name);
    }

    fn xattr(&mut self) {
        let Some((ino, _, _)) = self.some_file() else { return };
        let n = self.rng.below(10) as i64;
        self.w.xattr(ino, "user.n", &format!("{n}"));
        self.files.get_mut(&ino).unwrap().n = Some(n);
    }

    fn chmod(&mut self) {
        let Some((ino, _, _)) = self.some_file() else { return };
        let f = self.files.get_mut(&ino).unwrap();
        f.hidden = !f.hidden;
        let mode = if f.hidden { 0o600 } else { 0o644 };
        self.w.chmod(ino, mode);
    }

    /// What the list of `dir` has to be for a caller.
    fn expected(&self, dir: Ino, sees_all: bool, holds: Holds) -> Vec<Rec> {
        let c = &self.colls[&dir];
        let mut v = Vec::new();
        for (id, (vector, n)) in &c.records {
            if holds(*n) {
                let flags = wire::record_flags::PRESENT;
                v.push(Rec { id: *id, flags, vector: vector.clone(), attrs: attrs_of(*n), paths: Vec::new() });
            }
        }
        for (ino, f) in &self.files {
            let paths: Vec<String> = f.names.iter().filter(|(d, _)| *d == dir).map(|(_, n)| n.clone()).collect();
            let Some(vector) = &f.embedding else { continue };
            if paths.is_empty() || (f.hidden && !sees_all) || !holds(f.n) {
                continue;
            }
            let unindexed = if c.searches(vector) { 0 } else { wire::record_flags::UNINDEXED };
            let text = f.n.map(|n| format!("{n}"));
            let attrs = text.map_or(Vec::new(), |t| encode(&[("n", Value::Str(t.as_bytes()))]));
            let flags = wire::record_flags::PRESENT | unindexed;
            v.push(Rec { id: FILE_ID_BASE + ino, flags, vector: vector.clone(), attrs, paths });
        }
        v
    }

    fn distance(&self, metric: Metric, q: &[u32], v: &[u32]) -> (u64, f64) {
        let kernels = self.w.env.distance;
        let norm = |x: &[u32]| crate::dist::admit(kernels, metric, x).unwrap();
        let query = Query { metric, words: q, inv_norm: norm(q) };
        let key = Meter::new(kernels).one(&query, v, norm(v));
        let f = |w: &u32| f64::from(f32::from_bits(*w));
        let sum = |g: fn(f64, f64) -> f64| q.iter().zip(v).map(|(a, b)| g(f(a), f(b))).sum::<f64>();
        let plain = match metric {
            Metric::L2 => sum(|a, b| (a - b) * (a - b)),
            Metric::Ip => -sum(|a, b| a * b),
            Metric::Cosine => {
                let len = |x: &[u32]| x.iter().map(|w| f(w) * f(w)).sum::<f64>().sqrt();
                1.0 - sum(|a, b| a * b) / (len(q) * len(v))
            }
        };
        (key, plain)
    }

    fn check(&mut self) {
        let dirs: Vec<Ino> = self.colls.keys().copied().collect();
        let listed = self.w.items_of(0, kind::LISTED);
        assert_eq!(listed, dirs.len());
        for dir in dirs {
            consistent(&mut self.w, dir);
            let all = self.expected(dir, true, |_| true);
            let i = info(&mut self.w, dir);
            let files = all.iter().filter(|r| r.id >= FILE_ID_BASE);
            let unindexed = files.clone().filter(|r| r.flags & wire::record_flags::UNINDEXED != 0).count() as u64;
            assert_eq!(i.records, self.colls[&dir].records.len() as u64);
            assert_eq!((i.files, i.unindexed), (files.count() as u64 - unindexed, unindexed));
            assert_eq!((i.next_id, i.index), (self.colls[&dir].next_id, self.colls[&dir].index));
            let (text, holds) = FILTERS[self.rng.below(FILTERS.len() as u64) as usize];
            let sees_all = self.rng.chance(2);
            let cred = if sees_all { root() } else { user(9) };
            let expected = self.expected(dir, sees_all, holds);
            let max = [(0, 0), (1, 0), (5, 0), (0, 300)][self.rng.below(4) as usize];
            let mut got = list(&mut self.w, dir, &cred, text, max).unwrap();
            got.iter_mut().for_each(|r| r.paths.sort());
            assert_eq!(got, expected);
            self.check_search(dir, &cred, text, &expected);
        }
    }

    fn check_search(&mut self, dir: Ino, cred: &Cred, filter: &str, expected: &[Rec]) {
        let c = &self.colls[&dir];
        let (dim, metric, index) = (c.dim, Metric::from_u32(c.metric).unwrap(), c.index);
        let mut q = self.vector(dim);
        if is_zero(&q) {
            q[0] = 1f32.to_bits();
        }
        let k = 1 + self.rng.below(20) as u32;
        let mut best: Vec<(u64, u64, f64)> = expected
            .iter()
            .filter(|r| r.flags & wire::record_flags::UNINDEXED == 0)
            .map(|r| {
                let (key, plain) = self.distance(metric, &q, &r.vector);
                (key, r.id, plain)
            })
            .collect();
        best.sort_by_key(|b| (b.0, b.1));
        let middle = best.get(best.len() / 2).map(|b| f64::from_bits(crate::dist::key_to_bits(b.0)));
        let radius = if self.rng.chance(3) { middle } else { None };
        let exact = self.rng.chance(3);
        let a = Ask { k, filter, radius, exact };
        let got = search(&mut self.w, dir, cred, &[q.clone(), q], &a).unwrap();
        assert_eq!(got[0], got[1], "a batch says of a query what it says of it alone");
        let within = |b: &&(u64, u64, f64)| radius.is_none_or(|r| f64::from_bits(crate::dist::key_to_bits(b.0)) <= r);
        let want: Vec<_> = best.iter().filter(within).take(k as usize).collect();
        assert_eq!(got[0].len(), want.len(), "k results whenever k exist");
        let approximate = index == index::HNSW && !exact && radius.is_none();
        for (g, w) in got[0].iter().zip(&want) {
            let here = best.iter().find(|b| b.1 == g.id).expect("a result that exists, matches and may be seen");
            assert_eq!(g.distance.to_bits(), crate::dist::key_to_bits(here.0));
            assert!((g.distance - here.2).abs() < 1e-9);
            assert!(approximate || g.id == w.1);
            let mut paths = g.paths.clone();
            paths.sort();
            assert_eq!(paths, expected.iter().find(|r| r.id == g.id).unwrap().paths);
        }
        assert!(got[0].windows(2).all(|p| (p[0].distance, p[0].id) < (p[1].distance, p[1].id)));
    }
}

#[test]
fn random_histories() {
    let seeds = std::env::var("COLL_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(24);
    for seed in 1..=seeds {
        let mut m = Model::new(seed);
        for step in 0..250 {
            m.step();
            if step % 5 == 4 {
                m.check();
            }
        }
        assert!(m.w.misses == 0 || m.w.missed.get() > 0);
    }
}
