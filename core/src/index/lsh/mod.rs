// SPDX-License-Identifier: GPL-2.0-only
//! Locality-sensitive hashing with multi-probe (Charikar 2002 for angles; Datar, Immorlica, Indyk and Mirrokni 2004
//! for l2; Lv, Josephson, Wang, Charikar and Li 2007 for the probes). Owns hash tables; promises that a member is in one
//! bucket of each table, that of its vector.
//!
//! A bit of a code comes from one random direction: on which side of a border the product with it lies. The border of ip is 0. That
//! of cosine is the product of the mean of the vectors, because embeddings often lie in a narrow cone, which planes through the
//! origin do not divide. That of l2 is the product of one vector of a sample, taken at random from the middle four fifths: borders
//! at many distances from the middle tell lengths apart as well as directions. All codes are ranked by all of their bits, a bit
//! that differs counting as much as the query is away from its border, and the best ones are measured exactly. Where there are
//! far more vectors than candidates, a search first looks into buckets, in the order of how little the query would have to
//! move to be there, until it has a pool, and ranks that.
//!
//! The borders and, unless the schema gives it, the number of bits come from what is there when the tables are made; they are
//! made anew when that has grown much. See `ivf` for how members come back then.

mod encode;
mod probe;

pub use encode::{LshEntry, LshHead};
pub(crate) use probe::Probes;

use super::kmeans::{hash, sample, scale, Matrix};
use super::{Gate, Index, IndexInfo, Inserted, Probe, Rows, Scratch, View};
use crate::cluster::{BLOCK_CODES, PANEL};
use crate::dist::{Distance, Meter, Metric};
use crate::error::{Error, Step};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// Tables if the schema says 0; fewer for many dimensions.
const TABLES_DEFAULT: u32 = 48;
/// Most numbers in all directions together, if the schema leaves tables and bits open.
const HASHES_MAX: u64 = 1 << 22;
/// Vectors before the tables are made, if the schema leaves the bits open; otherwise far fewer do.
const MAKE_MIN: (u64, u64) = (512, 16);
/// Vectors in a bucket on average, when the tables are made: two to this power.
const FILL: u32 = 3;
/// Vectors from which the width of a stretch is estimated.
const SAMPLE: usize = 256;
/// So many times the vectors that the tables were made for: it is time for more bits.
const GROWTH: u64 = 4;
/// Most bits of a bucket's number; longer codes are folded.
const BUCKET_BITS: u32 = 16;
/// No slot.
const NONE: u32 = u32::MAX;
/// Candidates that are measured if a search does not say: at least so many, so many for each result.
const RERANK: (usize, usize) = (200, 20);

/// What the hash functions are made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shape {
    tables: u32,
    bits: u32,
    /// l2: f32 bits of the factor that makes a product a number of 65536ths of about twice what products differ by; else 0.
    unit: u32,
}

/// The tables.
#[derive(Debug)]
pub struct Lsh {
    /// Tables and bits as in the schema.
    wanted: (u32, u32),
    seed: u64,
    dim: usize,
    shape: Shape,
    /// Directions, a column for each bit of each table; `None`: not made yet.
    planes: Option<Matrix>,
    /// For each table its buckets: the first slot of each.
    heads: Vec<u32>,
    /// For each slot its code: a string of the bits of all tables.
    codes: Rows,
    /// The same in blocks of 64 slots: the first bytes of all, then the second ones.
    blocks: Vec<mem::Aligned<64>>,
    /// For each slot and table the next and the previous slot in the bucket.
    rows: Rows,
    states: Vec<bool>,
    members: u64,
    trained: u64,
    added: u64,
    restarted: bool,
}

/// f64 bits of the f32 with these bits, a positive normal number; 0 of others.
fn widen(bits: u32) -> u64 {
    match bits >> 23 {
        e @ 1..=254 => (u64::from(e).wrapping_add(896) << 52) | (u64::from(bits & 0x7f_ffff) << 29),
        _ => 0,
    }
}

