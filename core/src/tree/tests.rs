// SPDX-License-Identifier: GPL-2.0-only
//! The tree against `BTreeMap`, over a fake disk, with an account of every block.

use super::*;
use crate::checksum::crc32c;
use crate::format::{kind, BLOCK, FIRST_BLOCK};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::vec::Vec;

const UUID: [u8; 16] = [7; 16];

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let x = self.0 ^ (self.0 >> 33);
        x.wrapping_mul(0xff51_afd7_ed55_8ccd) >> 16
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

struct World {
    tree: Tree,
    disk: HashMap<u64, Vec<u8>>,
    model: BTreeMap<Key, Vec<u8>>,
    generation: u64,
    copies: u32,
    next_addr: u64,
    spare: Vec<u64>,
    /// Blocks that the live tree uses, as the allocator sees it.
    used: HashSet<u64>,
    /// Freed, but the checkpoint on disk may use them.
    waiting: Vec<u64>,
    /// Sealed nodes whose write is under way.
    writing: Vec<u64>,
    fetched: usize,
}

impl World {
    fn new(copies: u32) -> World {
        World {
            tree: Tree::create(UUID, copies, crc32c).unwrap(),
            disk: HashMap::new(),
            model: BTreeMap::new(),
            generation: 1,
            copies,
            next_addr: FIRST_BLOCK,
            spare: Vec::new(),
            used: HashSet::new(),
            waiting: Vec::new(),
            writing: Vec::new(),
            fetched: 0,
        }
    }

    fn fetch(&mut self, need: Need) {
        let Need::Node { parent, index, count } = need else { panic!("{need:?}") };
        assert!((1..=16).contains(&count));
        let mut out = Vec::new();
        self.tree.missing(parent, index, count, &mut out).unwrap();
        assert!(!out.is_empty());
        for (p, level) in out {
            self.fetched += 1;
            self.tree.admit(p, level, Buf::padded(&self.disk[&p.addr]).unwrap()).unwrap();
        }
    }

    /// Runs `f` again and again until nothing is missing.
    fn run<T>(&mut self, f: impl Fn(&Tree) -> Step<T>) -> T {
        for _ in 0..100 {
            match f(&self.tree) {
                Ok(t) => return t,
                Err(Stop::Need(n)) => self.fetch(n),
                Err(e) => panic!("{e:?}"),
            }
        }
        panic!("does not end");
    }

    fn put(&mut self, k: Key, v: &[u8]) {
        self.run(|t| t.prepare(&k));
        self.tree.reserve(1).unwrap();
        self.tree.put(&k, v).unwrap();
        self.model.insert(k, v.to_vec());
    }

    fn del(&mut self, k: Key) {
        self.run(|t| t.prepare(&k));
        self.tree.reserve(1).unwrap();
        self.tree.del(&k).unwrap();
        self.model.remove(&k);
    }

    /// A transaction: all its paths are prepared first, then it must not miss.
    fn batch(&mut self, edits: &BTreeMap<Key, Option<Vec<u8>>>) {
        let list: Vec<_> = edits.iter().map(|(k, v)| (*k, v.as_ref().map(|v| (0, v.len() as u32)))).collect();
        loop {
            match self.tree.reserve_for(&list) {
                Ok(()) => break,
                Err(Stop::Need(n)) => self.fetch(n),
                Err(e) => panic!("{e:?}"),
            }
        }
        for (k, v) in edits {
            match v {
                Some(v) => {
                    self.tree.put(k, v).unwrap();
                    self.model.insert(*k, v.clone());
                }
                None => {
                    self.tree.del(k).unwrap();
                    self.model.remove(k);
                }
            }
        }
    }

    fn get(&mut self, k: Key) -> Option<Vec<u8>> {
        self.run(|t| Ok(t.get(&k)?.map(|v| v.to_vec())))
    }

    fn collect_freed(&mut self) {
        for (a, t) in self.tree.take_freed() {
            for x in [a, t] {
                if x != 0 {
                    assert!(self.used.remove(&x), "block {x} freed that was not used");
                    self.waiting.push(x);
                }
            }
            assert_eq!(t != 0, self.copies == 2);
        }
    }

