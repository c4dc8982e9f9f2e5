// SPDX-License-Identifier: GPL-2.0-only
//! A loaded collection against a simple model: a map of ids to vectors, and brute force over it.

use super::*;
use crate::checksum::crc32c;
use crate::dist::{self, bits_to_key, Distance};
use crate::format::IndexRoot;
use std::collections::{BTreeMap, BTreeSet};
use std::{println, vec, vec::Vec};

#[path = "runtime_flat_tests.rs"]
mod flat;
#[path = "runtime_kinds_tests.rs"]
mod kinds;
#[path = "runtime_load_tests.rs"]
mod load;

pub struct Rng(pub u64);
impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

fn env() -> Env {
    Env { crc32c, distance: dist::native(), cache_bytes: 0, log_bytes: 0 }
}

fn schema(dim: u32, metric: Metric, index: u32) -> Schema {
    Schema { dim, metric: metric as u32, element: 1, index, m: 8, ef_construction: 64, seed: 1, ..Schema::default() }
}

type Words = Vec<u32>;

/// The collection and what should be in it.
struct World {
    c: Collection,
    model: BTreeMap<u64, Words>,
    seq: u64,
    metric: Metric,
}

impl World {
    fn new(dim: u32, metric: Metric, index: u32) -> World {
        World { c: Collection::new(9, schema(dim, metric, index)).unwrap(), model: BTreeMap::new(), seq: 0, metric }
    }

    fn head(&mut self, id: u64, v: &[u32]) -> Slot {
        self.seq += 1;
        let inv_norm = dist::admit(env().distance, self.metric, v).unwrap();
        Slot { id, seq: self.seq, inv_norm, flags: SLOT_LIVE, crc: vector_crc(&env(), v) }
    }

    /// Inserts or replaces, as a transaction does: the new slot first, then the old one is dropped.
    fn put(&mut self, id: u64, v: Words) {
        let old = self.c.slot_of(id);
        let slot = self.c.free_slot(0);
        self.c.reserve_put(1, slot).unwrap();
        let head = self.head(id, &v);
        self.c.put(slot, head, &v).unwrap();
        if let Some(old) = old {
            self.c.drop_slot(old);
        }
        self.model.insert(id, v);
    }

    fn delete(&mut self, id: u64) {
        assert_eq!(self.model.remove(&id).is_some(), self.c.slot_of(id).is_some());
        if let Some(slot) = self.c.slot_of(id) {
            self.c.drop_slot(slot);
        }
    }

    fn drop_codes(&mut self) {
        self.c.index.get_mut().drop_spare();
        self.c.index.get_mut().allow_spare();
    }

    fn settle(&mut self) {
        while self.c.work(&env(), &Absent::new(0), 50).unwrap() {}
        assert_eq!(self.c.pending(), 0);
        assert!(!self.c.has_work());
    }

    fn brute(&self, q: &[u32], pass: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
        let inv = dist::admit(&dist::SCALAR, self.metric, q).unwrap();
        let query = Query { metric: self.metric, words: q, inv_norm: inv };
        let mut m = Meter::new(&dist::SCALAR);
        let mut all: Vec<(u64, u64)> = self
            .model
            .iter()
            .filter(|(id, _)| pass(**id))
            .map(|(id, v)| (m.one(&query, v, dist::admit(&dist::SCALAR, self.metric, v).unwrap()), *id))
            .collect();
        all.sort();
        all
    }

    fn search(&self, req: &SearchParams<'_>) -> (Vec<(u64, u64)>, SearchStats) {
        let (mut s, mut out) = (SearchScratch::new(), Vec::new());
        let stats = self.c.search(&env(), req, None, &mut s, &mut out).unwrap();
        for h in &out {
            assert_eq!(self.c.slot_of(h.id), Some(h.slot));
            assert_eq!(self.c.distance(&env(), req.query, h.slot), Ok(h.key));
        }
        (out.iter().map(|h| (h.key, h.id)).collect(), stats)
    }