/// The f32 of a key times 2^`shift`, towards zero, within 2^40.
fn fixed(key: u32, shift: i32) -> i64 {
    let negative = key >> 31 == 0;
    let bits = if negative { !key } else { key ^ (1 << 31) };
    let mantissa = u64::from(bits & 0x7f_ffff | 0x80_0000);
    let exponent = ((bits >> 23) & 0xff) as i32;
    let by = exponent.saturating_sub(150).saturating_add(shift);
    let n = if exponent == 0 || by < -24 {
        0
    } else if by < 0 {
        mantissa >> by.unsigned_abs()
    } else if by > 16 {
        1 << 40
    } else {
        mantissa << by.unsigned_abs()
    };
    let n = n.min(1 << 40) as i64;
    if negative {
        n.wrapping_neg()
    } else {
        n
    }
}

/// f32 bits of the product that a key without a bias stands for, which is minus the product.
fn product_of(key: u32) -> u32 {
    let minus = if key >> 31 == 0 { !key } else { key ^ (1 << 31) };
    minus ^ (1 << 31)
}

impl Lsh {
    /// No tables yet. 0 stands for a default.
    pub fn new(dim: u32, tables: u32, bits: u32, seed: u64) -> Lsh {
        Lsh {
            wanted: (tables, bits),
            seed,
            dim: dim as usize,
            shape: Shape::default(),
            planes: None,
            heads: Vec::new(),
            codes: Rows::new(0),
            blocks: Vec::new(),
            rows: Rows::new(0),
            states: Vec::new(),
            members: 0,
            trained: 0,
            added: 0,
            restarted: false,
        }
    }

    fn empty(&self) -> Lsh {
        Lsh::new(self.dim as u32, self.wanted.0, self.wanted.1, self.seed)
    }

    fn due(&self) -> bool {
        if self.planes.is_none() {
            return self.members >= if self.wanted.1 == 0 { MAKE_MIN.0 } else { MAKE_MIN.1 };
        }
        self.added >= self.trained.saturating_mul(GROWTH).max(MAKE_MIN.1)
    }

    fn member(&self, slot: u32) -> bool {
        self.states.get(slot as usize).copied().unwrap_or(false)
    }

    /// Tables and bits for the members of now.
    fn choose(&self) -> (u32, u32) {
        let bits = match self.wanted.1 {
            0 => self.members.max(1).ilog2().saturating_sub(FILL).clamp(4, 20),
            b => b.min(32),
        };
        let each = (self.dim as u64).saturating_mul(u64::from(bits)).max(1);
        let room = HASHES_MAX.checked_div(each).unwrap_or(0).clamp(2, u64::from(TABLES_DEFAULT)) as u32;
        (if self.wanted.0 == 0 { room } else { self.wanted.0 }, bits)
    }

    /// Directions for a shape.
    #[inline(never)] // keeps stack frames small
    fn directions(&self, kernels: &dyn Distance, tables: u32, bits: u32) -> Result<Matrix, NoMemory> {
        let columns = (tables as usize).checked_mul(bits as usize).ok_or(NoMemory)?;
        let mut m = Matrix::new(self.dim, columns)?;
        let some = PANEL.saturating_mul(256);
        for (n, part) in (0u64..).zip(m.panels.chunks_mut(some)) {
            kernels.normal(hash(self.seed, n), part);
        }
        Ok(m)
    }

    /// l2: the factor by which the middle four fifths of the products, along the direction where they are
    /// farthest apart, become half a stretch.
    #[inline(never)] // keeps stack frames small
    fn measure(&self, view: &View<'_>, kernels: &dyn Distance, m: &Matrix, s: &mut Scratch) -> Result<u32, NoMemory> {
        let chosen = sample(self.states.len(), self.members as usize, SAMPLE, |x| self.member(x))?;
        let columns = m.columns().min(PANEL);
        let mut products = mem::filled(columns.saturating_mul(chosen.len()), 0u32)?;
        for (n, slot) in chosen.iter().enumerate() {
            let Some((words, _)) = view.row(*slot) else { continue };
            m.keys(kernels, words, 0, false, &mut s.keys)?;
            for (c, key) in s.keys.iter().take(columns).enumerate() {
                if let Some(p) = products.get_mut(c.saturating_mul(chosen.len()).saturating_add(n)) {
                    *p = *key;
                }
            }
        }
        let (mut least, mut most) = (Vec::new(), Vec::new());
        for column in products.chunks_mut(chosen.len().max(1)) {
            column.sort_unstable();
            let tenth = column.len() / 10;
            mem::push(&mut least, column.get(tenth).copied().unwrap_or(0))?;
            mem::push(&mut most, column.iter().rev().nth(tenth).copied().unwrap_or(0))?;
        }
        Ok(kernels.spread(&least, &most))
    }

