// SPDX-License-Identifier: GPL-2.0-only
//! The state in memory of one loaded collection: its slots, vectors and index. Owns which slots are free,
//! which are still to be indexed and which blocks of the two streams changed; promises that a search sees every
//! live record at once, whatever the index has taken in.
//!
//! Life: [`Collection::new`]; to load a stored one, [`load_slots`](Collection::load_slots) with the slot stream in order, then
//! [`load_index`](Collection::load_index) once (also for a collection that was just made). After that
//! [`put`](Collection::put) and [`drop_slot`](Collection::drop_slot) as transactions are applied,
//! [`work`](Collection::work) in the background. Vectors come when they are needed ([`admit_page`](Collection::admit_page)) and
//! go for want of memory ([`evict`](Collection::evict)); a loader may also bring all of them in at once, before the index, with
//! [`load_vector_bytes`](Collection::load_vector_bytes).

use super::seek::{Moment, Seek};
use super::serving::Serving;
use crate::dist::{admit, Meter, Metric, Query};
use crate::env::Env;
use crate::error::{Error, Step};
use crate::format::{Schema, Slot, BLOCK, SLOT_LIVE};
use crate::index::{is_live, kind, Absent, AnyIndex, Bits, Index, Inserted, VectorStore, View, SLOTS_MAX};
use crate::mem::{self, Map, NoMemory};
use crate::op::Time;
use alloc::vec::Vec;

pub use crate::index::{Accept, Scratch as SearchScratch, EF_SEARCH_DEFAULT};

/// Largest dimension.
pub const DIM_MAX: u32 = 65_536;
/// How far a put may reach behind the end of the slot table: slots are handed out one after the other.
const SLOT_GAP_MAX: u64 = 1024;
/// So long after an insert that came beside searches they do not wait for the index.
const BUSY_SECONDS: i64 = 2;
const BLOCK_SHIFT: u32 = BLOCK.trailing_zeros();
/// Bytes of vectors that are read ahead for work that goes from slot to slot.
const AHEAD_BYTES: usize = 1 << 20;

/// What a search asks for.
#[derive(Clone, Copy, Debug)]
pub struct SearchParams<'a> {
    /// The vector, f32 bits.
    pub query: &'a [u32],
    /// Most results.
    pub k: usize,
    /// How much an approximate index looks at; 0 for its default. hnsw: candidates that it keeps (at least `k` are
    /// kept); ivf: lists; pq, lsh: candidates to compare exactly.
    pub ef: usize,
    /// Only results whose key is at most this (a radius; see `dist::bits_to_key`). Then the answer is exact.
    pub radius: Option<u64>,
    /// Exact answer.
    pub exact: bool,
}

/// One result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Record id.
    pub id: u64,
    /// Its slot.
    pub slot: u64,
    /// Key of the distance.
    pub key: u64,
}

/// What a search cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SearchStats {
    /// Distances computed.
    pub distances: u64,
    /// Nodes of the graph expanded.
    pub hops: u64,
    /// Slots that were scanned because they are not in the index yet.
    pub pending: u64,
    /// The whole collection was scanned.
    pub scanned: bool,
}

/// Figures for `vexfs collection info`.
#[derive(Clone, Copy, Debug, Default)]
pub struct CollectionInfo {
    /// Slots in the table.
    pub slots: u64,
    /// Live ones.
    pub live: u64,
    /// Live ones whose vector is damaged.
    pub damaged: u64,
    /// Slots that the next inserts take before the table grows.
    pub reusable: u64,
    /// Live slots that the index has not taken in yet.
    pub pending: u64,
    /// Removed nodes that the graph still passes through.
    pub tombstones: u64,
    /// Layers of the graph; 0 for other kinds.
    pub layers: u32,
    /// Links in the graph.
    pub links: u64,
    /// Lists, subvectors or tables of a trained index; 0 for other kinds.
    pub parts: u64,
    /// The index is being trained.
    pub training: bool,
    /// Bytes of memory.
    pub memory: usize,
    /// Bytes of it that vectors take, which may go for want of memory.
    pub vector_memory: usize,
}

