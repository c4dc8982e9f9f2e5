// SPDX-License-Identifier: GPL-2.0-only
//! Vector indexes. An index is derived data over the slots of a [`VectorStore`]: it proposes near slots, and
//! whatever it does wrong costs recall or time, never a vector. Owns no vectors.
//!
//! A further kind implements [`Index`] and gets its arm in [`AnyIndex`]; nothing else names a kind.

mod bits;
mod flat;
mod heap;
mod hnsw;
mod ivf;
mod kmeans;
mod lsh;
mod pq;
mod refine;
mod sift;
mod store;

pub use bits::Bits;
pub use flat::{scan, scan_coded, Best, Flat, Seeker};
pub use heap::Heap;
pub use hnsw::{GraphHead, GraphNode, Hnsw, EF_DEFAULT, EF_MAX, M_DEFAULT, M_MAX, M_MIN};
pub use ivf::{Ivf, IvfEntry, IvfHead};
pub use lsh::{Lsh, LshEntry, LshHead};
pub use pq::{Pq, PqEntry, PqHead};
pub use sift::Codes;
pub use store::{Absent, Rows, Table, VectorStore, SLOTS_MAX};

use crate::dist::{Distance, Meter, Metric, Query};
use crate::error::{Error, Step};
use crate::format::{Schema, Slot, SLOT_LIVE};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// Numbers of the index kinds in a schema.
pub mod kind {
    /// Exact scan.
    pub const FLAT: u32 = 1;
    /// Hierarchical navigable small world graph.
    pub const HNSW: u32 = 2;
    /// Inverted lists.
    pub const IVF: u32 = 3;
    /// Product quantisation.
    pub const PQ: u32 = 4;
    /// Locality-sensitive hashing.
    pub const LSH: u32 = 5;
}

/// Candidates that a search of a graph keeps if it does not say.
pub const EF_SEARCH_DEFAULT: usize = 64;

/// Decides whether a live slot may be a result. Called at most once for each slot in a search, in any order.
pub type Accept<'a> = dyn FnMut(u64, &Slot) -> Step<bool> + 'a;

/// A candidate: key of the distance, slot.
pub type Near = (u64, u32);

/// Notes of one search about slots: visited, and what `accept` said. Kept between searches; a new one
/// starts by counting an epoch, not by clearing memory.
#[derive(Debug, Default)]
pub struct Marks {
    marks: Vec<u32>,
    epoch: u32,
    /// The bit of visits: a search may go over the graph twice.
    visited: u32,
}

const VISITED: u32 = 1;
const KNOWN: u32 = 2;
const ACCEPTED: u32 = 4;
const VISITED_AGAIN: u32 = 8;
const EPOCH: u32 = 16;

impl Marks {
    /// No marks, for slots below `slots`.
    pub fn begin(&mut self, slots: usize) -> Result<(), NoMemory> {
        if self.marks.len() < slots {
            mem::resize(&mut self.marks, slots, 0)?;
        }
        self.visited = VISITED;
        match self.epoch.checked_add(EPOCH) {
            Some(e) => self.epoch = e,
            None => {
                self.marks.fill(0);
                self.epoch = EPOCH;
            }
        }
        Ok(())
    }

    /// Forgets the visits, once, but not what `accept` said.
    pub(crate) fn again(&mut self) {
        self.visited = VISITED_AGAIN;
    }

    fn mark(&mut self, slot: u32) -> Option<&mut u32> {
        let epoch = self.epoch;
        let m = self.marks.get_mut(slot as usize)?;
        if *m < epoch {
            *m = epoch;
        }
        Some(m)
    }

    /// Notes a visit; false if it was visited before (or is beyond the slots).
    pub fn visit(&mut self, slot: u32) -> bool {
        let visited = self.visited;
        match self.mark(slot) {
            Some(m) if *m & visited == 0 => {
                *m |= visited;
                true
            }
            _ => false,
        }
    }
}

