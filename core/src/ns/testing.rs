// SPDX-License-Identifier: GPL-2.0-only
//! A world for tests: items in a std map, blocks in another, an allocator that scatters, an engine in a hundred
//! lines that carries operations out as the real one does. It forgets at random (a miss that stops a step with
//! `Need`), and it can check everything that the namespace and file data promise.

use crate::coll::Collection;
use crate::data;
use crate::env::Env;
use crate::error::{Error, Need, Step, Stop};
use crate::format::*;
use crate::mem::{Buf, Map};
use crate::ns;
use crate::op::*;
use crate::txn::{Base, Changes, Outcome, Progress, Txn, VolumeInfo, TXN_BYTES_MAX};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::vec;
use std::vec::Vec;

/// A small deterministic generator (SplitMix64).
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn chance(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    pub fn pick<T: Copy>(&mut self, v: &[T]) -> T {
        v[self.below(v.len() as u64) as usize]
    }
}

/// Which look-ups have been answered "not in memory" once, and so are in memory now.
struct Misses {
    rng: Rng,
    /// One look-up in so many is a miss; 0: none.
    one_in: u64,
    seen: BTreeSet<(u8, Key, Key)>,
}

pub struct Items {
    pub map: BTreeMap<Key, Vec<u8>>,
    pub info: VolumeInfo,
    env: Env,
    misses: RefCell<Misses>,
}

impl Items {
    fn miss(&self, what: u8, a: &Key, b: &Key) -> Step<()> {
        let mut m = self.misses.borrow_mut();
        if m.one_in == 0 || m.seen.contains(&(what, *a, *b)) {
            return Ok(());
        }
        let one_in = m.one_in;
        if m.rng.chance(one_in) {
            m.seen.insert((what, *a, *b));
            return Err(Stop::Need(Need::Node { parent: 0, index: 0, count: 1 }));
        }
        Ok(())
    }
}

impl Base for Items {
    fn get(&self, key: &Key) -> Step<Option<&[u8]>> {
        self.miss(0, key, key)?;
        Ok(self.map.get(key).map(|v| v.as_slice()))
    }
    fn next(&self, from: &Key, to: &Key) -> Step<Option<(Key, &[u8])>> {
        self.miss(1, from, to)?;
        if from > to {
            return Ok(None);
        }
        Ok(self.map.range(*from..=*to).next().map(|(k, v)| (*k, v.as_slice())))
    }
    fn prev(&self, from: &Key, to: &Key) -> Step<Option<(Key, &[u8])>> {
        self.miss(2, from, to)?;
        if from > to {
            return Ok(None);
        }
        Ok(self.map.range(*from..=*to).next_back().map(|(k, v)| (*k, v.as_slice())))
    }
    fn collection(&self, ino: u64) -> Step<&Collection> {
        Err(Stop::Need(Need::Collection(ino)))
    }
    fn info(&self) -> &VolumeInfo {
        &self.info
    }
    fn env(&self) -> &Env {
        &self.env
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    Free,
    Used,
    /// Freed, but not before a checkpoint.
    Pending,
}

pub struct World {
    pub items: Items,
    pub disk: HashMap<u64, Vec<u8>>,
    space: Vec<Use>,
    pub opens: Map<u32>,
    pub now: Time,
    pub rng: Rng,
    /// Longest run that the allocator gives.
    pub run_max: u64,
    /// Trims that wait.
    pub trims: Vec<u64>,
    /// Run trims at once.
    pub auto_trim: bool,
    /// Ignore `Run::place`.
    pub ignore_place: bool,
    /// Steps run, stopped ones included.
    pub steps: u64,
}

impl World {
    pub fn new(blocks: u64, seed: u64, one_in: u64) -> World {
        let info = VolumeInfo {
            hash_key: [7; 16],
            generation: 1,
            next_ino: 2,
            blocks,
            free: blocks,
            available: blocks - FIRST_BLOCK,
            ..VolumeInfo::default()
        };
        let env = Env {
            crc32c: crate::checksum::crc32c,
            distance: &crate::dist::SCALAR,
            cache_bytes: 1 << 20,
            log_bytes: 1 << 20,
        };
        let misses = RefCell::new(Misses { rng: Rng(seed ^ 0x5555), one_in, seen: BTreeSet::new() });
        let mut w = World {
            items: Items { map: BTreeMap::new(), info, env, misses },
            disk: HashMap::new(),
            space: vec![Use::Free; blocks as usize],
            opens: Map::new(),
            now: Time { sec: 1000, nsec: 0 },
            rng: Rng(seed),
            run_max: 1 << 20,
            trims: Vec::new(),
            auto_trim: true,
            ignore_place: false,
            steps: 0,
        };
        for b in 0..FIRST_BLOCK {
            w.space[b as usize] = Use::Used;
        }
        w.change(|t| ns::mkroot(t, 0, 0, 0o755)).unwrap();
        w
    }