    /// Cosine: the product of each direction with the mean direction of a sample, as its bias.
    #[inline(never)] // keeps stack frames small
    fn centre(&self, view: &View<'_>, kernels: &dyn Distance, m: &mut Matrix, s: &mut Scratch) -> Result<(), NoMemory> {
        let chosen = sample(self.states.len(), self.members as usize, SAMPLE, |x| self.member(x))?;
        let mut sums = mem::filled(self.dim, 0u32)?;
        for slot in &chosen {
            if let Some((words, inv_norm)) = view.row(*slot) {
                kernels.accumulate(words, inv_norm, &mut sums);
            }
        }
        let mut one = Matrix::new(self.dim, 1)?;
        one.set(kernels, 0, &sums, chosen.len() as u32);
        for (to, from) in sums.iter_mut().zip(one.panels.chunks(PANEL)) {
            *to = from.first().copied().unwrap_or(0);
        }
        m.keys(kernels, &sums, 0, false, &mut s.keys)?;
        for (bias, key) in m.bias.iter_mut().zip(&s.keys) {
            *bias = product_of(*key);
        }
        Ok(())
    }

    /// l2: the borders, of products times `factor`.
    #[inline(never)] // keeps stack frames small
    fn borders(
        &self,
        view: &View<'_>,
        kernels: &dyn Distance,
        m: &mut Matrix,
        factor: u64,
        s: &mut Scratch,
    ) -> Result<(), NoMemory> {
        let chosen = sample(self.states.len(), self.members as usize, SAMPLE, |x| self.member(x))?;
        let columns = m.columns();
        let mut products = mem::filled(columns.saturating_mul(chosen.len()), 0u32)?;
        for (n, slot) in chosen.iter().enumerate() {
            let Some((words, _)) = view.row(*slot) else { continue };
            m.keys(kernels, words, factor, false, &mut s.keys)?;
            for (c, key) in s.keys.iter().enumerate() {
                if let Some(p) = products.get_mut(c.saturating_mul(chosen.len()).saturating_add(n)) {
                    *p = *key;
                }
            }
        }
        let tenth = chosen.len() / 10;
        let middle = chosen.len().saturating_sub(tenth.saturating_mul(2)).max(1) as u64;
        for ((n, column), bias) in (0u64..).zip(products.chunks_mut(chosen.len().max(1))).zip(&mut m.bias) {
            column.sort_unstable();
            let which = hash(!self.seed, n).checked_rem(middle).unwrap_or(0) as usize;
            let key = column.get(tenth.saturating_add(which)).copied().unwrap_or(1 << 31);
            *bias = product_of(key);
        }
        Ok(())
    }

    /// Makes the tables for what is there now; all members have to come again.
    #[inline(never)] // keeps stack frames small
    fn make(&mut self, view: &View<'_>, kernels: &dyn Distance, s: &mut Scratch) -> Result<(), NoMemory> {
        let (tables, bits) = self.choose();
        let mut planes = self.directions(kernels, tables, bits)?;
        if view.metric == Metric::Cosine {
            self.centre(view, kernels, &mut planes, s)?;
        }
        let mut unit = 0;
        if view.metric == Metric::L2 {
            unit = self.measure(view, kernels, &planes, s)?;
            self.borders(view, kernels, &mut planes, widen(unit), s)?;
        }
        view.absent.none()?;
        self.renew(planes, Shape { tables, bits, unit })
    }

    fn renew(&mut self, planes: Matrix, shape: Shape) -> Result<(), NoMemory> {
        let buckets = (shape.tables as usize).checked_shl(shape.bits.min(BUCKET_BITS)).ok_or(NoMemory)?;
        let heads = mem::filled(buckets, NONE)?;
        self.codes = Rows::new(planes.columns().div_ceil(32));
        self.blocks = Vec::new();
        self.rows = Rows::new((shape.tables as usize).saturating_mul(2));
        self.heads = heads;
        self.planes = Some(planes);
        self.shape = shape;
        self.states.fill(false);
        self.trained = self.members.max(1);
        (self.members, self.added) = (0, 0);
        self.restarted = true;
        Ok(())
    }