/// Memory that searches and building use again; one for each that runs at the same time.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Notes about slots.
    pub marks: Marks,
    /// Candidates, in the order that the kind gives them.
    pub candidates: Heap<Near>,
    /// What an index found: the nearest on the way, as a max-heap.
    pub found: Heap<Near>,
    /// The search over rough keys.
    pub(crate) walk: refine::Walk,
    /// The answer.
    pub best: Best,
    /// Lists of neighbour selection.
    pub(crate) select: hnsw::Select,
    /// Keys of a product with a matrix.
    pub(crate) keys: Vec<u32>,
    /// Lookup tables.
    pub(crate) tables: pq::Tables,
    /// Buckets to look into.
    pub(crate) probes: lsh::Probes,
}

impl Scratch {
    /// Without memory yet.
    pub const fn new() -> Scratch {
        Scratch {
            marks: Marks { marks: Vec::new(), epoch: 0, visited: VISITED },
            candidates: Heap::new(),
            found: Heap::new(),
            walk: refine::Walk::new(),
            best: Best::new(),
            select: hnsw::Select::new(),
            keys: Vec::new(),
            tables: pq::Tables::new(),
            probes: lsh::Probes::new(),
        }
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.marks
            .marks
            .capacity()
            .saturating_mul(4)
            .saturating_add(self.candidates.memory())
            .saturating_add(self.found.memory())
            .saturating_add(self.walk.memory())
            .saturating_add(self.best.memory())
            .saturating_add(self.select.memory())
            .saturating_add(self.keys.capacity().saturating_mul(4))
            .saturating_add(self.tables.memory())
            .saturating_add(self.probes.memory())
    }
}

/// The caller's filter with its memory: asks once for each slot.
pub struct Gate<'a, 'b> {
    accept: Option<&'a mut Accept<'b>>,
    asked: u64,
    passed: u64,
}

/// Answers of a filter before its selectivity is believed.
const SAMPLE: u64 = 64;

impl<'a, 'b> Gate<'a, 'b> {
    /// A gate; without `accept` all pass.
    pub fn new(accept: Option<&'a mut Accept<'b>>) -> Gate<'a, 'b> {
        Gate { accept, asked: 0, passed: 0 }
    }

    /// Whether some may be refused.
    pub fn is_filter(&self) -> bool {
        self.accept.is_some()
    }

    /// About how many slots have to be asked about until `n` have passed, as far as the answers tell; 0 without a
    /// filter and as long as there are few answers.
    pub fn needed(&self, n: usize) -> u64 {
        if self.asked < SAMPLE {
            return 0;
        }
        (n as u64).saturating_mul(self.asked).checked_div(self.passed.max(1)).unwrap_or(0)
    }

    /// Whether the slot may be a result.
    pub fn pass(&mut self, marks: &mut Marks, slot: u32, head: &Slot) -> Step<bool> {
        let Some(accept) = self.accept.as_mut() else { return Ok(true) };
        let Some(m) = marks.mark(slot) else { return Ok(false) };
        if *m & KNOWN == 0 {
            let yes = accept(u64::from(slot), head)?;
            self.asked = self.asked.saturating_add(1);
            self.passed = self.passed.saturating_add(u64::from(yes));
            *m |= if yes { KNOWN | ACCEPTED } else { KNOWN };
        }
        Ok(*m & ACCEPTED != 0)
    }
}

/// What an index sees of its collection.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Slots and vectors.
    pub store: &'a VectorStore,
    /// How to measure.
    pub metric: Metric,
    /// Takes note of vectors that are not in memory. Whoever uses rows need not care, but must not change anything for good
    /// while there are any ([`Absent::none`]): the work is done again from where it began.
    pub absent: &'a Absent,
}

impl<'a> View<'a> {
    /// Elements and inverse norm of a slot, if they are in memory.
    pub fn row(&self, slot: u32) -> Option<(&'a [u32], u64)> {
        let head = self.store.head(slot as usize)?;
        Some((self.store.vector_for(self.absent, slot as usize)?, head.inv_norm))
    }

    /// A stored vector as query.
    pub fn query(&self, slot: u32) -> Option<Query<'a>> {
        let (words, inv_norm) = self.row(slot)?;
        Some(Query { metric: self.metric, words, inv_norm })
    }
}

