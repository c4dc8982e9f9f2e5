// SPDX-License-Identifier: GPL-2.0-only
//! A transaction: the view that an operation has of the volume, and the changes that it makes.
//!
//! An operation is a plain function over a [`Txn`]. It reads items through the overlay of its own
//! edits; what is not in memory stops it with [`Stop::Need`], the engine fetches it and runs the function
//! again from the start on a fresh transaction. Nothing of a stopped or failed transaction survives.
//! A transaction that returns becomes visible and is logged as a whole ([`Changes`]).

use crate::coll::search::Run;
use crate::coll::Collection;
use crate::env::Env;
use crate::error::{Error, Need, Step, Stop};
use crate::format::{Key, Slot, VALUE_MAX};
use crate::index::Absent;
use crate::mem::{self, Buf, Map};
use crate::op::Time;
use alloc::vec::Vec;
use core::cell::Cell;

/// Most bytes of edits and vectors in one transaction; operations that need more take several steps.
/// A single vector of the largest dimension with the largest attributes fits.
pub const TXN_BYTES_MAX: usize = 900 * 1024;

/// What a transaction reads from: the tree and what surrounds it. The engine's state, or a stand-in in tests.
pub trait Base {
    /// The value of `key`.
    fn get(&self, key: &Key) -> Step<Option<&[u8]>>;
    /// The first item with `from <= key <= to`.
    fn next(&self, from: &Key, to: &Key) -> Step<Option<(Key, &[u8])>>;
    /// The last item with `from <= key <= to`.
    fn prev(&self, from: &Key, to: &Key) -> Step<Option<(Key, &[u8])>>;
    /// The runtime state of a collection (`Need::Collection` until it is loaded).
    fn collection(&self, ino: u64) -> Step<&Collection>;
    /// Facts about the volume.
    fn info(&self) -> &VolumeInfo;
    /// What the driver supplies.
    fn env(&self) -> &Env;
}

/// Facts about the volume that operations need.
#[derive(Clone, Copy, Debug, Default)]
pub struct VolumeInfo {
    /// Key of the name hash.
    pub hash_key: [u8; 16],
    /// Identity.
    pub uuid: [u8; 16],
    /// The running checkpoint generation.
    pub generation: u64,
    /// The next inode number.
    pub next_ino: u64,
    /// Size in blocks.
    pub blocks: u64,
    /// Free blocks, not counting what waits for a checkpoint.
    pub free: u64,
    /// Free blocks that a caller may use (the reserve taken off).
    pub available: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// No change is allowed.
    pub read_only: bool,
}

/// A vector that a transaction stores. The elements are in [`Changes::words`].
#[derive(Clone, Copy, Debug)]
pub struct VectorPut {
    /// Inode of the collection.
    pub collection: u64,
    /// Slot it goes to.
    pub slot: u64,
    /// The slot's head.
    pub head: Slot,
    /// First word of its elements in [`Changes::words`].
    pub start: usize,
    /// Number of words (f32 bits).
    pub len: usize,
}

/// All that a transaction changes, in the form in which it is logged and applied.
#[derive(Debug, Default)]
pub struct Changes {
    /// Items in key order: the key and its new value as a range of `bytes`, or `None` if it goes.
    pub edits: Vec<(Key, Option<(u32, u32)>)>,
    /// Bytes of the new values.
    pub bytes: Vec<u8>,
    /// Runs of blocks that now belong to something (address, blocks).
    pub allocs: Vec<(u64, u32)>,
    /// Runs of blocks that no longer do.
    pub frees: Vec<(u64, u32)>,
    /// Vectors stored, in order.
    pub vectors: Vec<VectorPut>,
    /// Elements of the vectors: f32 bits.
    pub words: Vec<u32>,
    /// Slots given up (collection, slot).
    pub drops: Vec<(u64, u64)>,
    /// Inodes made by it (each takes the next number).
    pub new_inodes: u64,
    /// Inodes that ended.
    pub dead_inodes: u64,
    /// An inode made by it that counts as open once; 0: none.
    pub opened: u64,
    /// Internal operations to start when it has been applied: trims of these inodes.
    pub trims: Vec<u64>,
    /// Directories whose children are to be taken in.
    pub populates: Vec<u64>,
    /// Collections that ended: drop their runtime state.
    pub dropped_collections: Vec<u64>,
    /// Collections whose index is to be rebuilt (kind or parameters changed).
    pub reindex: Vec<u64>,
}

impl Changes {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
            && self.allocs.is_empty()
            && self.frees.is_empty()
            && self.vectors.is_empty()
            && self.drops.is_empty()
            && self.reindex.is_empty()
    }

    /// Bytes that it takes in the log, about.
    pub fn log_bytes(&self) -> usize {
        let runs = self.allocs.len().saturating_add(self.frees.len());
        let counts = [
            (self.edits.len(), 35),
            (runs, 12),
            (self.vectors.len(), 52),
            (self.drops.len(), 16),
            (self.bytes.len(), 1),
            (self.words.len(), 4),
        ];
        counts.iter().fold(0, |sum, (n, size)| sum.saturating_add(n.saturating_mul(*size)))
    }
}

