// SPDX-License-Identifier: GPL-2.0-only
//! A volume in a `BTreeMap`, standing in for the engine: runs operations to their end, applies their changes,
//! pretends at random that things are not in memory, loads and reloads collections through their streams.

use crate::coll::{self, Collection};
use crate::dist;
use crate::env::Env;
use crate::error::{Error, Need, Step, Stop};
use crate::format::{kind, Key, Schema, BLOCK, TREE};
use crate::index::Absent;
use crate::mem::{Buf, Map};
use crate::ns;
use crate::op::{Cred, Ino, Op, Reply, Time, ROOT};
use crate::proto::wire::{self, RequestHead};
use crate::txn::{Base, Changes, Outcome, Progress, Txn, VolumeInfo, TXN_BYTES_MAX};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::string::{String, ToString};
use std::vec::Vec;

/// Numbers from a seed (xorshift64*).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

pub struct World {
    pub items: BTreeMap<Key, Vec<u8>>,
    pub colls: BTreeMap<Ino, Collection>,
    pub info: VolumeInfo,
    pub env: Env,
    pub now: Time,
    /// One in so many reads finds its item missing; 0: none.
    pub misses: u64,
    /// How many reads may still miss in this step.
    budget: Cell<u32>,
    dice: Cell<u64>,
    /// Steps that the last operation took, and the largest transaction so far.
    pub steps: usize,
    pub largest: usize,
    /// Blocks freed so far.
    pub freed: u64,
    /// Misses so far.
    pub missed: Cell<u64>,
}

impl World {
    fn miss(&self) -> Step<()> {
        if self.misses == 0 || self.budget.get() == 0 {
            return Ok(());
        }
        let mut r = Rng(self.dice.get());
        let hit = r.chance(self.misses);
        self.dice.set(r.0);
        if hit {
            self.budget.set(self.budget.get() - 1);
            self.missed.set(self.missed.get() + 1);
            return Err(Stop::Need(Need::Node { parent: 0, index: 0, count: 1 }));
        }
        Ok(())
    }
}

impl Base for World {
    fn get(&self, key: &Key) -> Step<Option<&[u8]>> {
        self.miss()?;
        Ok(self.items.get(key).map(|v| v.as_slice()))
    }
    fn next(&self, from: &Key, to: &Key) -> Step<Option<(Key, &[u8])>> {
        self.miss()?;
        Ok(self.items.range(*from..=*to).next().map(|(k, v)| (*k, v.as_slice())))
    }
    fn prev(&self, from: &Key, to: &Key) -> Step<Option<(Key, &[u8])>> {
        self.miss()?;
        Ok(self.items.range(*from..=*to).next_back().map(|(k, v)| (*k, v.as_slice())))
    }
    fn collection(&self, ino: u64) -> Step<&Collection> {
        self.miss()?;
        self.colls.get(&ino).ok_or(Stop::Need(Need::Collection(ino)))
    }
    fn info(&self) -> &VolumeInfo {
        &self.info
    }
    fn env(&self) -> &Env {
        &self.env
    }
}

pub fn root() -> Cred {
    Cred::default()
}

pub fn user(uid: u32) -> Cred {
    Cred { uid, gid: uid, groups: Vec::new() }
}

impl World {
    pub fn new(misses: u64) -> World {
        let env =
            Env { crc32c: crate::checksum::crc32c, distance: dist::native(), cache_bytes: 1 << 20, log_bytes: 1 << 20 };
        let info = VolumeInfo { next_ino: ROOT + 1, ..VolumeInfo::default() };
        let mut w = World {
            items: BTreeMap::new(),
            colls: BTreeMap::new(),
            info,
            env,
            now: Time { sec: 1_700_000_000, nsec: 0 },
            misses,
            budget: Cell::new(0),
            dice: Cell::new(0x9e37_79b9_7f4a_7c15),
            steps: 0,
            largest: 0,
            freed: 0,
            missed: Cell::new(0),
        };
        w.op(|t, _| ns::mkroot(t, 0, 0, 0o777).map(|()| Outcome::Done(Reply::Done))).unwrap();
        w
    }