    fn assign(&mut self) {
        let (next, spare, used, copies) = (&mut self.next_addr, &mut self.spare, &mut self.used, self.copies);
        let mut one = || {
            let a = spare.pop().unwrap_or_else(|| {
                *next += 1;
                *next - 1
            });
            assert!(used.insert(a));
            a
        };
        self.tree.assign(&mut || Some((one(), if copies == 2 { one() } else { 0 }))).unwrap();
        assert_eq!(self.tree.unassigned(), 0);
    }

    fn seal(&mut self) {
        self.finish_writes();
        self.assign();
        self.collect_freed();
        let mut out = Vec::new();
        let dirty = self.tree.dirty();
        let root = self.tree.seal(self.generation, &mut out).unwrap();
        assert!(out.len() <= dirty);
        assert_eq!(self.tree.dirty(), 0);
        assert_eq!(self.tree.root().0, root);
        self.generation += 1;
        self.writing = out;
    }

    /// The checkpoint that was sealed last reaches the disk.
    fn finish_writes(&mut self) {
        for a in core::mem::take(&mut self.writing) {
            let (twin, bytes) = self.tree.node(a).unwrap();
            self.disk.insert(a, bytes.to_vec());
            if twin != 0 {
                self.disk.insert(twin, bytes.to_vec());
            }
            self.tree.written(a);
        }
        self.collect_freed();
    }

    fn checkpoint(&mut self) {
        self.seal();
        let waiting = core::mem::take(&mut self.waiting);
        self.finish_writes();
        // What was freed before the seal is free now that it is on disk.
        self.spare.extend(waiting);
    }

    /// Every node: in bounds, in order, all items those of the model, all blocks accounted for.
    fn check(&mut self) {
        self.collect_freed();
        let mut items = Vec::new();
        let mut blocks = HashSet::new();
        let (mut dirty, mut unassigned) = (0, 0);
        let mut stack = std::vec![(self.tree.root, self.tree.level, None::<Key>, None::<Key>)];
        while let Some((p, level, low, high)) = stack.pop() {
            let is_root = p == self.tree.root;
            let b: Vec<u8>;
            if p.addr & VIRTUAL != 0 {
                let d = self.tree.dirty.get(p.addr).unwrap();
                b = d.buf.to_vec();
                dirty += 1;
                let inner_vacant = |p: Ptr| self.tree.dirty.get(p.addr).is_some_and(|d| d.vacant);
                let vacant = !is_root
                    && if level == 0 {
                        node::items(&b) == 0
                    } else {
                        (0..node::items(&b)).all(|i| inner_vacant(node::child(&b, i).unwrap()))
                    };
                assert_eq!(d.vacant, vacant);
                if d.addr != 0 {
                    assert!(!vacant);
                    assert!(blocks.insert(d.addr));
                    assert!(d.twin == 0 || blocks.insert(d.twin));
                } else if !vacant {
                    unassigned += 1;
                }
            } else {
                b = match self.tree.cache.get(p.addr).filter(|c| c.ptr == p) {
                    Some(c) => c.buf.to_vec(),
                    None => self.disk[&p.addr].clone(),
                };
                assert!(
                    self.tree.verify(&p, level, &b),
                    "{p:?} {level} {} {:?}",
                    crc32c(0, &b),
                    crate::format::NodeHead::parse(&b)
                );
                assert!(blocks.insert(p.addr));
                assert!(p.twin == 0 || blocks.insert(p.twin));
                assert!(node::items(&b) > 0 || is_root);
            }
            assert_eq!(node::level(&b), level);
            if let (Some(l), Some(k)) = (low, node::key(&b, 0)) {
                assert!(k >= l);
            }
            if let (Some(h), Some(k)) = (high, node::last_key(&b)) {
                assert!(k < h);
            }
            if level == 0 {
                for i in 0..node::items(&b) {
                    items.push((node::key(&b, i).unwrap(), node::value(&b, i).unwrap().to_vec()));
                }
            } else {
                for i in (0..node::items(&b)).rev() {
                    let next = node::key(&b, i + 1).or(high);
                    stack.push((node::child(&b, i).unwrap(), level - 1, node::key(&b, i), next));
                }
            }
        }
        assert_eq!(dirty, self.tree.dirty());
        assert_eq!(unassigned, self.tree.unassigned());
        assert_eq!(blocks, self.used);
        let model: Vec<_> = self.model.iter().map(|(k, v)| (*k, v.clone())).collect();
        assert_eq!(items.len(), model.len());
        assert!(items == model);
    }