    /// For each bit of each table how far the vector is on which side: the bit, and the way to the nearest border.
    #[inline(never)] // keeps stack frames small
    fn sides(
        &self,
        kernels: &dyn Distance,
        x: &[u32],
        factor: u64,
        keys: &mut Vec<u32>,
        each: &mut dyn FnMut(u32, u32),
    ) -> Result<(), NoMemory> {
        let Some(m) = &self.planes else { return Ok(()) };
        m.keys(kernels, x, factor, true, keys)?;
        let shift = if self.shape.unit == 0 { 16 } else { 0 };
        for key in keys.iter() {
            let v = fixed(*key, shift);
            each(u32::from(v < 0), v.unsigned_abs().min(u64::from(u32::MAX)) as u32);
        }
        Ok(())
    }

    /// Factor for a vector that is hashed. `norm` is that of a query, so that its margins can be compared.
    fn factor(&self, metric: Metric, inv_norm: u64) -> u64 {
        if metric == Metric::L2 {
            widen(self.shape.unit)
        } else {
            scale(metric, inv_norm)
        }
    }

    /// The code of a vector, into `code`.
    #[inline(never)] // keeps stack frames small
    fn hashed(
        &self,
        kernels: &dyn Distance,
        x: &[u32],
        factor: u64,
        keys: &mut Vec<u32>,
        code: &mut Vec<u32>,
    ) -> Result<(), NoMemory> {
        code.clear();
        let columns = self.planes.as_ref().map_or(0, Matrix::columns);
        mem::resize(code, columns.div_ceil(32), 0)?;
        let mut n = 0usize;
        self.sides(kernels, x, factor, keys, &mut |side, _| {
            if let Some(c) = code.get_mut(n / 32) {
                *c |= side << (n % 32);
            }
            n = n.wrapping_add(1);
        })
    }

    /// The bits of a table in a code.
    fn bits_of(&self, code: &[u32], table: usize) -> u32 {
        let from = table.wrapping_mul(self.shape.bits as usize);
        let low = u64::from(code.get(from / 32).copied().unwrap_or(0));
        let high = u64::from(code.get((from / 32).wrapping_add(1)).copied().unwrap_or(0));
        let all = (high << 32 | low) >> (from % 32);
        (all & (1u64 << (self.shape.bits & 63)).wrapping_sub(1)) as u32
    }

    fn code(&self, slot: u32) -> &[u32] {
        self.codes.get(slot as usize).unwrap_or(&[])
    }

    /// Place of the head of a bucket.
    fn bucket(&self, table: usize, code: u32) -> usize {
        let bits = self.shape.bits.min(BUCKET_BITS);
        let n = if self.shape.bits <= BUCKET_BITS {
            code
        } else {
            code.wrapping_mul(0x9e37_79b1).wrapping_shr(32u32.wrapping_sub(BUCKET_BITS))
        };
        (table << bits).wrapping_add(n as usize)
    }

    fn word(&self, slot: u32, at: usize) -> u32 {
        self.rows.get(slot as usize).and_then(|r| r.get(at)).copied().unwrap_or(NONE)
    }

    fn set_word(&mut self, slot: u32, at: usize, value: u32) {
        if let Some(w) = self.rows.get_mut(slot as usize).and_then(|r| r.get_mut(at)) {
            *w = value;
        }
    }

    /// Places of the next and the previous slot of a table in a row.
    fn places(&self, table: usize) -> (usize, usize) {
        let at = table.wrapping_mul(2);
        (at, at.wrapping_add(1))
    }

    /// Room for a slot.
    fn grow(&mut self, slot: u32) -> Result<(), NoMemory> {
        let slots = (slot as usize).saturating_add(1);
        if self.states.len() < slots {
            mem::resize(&mut self.states, slots, false)?;
        }
        if self.planes.is_some() {
            self.codes.grow(slots)?;
            let size = self.planes.as_ref().map_or(0, Matrix::columns).div_ceil(32).saturating_mul(4 * BLOCK_CODES);
            while self.blocks.len() < slots.div_ceil(BLOCK_CODES) {
                mem::push(&mut self.blocks, mem::Aligned::zeroed(size)?)?;
            }
            self.rows.grow(slots)?;
        }
        Ok(())
    }