    fn load(&mut self, ino: Ino) {
        let value = self.items.get(&Key::new(ino, kind::COLLECTION, 0)).expect("loads a collection that is");
        let (schema, _) = coll::schema::parse(value).unwrap();
        let mut c = Collection::new(ino, schema).unwrap();
        c.load_index(&self.env, None).unwrap();
        self.colls.insert(ino, c);
    }

    /// Stores the collection as its streams and loads it again, with its index or without.
    pub fn reload(&mut self, ino: Ino, with_index: bool) {
        let Some(old) = self.colls.remove(&ino) else { return };
        let mut block = [0u8; BLOCK];
        let mut c = Collection::new(ino, old.schema).unwrap();
        let mut slots = Vec::new();
        for b in 0..old.slot_stream_blocks() {
            old.slot_block_bytes(b, &mut block);
            slots.extend_from_slice(&block);
        }
        c.load_slots(&slots).unwrap();
        c.expect_vectors();
        for b in 0..old.vector_stream_blocks() {
            old.vector_block_bytes(b, &mut block);
            c.load_vector_bytes(&self.env, b * BLOCK as u64, &block).unwrap();
        }
        let bytes = if with_index { old.index_bytes().unwrap() } else { None };
        let (kind, version) = old.index_kind();
        let root = bytes.as_ref().map(|b| crate::format::IndexRoot {
            kind,
            version,
            len: b.len() as u64,
            change: old.schema.change,
            crc: (self.env.crc32c)(0, b),
            ..Default::default()
        });
        c.load_index(&self.env, root.as_ref().zip(bytes.as_deref())).unwrap();
        self.colls.insert(ino, c);
    }

    fn fetch(&mut self, need: Need) {
        match need {
            Need::Collection(ino) => self.load(ino),
            Need::CatchUp(ino) => {
                let c = self.colls.get_mut(&ino).unwrap();
                while c.pending() > 0 {
                    c.work(&self.env, &Absent::new(0), 64).unwrap();
                }
            }
            _ => {}
        }
    }

    fn apply(&mut self, c: Changes) -> Vec<Op> {
        for (key, range) in &c.edits {
            match range {
                Some((at, len)) => {
                    let value = c.bytes[*at as usize..][..*len as usize].to_vec();
                    if key.kind == kind::COLLECTION {
                        if let Some(r) = self.colls.get_mut(&key.object) {
                            r.set_schema(Schema::parse(&value).unwrap());
                        }
                    }
                    self.items.insert(*key, value);
                }
                None => {
                    self.items.remove(key);
                }
            }
        }
        for v in &c.vectors {
            let r = self.colls.get_mut(&v.collection).expect("a vector goes to a loaded collection");
            assert!(!c.drops.contains(&(v.collection, v.slot)), "a slot is put and dropped in one transaction");
            r.reserve_put(1, v.slot).unwrap();
            r.put(v.slot, v.head, &c.words[v.start..][..v.len]).unwrap();
        }
        for (i, v) in c.vectors.iter().enumerate() {
            let twice = c.vectors[..i].iter().any(|o| (o.collection, o.slot) == (v.collection, v.slot));
            assert!(!twice, "a slot is put twice in one transaction");
        }
        for (ino, slot) in &c.drops {
            if let Some(r) = self.colls.get_mut(ino) {
                r.drop_slot(*slot);
            }
        }
        for ino in &c.dropped_collections {
            self.colls.remove(ino);
        }
        for ino in &c.reindex {
            let value = self.items.get(&Key::new(*ino, kind::COLLECTION, 0)).unwrap();
            let schema = Schema::parse(value).unwrap();
            if let Some(r) = self.colls.get_mut(ino) {
                r.rebuild(schema, usize::MAX).unwrap();
            }
        }
        self.freed += c.frees.iter().map(|f| u64::from(f.1)).sum::<u64>();
        self.info.next_ino += c.new_inodes;
        self.now.nsec += 1;
        let populates = c.populates.iter().map(|dir| Op::Populate { dir: *dir });
        populates.chain(c.trims.iter().map(|ino| Op::Trim { ino: *ino })).collect()
    }

