// SPDX-License-Identifier: GPL-2.0-only
//! The tree under failing allocations: after a reservation no edit allocates, and a reservation, a seal
//! or an admission that fails leaves the tree as it was. An allocator that refuses on demand shows it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use vexfs_core::checksum::crc32c;
use vexfs_core::format::{kind, Key};
use vexfs_core::mem::Buf;
use vexfs_core::tree::Tree;
use vexfs_core::{Error, Need, Stop};

thread_local! {
    /// Allocations of this thread that may still succeed.
    static BUDGET: Cell<usize> = const { Cell::new(usize::MAX) };
}

struct Refusing;

fn allowed() -> bool {
    BUDGET
        .try_with(|b| match b.get() {
            usize::MAX => true,
            0 => false,
            n => {
                b.set(n - 1);
                true
            }
        })
        .unwrap_or(true)
}

// SAFETY: hands everything to the system's allocator, or gives null, which is allowed.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        if allowed() {
            // SAFETY: the caller's promise.
            unsafe { System.alloc(l) }
        } else {
            std::ptr::null_mut()
        }
    }
    unsafe fn dealloc(&self, p: *mut u8, l: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, l) }
    }
    unsafe fn realloc(&self, p: *mut u8, l: Layout, n: usize) -> *mut u8 {
        if allowed() {
            // SAFETY: the caller's promise.
            unsafe { System.realloc(p, l, n) }
        } else {
            std::ptr::null_mut()
        }
    }
}

#[global_allocator]
static GLOBAL: Refusing = Refusing;