/// Whether the record of a slot exists.
pub fn is_live(head: &Slot) -> bool {
    head.seq != 0 && head.flags & SLOT_LIVE != 0
}

/// What became of an [`Index::insert`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is in the index.
    Yes,
    /// Not before maintenance has gone on.
    Later,
    /// Neither this nor any other before maintenance has gone on.
    NotNow,
}

/// Figures of an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexInfo {
    /// Removed nodes that are still in the graph.
    pub tombstones: u64,
    /// Layers.
    pub layers: u32,
    /// Links.
    pub links: u64,
    /// Parts that a search chooses from: lists of ivf, subvectors of pq, tables of lsh; 0 before training.
    pub parts: u64,
}

/// A search as an index gets it.
pub struct Probe<'a, 'b> {
    /// The query.
    pub query: &'a Query<'b>,
    /// What [`Index::plan`] gave: candidates to keep, lists to look at.
    pub ef: usize,
    /// Results that are wanted.
    pub k: usize,
    /// If more distances than this would be needed, an exact scan is the better choice: give up.
    pub limit: u64,
}

/// An index over slots. Slots that it has not taken in are *pending*: the collection scans them itself.
pub trait Index {
    /// Version of the bytes that [`Index::encode`] gives; 0 if the kind keeps nothing.
    fn version(&self) -> u32;

    /// Whether the index has the slot in any way, so that the slot may not be reused.
    fn holds(&self, slot: u32) -> bool;

    /// Whether searches find the slot through the index.
    fn finds(&self, slot: u32) -> bool;

    /// Takes a live slot in. After an error nothing has changed.
    fn insert(&mut self, view: &View<'_>, meter: &mut Meter<'_>, s: &mut Scratch, slot: u32)
        -> Result<Inserted, Error>;

    /// The vectors of these slots have come into memory.
    fn arrived(&mut self, _slots: core::ops::Range<usize>) {}

    /// Codes for an exact scan, if there are any.
    fn codes(&self) -> Option<&Codes> {
        None
    }

    /// Bytes of memory that may go without harm, if there is too little.
    fn spare_memory(&self) -> usize {
        0
    }

    /// Gives that memory back and does not take it again. Gives the bytes that went.
    fn drop_spare(&mut self) -> usize {
        0
    }

    /// Bytes that it would take again for `slots` slots if it were allowed to; `None` if it has not been dropped.
    fn spare_wanted(&self, _slots: usize) -> Option<usize> {
        None
    }

    /// There is enough memory again.
    fn allow_spare(&mut self) {}

    /// The record of the slot is gone; its vector stays until the index no longer [`holds`](Index::holds) it.
    fn remove(&mut self, slot: u32);

    /// The vector of the slot is not what the index took in.
    fn overwritten(&mut self, slot: u32);

    /// Whether [`Index::maintain`] has something to do.
    fn needs_maintenance(&self) -> bool;

    /// A bounded piece of maintenance (about `budget` inserts' worth of time). Reports slots that the index no
    /// longer holds.
    fn maintain(
        &mut self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        s: &mut Scratch,
        budget: usize,
        freed: &mut dyn FnMut(u32),
    ) -> Result<(), Error>;

    /// Whether the index has let go of all that it held, since it was asked last: everything is pending again.
    fn restarted(&mut self) -> bool {
        false
    }

    /// Whether it takes nothing in because it is being trained.
    fn training(&self) -> bool {
        false
    }

    /// Inserts that take about as long as one into a graph.
    fn inserts_at_once(&self) -> usize {
        1
    }

    /// What [`Probe::ef`] has to be for a search with `effort` (the caller's number, whose meaning is the kind's; 0 for
    /// the default) and `k` results among `indexed` slots. `None`: comparing everything is as good.
    fn plan(&self, effort: usize, k: usize, indexed: u64) -> Option<usize> {
        let ef = if effort == 0 { EF_SEARCH_DEFAULT } else { effort }.max(k);
        ((ef as u64) < indexed).then_some(ef)
    }