    /// What an approximate search promises: live records, right distances, in order, no gap in number.
    fn check_search(&self, q: &[u32], k: usize, ef: usize) -> (f64, SearchStats) {
        let truth = self.brute(q, |_| true);
        let (got, stats) = self.search(&SearchParams { query: q, k, ef, radius: None, exact: false });
        let all: BTreeSet<_> = truth.iter().copied().collect();
        assert!(got.iter().all(|h| all.contains(h)), "dead record or wrong distance");
        assert!(got.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(got.len(), k.min(truth.len()));
        let limit = truth.get(got.len().max(1) - 1).map_or(0, |t| t.0);
        let right = got.iter().filter(|h| h.0 <= limit).count();
        (if got.is_empty() { 1.0 } else { right as f64 / got.len() as f64 }, stats)
    }

    fn check_slots(&self) {
        assert_eq!(self.c.live(), self.model.len() as u64);
        for (id, v) in &self.model {
            let slot = self.c.slot_of(*id).unwrap();
            assert_eq!(self.c.vector(&Absent::new(0), slot, false).unwrap(), &v[..]);
            assert_eq!(self.c.slot_head(slot).unwrap().id, *id);
        }
        assert_eq!(self.c.live_slots(0).count(), self.model.len());
        let free: Vec<u64> = (0..5).map(|n| self.c.free_slot(n)).collect();
        assert!(free.windows(2).all(|w| w[0] < w[1]));
        assert!(free.iter().all(|s| self.c.slot_head(*s).is_none_or(|h| !is_live(h))));
    }

    fn streams(&self) -> (Vec<u8>, Vec<u8>) {
        let (mut slots, mut vectors) = (Vec::new(), Vec::new());
        let mut b = [0; BLOCK];
        for i in 0..self.c.slot_stream_blocks() {
            self.c.slot_block_bytes(i, &mut b);
            slots.extend(b);
        }
        for i in 0..self.c.vector_stream_blocks() {
            self.c.vector_block_bytes(i, &mut b);
            vectors.extend(b);
        }
        (slots, vectors)
    }

    fn index(&self) -> Option<(IndexRoot, Vec<u8>)> {
        let bytes = self.c.index_bytes().unwrap()?;
        let (kind, version) = self.c.index_kind();
        let root = IndexRoot { kind, version, len: bytes.len() as u64, crc: crc32c(0, &bytes), ..Default::default() };
        Some((root, bytes))
    }

    fn load(&self, slots: &[u8], vectors: &[u8], index: Option<&(IndexRoot, Vec<u8>)>, piece: usize) -> Collection {
        let mut c = Collection::new(9, self.c.schema).unwrap();
        for s in slots.chunks(piece * 32) {
            c.load_slots(s).unwrap();
        }
        c.expect_vectors();
        for (i, v) in vectors.chunks(piece * 4).enumerate() {
            c.load_vector_bytes(&env(), (i * piece * 4) as u64, v).unwrap();
        }
        c.load_index(&env(), index.map(|(r, b)| (r, &b[..]))).unwrap();
        c
    }

    fn reload(&mut self, index: Option<&(IndexRoot, Vec<u8>)>, piece: usize) {
        let (slots, vectors) = self.streams();
        self.c = self.load(&slots, &vectors, index, piece);
    }
}

/// Clustered vectors: near one of some centres.
fn clustered(rng: &mut Rng, dim: usize, centres: u64) -> Words {
    let mut c = Rng(1000 + rng.below(centres));
    (0..dim).map(|_| (c.unit() + 0.1 * rng.unit()).to_bits()).collect()
}

fn random(rng: &mut Rng, dim: usize) -> Words {
    (0..dim).map(|_| rng.unit().to_bits()).collect()
}

/// From a small grid, so that ties and copies are common; never zero.
fn grid(rng: &mut Rng, dim: usize) -> Words {
    (0..dim).map(|_| (rng.below(3) as f32 + 1.0).to_bits()).collect()
}

const METRICS: [Metric; 3] = [Metric::L2, Metric::Cosine, Metric::Ip];

#[test]
fn flat_equals_brute_force() {
    let mut rng = Rng(1);
    for metric in METRICS {
        for dim in [1usize, 3, 20] {
            let mut w = World::new(dim as u32, metric, 1);
            for round in 0..600 {
                let id = rng.below(120);
                match rng.below(4) {
                    0 => w.delete(id),
                    _ => w.put(id, grid(&mut rng, dim)),
                }
                if round % 10 != 0 {
                    continue;
                }
                // Codes of all, of some, of none.
                match rng.below(4) {
                    0 => w.settle(),
                    1 => drop(w.c.work(&env(), &Absent::new(0), 1)),
                    2 if round % 30 == 0 => w.drop_codes(),
                    _ => {}
                }
                w.check_slots();
                let q = grid(&mut rng, dim);
                let truth = w.brute(&q, |_| true);
                for k in [0, 1, 7, 1000] {
                    let (got, stats) = w.search(&SearchParams { query: &q, k, ef: 0, radius: None, exact: false });
                    assert_eq!(got, truth[..k.min(truth.len())]);
                    // Each record at least once, and those that the bounds did not rule out again: codes, then the f32 kernel.
                    let n = w.model.len() as u64;
                    assert!((n..=3 * n).contains(&stats.distances));
                }
                // All within a radius, ties with it included.
                if let Some((radius, _)) = truth.get(rng.below(truth.len().max(1) as u64) as usize) {
                    let req = SearchParams { query: &q, k: usize::MAX, ef: 0, radius: Some(*radius), exact: false };
                    let want: Vec<_> = truth.iter().copied().filter(|t| t.0 <= *radius).collect();
                    assert_eq!(w.search(&req).0, want);
                }
                // A filter.
                let (mut s, mut out) = (SearchScratch::new(), Vec::new());
                let mut odd = |slot: u64, h: &Slot| -> Step<bool> {
                    assert_eq!(w.c.slot_of(h.id), Some(slot));
                    Ok(h.id % 2 == 1)
                };
                let req = SearchParams { query: &q, k: 5, ef: 0, radius: None, exact: false };
                w.c.search(&env(), &req, Some(&mut odd), &mut s, &mut out).unwrap();
                let want = w.brute(&q, |id| id % 2 == 1);
                let got: Vec<_> = out.iter().map(|h| (h.key, h.id)).collect();
                assert_eq!(got, want[..want.len().min(5)]);
            }
            w.settle();
            assert!(w.c.index_bytes().unwrap().is_none() && w.c.index_changes() == 0);
        }
    }
}

#[test]
fn refuses_what_cannot_be() {
    let s = schema(4, Metric::Cosine, 1);
    for (bad, error) in [
        (Schema { dim: 0, ..s }, Error::Invalid),
        (Schema { dim: DIM_MAX + 1, ..s }, Error::Invalid),
        (Schema { metric: 4, ..s }, Error::NotSupported),
        (Schema { element: 2, ..s }, Error::NotSupported),
        (Schema { index: 6, ..s }, Error::NotSupported),
    ] {
        assert_eq!(Collection::new(1, bad).err(), Some(error));
    }
    let mut w = World::new(4, Metric::Cosine, 1);
    w.put(1, vec![1f32.to_bits(); 4]);
    let (mut s, mut out) = (SearchScratch::new(), Vec::new());
    let one = 1f32.to_bits();
    for (q, error) in [
        (vec![one; 3], Error::WrongDimension),
        (vec![0; 4], Error::ZeroVector),
        (vec![one, one, one, f32::NAN.to_bits()], Error::BadVector),
    ] {
        let req = SearchParams { query: &q, k: 1, ef: 0, radius: None, exact: false };
        assert_eq!(w.c.search(&env(), &req, None, &mut s, &mut out).err(), Some(error.into()));
    }
    // A stop in the filter comes through.
    let mut stop = |_: u64, _: &Slot| -> Step<bool> { Err(Error::Io.into()) };
    let q = vec![one; 4];
    let req = SearchParams { query: &q, k: 1, ef: 0, radius: None, exact: false };
    assert_eq!(w.c.search(&env(), &req, Some(&mut stop), &mut s, &mut out).err(), Some(Error::Io.into()));
    let head = *w.c.slot_head(0).unwrap();
    assert_eq!(w.c.put(1, head, &[one; 3]), Err(Error::WrongDimension));
    assert!(w.c.put(u64::MAX, head, &[one; 4]).is_err());
    assert!(w.c.put(1 << 31, head, &[one; 4]).is_err());
    w.c.drop_slot(u64::MAX);
    assert_eq!(w.c.slots(), 1);
}

#[test]
fn hnsw_recall_and_read_your_writes() {
    for (metric, kind) in [(Metric::L2, 0), (Metric::Cosine, 1), (Metric::Ip, 2), (Metric::L2, 2)] {
        let mut rng = Rng(2 + kind);
        let mut w = World::new(24, metric, 2);
        let make = |rng: &mut Rng| match kind {
            0 => random(rng, 24),
            1 => clustered(rng, 24, 40),
            _ => grid(rng, 24),
        };
        for id in 0..2500 {
            w.put(id, make(&mut rng));
            if id % 100 == 0 {
                // Before any indexing it is there already.
                let v = w.model[&id].clone();
                let best = w.brute(&v, |_| true)[0];
                assert_eq!(w.search(&SearchParams { query: &v, k: 1, ef: 64, radius: None, exact: false }).0, [best]);
                w.c.work(&env(), &Absent::new(0), 90).unwrap();
            }
        }
        assert!(w.c.pending() > 0);
        w.settle();
        let (mut recall, mut cost) = (0.0, 0);
        for _ in 0..50 {
            let q = make(&mut rng);
            let (r, stats) = w.check_search(&q, 10, 100);
            assert!(!stats.scanned && stats.hops > 0);
            recall += r / 50.0;
            cost += stats.distances / 50;
        }
        println!("{metric:?} {kind}: recall {recall:.3}, {cost} distances, {:?}", w.c.info());
        // Inner product is no metric; graphs are weaker on it.
        assert!(recall > if metric == Metric::Ip { 0.85 } else { 0.95 }, "{recall}");
        assert!(cost < 1250);
    }
}

#[test]
fn many_copies_of_one_vector() {
    let mut rng = Rng(3);
    let mut w = World::new(16, Metric::Cosine, 2);
    let copy = random(&mut rng, 16);
    for id in 0..3000 {
        let v = if id % 2 == 0 { copy.clone() } else { clustered(&mut rng, 16, 20) };
        w.put(id, v);
    }
    w.settle();
    // All copies are as near as can be; the others are found as if there were no copies.
    let (got, stats) = w.search(&SearchParams { query: &copy, k: 200, ef: 400, radius: None, exact: false });
    let near = w.brute(&copy, |_| true)[0].0;
    assert!(!stats.scanned);
    assert_eq!(got.iter().filter(|h| h.0 == near).count(), 200);
    let queries: Vec<Words> = (0..100).map(|_| clustered(&mut rng, 16, 20)).collect();
    let recall = |w: &World| queries.iter().map(|q| w.check_search(q, 10, 64).0 / 100.0).sum::<f64>();
    let with = recall(&w);
    let mut without = World::new(16, Metric::Cosine, 2);
    for (id, v) in w.model.iter().filter(|(id, _)| *id % 2 == 1) {
        without.put(*id, v.clone());
    }
    without.settle();
    let without = recall(&without);
    println!("recall {with:.3} with copies, {without:.3} without");
    assert!(with > 0.9 && with > without - 0.05);
}

/// Every live record must be found by its own vector through the graph alone.
fn all_found(w: &World) {
    let mut missed = 0;
    for (id, v) in &w.model {
        let (got, stats) = w.search(&SearchParams { query: v, k: 1, ef: 100, radius: None, exact: false });
        if !stats.scanned && got[0].1 != *id && got[0].0 != w.brute(v, |_| true)[0].0 {
            missed += 1;
        }
    }
    assert_eq!(missed, 0, "of {}", w.model.len());
}

#[test]
fn delete_update_consolidate() {
    for seed in 0..4 {
        let mut rng = Rng(100 + seed);
        let metric = METRICS[seed as usize % 2];
        let mut w = World::new(12, metric, 2);
        let make = |rng: &mut Rng| if seed < 2 { random(rng, 12) } else { clustered(rng, 12, 30) };
        let (mut freed, mut tombs) = (false, false);
        for round in 0..6000 {
            // Waves of growth and of dying.
            let dying = round / 1000 % 2 == 1;
            let id = rng.below(900);
            match rng.below(10) {
                0..=4 if dying => w.delete(id),
                0..=1 => w.delete(id),
                _ => w.put(id, make(&mut rng)),
            }
            if rng.below(8) == 0 {
                w.c.work(&env(), &Absent::new(0), 1 + rng.below(20) as usize).unwrap();
            }
            if round % 50 == 0 {
                w.check_slots();
                let q = make(&mut rng);
                let (recall, stats) = w.check_search(&q, 5, 80);
                assert!(stats.scanned || recall >= 0.6, "{recall}");
                freed |= w.c.free_slot(0) < w.c.slots();
                tombs |= w.c.info().tombstones > 16;
            }
        }
        assert!(freed && tombs);
        w.settle();
        w.check_slots();
        all_found(&w);
        // The table does not grow without end.
        assert!(w.c.slots() < 4000, "{}", w.c.slots());
        // Nearly all go; the few that stay are found; then all go, and it can be used again.
        let ids: Vec<u64> = w.model.keys().copied().collect();
        for id in &ids[5..] {
            w.delete(*id);
        }
        w.settle();
        all_found(&w);
        for id in &ids[..5] {
            w.delete(*id);
        }
        w.settle();
        assert!(w
            .search(&SearchParams { query: &make(&mut rng), k: 3, ef: 0, radius: None, exact: false })
            .0
            .is_empty());
        for id in 0..300 {
            w.put(id, make(&mut rng));
        }
        w.settle();
        all_found(&w);
    }
}

#[test]
fn removing_a_bridge_does_not_cut_off() {
    // Two clusters and a chain between them; the chain is deleted.
    let mut rng = Rng(8);
    let mut w = World::new(2, Metric::L2, 2);
    let at = |x: f32, y: f32| vec![x.to_bits(), y.to_bits()];
    let mut id = 0;
    for step in 0..600 {
        w.put(id, at(step as f32, rng.unit()));
        id += 1;
    }
    for _ in 0..300 {
        for x in [0.0, 600.0] {
            w.put(id, at(x + rng.unit(), 5.0 + rng.unit()));
            id += 1;
        }
    }
    w.settle();
    for chain in 0..600 {
        w.delete(chain);
    }
    w.settle();
    assert_eq!(w.c.info().tombstones, 0);
    all_found(&w);
}

#[test]
fn filters_give_k_results() {
    let mut rng = Rng(4);
    let mut w = World::new(16, Metric::L2, 2);
    for id in 0..3000 {
        w.put(id, clustered(&mut rng, 16, 60));
    }
    w.settle();
    let (mut s, mut out) = (SearchScratch::new(), Vec::new());
    for modulo in [2, 10, 50, 200, 1000, 5000] {
        let mut recall = 0.0;
        for _ in 0..30 {
            let q = clustered(&mut rng, 16, 60);
            let mut seen = BTreeSet::new();
            let mut accept = |slot: u64, h: &Slot| -> Step<bool> {
                assert!(seen.insert(slot));
                Ok(h.id % modulo == 1)
            };
            let req = SearchParams { query: &q, k: 10, ef: 50, radius: None, exact: false };
            w.c.search(&env(), &req, Some(&mut accept), &mut s, &mut out).unwrap();
            let truth = w.brute(&q, |id| id % modulo == 1);
            assert_eq!(out.len(), truth.len().min(10));
            let truth = &truth[..out.len()];
            recall += out.iter().filter(|h| truth.contains(&(h.key, h.id))).count() as f64 / out.len() as f64 / 30.0;
        }
        assert!(recall > 0.95, "one in {modulo}: {recall}");
    }
}

/// The old index answers until the new one has everything, whatever comes and goes meanwhile.
#[test]
fn the_old_index_serves_while_another_is_built() {
    let mut rng = Rng(13);
    let mut w = World::new(24, Metric::L2, 2);
    for id in 0..1500 {
        w.put(id, random(&mut rng, 24));
    }
    w.settle();
    for (index, room) in [(3, usize::MAX), (2, usize::MAX), (2, 0)] {
        let free = w.c.free_slot(0);
        w.c.rebuild(Schema { index, ..w.c.schema }, room).unwrap();
        let mut steps = 0;
        while w.c.pending() > 0 {
            let q = random(&mut rng, 24);
            let (recall, stats) = w.check_search(&q, 10, 40);
            if room > 0 {
                // Not everything is compared, not even when the new one has nothing yet.
                assert!(!stats.scanned && stats.hops > 0, "{stats:?}");
                assert!(steps > 0 || stats.pending < 200 && stats.distances < w.c.live(), "{stats:?}");
                assert!(recall > 0.3, "{recall}");
            } else if steps == 0 {
                assert!(stats.pending == w.c.live() || stats.scanned, "{stats:?}");
            }
            for _ in 0..3 {
                w.put(rng.below(1600), random(&mut rng, 24));
                w.delete(rng.below(1600));
            }
            w.check_slots();
            w.c.work(&env(), &Absent::new(0), 20).unwrap();
            steps += 1;
        }
        assert!(steps > 10);
        w.settle();
        assert!(w.c.serving.is_none());
        w.check_slots();
        // Slots that only the old one held are used again.
        for _ in 0..50 {
            w.put(rng.below(1600), random(&mut rng, 24));
        }
        assert!(w.c.free_slot(0) < w.c.slots().max(free + 200));
        let (recall, _) = w.check_search(&random(&mut rng, 24), 10, 300);
        assert!(recall > 0.8, "{recall}");
    }
}

#[test]
fn change_of_kind_stays_right() {
    let mut rng = Rng(12);
    let mut w = World::new(10, Metric::Ip, 1);
    for id in 0..800 {
        w.put(id, random(&mut rng, 10));
    }
    for id in 0..100 {
        w.delete(id * 2);
    }
    for (index, m) in [(2, 8), (2, 4), (1, 0), (2, 16)] {
        let s = Schema { index, m, ..w.c.schema };
        w.c.rebuild(s, usize::MAX).unwrap();
        assert_eq!(w.c.index_kind().0, index);
        w.check_search(&random(&mut rng, 10), 10, 50);
        w.check_slots();
        w.settle();
        for _ in 0..10 {
            w.check_search(&random(&mut rng, 10), 10, 50);
        }
        for _ in 0..50 {
            w.put(rng.below(900), random(&mut rng, 10));
        }
    }
    let s = Schema { index: 6, ..w.c.schema };
    assert_eq!(w.c.rebuild(s, usize::MAX), Err(Error::NotSupported));
    let s = Schema { dim: 11, ..w.c.schema };
    assert_eq!(w.c.rebuild(s, usize::MAX), Err(Error::Invalid));
    assert_eq!(w.c.index_kind().0, 2);
}

#[test]
fn all_paths_give_the_same_graph() {
    let scalar: &'static dyn Distance = &dist::SCALAR;
    let mut all = Vec::new();
    for distance in [scalar, dist::native()] {
        let env = Env { distance, ..env() };
        let mut rng = Rng(13);
        let mut w = World::new(33, Metric::Cosine, 2);
        for id in 0..400 {
            w.put(id, random(&mut rng, 33));
        }
        while w.c.work(&env, &Absent::new(0), 7).unwrap() {}
        all.push(w.c.index_bytes().unwrap());
    }
    assert!(all[0].is_some() && all[0] == all[1]);
}

#[test]
fn radius_of_a_graph_is_exact() {
    let mut rng = Rng(14);
    let mut w = World::new(6, Metric::L2, 2);
    for id in 0..500 {
        w.put(id, random(&mut rng, 6));
    }
    w.settle();
    let q = random(&mut rng, 6);
    let radius = bits_to_key(1.5f64.to_bits()).unwrap();
    let want: Vec<_> = w.brute(&q, |_| true).into_iter().filter(|t| t.0 <= radius).collect();
    assert!(want.len() > 3 && want.len() < 490);
    let req = SearchParams { query: &q, k: usize::MAX, ef: 0, radius: Some(radius), exact: false };
    let (got, stats) = w.search(&req);
    assert_eq!(got, want);
    assert!(stats.scanned);
    // With a limit on the number, the nearest of them.
    assert_eq!(w.search(&SearchParams { k: 3, ..req }).0, want[..3]);
}