fn with_budget<T>(n: usize, f: impl FnOnce() -> T) -> T {
    BUDGET.with(|b| b.set(n));
    let t = f();
    BUDGET.with(|b| b.set(usize::MAX));
    t
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

type Edits = BTreeMap<Key, Option<Vec<u8>>>;

struct World {
    tree: Tree,
    disk: HashMap<u64, Vec<u8>>,
    model: BTreeMap<Key, Vec<u8>>,
    generation: u64,
    next: u64,
}

fn list(edits: &Edits) -> Vec<(Key, Option<(u32, u32)>)> {
    edits.iter().map(|(k, v)| (*k, v.as_ref().map(|v| (0, v.len() as u32)))).collect()
}

impl World {
    fn new() -> World {
        World {
            tree: Tree::create([1; 16], 2, crc32c).unwrap(),
            disk: HashMap::new(),
            model: BTreeMap::new(),
            generation: 1,
            next: 100,
        }
    }

    fn fetch(&mut self, need: Need) {
        let Need::Node { parent, index, count } = need else { panic!("{need:?}") };
        let mut out = Vec::new();
        self.tree.missing(parent, index, count, &mut out).unwrap();
        for (p, level) in out {
            let buf = Buf::padded(&self.disk[&p.addr]).unwrap();
            let cached = self.tree.cached();
            match with_budget(0, || self.tree.admit(p, level, buf)) {
                Ok(()) => continue,
                Err(e) => assert_eq!((e, self.tree.cached()), (Error::NoMemory, cached)),
            }
            self.tree.admit(p, level, Buf::padded(&self.disk[&p.addr]).unwrap()).unwrap();
        }
    }

    fn prepare(&mut self, edits: &Edits) {
        for k in edits.keys() {
            while let Err(s) = self.tree.prepare(k) {
                let Stop::Need(n) = s else { panic!("{s:?}") };
                self.fetch(n);
            }
        }
    }

    fn apply(&mut self, edits: &Edits) {
        let tree = &mut self.tree;
        let done = with_budget(0, || {
            edits.iter().try_for_each(|(k, v)| match v {
                Some(v) => tree.put(k, v),
                None => tree.del(k),
            })
        });
        assert_eq!(done, Ok(()), "an edit needed memory that was not reserved");
        for (k, v) in edits {
            match v {
                Some(v) => self.model.insert(*k, v.clone()),
                None => self.model.remove(k),
            };
        }
    }

    fn seal(&mut self) -> Vec<u64> {
        let (tree, next) = (&mut self.tree, &mut self.next);
        tree.assign(&mut || {
            *next += 2;
            Some((*next, *next + 1))
        })
        .unwrap();
        let before = (tree.dirty(), tree.root());
        let mut out = Vec::new();
        let mut budget = 0;
        loop {
            match with_budget(budget, || tree.seal(self.generation, &mut out)) {
                Ok(_) => break,
                Err(e) => {
                    assert_eq!(e, Error::NoMemory);
                    assert_eq!(before, (tree.dirty(), tree.root()));
                    budget += 1;
                }
            }
        }
        self.generation += 1;
        for a in &out {
            let (_, b) = tree.node(*a).unwrap();
            self.disk.insert(*a, b.to_vec());
        }
        out
    }

    fn check(&mut self) {
        let (mut from, to) = (Key::MIN, Key::MAX);
        let mut seen = 0;
        loop {
            match self.tree.next(&from, &to) {
                Ok(None) => break,
                Ok(Some((k, v))) => {
                    assert_eq!(self.model.get(&k).map(|v| &v[..]), Some(v));
                    seen += 1;
                    from = k.next().unwrap();
                }
                Err(Stop::Need(n)) => self.fetch(n),
                Err(e) => panic!("{e:?}"),
            }
        }
        assert_eq!(seen, self.model.len());
    }
}

fn edits(r: &mut Rng, model: &BTreeMap<Key, Vec<u8>>, most: u64) -> Edits {
    let mut e = Edits::new();
    let spread = [1, 3, 4000][r.below(3) as usize];
    let base = r.below(4000);
    let len = [0, 30, 950][r.below(3) as usize];
    for i in 0..1 + r.below(most) {
        let at = if r.below(2) == 0 { base + i * spread } else { r.below(8000) };
        let k = Key::new(2 + at % 3, kind::DIRENT, at);
        let near = model.range(k..).next().map(|(k, _)| *k);
        match near {
            Some(k) if r.below(3) == 0 => e.insert(k, None),
            _ => e.insert(k, Some(vec![i as u8; (len + r.below(50)) as usize])),
        };
    }
    e
}

#[test]
fn edits_after_a_reservation_do_not_allocate() {
    for seed in 0..40 {
        let mut r = Rng(seed);
        let mut w = World::new();
        let mut writing: Vec<u64> = Vec::new();
        for round in 0..120 {
            let most = if r.below(4) == 0 { 600 } else { 12 };
            let e = edits(&mut r, &w.model, most);
            w.prepare(&e);
            let before = (w.tree.dirty(), w.tree.cached(), w.tree.root());
            let l = list(&e);
            // Every prefix of the allocations fails once; nothing changes.
            let mut budget = 0;
            loop {
                let tree = &mut w.tree;
                let done = if seed % 2 == 0 {
                    with_budget(budget, || tree.reserve(e.len())).is_ok()
                } else {
                    match with_budget(budget, || tree.reserve_for(&l)) {
                        Ok(()) => true,
                        Err(Stop::Fail(Error::NoMemory)) => false,
                        Err(s) => panic!("{s:?}"),
                    }
                };
                assert_eq!(before, (w.tree.dirty(), w.tree.cached(), w.tree.root()));
                if done {
                    break;
                }
                budget = if budget < 8 { budget + 1 } else { budget * 2 };
            }
            w.apply(&e);
            match r.below(8) {
                0 => {
                    for a in writing.drain(..) {
                        w.tree.written(a);
                    }
                    writing = w.seal();
                }
                1 => {
                    for a in writing.drain(..) {
                        w.tree.written(a);
                    }
                    w.tree.tick();
                    w.tree.evict(r.below(8) as usize, u64::MAX);
                }
                _ => {}
            }
            if round % 40 == 39 {
                w.check();
            }
        }
        w.check();
    }
}

/// The bound of the walk is what makes large transactions possible: it must stay near the real need.
#[test]
fn a_large_transaction_reserves_little() {
    let mut w = World::new();
    let mut e = Edits::new();
    for i in 0..4000u64 {
        e.insert(Key::new(9, kind::RECORD, i), Some(vec![1; 60]));
    }
    let l = list(&e);
    let tree = &mut w.tree;
    let mut budget = 0;
    while with_budget(budget, || tree.reserve_for(&l)).is_err() {
        budget += 10;
    }
    w.apply(&e);
    // 4000 items of 96 bytes fill 96 nodes.
    assert!(budget < 600, "{budget} allocations");
    w.check();
}