    /// Puts the nearest acceptable slots that it knows into `s.found`. False: it gave up; scan instead.
    fn nearest(
        &self,
        view: &View<'_>,
        probe: &Probe<'_, '_>,
        meter: &mut Meter<'_>,
        gate: &mut Gate<'_, '_>,
        s: &mut Scratch,
        hops: &mut u64,
    ) -> Step<bool>;

    /// The index as bytes; `None` if the kind keeps nothing.
    fn encode(&self, view: &View<'_>) -> Result<Option<Vec<u8>>, NoMemory>;

    /// Figures.
    fn info(&self) -> IndexInfo;

    /// Bytes of memory.
    fn memory(&self) -> usize;
}

/// The index of a collection.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // there is one for each collection
pub enum AnyIndex {
    /// Exact scan.
    Flat(Flat),
    /// Graph.
    Hnsw(Hnsw),
    /// Inverted lists.
    Ivf(Ivf),
    /// Product quantisation.
    Pq(Pq),
    /// Locality-sensitive hashing.
    Lsh(Lsh),
}

impl AnyIndex {
    /// An empty index as the schema says; `NotSupported` for a kind that does not exist.
    #[inline(never)] // keeps stack frames small
    pub fn new(schema: &Schema) -> Result<AnyIndex, Error> {
        match schema.index {
            kind::FLAT => Ok(AnyIndex::Flat(Flat::new(schema.dim))),
            kind::HNSW => Ok(AnyIndex::Hnsw(Hnsw::new(schema.m, schema.ef_construction, schema.seed))),
            kind::IVF => Ok(AnyIndex::Ivf(Ivf::new(schema.lists, schema.seed))),
            kind::PQ => Ok(AnyIndex::Pq(Pq::new(schema.dim, schema.subvectors, schema.bits, schema.seed))),
            kind::LSH => Ok(AnyIndex::Lsh(Lsh::new(schema.dim, schema.tables, schema.bits, schema.seed))),
            _ => Err(Error::NotSupported),
        }
    }

    /// Reads what `encode` gave and compares it with the slots: a node whose slot holds another vector or none that
    /// can be trusted (`bad`) is only kept to be removed. False: it cannot be used, and the index is empty.
    pub fn load(
        &mut self,
        view: &View<'_>,
        kernels: &dyn Distance,
        version: u32,
        bytes: &[u8],
        bad: &Bits,
    ) -> Result<bool, NoMemory> {
        match self {
            AnyIndex::Flat(_) => Ok(true),
            AnyIndex::Hnsw(h) => h.load(view, version, bytes, bad),
            AnyIndex::Ivf(i) => i.load(view, version, bytes, bad),
            AnyIndex::Pq(i) => i.load(view, version, bytes, bad),
            AnyIndex::Lsh(i) => i.load(view, kernels, version, bytes, bad),
        }
    }

    /// Its number in a schema.
    pub fn kind(&self) -> u32 {
        match self {
            AnyIndex::Flat(_) => kind::FLAT,
            AnyIndex::Hnsw(_) => kind::HNSW,
            AnyIndex::Ivf(_) => kind::IVF,
            AnyIndex::Pq(_) => kind::PQ,
            AnyIndex::Lsh(_) => kind::LSH,
        }
    }

    /// The kind behind the enum.
    pub fn get(&self) -> &dyn Index {
        match self {
            AnyIndex::Flat(i) => i,
            AnyIndex::Hnsw(i) => i,
            AnyIndex::Ivf(i) => i,
            AnyIndex::Pq(i) => i,
            AnyIndex::Lsh(i) => i,
        }
    }

    /// The kind behind the enum, to change.
    pub fn get_mut(&mut self) -> &mut dyn Index {
        match self {
            AnyIndex::Flat(i) => i,
            AnyIndex::Hnsw(i) => i,
            AnyIndex::Ivf(i) => i,
            AnyIndex::Pq(i) => i,
            AnyIndex::Lsh(i) => i,
        }
    }
}