    /// Runs an operation to its end, its internal follow-ups too.
    pub fn op(&mut self, f: impl Fn(&mut Txn, &mut Progress) -> Step<Outcome>) -> Result<Reply, Error> {
        let mut later = VecDeque::new();
        let reply = self.one(&f, &mut later);
        while let Some(op) = later.pop_front() {
            let done = match op {
                Op::Populate { dir } => {
                    self.one(&|t: &mut Txn, p: &mut Progress| coll::populate(t, dir, p), &mut later)
                }
                Op::Trim { ino } => self.one(&|t: &mut Txn, p: &mut Progress| crate::data::trim(t, ino, p), &mut later),
                _ => Ok(Reply::Done),
            };
            done.expect("internal operations do not fail");
        }
        reply
    }

    fn one(
        &mut self,
        f: &dyn Fn(&mut Txn, &mut Progress) -> Step<Outcome>,
        later: &mut VecDeque<Op>,
    ) -> Result<Reply, Error> {
        let (arrived, opens) = (Map::<Buf>::new(), Map::<u32>::new());
        let mut progress = Progress::default();
        self.steps = 0;
        loop {
            self.budget.set(60);
            let mut search = None;
            let (outcome, changes) = loop {
                let mut p = progress;
                let mut t = Txn::new(&*self, &arrived, &opens, self.now);
                t.search.set(search);
                let result = f(&mut t, &mut p);
                search = t.search.take();
                match result {
                    Ok(outcome) => {
                        progress = p;
                        break (outcome, t.finish());
                    }
                    Err(Stop::Need(need)) => self.fetch(need),
                    Err(Stop::Fail(e)) => return Err(e),
                }
            };
            self.steps += 1;
            assert!(self.steps < 100_000, "an operation that does not end");
            self.largest = self.largest.max(changes.log_bytes());
            assert!(changes.log_bytes() <= TXN_BYTES_MAX + 4096, "a transaction of {} bytes", changes.log_bytes());
            later.extend(self.apply(changes));
            match outcome {
                Outcome::Done(r) | Outcome::DoneDurable(r) => return Ok(r),
                Outcome::More => {}
            }
        }
    }

    pub fn ns(&mut self, op: Op) -> Result<Reply, Error> {
        self.op(|t, p| ns::step(t, &op, p))
    }

    pub fn make(&mut self, dir: Ino, name: &str, mode: u32, uid: u32) -> Result<Ino, Error> {
        let op = Op::Make { dir, name: name.as_bytes().to_vec(), mode, uid, gid: uid, rdev: 0 };
        match self.ns(op)? {
            Reply::Attr(a) => Ok(a.ino),
            r => panic!("{r:?}"),
        }
    }

    pub fn mkdir(&mut self, dir: Ino, name: &str) -> Ino {
        self.make(dir, name, 0o040_755, 0).unwrap()
    }

    pub fn file(&mut self, dir: Ino, name: &str) -> Ino {
        self.make(dir, name, 0o100_644, 0).unwrap()
    }

    pub fn xattr(&mut self, ino: Ino, name: &str, value: &str) {
        let (name, value) = (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        self.ns(Op::SetXattr { ino, name, value, flags: 0 }).unwrap();
    }

    pub fn chmod(&mut self, ino: Ino, mode: u32) {
        let set = crate::op::SetAttr { mode: Some(mode), ..Default::default() };
        self.ns(Op::SetAttr { ino, set }).unwrap();
    }

    /// Sends a frame; the reply frame, from `error_frame` too.
    pub fn send(&mut self, dir: Ino, cred: &Cred, frame: &[u8]) -> Vec<u8> {
        let reply = if crate::proto::is_read(frame) {
            self.op(|t, _| coll::query(t, dir, cred, frame).map(Outcome::Done))
        } else {
            self.op(|t, p| coll::request(t, dir, cred, frame, p))
        };
        match reply {
            Ok(Reply::Bytes(b)) => b,
            Ok(r) => panic!("{r:?}"),
            Err(e) => coll::error_frame(frame, e, 0).unwrap(),
        }
    }

    /// Sends a request and gives the body of its reply.
    pub fn ask(&mut self, dir: Ino, cred: &Cred, op: u16, parts: &[&[u8]]) -> Result<Vec<u8>, Refused> {
        let f = frame(op, parts);
        let reply = self.send(dir, cred, &f);
        let head = wire::ReplyHead::parse(&reply).unwrap();
        assert_eq!((head.len as usize, head.op, head.tag, head.version), (reply.len(), op, 77, wire::VERSION));
        let body = reply[wire::ReplyHead::SIZE..].to_vec();
        if head.status == 0 {
            return Ok(body);
        }
        let message = core::str::from_utf8(&body).unwrap().to_string();
        Err(Refused { errno: head.status, position: head.position, done: head.done, message })
    }

    /// Every item of a kind.
    pub fn items_of(&self, object: u64, kind: u32) -> usize {
        self.items.range(Key::first(object, kind)..=Key::last(object, kind)).filter(|(k, _)| k.tree == TREE).count()
    }

    pub fn schema(&self, dir: Ino) -> Schema {
        coll::schema::parse(&self.items[&Key::new(dir, kind::COLLECTION, 0)]).unwrap().0
    }
}

/// An error reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    pub errno: i32,
    pub position: u32,
    pub done: u64,
    pub message: String,
}

