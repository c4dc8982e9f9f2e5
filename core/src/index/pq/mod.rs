// SPDX-License-Identifier: GPL-2.0-only
//! Product quantisation (Jégou, Douze and Schmid 2011): a vector is cut into subvectors, each is replaced by the
//! number of its nearest centroid in a codebook. A search adds up looked-up distances for all codes and measures the
//! best candidates exactly. Owns codebooks and codes; promises that a member's code is of the vector in its slot.
//!
//! Cosine is trained on directions. Lookup tables hold integers, so sums are exact and equal everywhere. Codes of 8 bits
//! are looked up in memory. Codes of 4 bits lie interleaved in blocks, and their tables, of a byte for each entry, fit
//! registers (André, Kermarrec and Le Scouarnec 2015). What is nearer than a threshold is gathered, and the threshold lowered
//! when twice as many are there as are wanted: no heap is touched in the scan. Training goes as with inverted lists
//! (`ivf`): before it every search is a scan, and after it all members come back through [`Index::insert`].

mod encode;

pub use encode::{PqEntry, PqHead};

use super::kmeans::{sample, scale, Matrix, Training};
use super::{is_live, Gate, Index, IndexInfo, Inserted, Probe, Scratch, View};
use crate::cluster::BLOCK_CODES;
use crate::dist::{Batch, Distance, Meter, Metric, Query, BATCH};
use crate::error::{Error, Step};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// Bits of a code if the schema says 0.
const BITS_DEFAULT: u32 = 4;
/// Elements of a subvector if the schema does not give their number: with 8 bits, with 4 bits.
const ELEMENTS: (u32, u32) = (8, 4);
/// Vectors for each centroid before training, if the schema gives the bits,
const PER_CELL: u64 = 2;
/// and vectors before training if it does not.
const FIRST: u64 = 512;
/// Vectors of the sample for each centroid, and in all, at least,
const SAMPLE: (usize, usize) = (32, 4096);
/// fewer if they have more than so many elements together.
const SAMPLE_ELEMENTS: usize = 1 << 24;
/// So many times the vectors of a training came since then: it is time for another.
const GROWTH: u64 = 4;
/// From so many vectors on a codebook is as good as it gets, unless all have been replaced.
const ENOUGH: u64 = 1 << 17;
/// Codes in a chunk.
const CHUNK: usize = 256;
/// Candidates that are measured if a search does not say, and so many for each result.
const RERANK: (usize, usize) = (100, 10);

/// Memory of a search.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// For each byte of a code 256 entries.
    entries: Vec<u16>,
    /// For each half of a byte 16 entries.
    narrow: Vec<u8>,
    /// Keys of all centroids; when the tables are made, sums of a chunk.
    keys: Vec<u32>,
    /// For each subvector the least key, then for each the largest.
    ranges: Vec<u32>,
    /// Candidates: sum and slot.
    near: Vec<u64>,
}

impl Tables {
    pub(super) const fn new() -> Tables {
        Tables { entries: Vec::new(), narrow: Vec::new(), keys: Vec::new(), ranges: Vec::new(), near: Vec::new() }
    }

    pub(super) fn memory(&self) -> usize {
        let words = [&self.keys, &self.ranges].iter().fold(0, |n: usize, v| n.saturating_add(v.capacity()));
        words
            .saturating_mul(4)
            .saturating_add(self.entries.capacity().saturating_mul(2))
            .saturating_add(self.near.capacity().saturating_mul(8))
            .saturating_add(self.narrow.capacity())
    }
}

/// Codebooks and codes.
#[derive(Debug)]
pub struct Pq {
    /// As in the schema.
    wanted: (u32, u32),
    seed: u64,
    dim: usize,
    parts: usize,
    cells: usize,
    /// Codebooks, one for each subvector; empty: not trained.
    books: Vec<Matrix>,
    /// For each slot whether it is a member.
    states: Vec<bool>,
    /// Codes in chunks of 256 slots: one after the other, or (4 bits) interleaved in blocks ([`Pq::place`]).
    codes: Vec<Vec<u8>>,
    members: u64,
    trained: u64,
    added: u64,
    training: Option<Training>,
    restarted: bool,
}