/// The view and the changes of one operation, for one step of it.
pub struct Txn<'a> {
    base: &'a dyn Base,
    arrived: &'a Map<Buf>,
    opens: &'a Map<u32>,
    /// Time of the operation.
    pub now: Time,
    /// The operation has waited for the index long enough ([`Need::CatchUp`]): it takes it as it is.
    pub waited: bool,
    /// Vectors that were met and are not in memory ([`Need::Vectors`]).
    pub absent: Absent,
    /// For a search: what it had when it stopped. The engine keeps it from one run to the next.
    pub search: Cell<Option<mem::Box<Run>>>,
    changes: Changes,
    next_ino: u64,
}

impl<'a> Txn<'a> {
    /// A fresh transaction. `arrived`: data that was fetched for this operation, by first block address;
    /// `opens`: how often each inode is open.
    pub fn new(base: &'a dyn Base, arrived: &'a Map<Buf>, opens: &'a Map<u32>, now: Time) -> Txn<'a> {
        let next_ino = base.info().next_ino;
        Txn {
            base,
            arrived,
            opens,
            now,
            waited: false,
            absent: Absent::new(0),
            search: Cell::new(None),
            changes: Changes::default(),
            next_ino,
        }
    }

    /// Facts about the volume.
    pub fn info(&self) -> &VolumeInfo {
        self.base.info()
    }

    /// What the driver supplies.
    pub fn env(&self) -> &Env {
        self.base.env()
    }

    fn at(&self, key: &Key) -> Result<usize, usize> {
        self.changes.edits.binary_search_by(|(k, _)| k.cmp(key))
    }

    fn edit_value(&self, range: Option<(u32, u32)>) -> Option<&[u8]> {
        let (start, len) = range?;
        let end = (start as usize).checked_add(len as usize)?;
        self.changes.bytes.get(start as usize..end)
    }

    /// The value of `key`, this transaction's own edits included.
    pub fn get(&self, key: &Key) -> Step<Option<&[u8]>> {
        if let Ok(i) = self.at(key) {
            return Ok(self.changes.edits.get(i).and_then(|(_, r)| self.edit_value(*r)));
        }
        self.base.get(key)
    }

    /// The first item with `from <= key <= to`.
    pub fn next(&self, from: &Key, to: &Key) -> Step<Option<(Key, &[u8])>> {
        let mut from = *from;
        loop {
            let below = if from > *to { None } else { self.base.next(&from, to)? };
            let i = match self.at(&from) {
                Ok(i) | Err(i) => i,
            };
            let over = self.changes.edits.get(i).filter(|(k, _)| k <= to);
            match (below, over) {
                (b, None) => return Ok(b),
                (Some((k, v)), Some((ok, _))) if k < *ok => return Ok(Some((k, v))),
                (_, Some((ok, r))) => {
                    if let Some(v) = self.edit_value(*r) {
                        return Ok(Some((*ok, v)));
                    }
                    // Deleted in this transaction: go on behind it.
                    match ok.next() {
                        Some(n) => from = n,
                        None => return Ok(None),
                    }
                }
            }
        }
    }

    /// The last item with `from <= key <= to`.
    pub fn prev(&self, from: &Key, to: &Key) -> Step<Option<(Key, &[u8])>> {
        let mut to = *to;
        loop {
            let below = if *from > to { None } else { self.base.prev(from, &to)? };
            let n = match self.at(&to) {
                Ok(i) => i.saturating_add(1),
                Err(i) => i,
            };
            let over = n.checked_sub(1).and_then(|i| self.changes.edits.get(i)).filter(|(k, _)| k >= from);
            match (below, over) {
                (b, None) => return Ok(b),
                (Some((k, v)), Some((ok, _))) if k > *ok => return Ok(Some((k, v))),
                (_, Some((ok, r))) => {
                    if let Some(v) = self.edit_value(*r) {
                        return Ok(Some((*ok, v)));
                    }
                    match crate::txn::before(ok) {
                        Some(p) => to = p,
                        None => return Ok(None),
                    }
                }
            }
        }
    }

    /// Sets the value of `key`, at most [`VALUE_MAX`] bytes.
    pub fn put(&mut self, key: Key, value: &[u8]) -> Step<()> {
        if value.len() > VALUE_MAX {
            return Err(Stop::Fail(Error::TooBig));
        }
        let start = u32::try_from(self.changes.bytes.len()).map_err(|_| Error::TooBig)?;
        mem::extend(&mut self.changes.bytes, value)?;
        let range = Some((start, value.len() as u32));
        self.edit(key, range)
    }

    /// Takes the item of `key` away (no matter whether it exists).
    pub fn del(&mut self, key: Key) -> Step<()> {
        self.edit(key, None)
    }

    fn edit(&mut self, key: Key, range: Option<(u32, u32)>) -> Step<()> {
        match self.at(&key) {
            Ok(i) => {
                if let Some(e) = self.changes.edits.get_mut(i) {
                    e.1 = range;
                }
            }
            Err(i) => mem::insert(&mut self.changes.edits, i, (key, range))?,
        }
        Ok(())
    }

    /// A number for a new inode.
    pub fn new_ino(&mut self) -> Step<u64> {
        let ino = self.next_ino;
        self.next_ino = ino.checked_add(1).ok_or(Error::NoSpace)?;
        self.changes.new_inodes = self.changes.new_inodes.saturating_add(1);
        Ok(ino)
    }

    /// Counts an inode that ends with this transaction.
    pub fn end_ino(&mut self) {
        self.changes.dead_inodes = self.changes.dead_inodes.saturating_add(1);
    }

    /// How often `ino` is open.
    pub fn opens(&self, ino: u64) -> u32 {
        self.opens.get(ino).copied().unwrap_or(0)
    }

    /// `blocks` blocks of data from `addr` on, as they are on the device: the caller checks them.
    pub fn data(&self, addr: u64, blocks: u32) -> Step<&[u8]> {
        let need = (blocks as usize).saturating_mul(crate::format::BLOCK);
        match self.arrived.get(addr) {
            Some(b) if b.len() >= need => Ok(b.get(..need).unwrap_or(b)),
            _ => Err(Stop::Need(Need::Data { addr, blocks })),
        }
    }

    /// Says that a run of blocks belongs to something from now on (the engine has reserved it).
    pub fn allocated(&mut self, addr: u64, blocks: u32) -> Step<()> {
        Ok(mem::push(&mut self.changes.allocs, (addr, blocks))?)
    }

    /// Says that a run of blocks is given up. It is used again only after the next checkpoint.
    pub fn free(&mut self, addr: u64, blocks: u32) -> Step<()> {
        Ok(mem::push(&mut self.changes.frees, (addr, blocks))?)
    }

    /// The runtime state of a collection. It does not yet show this transaction's own vectors.
    pub fn collection(&self, ino: u64) -> Step<&'a Collection> {
        self.base.collection(ino)
    }