    /// Enters a slot, for which there is room, into its buckets.
    fn join(&mut self, slot: u32, code: &[u32]) {
        let Some(state) = self.states.get_mut(slot as usize) else { return };
        if core::mem::replace(state, true) {
            return;
        }
        self.members = self.members.saturating_add(1);
        if let Some(to) = self.codes.get_mut(slot as usize) {
            mem::copy(to, code);
        }
        if let Some(block) = self.blocks.get_mut(slot as usize / BLOCK_CODES) {
            let at = slot as usize % BLOCK_CODES;
            for (line, byte) in block.chunks_exact_mut(BLOCK_CODES).zip(code.iter().flat_map(|w| w.to_le_bytes())) {
                if let Some(b) = line.get_mut(at) {
                    *b = byte;
                }
            }
        }
        for table in 0..self.shape.tables as usize {
            let (next, previous) = self.places(table);
            let bucket = self.bucket(table, self.bits_of(code, table));
            let Some(head) = self.heads.get_mut(bucket) else { continue };
            let first = core::mem::replace(head, slot);
            self.set_word(slot, next, first);
            self.set_word(slot, previous, NONE);
            if first != NONE {
                self.set_word(first, previous, slot);
            }
        }
    }

    fn leave(&mut self, slot: u32) {
        let Some(state) = self.states.get_mut(slot as usize) else { return };
        if !core::mem::take(state) {
            return;
        }
        self.members = self.members.saturating_sub(1);
        for table in 0..self.shape.tables as usize {
            let (next, previous) = self.places(table);
            let (after, before) = (self.word(slot, next), self.word(slot, previous));
            if before != NONE {
                self.set_word(before, next, after);
            } else {
                let bucket = self.bucket(table, self.bits_of(self.code(slot), table));
                if let Some(head) = self.heads.get_mut(bucket) {
                    *head = after;
                }
            }
            if after != NONE {
                self.set_word(after, previous, before);
            }
        }
    }
}

impl Index for Lsh {
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
        if self.due() {
            return Ok(Inserted::NotNow);
        }
        let (words, inv_norm) = view.row(slot).ok_or(Error::NoMemory)?;
        self.leave(slot);
        self.grow(slot)?;
        let factor = self.factor(view.metric, inv_norm);
        let mut code = core::mem::take(&mut s.probes.code);
        let done = self.hashed(meter.kernels(), words, factor, &mut s.keys, &mut code);
        if done.is_ok() {
            self.join(slot, &code);
            self.added = self.added.saturating_add(1);
        }
        s.probes.code = code;
        done?;
        Ok(Inserted::Yes)
    }

    fn remove(&mut self, slot: u32) {
        self.leave(slot);
    }

    fn overwritten(&mut self, slot: u32) {
        self.leave(slot);
    }

    fn needs_maintenance(&self) -> bool {
        self.due()
    }

    fn maintain(
        &mut self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        s: &mut Scratch,
        _: usize,
        _: &mut dyn FnMut(u32),
    ) -> Result<(), Error> {
        if self.due() {
            self.make(view, meter.kernels(), s)?;
        }
        Ok(())
    }

    fn restarted(&mut self) -> bool {
        core::mem::take(&mut self.restarted)
    }

    fn training(&self) -> bool {
        self.due()
    }

    fn inserts_at_once(&self) -> usize {
        16
    }

    fn plan(&self, effort: usize, k: usize, indexed: u64) -> Option<usize> {
        let rerank = if effort == 0 { RERANK.0.max(k.saturating_mul(RERANK.1)) } else { effort.max(k) };
        (self.planes.is_some() && (rerank as u64) < indexed).then_some(rerank)
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
        if self.planes.is_none() {
            return Ok(false);
        }
        self.gather(view, probe, meter, gate, s, hops)
    }

    fn encode(&self, view: &View<'_>) -> Result<Option<Vec<u8>>, NoMemory> {
        self.bytes(view).map(Some)
    }

    fn info(&self) -> IndexInfo {
        let tables = if self.planes.is_some() { u64::from(self.shape.tables) } else { 0 };
        IndexInfo { tombstones: 0, layers: 0, links: 0, parts: tables }
    }

    fn memory(&self) -> usize {
        self.rows
            .memory()
            .saturating_add(self.codes.memory())
            .saturating_add(self.blocks.first().map_or(0, |b| b.len()).saturating_mul(self.blocks.len()))
            .saturating_add(self.states.capacity())
            .saturating_add(self.heads.capacity().saturating_mul(4))
            .saturating_add(self.planes.as_ref().map_or(0, Matrix::memory))
    }
}