/// Which slots are what.
#[derive(Debug, Default)]
struct Sets {
    /// Live slots with a sound vector.
    searchable: Bits,
    /// Of these, those that the index does not find.
    pending: Bits,
    /// Live slots whose vector is damaged.
    damaged: Bits,
    /// Slots that a put may take.
    free: Bits,
    /// While loading: slots whose vector was not there or does not match its checksum.
    bad: Bits,
    /// Blocks of the slot stream that changed.
    dirty_slots: Bits,
    /// Blocks of the vector stream that changed.
    dirty_vectors: Bits,
    /// Those that the checkpoint under way writes.
    writing: Bits,
}

/// The state in memory of one collection. A small value: the parts are on the heap.
#[derive(Debug)]
pub struct Collection {
    /// Inode of the directory.
    pub ino: u64,
    /// The schema, as of the newest transaction.
    pub schema: Schema,
    metric: Metric,
    store: mem::Box<VectorStore>,
    index: mem::Box<AnyIndex>,
    /// Answers searches until `index` has taken in all there is.
    serving: Option<mem::Box<Serving>>,
    /// Record id → live slot.
    ids: Map<u64>,
    sets: mem::Box<Sets>,
    changes: u64,
    moment: Moment,
    /// All vectors were brought in before the index.
    whole: bool,
    /// See [`Collection::rebuilding`].
    rebuilding: bool,
    /// See [`Collection::is_busy`].
    busy_until: Time,
    scratch: mem::Box<SearchScratch>,
    /// For searches, which would else clear notes about all slots each time.
    spare: mem::Spare<SearchScratch>,
}

/// CRC-32C of a vector's bytes (little-endian f32): [`Slot::crc`].
pub fn vector_crc(env: &Env, words: &[u32]) -> u32 {
    let mut crc = 0;
    let mut bytes = [0u8; 256];
    for some in words.chunks(64) {
        for (to, w) in bytes.chunks_exact_mut(4).zip(some) {
            to.copy_from_slice(&w.to_le_bytes());
        }
        crc = (env.crc32c)(crc, bytes.get(..some.len().wrapping_mul(4)).unwrap_or(&[]));
    }
    crc
}

#[inline(never)] // keeps stack frames small
fn empty_index(schema: &Schema) -> Result<mem::Box<AnyIndex>, Error> {
    Ok(mem::Box::try_new(AnyIndex::new(schema)?)?)
}

/// Blocks that the bytes from `start` to `end` lie in.
fn blocks(start: u64, end: u64) -> core::ops::Range<u64> {
    start >> BLOCK_SHIFT..end.div_ceil(1 << BLOCK_SHIFT)
}

impl Collection {
    /// An empty collection. Fails with `NotSupported` for an index kind, metric or element type that does not
    /// exist, and with `Invalid` for a dimension out of range.
    pub fn new(ino: u64, schema: Schema) -> Result<Collection, Error> {
        let metric = Metric::from_u32(schema.metric).ok_or(Error::NotSupported)?;
        if schema.element != 1 {
            return Err(Error::NotSupported);
        }
        if schema.dim == 0 || schema.dim > DIM_MAX {
            return Err(Error::Invalid);
        }
        Ok(Collection {
            ino,
            schema,
            metric,
            store: mem::Box::try_new(VectorStore::new(schema.dim as usize))?,
            index: empty_index(&schema)?,
            serving: None,
            ids: Map::new(),
            sets: mem::Box::try_new(Sets::default())?,
            changes: 0,
            moment: Moment::default(),
            whole: false,
            rebuilding: false,
            busy_until: Time::default(),
            scratch: mem::Box::try_new(SearchScratch::new())?,
            spare: mem::Spare::new(),
        })
    }

    /// Bytes of a vector in the vector stream.
    fn vector_bytes(&self) -> u64 {
        (self.store.dim() as u64).saturating_mul(4)
    }

    /// Slot and element at a byte of the vector stream.
    fn vector_place(&self, offset: u64) -> (u64, usize) {
        let per = self.vector_bytes();
        let slot = offset.checked_div(per).unwrap_or(0);
        (slot, offset.checked_rem(per).unwrap_or(0) as usize / 4)
    }