    /// Runs `f` until it does not stop, and applies its changes.
    pub fn change<T>(&mut self, mut f: impl FnMut(&mut Txn) -> Step<T>) -> Result<T, Error> {
        let mut arrived = Map::new();
        loop {
            self.steps += 1;
            let mut t = Txn::new(&self.items, &arrived, &self.opens, self.now);
            let result = f(&mut t);
            let changes = t.finish();
            match result {
                Ok(v) => {
                    self.apply(changes);
                    return Ok(v);
                }
                Err(Stop::Fail(e)) => return Err(e),
                Err(Stop::Need(n)) => self.fetch(n, &mut arrived)?,
            }
        }
    }

    /// Runs a read until it does not stop. It must not change anything.
    pub fn read<T>(&mut self, mut f: impl FnMut(&Txn) -> Step<T>) -> Result<T, Error> {
        self.change(|t| {
            let v = f(t)?;
            assert!(t.changes().is_empty());
            Ok(v)
        })
    }

    fn fetch(&mut self, need: Need, arrived: &mut Map<Buf>) -> Result<(), Error> {
        match need {
            Need::Node { .. } => Ok(()),
            Need::Data { addr, blocks } => {
                assert!(blocks > 0 && blocks <= EXTENT_BLOCKS_MAX && addr >= FIRST_BLOCK);
                let mut buf = Buf::zeroed(blocks as usize * BLOCK).unwrap();
                for i in 0..u64::from(blocks) {
                    if let Some(b) = self.disk.get(&(addr + i)) {
                        buf[i as usize * BLOCK..][..BLOCK].copy_from_slice(b);
                    }
                }
                arrived.insert(addr, buf).unwrap();
                Ok(())
            }
            Need::Space if self.space.contains(&Use::Pending) => {
                self.checkpoint();
                Ok(())
            }
            Need::Space => Err(Error::NoSpace),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn apply(&mut self, c: Changes) {
        self.items.misses.borrow_mut().seen.clear();
        assert!(c.log_bytes() <= TXN_BYTES_MAX, "transaction of {} bytes", c.log_bytes());
        for (k, range) in &c.edits {
            match range {
                Some((start, len)) => {
                    let v = c.bytes[*start as usize..][..*len as usize].to_vec();
                    assert!(v.len() <= VALUE_MAX);
                    self.items.map.insert(*k, v);
                }
                None => {
                    self.items.map.remove(k);
                }
            }
        }
        for (addr, n) in &c.allocs {
            for b in *addr..addr + u64::from(*n) {
                assert_eq!(self.space[b as usize], Use::Free, "block {b} allocated twice");
                self.space[b as usize] = Use::Used;
                self.items.info.available -= 1;
            }
        }
        for (addr, n) in &c.frees {
            for b in *addr..addr + u64::from(*n) {
                assert_eq!(self.space[b as usize], Use::Used, "block {b} freed twice");
                self.space[b as usize] = Use::Pending;
            }
        }
        if c.opened != 0 {
            self.opens.insert(c.opened, 1).unwrap();
        }
        self.items.info.next_ino += c.new_inodes;
        self.trims.extend(c.trims);
    }

    /// What was freed may be used again; the generation counts on.
    pub fn checkpoint(&mut self) {
        for u in &mut self.space {
            if *u == Use::Pending {
                *u = Use::Free;
                self.items.info.available += 1;
            }
        }
        self.items.info.generation += 1;
    }

    /// Reserves up to `n` blocks in one run.
    fn run_of_blocks(&mut self, n: u64, taken: &BTreeSet<u64>) -> Option<(u64, u64)> {
        let total = self.space.len() as u64;
        // Mostly behind the last one used, sometimes anywhere: extents both grow and scatter.
        let start = if self.rng.chance(4) { self.rng.below(total) } else { FIRST_BLOCK };
        let free = |b: u64| self.space[b as usize] == Use::Free && !taken.contains(&b);
        let first = (start..total).chain(0..start).find(|b| free(*b))?;
        let max = n.min(self.run_max);
        let mut len = 1;
        while len < max && first + len < total && free(first + len) {
            len += 1;
        }
        Some((first, len))
    }

    fn place(&mut self, plan: &data::Plan) -> Result<Vec<data::Placement>, Error> {
        let mut out = Vec::new();
        let mut taken = BTreeSet::new();
        for r in &plan.runs {
            let total = (r.buf.len() / BLOCK) as u64;
            assert!(total > 0 && r.buf.len() % BLOCK == 0);
            let mut at = 0;
            while at < total {
                let (addr, n) = if r.place != 0 && !self.ignore_place {
                    for b in r.place..r.place + total {
                        assert_eq!(self.space[b as usize], Use::Used);
                    }
                    (r.place, total)
                } else {
                    self.run_of_blocks(total - at, &taken).ok_or(Error::NoSpace)?
                };
                let mut crcs = Vec::new();
                for i in 0..n {
                    let b = r.buf[(at + i) as usize * BLOCK..][..BLOCK].to_vec();
                    crcs.push(crate::checksum::crc32c(0, &b));
                    taken.insert(addr + i);
                    self.disk.insert(addr + i, b);
                }
                out.push(data::Placement { file_block: r.file_block + at, addr, blocks: n as u32, crcs });
                at += n;
            }
        }
        for (block, blocks) in &plan.reserve {
            let mut at = 0;
            while at < u64::from(*blocks) {
                let (addr, n) = self.run_of_blocks(u64::from(*blocks) - at, &taken).ok_or(Error::NoSpace)?;
                for i in 0..n {
                    taken.insert(addr + i);
                    // What lay there before must never be seen.
                    self.disk.insert(addr + i, vec![0xee; BLOCK]);
                }
                out.push(data::Placement { file_block: block + at, addr, blocks: n as u32, crcs: Vec::new() });
                at += n;
            }
        }
        Ok(out)
    }

    fn contents(&mut self, op: &Op) -> Result<Reply, Error> {
        let (Op::Write { ino, .. } | Op::Fallocate { ino, .. } | Op::SetAttr { ino, .. }) = op else { panic!() };
        self.open(*ino);
        let result = self.contents_steps(op);
        let _ = self.release(*ino);
        result
    }

    fn contents_steps(&mut self, op: &Op) -> Result<Reply, Error> {
        let mut p = Progress::default();
        let mut waited = false;
        loop {
            let step = self.read(|t| data::prepare(t, op, &p)).and_then(|plan| Ok((self.place(&plan)?, plan)));
            let (placed, plan) = match step {
                Ok(s) => s,
                Err(Error::NoSpace) if !waited => {
                    waited = true;
                    self.checkpoint();
                    continue;
                }
                Err(_) if p.done > 0 => return Ok(Reply::Written(p.done as usize)),
                Err(e) => return Err(e),
            };
            waited = false;
            let before = p;
            let outcome = self.change(|t| {
                let mut q = before;
                let o = data::commit(t, op, &mut q, &plan, &placed)?;
                p = q;
                Ok(o)
            })?;
            if let Outcome::Done(r) = outcome {
                return Ok(r);
            }
        }
    }

    pub fn trim(&mut self, ino: u64) {
        let mut p = Progress::default();
        loop {
            let before = p;
            let outcome = self.change(|t| {
                let mut q = before;
                let o = data::trim(t, ino, &mut q)?;
                p = q;
                Ok(o)
            });
            if let Outcome::Done(_) = outcome.unwrap() {
                return;
            }
        }
    }

    pub fn run_trims(&mut self) {
        while let Some(ino) = self.trims.pop() {
            self.trim(ino);
        }
    }

    pub fn open(&mut self, ino: u64) {
        let n = self.opens.get(ino).copied().unwrap_or(0);
        self.opens.insert(ino, n + 1).unwrap();
    }

    pub fn release(&mut self, ino: u64) -> Result<Reply, Error> {
        let n = self.opens.get(ino).copied().unwrap();
        if n > 1 {
            self.opens.insert(ino, n - 1).unwrap();
            return Ok(Reply::Done);
        }
        self.opens.remove(ino);
        self.step(&Op::Release { ino })
    }

    fn step(&mut self, op: &Op) -> Result<Reply, Error> {
        let outcome = self.change(|t| ns::step(t, op, &mut Progress::default()))?;
        let Outcome::Done(r) = outcome else { panic!("{outcome:?}") };
        Ok(r)
    }

    /// Carries an operation out.
    pub fn run(&mut self, op: &Op) -> Result<Reply, Error> {
        let r = match op {
            Op::Read { ino, offset, len } => self.read(|t| data::read(t, *ino, *offset, *len)),
            Op::Seek { ino, offset, hole } => self.read(|t| data::seek(t, *ino, *offset, *hole)),
            Op::Extents { ino, offset, len, max } => self.read(|t| data::extents(t, *ino, *offset, *len, *max)),
            Op::Lookup { .. }
            | Op::GetAttr { .. }
            | Op::ByHandle { .. }
            | Op::ReadLink { .. }
            | Op::ReadDir { .. }
            | Op::Parent { .. }
            | Op::GetXattr { .. }
            | Op::ListXattr { .. } => self.read(|t| ns::read(t, op)),
            Op::Write { .. } | Op::Fallocate { .. } => self.contents(op),
            Op::SetAttr { set, .. } if set.size.is_some() => self.contents(op),
            Op::Open { ino } => {
                self.open(*ino);
                Ok(Reply::Done)
            }
            Op::Release { ino } => self.release(*ino),
            _ => self.step(op),
        };
        if self.auto_trim {
            self.run_trims();
        }
        r
    }

    /// Carries the first step of an operation out and throws its changes away.
    pub fn attempt(&mut self, op: &Op) -> Result<(), Error> {
        let mut arrived = Map::new();
        loop {
            let mut t = Txn::new(&self.items, &arrived, &self.opens, self.now);
            let mut p = Progress::default();
            let result = match op {
                Op::Write { .. } | Op::Fallocate { .. } => attempt_contents(&mut t, op, &mut p),
                Op::SetAttr { set, .. } if set.size.is_some() => attempt_contents(&mut t, op, &mut p),
                _ => ns::step(&mut t, op, &mut p).map(|_| ()),
            };
            match result {
                Ok(()) => return Ok(()),
                Err(Stop::Fail(e)) => return Err(e),
                Err(Stop::Need(n)) => self.fetch(n, &mut arrived)?,
            }
        }
    }

    /// Checks every promise over all items.
    pub fn check(&self) {
        let mut used: BTreeSet<u64> = (0..FIRST_BLOCK).collect();
        let mut blocks: HashMap<u64, u64> = HashMap::new();
        let mut links: HashMap<u64, u64> = HashMap::new();
        let mut subdirs: HashMap<u64, u32> = HashMap::new();
        let mut entries: HashMap<u64, u64> = HashMap::new();
        let mut last: Option<(u64, u64)> = None;
        let inode = |ino: u64| self.items.map.get(&Key::first(ino, kind::INODE)).map(|v| Inode::parse(v).unwrap());
        for (k, v) in &self.items.map {
            if k.object != 0 {
                assert!(inode(k.object).is_some(), "{k:?} of no inode");
            }
            match k.kind {
                kind::EXTENT => {
                    let x = Extent::parse(v).unwrap();
                    let end = k.offset + u64::from(x.blocks);
                    if let Some((ino, e)) = last {
                        assert!(ino != k.object || e <= k.offset, "extents overlap");
                    }
                    last = Some((k.object, end));
                    *blocks.entry(k.object).or_default() += u64::from(x.blocks);
                    let i = inode(k.object).unwrap();
                    let trim = self.items.map.contains_key(&Key::new(0, kind::TRIM, k.object));
                    for n in 0..u64::from(x.blocks) {
                        let b = x.addr + n;
                        assert!(used.insert(b), "block {b} owned twice");
                        assert_eq!(self.space[b as usize], Use::Used, "block {b} of a file is not allocated");
                        if x.flags & EXTENT_UNWRITTEN == 0 {
                            let d = &self.disk[&b];
                            let crc = &v[Extent::SIZE + n as usize * 4..][..4];
                            assert_eq!(crc, crate::checksum::crc32c(0, d).to_le_bytes(), "crc of block {b}");
                            let at = (k.offset + n) * BLOCK as u64;
                            assert!(trim || i.nlink == 0 || at < i.size, "written block beyond the end");
                            if at < i.size && i.size < at + BLOCK as u64 {
                                let tail = &d[(i.size - at) as usize..];
                                assert!(tail.iter().all(|b| *b == 0), "old bytes behind the end");
                            }
                        }
                    }
                    if x.flags & EXTENT_UNWRITTEN == 0 {
                        assert!(x.blocks <= EXTENT_BLOCKS_MAX);
                        assert_eq!(v.len(), Extent::SIZE + 4 * x.blocks as usize);
                    }
                }
                kind::DIRENT => {
                    let d = Dirent::parse(v).unwrap();
                    let name = &v[Dirent::SIZE..];
                    assert_eq!(name.len(), usize::from(d.name_len));
                    let hash = crate::checksum::siphash(&self.items.info.hash_key, name) & 0x7fff_ffff_ffff_ff00;
                    assert_eq!(k.offset & !255, hash.max(256));
                    *entries.entry(k.object).or_default() += 1;
                    let i = inode(d.ino).expect("entry of no inode");
                    assert_eq!(u32::from(d.dtype), i.mode >> 12);
                    if i.mode >> 12 == 4 {
                        assert_eq!(i.parent, k.object);
                        *subdirs.entry(k.object).or_default() += 1;
                    }
                    let back = self.items.map.get(&Key::new(d.ino, kind::LINK, k.object).piece(k.offset));
                    assert_eq!(&back.expect("entry without way back")[Link::SIZE..], name);
                }
                kind::LINK => {
                    *links.entry(k.object).or_default() += 1;
                    let d = self.items.map.get(&Key::new(k.offset, kind::DIRENT, k.sub)).expect("link without entry");
                    assert_eq!(Dirent::parse(d).unwrap().ino, k.object);
                }
                kind::SYMLINK if k.sub == 0 => self.check_pieces(k, inode(k.object).unwrap().size as usize, u64::MAX),
                kind::EMBEDDING if k.sub == 0 => {
                    let e = Embedding::parse(v).unwrap();
                    let i = inode(k.object).unwrap();
                    assert!(i.flags & inode_flags::EMBEDDED != 0 || i.nlink == 0);
                    assert_eq!(i.embed_dim, e.dim);
                    self.check_pieces(k, Embedding::SIZE + 4 * e.dim as usize, u64::MAX);
                }
                kind::XATTR if k.sub & 0xffff == 0 => {
                    let x = Xattr::parse(v).unwrap();
                    let name = &v[Xattr::SIZE..][..usize::from(x.name_len)];
                    assert_eq!(k.offset, crate::checksum::siphash(&self.items.info.hash_key, name));
                    self.check_pieces(k, Xattr::SIZE + name.len() + x.value_len as usize, k.sub | 0xffff);
                }
                kind::ORPHAN => assert!(inode(k.offset).is_some_and(|i| i.nlink == 0)),
                kind::TRIM => assert!(inode(k.offset).is_some() && self.trims.contains(&k.offset)),
                _ => {}
            }
        }
        for (b, u) in self.space.iter().enumerate() {
            assert_eq!(*u == Use::Used, used.contains(&(b as u64)), "block {b} is {u:?}");
        }
        for (k, v) in self.items.map.iter().filter(|(k, _)| k.kind == kind::INODE) {
            let i = Inode::parse(v).unwrap();
            let ino = k.object;
            assert_eq!(i.blocks, blocks.get(&ino).copied().unwrap_or(0), "blocks of {ino}");
            let n = links.get(&ino).copied().unwrap_or(0);
            let orphan = self.items.map.contains_key(&Key::new(0, kind::ORPHAN, ino));
            assert_eq!(orphan, i.nlink == 0);
            if orphan {
                assert!(self.opens.contains(ino) || self.trims.contains(&ino), "orphan {ino} is forgotten");
            }
            if i.mode >> 12 == 4 {
                assert_eq!(i.size, entries.get(&ino).copied().unwrap_or(0), "entries of {ino}");
                assert_eq!(n, u64::from(ino != ROOT && i.nlink > 0));
                if i.nlink > 0 {
                    assert_eq!(i.nlink, 2 + subdirs.get(&ino).copied().unwrap_or(0), "links of directory {ino}");
                }
            } else {
                assert_eq!(u64::from(i.nlink), n, "links of {ino}");
            }
        }
    }

    /// Checks that the pieces from `k` on, up to `last`, hold exactly `len` bytes.
    fn check_pieces(&self, k: &Key, len: usize, last: u64) {
        let mut at = 0;
        for (n, (key, v)) in self.items.map.range(*k..=k.piece(last)).enumerate() {
            assert_eq!(key.sub, k.sub + n as u64);
            assert_eq!(v.len(), (len - at).min(VALUE_MAX), "{key:?}");
            assert!(n == 0 || !v.is_empty());
            at += v.len();
        }
        assert_eq!(at, len, "{k:?}");
    }

    /// Blocks in use by files.
    pub fn used(&self) -> u64 {
        self.space.iter().filter(|u| **u == Use::Used).count() as u64 - FIRST_BLOCK
    }

    // Shorthands.

    pub fn attr(&mut self, ino: u64) -> Result<Attr, Error> {
        match self.run(&Op::GetAttr { ino })? {
            Reply::Attr(a) => Ok(a),
            other => panic!("{other:?}"),
        }
    }
    pub fn lookup(&mut self, dir: u64, name: &[u8]) -> Result<u64, Error> {
        match self.run(&Op::Lookup { dir, name: name.to_vec() })? {
            Reply::Attr(a) => Ok(a.ino),
            other => panic!("{other:?}"),
        }
    }
    pub fn make(&mut self, dir: u64, name: &[u8], mode: u32) -> Result<u64, Error> {
        match self.run(&Op::Make { dir, name: name.to_vec(), mode, uid: 1, gid: 2, rdev: 77 })? {
            Reply::Attr(a) => Ok(a.ino),
            other => panic!("{other:?}"),
        }
    }
    pub fn write(&mut self, ino: u64, offset: u64, data: &[u8]) -> Result<usize, Error> {
        match self.run(&Op::Write { ino, offset, data: data.to_vec(), kill_suid: false, times: None })? {
            Reply::Written(n) => Ok(n),
            other => panic!("{other:?}"),
        }
    }
    pub fn bytes(&mut self, op: &Op) -> Result<Vec<u8>, Error> {
        match self.run(op)? {
            Reply::Bytes(b) => Ok(b),
            other => panic!("{other:?}"),
        }
    }
    pub fn pread(&mut self, ino: u64, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        self.bytes(&Op::Read { ino, offset, len })
    }
    pub fn rename(&mut self, dir: u64, name: &[u8], new_dir: u64, new_name: &[u8], flags: u32) -> Result<(), Error> {
        let op = Op::Rename { dir, name: name.to_vec(), new_dir, new_name: new_name.to_vec(), flags };
        self.run(&op).map(|_| ())
    }
    pub fn unlink(&mut self, dir: u64, name: &[u8]) -> Result<(), Error> {
        self.run(&Op::Unlink { dir, name: name.to_vec() }).map(|_| ())
    }
    pub fn truncate(&mut self, ino: u64, size: u64) -> Result<(), Error> {
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        self.run(&Op::SetAttr { ino, set }).map(|_| ())
    }
    pub fn fallocate(&mut self, ino: u64, mode: u32, offset: u64, len: u64) -> Result<(), Error> {
        self.run(&Op::Fallocate { ino, mode, offset, len }).map(|_| ())
    }
    pub fn seek(&mut self, ino: u64, offset: u64, hole: bool) -> Result<u64, Error> {
        match self.run(&Op::Seek { ino, offset, hole })? {
            Reply::Offset(o) => Ok(o),
            other => panic!("{other:?}"),
        }
    }
    pub fn list(&mut self, dir: u64) -> Result<Vec<(Vec<u8>, u64)>, Error> {
        let mut out: Vec<(Vec<u8>, u64)> = Vec::new();
        let mut cookie = 0;
        loop {
            let max = 40 + self.rng.below(400) as usize;
            let Reply::Entries(v) = self.run(&Op::ReadDir { dir, cookie, max, attrs: true })? else { panic!() };
            if v.is_empty() {
                return Ok(out);
            }
            for e in v {
                assert!(e.cookie > cookie && e.cookie >= 256);
                assert_eq!(e.attr.unwrap().ino, e.ino);
                cookie = e.cookie;
                out.push((e.name, e.ino));
            }
        }
    }
}

fn attempt_contents(t: &mut Txn, op: &Op, p: &mut Progress) -> Step<()> {
    let plan = data::prepare(t, op, p)?;
    let mut placed = Vec::new();
    let mut addr = FIRST_BLOCK;
    for r in &plan.runs {
        let n = r.buf.len() / BLOCK;
        placed.push(data::Placement { file_block: r.file_block, addr, blocks: n as u32, crcs: vec![0; n] });
        addr += n as u64;
    }
    for (block, n) in &plan.reserve {
        placed.push(data::Placement { file_block: *block, addr, blocks: *n, crcs: Vec::new() });
        addr += u64::from(*n);
    }
    data::commit(t, op, p, &plan, &placed).map(|_| ())
}