impl Pq {
    /// Nothing yet. 0 stands for a default; what is out of range is brought into it.
    pub fn new(dim: u32, subvectors: u32, bits: u32, seed: u64) -> Pq {
        let wide = if bits == 0 { BITS_DEFAULT } else { bits } > 4;
        let each = if wide { ELEMENTS.0 } else { ELEMENTS.1 };
        let by_dim = dim.checked_div(each).unwrap_or(0);
        let parts = if subvectors == 0 { by_dim } else { subvectors }.min(dim).max(1);
        Pq {
            wanted: (subvectors, bits),
            seed,
            dim: dim as usize,
            parts: parts as usize,
            cells: if wide { 256 } else { 16 },
            books: Vec::new(),
            states: Vec::new(),
            codes: Vec::new(),
            members: 0,
            trained: 0,
            added: 0,
            training: None,
            restarted: false,
        }
    }

    fn empty(&self) -> Pq {
        Pq::new(self.dim as u32, self.wanted.0, self.wanted.1, self.seed)
    }

    /// Bytes of a code.
    fn code_len(&self) -> usize {
        if self.cells == 256 {
            self.parts
        } else {
            self.parts.div_ceil(2)
        }
    }

    /// First element of a subvector; of the one behind the last: the dimension.
    fn bound(&self, part: usize) -> usize {
        part.saturating_mul(self.dim).checked_div(self.parts).unwrap_or(0)
    }