    /// Makes room in all sets for a table of `slots` slots.
    fn grow_sets(&mut self, slots: u64) -> Result<(), NoMemory> {
        let vectors = slots.saturating_mul(self.vector_bytes());
        let s = &mut *self.sets;
        for set in [&mut s.searchable, &mut s.pending, &mut s.damaged, &mut s.free, &mut s.bad] {
            set.grow(slots)?;
        }
        if let Some(old) = &mut self.serving {
            old.grow(slots)?;
        }
        s.dirty_slots.grow(blocks(0, slots.saturating_mul(Slot::SIZE as u64)).end)?;
        s.writing.grow(blocks(0, vectors).end)?;
        s.dirty_vectors.grow(blocks(0, vectors).end)
    }

    /// Sorts all slots anew into pending and free ones.
    fn sort_slots(&mut self) {
        self.moment.restarts = self.moment.restarts.saturating_add(1);
        self.sets.pending.reset();
        self.sets.free.reset();
        for slot in 0..self.store.len() as u32 {
            let at = u64::from(slot);
            if self.sets.searchable.get(at) {
                if !self.index.get().finds(slot) {
                    self.sets.pending.set(at);
                }
            } else if !self.sets.damaged.get(at) && !self.held(slot) {
                self.sets.free.set(at);
            }
        }
    }

    /// Whether an index needs the slot as it is.
    fn held(&self, slot: u32) -> bool {
        self.index.get().holds(slot) || self.serving.as_ref().is_some_and(|s| s.holds(u64::from(slot)))
    }

    // --- slots ---

    /// Length of the slot table.
    pub fn slots(&self) -> u64 {
        self.store.len() as u64
    }

    /// Live slots.
    pub fn live(&self) -> u64 {
        self.sets.searchable.count().saturating_add(self.sets.damaged.count())
    }

    /// The head of a slot, also of an empty or dead one.
    pub fn slot_head(&self, slot: u64) -> Option<&Slot> {
        self.store.head(usize::try_from(slot).ok()?)
    }

    /// The vector of a live slot; `None` if it is not live or damaged, or absent and noted as that; with `ahead`, those behind it
    /// as well.
    pub fn vector(&self, absent: &Absent, slot: u64, ahead: bool) -> Option<&[u32]> {
        if !self.sets.searchable.get(slot) {
            return None;
        }
        let words = self.store.vector_for(absent, slot as usize);
        if words.is_none() && ahead && absent.any() {
            self.store.note_absent(absent, slot as usize, AHEAD_BYTES);
        }
        words
    }

    /// Memory for a search; [`give_back`](Self::give_back) keeps it for the next one.
    #[inline(never)] // keeps stack frames small
    pub(super) fn borrow_scratch(&self) -> Result<mem::Box<SearchScratch>, NoMemory> {
        match self.spare.take() {
            Some(s) => Ok(s),
            None => mem::Box::try_new(SearchScratch::new()),
        }
    }

    /// A search is done with its memory.
    pub(super) fn give_back(&self, scratch: mem::Box<SearchScratch>) {
        self.spare.put(scratch);
    }

    /// What indexes see.
    pub(super) fn view<'a>(&'a self, absent: &'a Absent) -> View<'a> {
        View { store: &self.store, metric: self.metric, absent }
    }

    /// The index that answers searches.
    pub(super) fn index(&self) -> &dyn Index {
        self.serving.as_ref().map_or(self.index.get(), |s| s.index())
    }

    pub(super) fn moment(&self) -> Moment {
        self.moment
    }

    /// Live slots that this index does not find.
    pub(super) fn pending_slots(&self) -> &Bits {
        self.serving.as_ref().map_or(&self.sets.pending, |s| s.pending())
    }

    /// Live slots whose vector is sound as far as is known.
    pub(super) fn searchable_slots(&self) -> &Bits {
        &self.sets.searchable
    }

    /// Whether the slot is one of them.
    pub(super) fn is_searchable(&self, slot: u32) -> bool {
        self.sets.searchable.get(u64::from(slot))
    }

    /// The live slot of a record, also if its vector is damaged.
    pub fn slot_of(&self, id: u64) -> Option<u64> {
        self.ids.get(id).copied()
    }