/// A frame of a structure and sections, each padded.
pub fn frame(op: u16, parts: &[&[u8]]) -> Vec<u8> {
    let mut f = RequestHead { version: wire::VERSION, op, tag: 77, ..Default::default() }.bytes().to_vec();
    for p in parts {
        f.extend_from_slice(p);
        f.resize(wire::pad(f.len()), 0);
    }
    let len = f.len() as u32;
    f[..4].copy_from_slice(&len.to_le_bytes());
    f
}

pub fn le32(w: &[u32]) -> Vec<u8> {
    w.iter().flat_map(|x| x.to_le_bytes()).collect()
}

pub fn le64(w: &[u64]) -> Vec<u8> {
    w.iter().flat_map(|x| x.to_le_bytes()).collect()
}

pub fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|x| x.to_bits()).collect()
}

/// A record of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rec {
    pub id: u64,
    pub flags: u32,
    pub vector: Vec<u32>,
    pub attrs: Vec<u8>,
    pub paths: Vec<String>,
}

fn section<'a>(b: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (s, rest) = b.split_at(wire::pad(n));
    *b = rest;
    &s[..n]
}

fn names(mut b: &[u8]) -> Vec<String> {
    let mut v = Vec::new();
    while !b.is_empty() {
        let n = usize::from(u16::from_le_bytes([b[0], b[1]]));
        v.push(core::str::from_utf8(&b[2..2 + n]).unwrap().to_string());
        b = &b[2 + n..];
    }
    v
}

/// The records of a reply to GET or LIST, and the cursor of the next page.
pub fn records(body: &[u8]) -> (Vec<Rec>, u64, u64) {
    let mut b = body;
    let head = wire::RecordsReply::parse(section(&mut b, wire::RecordsReply::SIZE)).unwrap();
    let mut v = Vec::new();
    for _ in 0..head.count {
        let h = wire::RecordHead::parse(section(&mut b, wire::RecordHead::SIZE)).unwrap();
        let words = section(&mut b, h.dim as usize * 4);
        let vector = words.chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
        let attrs = section(&mut b, h.attrs_len as usize).to_vec();
        let paths = names(section(&mut b, h.paths_len as usize));
        assert_eq!(paths.len(), h.paths as usize);
        v.push(Rec { id: h.id, flags: h.flags, vector, attrs, paths });
    }
    assert!(b.is_empty());
    (v, head.next, head.change)
}

/// One result of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    pub id: u64,
    pub distance: f64,
    pub paths: Vec<String>,
}

/// The results of each query.
pub fn found(body: &[u8]) -> Vec<Vec<Found>> {
    let mut b = body;
    let head = wire::SearchReply::parse(section(&mut b, wire::SearchReply::SIZE)).unwrap();
    let mut all = Vec::new();
    for _ in 0..head.count {
        let q = wire::QueryHead::parse(section(&mut b, wire::QueryHead::SIZE)).unwrap();
        let hits: Vec<wire::Hit> =
            (0..q.hits).map(|_| wire::Hit::parse(section(&mut b, wire::Hit::SIZE)).unwrap()).collect();
        let mut paths = names(section(&mut b, q.paths_len as usize)).into_iter();
        let hit = |h: wire::Hit| Found {
            id: h.id,
            distance: f64::from_bits(h.distance),
            paths: paths.by_ref().take(h.paths as usize).collect(),
        };
        all.push(hits.into_iter().map(hit).collect());
    }
    assert!(b.is_empty());
    all
}
