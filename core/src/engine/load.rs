// SPDX-License-Identifier: GPL-2.0-only
//! Bringing a collection into memory: its slots and its index, extent by extent; its vectors only if slots have to be made again
//! from them, else `paging` brings them in as they are needed. Promises: a damaged block costs
//! the vectors in it (found by their checksums, reported by id) or time (the index is rebuilt, slot heads are made again from
//! the records), never the whole collection.

use super::task::Task;
use super::Volume;
use crate::coll::Collection;
use crate::error::{Error, Step, Stop};
use crate::format::{kind, Extent, IndexRoot, Key, Record, Schema, Wire, BLOCK, EXTENT_BLOCKS_MAX, NO_SLOT};
use crate::mem;
use crate::op::Ino;
use crate::txn::Txn;
use alloc::vec::Vec;

/// Most blocks of a stream: as many as its bytes have 64-bit places.
const STREAM_BLOCKS_MAX: u64 = u64::MAX / BLOCK as u64;

/// A collection that is being loaded by an internal task.
#[derive(Debug)]
pub struct Loading {
    ino: Ino,
    waiters: Vec<u64>,
    collection: Option<mem::Box<Collection>>,
    /// Stream that is read and the next block of it.
    stream: u32,
    block: u64,
    index: Vec<u8>,
    /// The stored index has a bad block.
    index_bad: bool,
    /// Blocks of the slot stream were damaged: the records say what was in them.
    slots_bad: bool,
    /// Damaged blocks of the vector stream.
    vectors_bad: Vec<u64>,
    /// A read failed: it is tried once more.
    again: bool,
    /// It failed again: the extent counts as damaged.
    unreadable: bool,
    /// The collection was dropped meanwhile.
    pub(super) cancelled: bool,
}

impl Loading {
    /// The collection that is loaded.
    pub(super) fn ino(&self) -> Ino {
        self.ino
    }
}

/// What a step of loading found.
enum Piece {
    /// Bytes of the stream from this block on, damaged blocks zeroed, and which those are (in the stream).
    Blocks { from: u64, bytes: Vec<u8>, bad: Vec<u64> },
    /// Records: id, slot, sequence number; and the id to go on from.
    Records(Vec<(u64, u64, u64)>, u64),
    /// The stream has no more.
    End,
}

impl Volume {
    /// Loads collection `ino`; task `id` runs again when it is there.
    #[inline(never)]
    pub(super) fn start_load(&mut self, id: u64, ino: Ino) -> Result<(), Error> {
        if self.view.collections.contains(ino) {
            self.wake(id);
            return Ok(());
        }
        let running = self.loading.iter().find(|(_, l)| l.ino == ino).map(|(t, _)| t);
        let load = match running {
            Some(t) => t,
            None => {
                let t = self.next_task;
                let tick = self.view.tree.tick();
                self.loading.reserve(1)?;
                self.runnable.reserve(1)?;
                self.tasks.insert(t, mem::Box::try_new(Task::new(None, self.now, tick, true))?)?;
                self.next_task = t.wrapping_add(1);
                let l = Loading {
                    ino,
                    waiters: Vec::new(),
                    collection: None,
                    stream: kind::SLOT_EXTENT,
                    block: 0,
                    index: Vec::new(),
                    index_bad: false,
                    slots_bad: false,
                    vectors_bad: Vec::new(),
                    again: false,
                    unreadable: false,
                    cancelled: false,
                };
                self.loading.insert(t, mem::Box::try_new(l)?)?;
                self.wake(t);
                t
            }
        };
        if let Some(l) = self.loading.get_mut(load) {
            mem::push(&mut l.waiters, id)?;
        }
        if let Some(t) = self.tasks.get_mut(id) {
            t.waits = t.waits.saturating_add(1);
        }
        Ok(())
    }

    /// One step of loading: an extent, or the end of a stream.
    #[inline(never)]
    pub(super) fn run_load(&mut self, id: u64) {
        let Some(task) = self.tasks.get(id) else { return };
        if task.waits > 0 {
            return;
        }
        if let Some(e) = task.fail {
            // What cannot be read is tried once more. Slots and index can be made again, so a block of them that cannot be
            // read twice counts as damaged. Vectors cannot: the device may give them next time. If it was a tree node
            // the same step fails once more.
            let vectors = |l: &Loading| l.again && l.stream == kind::VECTOR_EXTENT;
            let loading = self.loading.get_mut(id).filter(|l| e == Error::Io && !l.unreadable && !vectors(l));
            let Some(l) = loading else {
                return self.load_failed(id, e);
            };
            l.unreadable = l.again;
            l.again = true;
            if let Some(t) = self.tasks.get_mut(id) {
                t.fail = None;
            }
        }
        match self.load_step(id) {
            Ok(true) => self.load_done(id),
            Ok(false) => {
                if let Some(t) = self.tasks.get_mut(id) {
                    t.arrived.clear();
                    t.retried = false;
                }
                if let Some(l) = self.loading.get_mut(id) {
                    (l.again, l.unreadable) = (false, false);
                }
                self.wake(id);
            }
            Err(s) => self.stopped(id, s),
        }
    }