    fn reopen(&mut self) {
        let (root, level) = self.tree.root();
        self.tree = Tree::open(UUID, self.copies, root, level, crc32c);
    }

    fn fill(&self) -> f64 {
        let (mut used, mut leaves) = (0, 0);
        for (a, b) in &self.disk {
            if self.used.contains(a) && node::level(b) == 0 {
                used += node::used(b);
                leaves += 1;
            }
        }
        used as f64 / (leaves * node::CAPACITY) as f64
    }
}

fn some_key(r: &mut Rng, style: u64, seq: &mut u64) -> Key {
    match style {
        0 => {
            *seq += 1;
            Key::new(5, kind::EXTENT, *seq)
        }
        1 => Key::new(r.below(40), kind::DIRENT, r.below(30)).piece(r.below(3)),
        2 => Key::new(r.next() >> r.below(40), 1 + r.below(8) as u32, r.next()),
        _ => Key::new(3, kind::RECORD, 1_000_000 - r.below(400)),
    }
}

fn some_value(r: &mut Rng) -> Vec<u8> {
    let max = [8, 60, 300, 1001][r.below(4) as usize];
    let len = r.below(max) as usize;
    let fill = r.next() as u8;
    (0..len).map(|i| fill.wrapping_add(i as u8)).collect()
}

#[test]
fn agrees_with_a_map() {
    for seed in 0..24 {
        let mut r = Rng(seed);
        let mut w = World::new(1 + (seed as u32 & 1));
        let mut seq = 0;
        let mut grow = true;
        for step in 0..4000 {
            if step % 500 == 0 {
                grow = r.below(3) > 0;
            }
            let style = (seed / 2 + r.below(2)) % 4;
            let k = some_key(&mut r, style, &mut seq);
            let existing = w.model.range(k..).next().or(w.model.iter().next_back()).map(|(k, _)| *k);
            match r.below(20) {
                0..=8 if grow => w.put(k, &some_value(&mut r)),
                0..=2 => w.put(k, &some_value(&mut r)),
                3..=9 => w.del(existing.unwrap_or(k)),
                10 => w.put(existing.unwrap_or(k), &some_value(&mut r)),
                11 | 12 => assert_eq!(w.get(k), w.model.get(&k).cloned()),
                13..=15 => {
                    let (a, b) = (k, some_key(&mut r, style, &mut seq));
                    let got = w.run(|t| Ok(t.next(&a, &b)?.map(|(k, v)| (k, v.to_vec()))));
                    let want = if a > b { None } else { w.model.range(a..=b).next().map(|(k, v)| (*k, v.clone())) };
                    assert_eq!(got, want);
                    let got = w.run(|t| Ok(t.prev(&a, &b)?.map(|(k, v)| (k, v.to_vec()))));
                    let want =
                        if a > b { None } else { w.model.range(a..=b).next_back().map(|(k, v)| (*k, v.clone())) };
                    assert_eq!(got, want);
                }
                16 => {
                    let mut edits = BTreeMap::new();
                    for _ in 0..r.below(200) {
                        let v = if r.below(3) > 0 { Some(some_value(&mut r)) } else { None };
                        let k = some_key(&mut r, style, &mut seq);
                        let near = w.model.range(k..).next().map(|(k, _)| *k);
                        edits.insert(near.filter(|_| v.is_none()).unwrap_or(k), v);
                    }
                    w.batch(&edits);
                }
                17 if r.below(4) == 0 => w.checkpoint(),
                17 if r.below(4) == 0 => w.seal(),
                17 if r.below(8) == 0 => {
                    w.checkpoint();
                    w.reopen();
                }
                18 => {
                    let now = w.tree.tick();
                    let limit = r.below(6) as usize;
                    w.tree.evict(limit, if r.below(2) == 0 { now + 1 } else { now });
                }
                19 if r.below(3) == 0 => w.assign(),
                _ => {}
            }
            if step % 200 == 0 {
                w.check();
            }
        }
        w.checkpoint();
        w.check();
        assert!(w.fetched > 100, "seed {seed} fetched only {}", w.fetched);
        let all: Vec<Key> = w.model.keys().copied().collect();
        for k in all {
            w.del(k);
        }
        w.check();
        w.checkpoint();
        w.check();
        assert_eq!(w.used.len(), w.copies as usize);
    }
}