    /// Whether the slot is live and its vector damaged.
    pub fn is_damaged(&self, slot: u64) -> bool {
        self.sets.damaged.get(slot)
    }

    /// Live slots whose vector is damaged, in order.
    pub fn damaged(&self) -> impl Iterator<Item = u64> + '_ {
        self.sets.damaged.iter(0)
    }

    /// Live slots with a sound vector in order, from `from` on.
    pub fn live_slots(&self, from: u64) -> impl Iterator<Item = (u64, &Slot)> + '_ {
        self.sets.searchable.iter(from).filter_map(|s| Some((s, self.slot_head(s)?)))
    }

    /// The slot for the `nth` (from 0) of the next inserts: reusable ones lowest first, then new ones.
    pub fn free_slot(&self, nth: u64) -> u64 {
        match nth.checked_sub(self.sets.free.count()) {
            None => self.sets.free.nth(nth).unwrap_or(u64::MAX),
            Some(more) => self.slots().saturating_add(more),
        }
    }

    /// Makes sure that the next `puts` calls of [`put`](Self::put) with slots up to `max_slot` do not fail.
    pub fn reserve_put(&mut self, puts: usize, max_slot: u64) -> Result<(), NoMemory> {
        let gap = SLOT_GAP_MAX.saturating_add(puts as u64);
        if max_slot >= SLOTS_MAX || max_slot > self.slots().saturating_add(gap) {
            return Err(NoMemory);
        }
        let slots = self.slots().max(max_slot.saturating_add(1));
        self.grow_sets(slots)?;
        self.store.reserve(slots as usize)?;
        self.ids.reserve(puts)
    }

    /// Stores a vector: after its transaction was applied, or at replay of the log. What the slot held is gone; a
    /// record that had the same id elsewhere has lost that slot. The pages that [`absent_for_put`](Self::absent_for_put) names
    /// must be in memory.
    pub fn put(&mut self, slot: u64, head: Slot, words: &[u32]) -> Result<(), Error> {
        if words.len() != self.store.dim() {
            return Err(Error::WrongDimension);
        }
        self.reserve_put(1, slot)?;
        let end = self.slots();
        self.store.extend_to((slot as usize).saturating_add(1))?;
        self.store.vector_room(slot as usize)?;
        // A transaction that replaced what it had put itself leaves slots out: a stream has no gaps all the same.
        for new in end..slot {
            self.sets.free.set(new);
            self.touch_slot(new);
        }
        self.drop_slot(slot);
        self.index.get_mut().overwritten(slot as u32);
        if let Some(old) = &mut self.serving {
            old.overwritten(slot);
        }
        let holds = self.held(slot as u32);
        let Some(h) = self.store.head_mut(slot as usize) else { return Err(Error::NoMemory) };
        *h = head;
        self.moment.newest = self.moment.newest.max(head.seq);
        let row = self.store.vector_mut(slot as usize).ok_or(Error::NoMemory)?;
        for (to, w) in row.iter_mut().zip(words) {
            *to = *w;
        }
        if is_live(&head) {
            // A record has one slot: a log in which the drop of the old one is missing must not make it two.
            if let Some(old) = self.slot_of(head.id).filter(|old| *old != slot) {
                self.drop_slot(old);
            }
            self.ids.insert(head.id, slot)?;
            self.sets.free.clear(slot);
            self.sets.searchable.set(slot);
            if !self.index.get().finds(slot as u32) {
                self.sets.pending.set(slot);
            }
            if let Some(old) = &mut self.serving {
                old.came(slot);
            }
        } else if !holds {
            self.sets.free.set(slot);
        }
        self.touch_slot(slot);
        let start = slot.min(end).saturating_mul(self.vector_bytes());
        for b in blocks(start, slot.saturating_add(1).saturating_mul(self.vector_bytes())) {
            self.sets.dirty_vectors.set(b);
        }
        Ok(())
    }

    fn touch_slot(&mut self, slot: u64) {
        let start = slot.saturating_mul(Slot::SIZE as u64);
        self.sets.dirty_slots.set(start >> BLOCK_SHIFT);
    }

    /// The record of the slot is gone. The slot becomes reusable when no index needs it any more.
    pub fn drop_slot(&mut self, slot: u64) {
        let Some(head) = self.store.head_mut(usize::try_from(slot).unwrap_or(usize::MAX)) else { return };
        if !is_live(head) {
            return;
        }
        head.flags &= !SLOT_LIVE;
        self.moment.drops = self.moment.drops.saturating_add(1);
        let id = head.id;
        if self.slot_of(id) == Some(slot) {
            self.ids.remove(id);
        }
        self.sets.searchable.clear(slot);
        self.sets.damaged.clear(slot);
        self.sets.pending.clear(slot);
        let index = self.index.get_mut();
        if index.holds(slot as u32) {
            index.remove(slot as u32);
            self.changes = self.changes.saturating_add(1);
        }
        if let Some(old) = &mut self.serving {
            old.went(slot);
        }
        if !self.held(slot as u32) {
            self.sets.free.set(slot);
        }
        self.touch_slot(slot);
    }

    // --- index ---

    /// Live slots that the index has not taken in.
    pub fn pending(&self) -> usize {
        self.sets.pending.count() as usize
    }

    /// Whether the index is being trained, or built anew after that or after [`rebuild`](Self::rebuild), and has not taken
    /// in yet what was there then: searches do not wait for such work, they scan what is pending.
    pub fn rebuilding(&self) -> bool {
        (self.rebuilding || self.index.get().training()) && self.sets.pending.count() > 0
    }

    /// Whether somebody inserts while others search: then searches do not wait for the index.
    pub fn is_busy(&self, now: Time) -> bool {
        now < self.busy_until
    }

    /// Somebody inserted while others were searching.
    pub fn disturb(&mut self, now: Time) {
        self.busy_until = Time { sec: now.sec.saturating_add(BUSY_SECONDS), nsec: now.nsec };
    }

    /// Whether [`work`](Self::work) has something to do.
    pub fn has_work(&self) -> bool {
        self.sets.pending.count() > 0 || self.index.get().needs_maintenance()
    }

    /// Takes up to `budget` pending slots into the index, or does as much consolidation. True: there is more. What it met
    /// absent is in `absent`; it goes on when that is there.
    pub fn work(&mut self, env: &Env, absent: &Absent, budget: usize) -> Result<bool, Error> {
        match self.work_step(env, absent, budget) {
            // An error that only says so.
            _ if absent.any() => Ok(true),
            r => r,
        }
    }

    fn work_step(&mut self, env: &Env, absent: &Absent, budget: usize) -> Result<bool, Error> {
        let view = View { store: &self.store, metric: self.metric, absent };
        let mut meter = Meter::new(env.distance);
        let mut inserts = budget.max(1);
        let index = self.index.get_mut();
        if index.needs_maintenance() {
            inserts = inserts.div_ceil(2);
            let sets = &mut *self.sets;
            let (searchable, damaged, free) = (&sets.searchable, &sets.damaged, &mut sets.free);
            let serving = &self.serving;
            let mut freed = |slot: u32| {
                let at = u64::from(slot);
                let held = serving.as_ref().is_some_and(|s| s.holds(at));
                if !searchable.get(at) && !damaged.get(at) && !held {
                    free.set(at);
                }
            };
            // A kind that keeps nothing has nothing that is worth a checkpoint.
            self.changes = self.changes.saturating_add(u64::from(index.version() != 0));
            index.maintain(&view, &mut meter, &mut self.scratch, inserts, &mut freed)?;
            if index.restarted() {
                self.sort_slots();
                self.rebuilding = true;
                return Ok(self.has_work());
            }
        }
        inserts = inserts.saturating_mul(index.inserts_at_once());
        let mut next = self.sets.pending.next(0);
        while let Some(slot) = next {
            if inserts == 0 {
                break;
            }
            if view.row(slot as u32).is_none() {
                // The next ones will be wanted as well.
                view.store.note_absent(absent, slot as usize, AHEAD_BYTES);
                break;
            }
            match index.insert(&view, &mut meter, &mut self.scratch, slot as u32)? {
                Inserted::Yes => {
                    self.sets.pending.clear(slot);
                    self.changes = self.changes.saturating_add(1);
                    inserts = inserts.saturating_sub(1);
                }
                Inserted::Later => {}
                Inserted::NotNow => break,
            }
            next = slot.checked_add(1).and_then(|s| self.sets.pending.next(s));
        }
        self.rebuilding &= self.sets.pending.count() > 0;
        if self.sets.pending.count() == 0 && self.serving.take().is_some() {
            // What only the old one held is free now.
            self.sort_slots();
        }
        Ok(self.has_work())
    }

    /// One search in one piece: nearest first, ties by lower id, into `out` (emptied first). See [`Seek`]; stops with
    /// `Need::Vectors` if something is absent.
    pub fn search(
        &self,
        env: &Env,
        req: &SearchParams<'_>,
        accept: Option<&mut Accept<'_>>,
        scratch: &mut SearchScratch,
        out: &mut Vec<Hit>,
    ) -> Step<SearchStats> {
        let mut seek = Seek::new(self, req);
        seek.push(env, self, req.query)?;
        seek.run(env, self, &Absent::new(0), accept, scratch)?;
        Ok(seek.hits(0, out)?)
    }

    pub(super) fn query<'a>(&self, env: &Env, words: &'a [u32]) -> Result<Query<'a>, Error> {
        if words.len() != self.store.dim() {
            return Err(Error::WrongDimension);
        }
        Ok(Query { metric: self.metric, words, inv_norm: admit(env.distance, self.metric, words)? })
    }

    /// The key of the distance from `query` to a live, undamaged slot whose vector is in memory.
    pub fn distance(&self, env: &Env, query: &[u32], slot: u64) -> Result<u64, Error> {
        let query = self.query(env, query)?;
        let words = self.vector(&Absent::new(0), slot, false).ok_or(Error::NotFound)?;
        let inv_norm = self.slot_head(slot).map_or(0, |h| h.inv_norm);
        Ok(Meter::new(env.distance).one(&query, words, inv_norm))
    }

    // --- persistence ---

    /// Blocks of the slot stream.
    pub fn slot_stream_blocks(&self) -> u64 {
        blocks(0, self.slots().saturating_mul(Slot::SIZE as u64)).end
    }

    /// Blocks of the vector stream.
    pub fn vector_stream_blocks(&self) -> u64 {
        blocks(0, self.slots().saturating_mul(self.vector_bytes())).end
    }

    /// Blocks of the slot stream that changed since [`mark_clean`](Self::mark_clean), in order.
    pub fn dirty_slot_blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.sets.dirty_slots.iter(0)
    }

    /// Blocks of the vector stream that changed since [`mark_clean`](Self::mark_clean), in order.
    pub fn dirty_vector_blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.sets.dirty_vectors.iter(0)
    }

    /// Fills `out` with a block of the slot stream, zeros behind its end.
    pub fn slot_block_bytes(&self, block: u64, out: &mut [u8; BLOCK]) {
        out.fill(0);
        let first = block.saturating_mul((BLOCK / Slot::SIZE) as u64);
        for (slot, to) in (first..self.slots()).zip(out.chunks_exact_mut(Slot::SIZE)) {
            if let Some(head) = self.slot_head(slot) {
                head.emit(to);
            }
        }
    }

    /// Fills `out` with a block of the vector stream, zeros behind its end.
    pub fn vector_block_bytes(&self, block: u64, out: &mut [u8; BLOCK]) {
        out.fill(0);
        let (first, mut at) = self.vector_place(block.saturating_mul(BLOCK as u64));
        let mut places = out.chunks_exact_mut(4);
        for slot in first..self.slots() {
            // Without memory it was not there when it was loaded.
            let row = self.store.vector(slot as usize).unwrap_or(&[]);
            for i in at..self.store.dim() {
                let Some(to) = places.next() else { return };
                to.copy_from_slice(&row.get(i).copied().unwrap_or(0).to_le_bytes());
            }
            at = 0;
        }
    }

    /// A checkpoint has taken all dirty blocks: they are on the device when it is ([`written`](Self::written)).
    pub fn mark_clean(&mut self) {
        self.sets.dirty_slots.reset();
        let sets = &mut *self.sets;
        core::mem::swap(&mut sets.writing, &mut sets.dirty_vectors);
        sets.dirty_vectors.reset();
        if !self.whole {
            self.store.all_stored();
        }
    }

    /// The checkpoint is on the device.
    pub fn written(&mut self) {
        self.sets.writing.reset();
    }

    /// The index as bytes, to persist; `None` if the kind keeps nothing. [`index_kind`](Self::index_kind) says what to
    /// put into the [`IndexRoot`](crate::format::IndexRoot).
    pub fn index_bytes(&self) -> Result<Option<Vec<u8>>, NoMemory> {
        self.index.get().encode(&self.view(&Absent::new(0)))
    }

    /// Kind and version of what [`index_bytes`](Self::index_bytes) gives.
    pub fn index_kind(&self) -> (u32, u32) {
        (self.index.kind(), self.index.get().version())
    }

    /// Changes of the index since it was loaded or last persisted. After a load that could not use the stored
    /// index this grows again as the slots are taken in.
    pub fn index_changes(&self) -> u64 {
        self.changes
    }

    /// The bytes that [`index_bytes`](Self::index_bytes) gave are stored.
    pub fn index_persisted(&mut self) {
        self.changes = 0;
    }

    // --- the rest ---

    /// Bytes of memory that it takes.
    pub fn memory(&self) -> usize {
        let s = &*self.sets;
        let sets =
            [&s.searchable, &s.pending, &s.damaged, &s.free, &s.bad, &s.dirty_slots, &s.dirty_vectors, &s.writing]
                .iter()
                .fold(0, |n: usize, s| n.saturating_add(s.memory()));
        self.store
            .memory()
            .saturating_add(self.index.get().memory())
            .saturating_add(self.serving.as_ref().map_or(0, |s| s.memory()))
            .saturating_add(self.scratch.memory())
            .saturating_add(self.ids.len().saturating_mul(32))
            .saturating_add(sets)
    }

    /// Figures.
    pub fn info(&self) -> CollectionInfo {
        let index = self.index.get().info();
        CollectionInfo {
            slots: self.slots(),
            live: self.live(),
            damaged: self.sets.damaged.count(),
            reusable: self.sets.free.count(),
            pending: self.sets.pending.count(),
            tombstones: index.tombstones,
            layers: index.layers,
            links: index.links,
            parts: index.parts,
            training: self.index.get().training(),
            memory: self.memory(),
            vector_memory: self.vector_memory(),
        }
    }

    /// Keeps counters in step with the COLLECTION item. The index stays as it is until [`rebuild`](Self::rebuild).
    pub fn set_schema(&mut self, schema: Schema) {
        self.schema = schema;
    }

    /// Starts the index anew with the kind and parameters of `schema`: all live slots are pending. The old one answers
    /// searches meanwhile, unless it takes more than `room` bytes or does not find most of them either: then everything is
    /// compared. Dimension and metric cannot change.
    pub fn rebuild(&mut self, schema: Schema, room: usize) -> Result<(), Error> {
        if schema.dim as usize != self.store.dim() || schema.metric != self.metric as u32 {
            return Err(Error::Invalid);
        }
        let new = empty_index(&schema)?;
        let mut pending = Bits::default();
        pending.grow(self.slots())?;
        let old = core::mem::replace(&mut self.index, new);
        // One that serves already finds more than one that was not finished.
        let finds = self.sets.pending.count() < self.sets.searchable.count() / 2;
        if self.serving.is_none() && finds && old.get().memory() <= room {
            let pending = core::mem::replace(&mut self.sets.pending, pending);
            self.serving = mem::Box::try_new(Serving::new(old, pending)).ok();
        }
        if schema.index == kind::FLAT {
            self.serving = None;
        }
        self.index.get_mut().arrived(0..self.store.len());
        self.schema = schema;
        self.sort_slots();
        self.changes = self.changes.saturating_add(1);
        self.rebuilding = true;
        Ok(())
    }
}

#[path = "runtime_load.rs"]
mod load;
#[path = "runtime_pages.rs"]
mod pages;

#[cfg(test)]
#[path = "runtime_tests.rs"]
mod tests;