    #[inline(never)]
    fn load_step(&mut self, id: u64) -> Step<bool> {
        let (Some(task), Some(l)) = (self.tasks.get(id), self.loading.get(id)) else { return Ok(true) };
        let (ino, stream, block) = (l.ino, l.stream, l.block);
        let t = Txn::new(&*self.view, &task.arrived, &self.opens, task.now);
        if l.collection.is_none() {
            let c = empty(&t, ino)?;
            if let Some(l) = self.loading.get_mut(id) {
                l.collection = Some(c);
            }
            return Ok(false);
        }
        let piece = if stream == kind::RECORD {
            next_records(&t, ino, block)?
        } else {
            next_piece(&t, ino, stream, block, task.retried, l.unreadable)?
        };
        let mut root = None;
        let mut schema = None;
        if stream == kind::INDEX_EXTENT && matches!(piece, Piece::End) {
            root = t.get(&Key::new(ino, kind::INDEX, 0))?.and_then(IndexRoot::parse);
            // Its counters may have moved on while the streams were read.
            schema = Some(
                t.get(&Key::new(ino, kind::COLLECTION, 0))?
                    .and_then(Schema::parse)
                    .ok_or(Stop::Fail(Error::NotCollection))?,
            );
        }
        let Some(l) = self.loading.get_mut(id) else { return Ok(true) };
        let l: &mut Loading = l;
        let Some(c) = &mut l.collection else { return Ok(true) };
        match piece {
            Piece::Records(list, next) => {
                let per = u64::from(c.schema.dim).saturating_mul(4);
                for (record, slot, seq) in list {
                    const BYTES: u64 = BLOCK as u64;
                    let start = slot.saturating_mul(per) / BYTES;
                    let end = slot.saturating_add(1).saturating_mul(per).div_ceil(BYTES);
                    let sound = !l.vectors_bad.iter().any(|b| (start..end).contains(b));
                    c.restore_slot(&self.view.env, slot, record, seq, sound)?;
                }
                l.block = next;
                Ok(false)
            }
            Piece::Blocks { from, bytes, bad } => {
                let n = (bytes.len() / BLOCK) as u64;
                let gap = from.saturating_sub(l.block);
                match stream {
                    kind::SLOT_EXTENT if gap > 0 => return Err(Stop::Fail(Error::Corrupt)),
                    kind::SLOT_EXTENT => {
                        l.slots_bad |= !bad.is_empty();
                        c.load_slots(&bytes)?;
                    }
                    kind::VECTOR_EXTENT => {
                        mem::extend(&mut l.vectors_bad, &bad)?;
                        let at = from.checked_mul(BLOCK as u64).ok_or(Error::Corrupt)?;
                        c.load_vector_bytes(&self.view.env, at, &bytes)?;
                    }
                    _ => {
                        l.index_bad |= !bad.is_empty() || gap > 0;
                        if !l.index_bad {
                            mem::extend(&mut l.index, &bytes)?;
                        }
                    }
                }
                l.block = from.saturating_add(n);
                Ok(false)
            }
            Piece::End => {
                l.block = 0;
                match stream {
                    kind::SLOT_EXTENT if l.slots_bad || self.whole => {
                        c.expect_vectors();
                        l.stream = kind::VECTOR_EXTENT;
                    }
                    // Vectors come when somebody needs them.
                    kind::SLOT_EXTENT => l.stream = kind::INDEX_EXTENT,
                    kind::VECTOR_EXTENT if l.slots_bad => l.stream = kind::RECORD,
                    kind::VECTOR_EXTENT | kind::RECORD => l.stream = kind::INDEX_EXTENT,
                    _ => {
                        if let Some(schema) = schema {
                            c.set_schema(schema);
                        }
                        let crc = self.view.env.crc32c;
                        let stored = root.as_ref().and_then(|r| {
                            let b = l.index.get(..usize::try_from(r.len).ok()?)?;
                            (!l.index_bad && crc(0, b) == r.crc).then_some((r, b))
                        });
                        c.load_index(&self.view.env, stored)?;
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    #[inline(never)]
    fn load_done(&mut self, id: u64) {
        self.tasks.remove(id);
        let Some(mut l) = self.loading.remove(id) else { return };
        let mut fail = None;
        let keep = !l.cancelled;
        if let Some(c) = l.collection.take().filter(|_| keep) {
            if self.view.collections.insert(l.ino, c).is_err() {
                fail = Some(Error::NoMemory);
            }
            self.more_vectors = true;
        }
        self.wake_loaders(core::mem::take(&mut l.waiters), fail);
    }

    /// The collection cannot be loaded.
    pub(super) fn load_failed(&mut self, id: u64, e: Error) {
        self.tasks.remove(id);
        if let Some(mut l) = self.loading.remove(id) {
            self.wake_loaders(core::mem::take(&mut l.waiters), Some(e));
        }
    }

    fn wake_loaders(&mut self, waiters: Vec<u64>, fail: Option<Error>) {
        for w in waiters {
            if let Some(t) = self.tasks.get_mut(w) {
                t.waits = t.waits.saturating_sub(1);
                if t.fail.is_none() {
                    t.fail = fail;
                }
                if t.waits == 0 {
                    self.wake(w);
                }
            }
        }
    }
}

/// The collection of `ino` without records, on the heap.
#[inline(never)]
fn empty(t: &Txn, ino: Ino) -> Step<mem::Box<Collection>> {
    Ok(mem::Box::try_new(Collection::new(ino, schema_of(t, ino)?)?)?)
}

#[inline(never)]
fn schema_of(t: &Txn, ino: Ino) -> Step<Schema> {
    let schema = t.get(&Key::new(ino, kind::COLLECTION, 0))?.ok_or(Stop::Fail(Error::NotCollection))?;
    Ok(Schema::parse(schema).ok_or(Error::Corrupt)?)
}

/// The extent of the stream at or after `block`, read and checked.
#[inline(never)]
fn next_piece(t: &Txn, ino: Ino, stream: u32, block: u64, retried: bool, unreadable: bool) -> Step<Piece> {
    let from = Key::new(ino, stream, block);
    let Some((k, v)) = t.next(&from, &Key::last(ino, stream))? else { return Ok(Piece::End) };
    let e = Extent::parse(v).ok_or(Error::Corrupt)?;
    // The next step goes on behind the extent, so it must have an end.
    let end = k.offset.checked_add(u64::from(e.blocks)).ok_or(Error::Corrupt)?;
    if e.blocks == 0 || e.blocks > EXTENT_BLOCKS_MAX || e.flags != 0 || end > STREAM_BLOCKS_MAX {
        return Err(Stop::Fail(Error::Corrupt));
    }
    let mut bad = Vec::new();
    if unreadable {
        for i in 0..u64::from(e.blocks) {
            mem::push(&mut bad, k.offset.saturating_add(i))?;
        }
        let bytes = mem::filled((e.blocks as usize).saturating_mul(BLOCK), 0)?;
        return Ok(Piece::Blocks { from: k.offset, bytes, bad });
    }
    let data = t.data(e.addr, e.blocks)?;
    let mut bytes = mem::to_vec(data)?;
    for (i, b) in bytes.chunks_exact_mut(BLOCK).enumerate() {
        let at = Extent::SIZE.saturating_add(i.saturating_mul(4));
        if u32::get(v, at) != Some((t.env().crc32c)(0, b)) {
            if !retried {
                // It may have been replaced while it was read.
                return Err(Stop::Fail(Error::Corrupt));
            }
            b.fill(0);
            mem::push(&mut bad, k.offset.saturating_add(i as u64))?;
        }
    }
    Ok(Piece::Blocks { from: k.offset, bytes, bad })
}

/// The next records of a collection from `id` on.
#[inline(never)]
fn next_records(t: &Txn, ino: Ino, id: u64) -> Step<Piece> {
    let mut list = Vec::new();
    let mut from = id;
    while list.len() < 256 {
        let Some((k, v)) = t.next(&Key::new(ino, kind::RECORD, from), &Key::last(ino, kind::RECORD))? else { break };
        let r = Record::parse(v).ok_or(Error::Corrupt)?;
        if r.slot != NO_SLOT {
            mem::push(&mut list, (k.offset, r.slot, r.seq))?;
        }
        // The next step goes on behind it; ids end far below.
        from = k.offset.checked_add(1).ok_or(Error::Corrupt)?;
    }
    if list.is_empty() && from == id {
        return Ok(Piece::End);
    }
    Ok(Piece::Records(list, from))
}