    fn piece<'a>(&self, words: &'a [u32], part: usize) -> &'a [u32] {
        words.get(self.bound(part)..self.bound(part.saturating_add(1))).unwrap_or(&[])
    }

    fn due(&self) -> bool {
        if self.books.is_empty() {
            let first = if self.wanted.1 == 0 { FIRST } else { (self.cells as u64).saturating_mul(PER_CELL) };
            return self.members >= first;
        }
        let grown = if self.trained >= ENOUGH { GROWTH.saturating_mul(4) } else { GROWTH };
        self.added >= self.trained.saturating_mul(grown).max(16)
    }

    fn member(&self, slot: u32) -> bool {
        self.states.get(slot as usize).copied().unwrap_or(false)
    }

    fn leave(&mut self, slot: u32) {
        if let Some(s) = self.states.get_mut(slot as usize) {
            self.members = self.members.saturating_sub(u64::from(core::mem::take(s)));
        }
    }

    /// Room for a slot's state and code.
    fn grow(&mut self, slot: u32) -> Result<(), NoMemory> {
        let slots = (slot as usize).saturating_add(1);
        if self.states.len() < slots {
            mem::resize(&mut self.states, slots, false)?;
        }
        if !self.books.is_empty() {
            let bytes = self.code_len().checked_mul(CHUNK).ok_or(NoMemory)?;
            while self.codes.len() < slots.div_ceil(CHUNK) {
                mem::push(&mut self.codes, mem::filled(bytes, 0)?)?;
            }
        }
        Ok(())
    }

    /// Where byte `b` of a slot's code is in its chunk.
    fn place(&self, slot: u32, b: usize) -> usize {
        let (len, at) = (self.code_len(), slot as usize % CHUNK);
        if self.cells == 256 {
            return at.saturating_mul(len).saturating_add(b);
        }
        let column = (at / BLOCK_CODES).saturating_mul(len).saturating_add(b);
        column.saturating_mul(BLOCK_CODES).saturating_add(at % BLOCK_CODES)
    }

    fn put(&mut self, slot: u32, b: usize, byte: u8) {
        let at = self.place(slot, b);
        if let Some(to) = self.codes.get_mut(slot as usize / CHUNK).and_then(|c| c.get_mut(at)) {
            *to = byte;
        }
    }

    fn byte(&self, slot: u32, b: usize) -> u8 {
        self.codes.get(slot as usize / CHUNK).and_then(|c| c.get(self.place(slot, b))).copied().unwrap_or(0)
    }

    fn join(&mut self, slot: u32) {
        if let Some(s) = self.states.get_mut(slot as usize) {
            self.members = self.members.saturating_add(u64::from(!*s));
            *s = true;
        }
    }

    #[inline(never)] // keeps stack frames small
    fn begin(&mut self) -> Result<(), NoMemory> {
        let most = SAMPLE_ELEMENTS.checked_div(self.dim).unwrap_or(0).max(self.cells.saturating_mul(8));
        let n = self.cells.saturating_mul(SAMPLE.0).max(SAMPLE.1).min(most);
        let chosen = sample(self.states.len(), self.members as usize, n, |s| self.member(s))?;
        let mut bounds = Vec::new();
        for part in 0..=self.parts {
            mem::push(&mut bounds, self.bound(part) as u32)?;
        }
        self.training = Some(Training::new(self.seed, bounds, self.cells, chosen));
        Ok(())
    }

    /// A training is done: all members need new codes.
    fn renew(&mut self, books: Vec<Matrix>) {
        self.books = books;
        self.states.fill(false);
        self.trained = self.members.max(1);
        (self.members, self.added) = (0, 0);
        self.restarted = true;
    }

    /// Writes the code of a vector.
    #[inline(never)] // keeps stack frames small
    fn quantise(
        &mut self,
        kernels: &dyn Distance,
        slot: u32,
        words: &[u32],
        scale: u64,
        keys: &mut Vec<u32>,
    ) -> Result<(), NoMemory> {
        let narrow = self.cells == 16;
        let mut low = 0;
        for part in 0..self.parts {
            let x = self.piece(words, part);
            let Some(book) = self.books.get(part) else { return Err(NoMemory) };
            let cell = book.nearest(kernels, x, scale, keys)? as u8;
            if !narrow {
                self.put(slot, part, cell);
            } else if part % 2 == 1 {
                self.put(slot, part / 2, low | cell << 4);
            } else {
                low = cell;
                // The upper half stays 0 if there is no further part.
                self.put(slot, part / 2, low);
            }
        }
        Ok(())
    }

    /// Makes the lookup tables for a query.
    #[inline(never)] // keeps stack frames small
    fn tables(
        &self,
        kernels: &dyn Distance,
        q: &Query<'_>,
        t: &mut Tables,
        keys: &mut Vec<u32>,
    ) -> Result<(), NoMemory> {
        t.keys.clear();
        t.ranges.clear();
        mem::resize(&mut t.ranges, self.books.len().saturating_mul(2), 0)?;
        // For inner products, cosine among them, the centroid's length counts by its product only.
        let bias = q.metric == Metric::L2;
        for (part, book) in self.books.iter().enumerate() {
            book.keys(kernels, self.piece(q.words, part), scale(q.metric, q.inv_norm), bias, keys)?;
            let range = [keys.iter().copied().min().unwrap_or(0), keys.iter().copied().max().unwrap_or(0)];
            for (to, key) in t.ranges.iter_mut().skip(part).step_by(self.books.len().max(1)).zip(range) {
                *to = key;
            }
            mem::extend(&mut t.keys, keys)?;
        }
        let (least, most) = t.ranges.split_at_checked(self.books.len()).unwrap_or_default();
        let unit = kernels.spread(least, most);
        let len = self.code_len();
        if self.cells == 256 {
            t.entries.clear();
            mem::resize(&mut t.entries, len.saturating_mul(256), 0)?;
            let tables = t.entries.chunks_exact_mut(256);
            for ((out, keys), least) in tables.zip(t.keys.chunks_exact(256)).zip(least) {
                kernels.entries(keys, *least, unit, out);
            }
            return Ok(());
        }
        t.narrow.clear();
        mem::resize(&mut t.narrow, len.saturating_mul(32), 0)?;
        let mut entries = [0u16; 16];
        for ((out, keys), least) in t.narrow.chunks_exact_mut(16).zip(t.keys.chunks_exact(16)).zip(least) {
            kernels.entries(keys, *least, unit, &mut entries);
            for (to, e) in out.iter_mut().zip(entries) {
                // The upper eight of 15 bits, rounded.
                *to = (e.saturating_add(64) >> 7).min(255) as u8;
            }
        }
        Ok(())
    }

    /// The best acceptable candidates by their codes, into `s.candidates`.
    #[inline(never)] // keeps stack frames small
    fn scan(
        &self,
        view: &View<'_>,
        kernels: &dyn Distance,
        keep: usize,
        gate: &mut Gate<'_, '_>,
        s: &mut Scratch,
        hops: &mut u64,
    ) -> Step<()> {
        let (len, most) = (self.code_len(), keep.saturating_mul(2).max(BLOCK_CODES));
        s.candidates.clear();
        s.tables.near.clear();
        s.tables.keys.clear();
        mem::resize(&mut s.tables.keys, CHUNK, 0)?;
        let mut masks = [0u64; CHUNK / BLOCK_CODES];
        let mut limit = u32::MAX;
        'codes: for ((codes, states), first) in
            self.codes.iter().zip(self.states.chunks(CHUNK)).zip((0u32..).step_by(CHUNK))
        {
            let t = &mut s.tables;
            if self.cells == 256 {
                kernels.lookup(&t.entries, len, codes, &mut t.keys);
                at_most(&t.keys, limit, &mut masks);
            } else {
                kernels.fast_scan(&t.narrow, len, codes, limit, &mut t.keys, &mut masks);
            }
            *hops = hops.wrapping_add(1);
            for (mut mask, block) in masks.into_iter().zip((0usize..).step_by(BLOCK_CODES)) {
                while mask != 0 {
                    let at = block.wrapping_add(mask.trailing_zeros() as usize);
                    mask &= mask.wrapping_sub(1);
                    let sum = s.tables.keys.get(at).copied().unwrap_or(u32::MAX);
                    if sum > limit || !states.get(at).copied().unwrap_or(false) {
                        continue;
                    }
                    let slot = first.wrapping_add(at as u32);
                    let Some(head) = view.store.head(slot as usize).filter(|h| is_live(h)) else { continue };
                    if !gate.pass(&mut s.marks, slot, head)? {
                        continue;
                    }
                    mem::push(&mut s.tables.near, u64::from(sum) << 32 | u64::from(slot))?;
                    if s.tables.near.len() >= most {
                        let worst = cut(&mut s.tables.near, keep);
                        // Later slots with the same sum come after all that are kept.
                        let Some(l) = worst.checked_sub(1) else { break 'codes };
                        limit = l;
                    }
                }
            }
        }
        cut(&mut s.tables.near, keep);
        for x in &s.tables.near {
            s.candidates.push((x >> 32, *x as u32))?;
        }
        Ok(())
    }
}