/// Deletes that empty leaves whose neighbours are not in memory, and puts into their place, in one transaction.
#[test]
fn emptied_leaves_do_not_lead_astray() {
    for seed in 0..60 {
        let mut r = Rng(seed);
        let mut w = World::new(2);
        for i in 0..3000 {
            w.put(Key::new(1, kind::DIRENT, i * 10), &[1; 90]);
        }
        for _ in 0..4 {
            w.checkpoint();
            w.reopen();
            let mut edits = BTreeMap::new();
            for _ in 0..1 + r.below(4) {
                let (at, n) = (r.below(3000), 1 + r.below(400));
                for i in at..at + n {
                    edits.insert(Key::new(1, kind::DIRENT, i * 10), None);
                    if r.below(20) == 0 {
                        edits.insert(Key::new(1, kind::DIRENT, i * 10 + 1 + r.below(9)), Some(some_value(&mut r)));
                    }
                }
            }
            w.batch(&edits);
            w.check();
            let (a, b) = (Key::MIN, Key::MAX);
            let want = w.model.iter().next().map(|(k, _)| *k);
            assert_eq!(w.run(|t| Ok(t.next(&a, &b)?.map(|x| x.0))), want);
            let want = w.model.iter().next_back().map(|(k, _)| *k);
            assert_eq!(w.run(|t| Ok(t.prev(&a, &b)?.map(|x| x.0))), want);
        }
    }
}

#[test]
fn leaves_are_full_enough() {
    let mut w = World::new(1);
    for i in 0..20_000 {
        w.put(Key::new(9, kind::EXTENT, i), &[3; 36]);
    }
    w.checkpoint();
    assert!(w.fill() > 0.95, "sequential {}", w.fill());
    let mut r = Rng(5);
    let mut w = World::new(1);
    for _ in 0..20_000 {
        let (k, v) = (Key::new(9, kind::DIRENT, r.next()), some_value(&mut r));
        w.put(k, &v);
    }
    w.checkpoint();
    assert!(w.fill() > 0.60, "random {}", w.fill());
    let keys: Vec<Key> = w.model.keys().copied().enumerate().filter(|(i, _)| i % 10 != 0).map(|(_, k)| k).collect();
    for k in keys {
        w.del(k);
    }
    w.checkpoint();
    assert!(w.fill() > 0.30, "thinned out {}", w.fill());
    w.check();
}

#[test]
fn scans_read_ahead() {
    let mut w = World::new(2);
    for i in 0..5000 {
        w.put(Key::new(9, kind::EXTENT, i), &[3; 100]);
    }
    w.checkpoint();
    w.reopen();
    let (from, to) = (Key::first(9, kind::EXTENT), Key::last(9, kind::EXTENT));
    let mut counts = Vec::new();
    let (mut at, mut n) = (from, 0);
    loop {
        match w.tree.next(&at, &to) {
            Ok(Some((k, _))) => {
                n += 1;
                at = k.next().unwrap();
            }
            Ok(None) => break,
            Err(Stop::Need(need)) => {
                if let Need::Node { parent, count, .. } = need {
                    if parent != 0 {
                        counts.push(count);
                    }
                }
                w.fetch(need);
            }
            Err(e) => panic!("{e:?}"),
        }
    }
    assert_eq!(n, 5000);
    assert!(counts.iter().filter(|c| **c == 16).count() > 5, "{counts:?}");
    // A scan that ends early does not read beyond its end.
    w.reopen();
    let end = Key::new(9, kind::EXTENT, 40);
    let got = w.run(|t| Ok(t.next(&from, &end)?.map(|x| x.0)));
    assert_eq!(got, Some(from));
    assert!(w.tree.cached() <= 5, "{}", w.tree.cached());
}