    /// Stores a vector in a slot.
    pub fn put_vector(&mut self, collection: u64, slot: u64, head: Slot, words: &[u32]) -> Step<()> {
        let start = self.changes.words.len();
        mem::extend(&mut self.changes.words, words)?;
        let put = VectorPut { collection, slot, head, start, len: words.len() };
        Ok(mem::push(&mut self.changes.vectors, put)?)
    }

    /// Gives a slot up.
    pub fn drop_vector(&mut self, collection: u64, slot: u64) -> Step<()> {
        Ok(mem::push(&mut self.changes.drops, (collection, slot))?)
    }

    /// How many vectors this transaction stores in `collection`.
    pub fn vectors_in(&self, collection: u64) -> u64 {
        self.changes.vectors.iter().filter(|v| v.collection == collection).count() as u64
    }

    /// The changes so far.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// The changes so far, to add the rarer kinds.
    pub fn changes_mut(&mut self) -> &mut Changes {
        &mut self.changes
    }

    /// Bytes that the changes take in the log; a step stops adding before [`TXN_BYTES_MAX`].
    pub fn size(&self) -> usize {
        self.changes.log_bytes()
    }

    /// Ends the transaction.
    pub fn finish(self) -> Changes {
        self.changes
    }
}

/// The key before `k` in order.
pub fn before(k: &Key) -> Option<Key> {
    if let Some(sub) = k.sub.checked_sub(1) {
        return Some(Key { sub, ..*k });
    }
    if let Some(offset) = k.offset.checked_sub(1) {
        return Some(Key { offset, sub: u64::MAX, ..*k });
    }
    if let Some(kind) = k.kind.checked_sub(1) {
        return Some(Key { kind, offset: u64::MAX, sub: u64::MAX, ..*k });
    }
    if let Some(object) = k.object.checked_sub(1) {
        return Some(Key { object, kind: u32::MAX, offset: u64::MAX, sub: u64::MAX, ..*k });
    }
    let tree = k.tree.checked_sub(1)?;
    Some(Key { tree, object: u64::MAX, kind: u32::MAX, offset: u64::MAX, sub: u64::MAX })
}

/// Result of one step of a changing operation.
#[derive(Debug)]
pub enum Outcome {
    /// Finished; acknowledge when the changes are in the log.
    Done(crate::op::Reply),
    /// Commit these changes, then run the next step. `Progress` was moved on by the step.
    More,
    /// Like `Done`, but acknowledge only when the changes are durable.
    DoneDurable(crate::op::Reply),
}

/// Where an operation of several steps stands. A step changes it only if it does not stop: the
/// engine hands each run a copy and keeps it when the step's changes are committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Position: a cookie, a block, an index into the request.
    pub pos: u64,
    /// How much is done so far, for the reply.
    pub done: u64,
    /// For the operation's own use.
    pub extra: u64,
}