/// A bit for each sum that is at most `limit`.
fn at_most(sums: &[u32], limit: u32, masks: &mut [u64]) {
    for (mask, sums) in masks.iter_mut().zip(sums.chunks(BLOCK_CODES)) {
        *mask = sums.iter().rev().fold(0, |m, s| m << 1 | u64::from(*s <= limit));
    }
}

/// Leaves the `keep` least; gives the largest sum among them.
fn cut(near: &mut Vec<u64>, keep: usize) -> u32 {
    mem::select(near, keep);
    near.truncate(keep);
    (near.iter().copied().max().unwrap_or(0) >> 32) as u32
}

/// Measures all of `s.candidates`, which are acceptable, into `s.found`.
#[inline(never)] // keeps stack frames small
pub(super) fn rerank(view: &View<'_>, query: &Query<'_>, meter: &mut Meter<'_>, s: &mut Scratch) -> Step<()> {
    s.found.clear();
    let mut batch = Batch::new(view.store.dim());
    let mut keys = [u64::MAX; BATCH];
    for some in s.candidates.items().chunks(BATCH) {
        batch.clear();
        for (_, slot) in some {
            if let Some((words, inv_norm)) = view.row(*slot) {
                mem::prefetch(words);
                batch.push(words, inv_norm);
            }
        }
        if view.absent.any() || batch.len() != some.len() {
            // What could be measured is worth nothing; the others are looked for all the same, to be brought in.
            continue;
        }
        meter.many(query, &batch, &mut keys);
        for ((_, slot), key) in some.iter().zip(keys) {
            s.found.push((key, *slot))?;
        }
    }
    Ok(())
}