#[test]
fn eviction_spares_what_is_in_use() {
    let mut w = World::new(1);
    for i in 0..3000 {
        w.put(Key::new(9, kind::EXTENT, i), &[3; 100]);
    }
    w.seal();
    let all = w.tree.cached();
    w.tree.evict(0, u64::MAX);
    assert_eq!(w.tree.cached(), all, "nodes being written must stay");
    w.finish_writes();
    let now = w.tree.tick();
    let k = Key::new(9, kind::EXTENT, 1500);
    w.get(k);
    w.tree.evict(0, now);
    let depth = usize::from(w.tree.level) + 1;
    assert_eq!(w.tree.cached(), depth, "the path used in this tick stays");
    assert!(w.tree.get(&k).unwrap().is_some());
    w.tree.evict(0, now + 1);
    assert_eq!(w.tree.cached(), 0);
}

/// A change to a node while the checkpoint that holds it is being written leaves the written bytes alone.
#[test]
fn nodes_in_flight_are_not_changed() {
    let mut r = Rng(3);
    let mut w = World::new(2);
    for _ in 0..500 {
        let k = Key::new(r.below(50), kind::DIRENT, r.below(1000));
        w.put(k, &some_value(&mut r));
    }
    for _ in 0..20 {
        w.seal();
        let frozen: BTreeMap<u64, Vec<u8>> =
            w.writing.iter().map(|a| (*a, w.tree.node(*a).unwrap().1.to_vec())).collect();
        for _ in 0..100 {
            let k = Key::new(r.below(50), kind::DIRENT, r.below(1000));
            if r.below(2) == 0 {
                w.put(k, &some_value(&mut r));
            } else {
                let k = w.model.range(k..).next().map_or(k, |(k, _)| *k);
                w.del(k);
            }
        }
        for (a, bytes) in frozen {
            assert_eq!(w.tree.node(a).unwrap().1, bytes);
        }
        w.check();
        w.finish_writes();
        w.check();
        assert_eq!(w.tree.cache.writing(), 0);
    }
}

#[test]
fn a_full_disk_keeps_what_was_given() {
    let mut w = World::new(1);
    for i in 0..500 {
        w.put(Key::new(9, kind::EXTENT, i), &[3; 500]);
    }
    let need = w.tree.unassigned();
    let mut given = Vec::new();
    let mut alloc = |limit: usize| {
        if given.len() >= limit {
            return None;
        }
        given.push(FIRST_BLOCK + given.len() as u64);
        Some((FIRST_BLOCK + given.len() as u64 - 1, 0))
    };
    assert_eq!(w.tree.assign(&mut || alloc(need / 2)), Err(Error::NoSpace));
    assert_eq!(w.tree.unassigned(), need - need / 2);
    assert_eq!(w.tree.seal(1, &mut Vec::new()), Err(Error::Corrupt));
    assert_eq!(w.tree.assign(&mut || alloc(need)), Ok(()));
    assert_eq!(given.len(), need);
    w.used = given.into_iter().collect();
    w.next_addr += need as u64;
    w.checkpoint();
    w.check();
}

fn small_world(seed: u64) -> World {
    let mut r = Rng(seed);
    let mut w = World::new(2);
    for _ in 0..1200 {
        let k = Key::new(r.below(60), 1 + r.below(7) as u32, r.below(100)).piece(r.below(2));
        let v = some_value(&mut r);
        w.put(k, &v);
    }
    w.checkpoint();
    w
}

/// A pointer to a node on disk, its level, its parent's address and its place there.
type Place = (Ptr, u16, Option<(u64, usize)>);

/// All nodes on disk.
fn census(w: &World) -> Vec<Place> {
    let (root, level) = w.tree.root();
    let mut all = std::vec![(root, level, None)];
    let mut i = 0;
    while i < all.len() {
        let (p, level, _) = all[i];
        let b = &w.disk[&p.addr];
        if level > 0 {
            for j in 0..node::items(b) {
                all.push((node::child(b, j).unwrap(), level - 1, Some((p.addr, j))));
            }
        }
        i += 1;
    }
    all
}

#[test]
fn every_flipped_byte_is_noticed() {
    let w = small_world(1);
    let all = census(&w);
    assert!(w.tree.level >= 2);
    for level in 0..=w.tree.level {
        let (p, l, _) = all.iter().find(|x| x.1 == level).unwrap();
        let mut b = w.disk[&p.addr].clone();
        assert!(w.tree.verify(p, *l, &b));
        for at in 0..BLOCK {
            for bit in [1u8, 0x80, 0xff] {
                b[at] ^= bit;
                assert!(!w.tree.verify(p, *l, &b));
                b[at] ^= bit;
            }
        }
        // Other lengths, levels and pointers.
        assert!(!w.tree.verify(p, *l + 1, &b));
        assert!(!w.tree.verify(p, *l, &b[..BLOCK - 1]));
        assert!(!w.tree.verify(p, *l, &[]));
        for q in [
            Ptr { addr: p.addr + 1, ..*p },
            Ptr { twin: 0, ..*p },
            Ptr { birth: p.birth + 1, ..*p },
            Ptr { reserved: 1, ..*p },
            Ptr { crc: !p.crc, ..*p },
        ] {
            assert!(!w.tree.verify(&q, *l, &b));
        }
        let other = Tree::open([8; 16], 2, *p, *l, crc32c);
        assert!(!other.verify(p, *l, &b));
    }
}

/// Gives a changed node, and all above it, checksums that fit. Returns the pointer to the root.
fn repair(w: &mut World, all: &[Place], changed: u64) -> Ptr {
    let mut at = changed;
    loop {
        let (p, _, parent) = *all.iter().find(|x| x.0.addr == at).unwrap();
        let crc = crc32c(0, &w.disk[&at]);
        match parent {
            Some((up, i)) => {
                let b = w.disk.get_mut(&up).unwrap();
                let off = node::HEAD + i * node::ENTRY + Key::SIZE + 24;
                b[off..off + 4].copy_from_slice(&crc.to_le_bytes());
                at = up;
            }
            None => return Ptr { crc, ..p },
        }
    }
}

/// Uses a tree that may lie, and counts how often it gave an answer. Must end, must not panic.
fn abuse(w: &mut World, r: &mut Rng) -> usize {
    let disk = w.disk.clone();
    let mut answers = 0;
    let fetch = |t: &mut Tree, s: Stop| -> bool {
        let Stop::Need(Need::Node { parent, index, count }) = s else { return false };
        let mut out = Vec::new();
        t.missing(parent, index, count, &mut out).unwrap();
        let mut good = false;
        for (p, level) in out {
            if let Some(b) = disk.get(&p.addr) {
                good |= t.admit(p, level, Buf::padded(b).unwrap()).is_ok();
            }
        }
        good
    };
    let t = &mut w.tree;
    for forward in [true, false] {
        let (mut low, mut high) = (Key::MIN, Key { tree: TREE, ..Key::MAX });
        low.tree = TREE;
        for _ in 0..20_000 {
            let r = if forward { t.next(&low, &high) } else { t.prev(&low, &high) };
            match r {
                Ok(Some((k, v))) => {
                    assert!(v.len() <= 1000 && k >= low && k <= high);
                    answers += 1;
                    if forward {
                        low = k.next().unwrap();
                    } else {
                        high = crate::txn::before(&k).unwrap();
                    }
                }
                Ok(None) => break,
                Err(s) => {
                    if !fetch(t, s) {
                        break;
                    }
                }
            }
        }
        assert!(answers < 10_000);
    }
    for _ in 0..60 {
        let k = Key::new(r.below(60), 1 + r.below(7) as u32, r.below(100)).piece(r.below(2));
        for _ in 0..10 {
            match t.prepare(&k) {
                Ok(()) => {
                    t.reserve(1).unwrap();
                    let _ = if r.below(2) == 0 { t.put(&k, &some_value(r)) } else { t.del(&k) };
                    break;
                }
                Err(s) => {
                    if !fetch(t, s) {
                        break;
                    }
                }
            }
        }
    }
    let mut next = 1 << 20;
    let _ = t.assign(&mut || {
        next += 2;
        Some((next, next + 1))
    });
    let _ = t.seal(99, &mut Vec::new());
    answers
}