impl Index for Pq {
    fn version(&self) -> u32 {
        encode::VERSION
    }

    fn holds(&self, slot: u32) -> bool {
        self.member(slot)
    }

    fn finds(&self, slot: u32) -> bool {
        self.member(slot)
    }

    fn insert(
        &mut self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        s: &mut Scratch,
        slot: u32,
    ) -> Result<Inserted, Error> {
        if self.training.is_some() || self.due() {
            return Ok(Inserted::NotNow);
        }
        let (words, inv_norm) = view.row(slot).ok_or(Error::NoMemory)?;
        self.leave(slot);
        self.grow(slot)?;
        if !self.books.is_empty() {
            self.quantise(meter.kernels(), slot, words, scale(view.metric, inv_norm), &mut s.keys)?;
        }
        self.join(slot);
        self.added = self.added.saturating_add(1);
        Ok(Inserted::Yes)
    }

    fn remove(&mut self, slot: u32) {
        self.leave(slot);
    }

    fn overwritten(&mut self, slot: u32) {
        self.leave(slot);
    }

    fn needs_maintenance(&self) -> bool {
        self.training.is_some() || self.due()
    }

    fn maintain(
        &mut self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        s: &mut Scratch,
        budget: usize,
        _: &mut dyn FnMut(u32),
    ) -> Result<(), Error> {
        if self.training.is_none() && self.due() {
            return Ok(self.begin()?);
        }
        let Some(t) = &mut self.training else { return Ok(()) };
        if let Some(books) = t.step(view, meter.kernels(), s, budget)? {
            self.renew(books);
            self.training = None;
        }
        Ok(())
    }

    fn restarted(&mut self) -> bool {
        core::mem::take(&mut self.restarted)
    }

    fn training(&self) -> bool {
        self.needs_maintenance()
    }

    fn inserts_at_once(&self) -> usize {
        8
    }

    fn plan(&self, effort: usize, k: usize, indexed: u64) -> Option<usize> {
        let default = RERANK.0.max(k.saturating_mul(RERANK.1));
        let rerank = if effort == 0 { default } else { effort.max(k) };
        (!self.books.is_empty() && (rerank as u64) < indexed).then_some(rerank)
    }

    fn nearest(
        &self,
        view: &View<'_>,
        probe: &Probe<'_, '_>,
        meter: &mut Meter<'_>,
        gate: &mut Gate<'_, '_>,
        s: &mut Scratch,
        hops: &mut u64,
    ) -> Step<bool> {
        if self.books.is_empty() {
            return Ok(false);
        }
        self.tables(meter.kernels(), probe.query, &mut s.tables, &mut s.keys)?;
        self.scan(view, meter.kernels(), probe.ef, gate, s, hops)?;
        rerank(view, probe.query, meter, s)?;
        Ok(true)
    }

    fn encode(&self, view: &View<'_>) -> Result<Option<Vec<u8>>, NoMemory> {
        self.bytes(view).map(Some)
    }

    fn info(&self) -> IndexInfo {
        IndexInfo { tombstones: 0, layers: 0, links: 0, parts: self.books.len() as u64 }
    }

    fn memory(&self) -> usize {
        let books = self.books.iter().fold(0, |n: usize, b| n.saturating_add(b.memory()));
        let codes = self.codes.iter().fold(0, |n: usize, c| n.saturating_add(c.capacity()));
        books
            .saturating_add(codes)
            .saturating_add(self.states.capacity())
            .saturating_add(self.training.as_ref().map_or(0, Training::memory))
    }
}