#[test]
fn bytes_with_good_checksums_do_no_harm() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..600u64 {
        let mut r = Rng(seed + 1000);
        let mut w = small_world(seed % 6);
        let all = census(&w);
        let (p, _, _) = all[r.below(all.len() as u64) as usize];
        let b = w.disk.get_mut(&p.addr).unwrap();
        let inner = node::level(b) > 0;
        match r.below(4) {
            // A pointer to another node of the tree.
            0 if inner => {
                let i = r.below(node::items(b) as u64) as usize;
                let q = all[r.below(all.len() as u64) as usize].0;
                node::set_child(b, i, &q);
            }
            // Fields of the head and slots rather than values.
            0 | 1 => {
                let at = r.below(node::HEAD as u64 + 300) as usize;
                b[at] = r.next() as u8;
            }
            2 => {
                let at = 48 + r.below(8) as usize;
                b[at] ^= 1 << r.below(8);
            }
            _ => {
                for _ in 0..1 + r.below(4) {
                    let at = r.below(BLOCK as u64) as usize;
                    b[at] = r.next() as u8;
                }
            }
        }
        let root = repair(&mut w, &all, p.addr);
        w.tree = Tree::open(UUID, 2, root, w.tree.level, crc32c);
        if abuse(&mut w, &mut r) >= w.model.len() * 2 {
            accepted += 1;
        } else {
            refused += 1;
        }
    }
    assert!(accepted > 20 && refused > 20, "{accepted} {refused}");
}

#[test]
fn random_blocks_are_refused() {
    let mut r = Rng(77);
    let t = Tree::open(UUID, 1, Ptr::default(), 0, crc32c);
    for _ in 0..2000 {
        let mut b: Vec<u8> = (0..BLOCK).map(|_| r.next() as u8).collect();
        let ptr = Ptr { addr: 100, twin: 0, birth: 3, crc: 0, reserved: 0 };
        // A head that is right but for the counts.
        node::init(&mut b, 0);
        node::finish(&mut b, &UUID, 100, 0, 3);
        for pair in b[50..56].chunks_exact_mut(2) {
            pair.copy_from_slice(&[r.next() as u8, r.below(17) as u8]);
        }
        let ptr = Ptr { crc: crc32c(0, &b), ..ptr };
        if t.verify(&ptr, 0, &b) {
            // All the same: everything that it shows must be readable.
            for i in 0..node::items(&b) {
                assert!(node::value(&b, i).is_some());
            }
        }
    }
}

#[test]
fn may_be_shared_between_threads() {
    fn shared<T: Sync + Send>(_: &T) {}
    let w = small_world(2);
    shared(&w.tree);
    std::thread::scope(|s| {
        for i in 0..4u64 {
            let (t, m) = (&w.tree, &w.model);
            s.spawn(move || {
                for (k, v) in m.iter().skip(i as usize) {
                    assert_eq!(t.get(k).unwrap(), Some(&v[..]));
                }
            });
        }
    });
}

#[test]
fn spare_buffers_are_given_back() {
    let mut w = World::new(1);
    w.tree.reserve(1000).unwrap();
    assert!(w.tree.pool.len() > 1000);
    w.put(Key::new(1, 1, 1), b"x");
    w.checkpoint();
    assert!(w.tree.pool.len() <= 64);
}
