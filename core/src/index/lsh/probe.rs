// SPDX-License-Identifier: GPL-2.0-only
//! Multi-probe: buckets in the order of how far the query is from them, over all tables at once.

use super::super::pq::rerank;
use super::{Lsh, Matrix, NONE};
use crate::cluster::BLOCK_CODES;
use crate::dist::{Distance, Meter, Metric, Query};
use crate::error::Step;
use crate::index::{is_live, Gate, Heap, Near, Probe, Scratch, View};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// Candidates that are ranked by their codes, for each one that is measured.
const POOL: usize = 40;
/// The pool has at least so many. Hardly any in the tests of this crate, so that they look into buckets.
const POOL_MIN: usize = if cfg!(test) { 1 } else { 8192 };
/// If the pool would be more than one in so many, all are ranked: one after the other that costs far less each.
const SHARE: u64 = if cfg!(test) { 4 } else { 128 };
/// Most buckets that a search looks into for each candidate of the pool.
const PROBES: u64 = 2;
/// Largest margin in a lookup table: eight of them fit an entry.
const MARGIN_MAX: u32 = 4095;
/// Codes that are ranked at a time.
const CHUNK: usize = 256;

/// Memory of a search.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    /// Code of the query.
    pub(super) code: Vec<u32>,
    /// The same, a number for each table.
    tables: Vec<u32>,
    /// For each byte of a code 256 entries: margins of the bits that differ.
    entries: Vec<u16>,
    /// For each half of a byte of a code 16 entries: the same, coarser.
    nibbles: Vec<u8>,
    /// Candidates to rank, and their codes.
    pool: Vec<u32>,
    bytes: Vec<u8>,
    /// For each table its bits in the order of their margins: margin and number.
    margins: Vec<(u32, u32)>,
    /// Buckets to look into, the nearest on top: complement of the distance, table, which of the bits in order are
    /// flipped.
    heap: Heap<(u64, u32, u32)>,
}

impl Probes {
    pub(crate) const fn new() -> Probes {
        Probes {
            code: Vec::new(),
            tables: Vec::new(),
            entries: Vec::new(),
            nibbles: Vec::new(),
            pool: Vec::new(),
            bytes: Vec::new(),
            margins: Vec::new(),
            heap: Heap::new(),
        }
    }

    pub(crate) fn memory(&self) -> usize {
        let words = [&self.code, &self.tables, &self.pool].iter().fold(0, |n: usize, v| n.saturating_add(v.capacity()));
        words
            .saturating_mul(4)
            .saturating_add(self.margins.capacity().saturating_mul(8))
            .saturating_add(self.entries.capacity().saturating_mul(2))
            .saturating_add(self.bytes.capacity())
            .saturating_add(self.nibbles.capacity())
            .saturating_add(self.heap.memory())
    }

    /// Margin of the bit at a place in the order of a table, squared.
    fn cost(&self, bits: usize, table: u32, place: u32) -> u64 {
        let at = (table as usize).wrapping_mul(bits).wrapping_add(place as usize);
        let m = u64::from(self.margins.get(at).map_or(u32::MAX, |m| m.0));
        // 32 of them fit 64 bits.
        m.wrapping_mul(m) >> 6
    }

    /// Adds what follows a set of flipped bits: the same with the last one moved on, and with one more.
    fn follow(&mut self, bits: usize, table: u32, flips: u32, cost: u64) -> Result<(), NoMemory> {
        let next = 32u32.wrapping_sub(flips.leading_zeros());
        if next as usize >= bits {
            return Ok(());
        }
        let more = cost.saturating_add(self.cost(bits, table, next));
        self.heap.push((!more, table, flips | 1 << next))?;
        if let Some(last) = next.checked_sub(1) {
            let moved = more.saturating_sub(self.cost(bits, table, last));
            self.heap.push((!moved, table, (flips & !(1 << last)) | 1 << next))?;
        }
        Ok(())
    }

    /// Makes the lookup table; the margins are still in the order of the bits.
    #[inline(never)] // keeps stack frames small
    fn look_up(&mut self) -> Result<(), NoMemory> {
        let most = self.margins.iter().fold(0, |a: u32, m| a.max(m.0));
        let mut shift = 0u32;
        while most >> (shift & 31) > MARGIN_MAX {
            shift = shift.wrapping_add(1);
        }
        self.entries.clear();
        mem::resize(&mut self.entries, self.code.len().saturating_mul(4 * 256), 0)?;
        let code = self.code.iter().flat_map(|w| w.to_le_bytes());
        for ((out, margins), own) in self.entries.chunks_exact_mut(256).zip(self.margins.chunks(8)).zip(code) {
            for differs in 1..256usize {
                let rest = differs & differs.wrapping_sub(1);
                let bit = differs.trailing_zeros() as usize;
                let margin = margins.get(bit).map_or(0, |m| m.0 >> (shift & 31)) as u16;
                let sum = out.get(rest ^ usize::from(own)).copied().unwrap_or(0).saturating_add(margin);
                if let Some(e) = out.get_mut(differs ^ usize::from(own)) {
                    *e = sum;
                }
            }
        }
        Ok(())
    }

    /// Makes the tables for halves of bytes; the margins are still in the order of the bits.
    #[inline(never)] // keeps stack frames small
    fn halves(&mut self) -> Result<(), NoMemory> {
        let len = self.code.len().saturating_mul(4);
        let most = u64::from(u8::MAX);
        let sum = |four: &[(u32, u32)]| four.iter().fold(0u64, |a, m| a.wrapping_add(u64::from(m.0)));
        let largest = self.margins.chunks(4).map(sum).max().unwrap_or(0).max(1);
        let factor = (most << 32).checked_div(largest).unwrap_or(0);
        self.nibbles.clear();
        mem::resize(&mut self.nibbles, len.saturating_mul(32), 0)?;
        let own = self.code.iter().flat_map(|w| w.to_le_bytes()).flat_map(|b| [b & 15, b >> 4]);
        for ((out, margins), own) in self.nibbles.chunks_exact_mut(16).zip(self.margins.chunks(4)).zip(own) {
            for differs in 1..16usize {
                let rest = differs & differs.wrapping_sub(1);
                let margin = margins.get(differs.trailing_zeros() as usize).map_or(0, |m| u64::from(m.0));
                // `factor` is at most 255 · 2^32 / margin.
                let weight = (margin.wrapping_mul(factor) >> 32) as u8;
                let sum = out.get(rest ^ usize::from(own)).copied().unwrap_or(0).wrapping_add(weight);
                if let Some(e) = out.get_mut(differs ^ usize::from(own)) {
                    *e = sum;
                }
            }
        }
        Ok(())
    }

    /// The code with the flips of a probe.
    fn flipped(&self, bits: usize, table: u32, flips: u32) -> u32 {
        let mut code = self.tables.get(table as usize).copied().unwrap_or(0);
        let from = (table as usize).wrapping_mul(bits);
        let order = self.margins.get(from..from.wrapping_add(bits)).unwrap_or(&[]);
        for (place, (_, bit)) in order.iter().enumerate() {
            if flips >> (place & 31) & 1 != 0 {
                code ^= 1 << (bit & 31);
            }
        }
        code
    }
}

impl Lsh {
    /// Codes and margins of a query.
    #[inline(never)] // keeps stack frames small
    fn prepare(&self, q: &Query<'_>, meter: &Meter<'_>, keys: &mut Vec<u32>, p: &mut Probes) -> Step<()> {
        let kernels = meter.kernels();
        // For inner products too the margins are those of the direction.
        let factor = match q.metric {
            Metric::Ip => kernels.check(q.words)?.inverse,
            m => self.factor(m, q.inv_norm),
        };
        let bits = self.shape.bits;
        let columns = self.planes.as_ref().map_or(0, Matrix::columns);
        p.code.clear();
        mem::resize(&mut p.code, columns.div_ceil(32), 0)?;
        p.margins.clear();
        mem::reserve(&mut p.margins, columns)?;
        let (code, margins) = (&mut p.code, &mut p.margins);
        let (mut n, mut bit, mut failed) = (0usize, 0, Ok(()));
        self.sides(kernels, q.words, factor, keys, &mut |side, margin| {
            if let Some(c) = code.get_mut(n / 32) {
                *c |= side << (n % 32);
            }
            failed = failed.and(mem::push(margins, (margin, bit)));
            n = n.wrapping_add(1);
            bit = bit.wrapping_add(1);
            if bit == bits {
                bit = 0;
            }
        })?;
        Ok(failed?)
    }

    /// What is needed to look into buckets and to rank what is there.
    #[inline(never)] // keeps stack frames small
    fn prepare_pool(&self, p: &mut Probes) -> Result<(), NoMemory> {
        p.tables.clear();
        for table in 0..self.shape.tables as usize {
            mem::push(&mut p.tables, self.bits_of(&p.code, table))?;
        }
        p.look_up()?;
        let bits = self.shape.bits;
        for table in p.margins.chunks_mut(bits.max(1) as usize) {
            table.sort_unstable();
        }
        p.heap.clear();
        for table in 0..self.shape.tables {
            p.heap.push((u64::MAX, table, 0))?;
        }
        Ok(())
    }

    /// Collects acceptable candidates into `s.candidates` and measures them. False: given up.
    #[inline(never)] // keeps stack frames small
    pub(super) fn gather(
        &self,
        view: &View<'_>,
        probe: &Probe<'_, '_>,
        meter: &mut Meter<'_>,
        gate: &mut Gate<'_, '_>,
        s: &mut Scratch,
        hops: &mut u64,
    ) -> Step<bool> {
        s.candidates.clear();
        let mut p = core::mem::take(&mut s.probes);
        let done = self.prepare(probe.query, meter, &mut s.keys, &mut p);
        let found = match done {
            Ok(()) => self.look(view, probe, meter.kernels(), gate, s, &mut p, hops),
            Err(e) => Err(e),
        };
        s.probes = p;
        if !found? {
            return Ok(false);
        }
        rerank(view, probe.query, meter, s)?;
        Ok(true)
    }

    /// Collects the pool, then ranks it. False: given up.
    #[allow(clippy::too_many_arguments)] // the state of one search, split so that each part is borrowed alone
    fn look(
        &self,
        view: &View<'_>,
        probe: &Probe<'_, '_>,
        kernels: &dyn Distance,
        gate: &mut Gate<'_, '_>,
        s: &mut Scratch,
        p: &mut Probes,
        hops: &mut u64,
    ) -> Step<bool> {
        p.pool.clear();
        let want = probe.ef.saturating_mul(POOL).max(POOL_MIN);
        let all = gate.is_filter() || (want as u64).saturating_mul(SHARE) >= self.members;
        if all {
            p.halves()?;
            self.rank_all(view, probe.ef, kernels, gate, s, p)?;
            return Ok(true);
        }
        self.prepare_pool(p)?;
        if all {
            // What passes a filter may be anywhere, and going through all in order costs less than through many by
            // buckets: all codes are ranked.
            for (slot, member) in (0u32..).zip(&self.states) {
                if *member {
                    mem::push(&mut p.pool, slot)?;
                }
            }
        } else {
            self.collect(want, s, p, hops)?;
        }
        self.rank(view, probe.ef, kernels, gate, s, p)?;
        Ok(true)
    }

    /// Members of the nearest buckets into the pool.
    #[inline(never)] // keeps stack frames small
    fn collect(&self, want: usize, s: &mut Scratch, p: &mut Probes, hops: &mut u64) -> Result<(), NoMemory> {
        let bits = self.shape.bits as usize;
        let most = (want as u64).saturating_add(64).saturating_mul(PROBES);
        let mut probed = 0u64;
        while let Some((nearness, table, flips)) = p.heap.pop() {
            if p.pool.len() >= want || probed > most {
                break;
            }
            probed = probed.saturating_add(1);
            *hops = hops.wrapping_add(1);
            let code = p.flipped(bits, table, flips);
            let (next, _) = self.places(table as usize);
            let mut slot = self.heads.get(self.bucket(table as usize, code)).copied().unwrap_or(NONE);
            while slot != NONE {
                // A bucket of long codes is shared by several; they are ranked soon enough.
                if s.marks.visit(slot) {
                    mem::push(&mut p.pool, slot)?;
                }
                slot = self.word(slot, next);
            }
            p.follow(bits, table, flips, !nearness)?;
        }
        Ok(())
    }

    /// The best acceptable ones of all by their codes, into `s.candidates`.
    #[inline(never)] // keeps stack frames small
    fn rank_all(
        &self,
        view: &View<'_>,
        keep: usize,
        kernels: &dyn Distance,
        gate: &mut Gate<'_, '_>,
        s: &mut Scratch,
        p: &Probes,
    ) -> Step<()> {
        let len = p.code.len().saturating_mul(4);
        let mut sums = [0u32; BLOCK_CODES];
        let mut first = 0u32;
        for n in 0..self.states.len().div_ceil(BLOCK_CODES) {
            let Some(block) = self.blocks.get(n) else { break };
            // No more than that is of interest.
            let most = match s.candidates.peek() {
                Some(worst) if s.candidates.len() >= keep => worst.0 as u32,
                _ => u32::MAX,
            };
            let mut near = [0];
            kernels.fast_scan(&p.nibbles, len, block, most, &mut sums, &mut near);
            let [mut near] = near;
            while near != 0 {
                let c = near.trailing_zeros();
                near &= near.wrapping_sub(1);
                let slot = first.saturating_add(c);
                let sum = sums.get(c as usize).copied().unwrap_or(u32::MAX);
                if self.member(slot) {
                    keep_near(view, keep, (u64::from(sum), slot), gate, s)?;
                }
            }
            first = first.saturating_add(BLOCK_CODES as u32);
        }
        Ok(())
    }

    /// The best acceptable ones of the pool by their codes, into `s.candidates`.
    #[inline(never)] // keeps stack frames small
    fn rank(
        &self,
        view: &View<'_>,
        keep: usize,
        kernels: &dyn Distance,
        gate: &mut Gate<'_, '_>,
        s: &mut Scratch,
        p: &mut Probes,
    ) -> Step<()> {
        let len = p.code.len().saturating_mul(4);
        for some in p.pool.chunks(CHUNK) {
            mem::resize(&mut p.bytes, len.saturating_mul(some.len()), 0)?;
            let mut rest = &mut *p.bytes;
            for slot in some {
                let Some((to, more)) = rest.split_at_mut_checked(len) else { break };
                rest = more;
                for (to, w) in to.chunks_exact_mut(4).zip(self.code(*slot)) {
                    mem::copy(to, &w.to_le_bytes());
                }
            }
            s.keys.clear();
            mem::resize(&mut s.keys, some.len(), u32::MAX)?;
            kernels.lookup(&p.entries, len, &p.bytes, &mut s.keys);
            let keys = core::mem::take(&mut s.keys);
            for (slot, sum) in some.iter().zip(&keys) {
                keep_near(view, keep, (u64::from(*sum), *slot), gate, s)?;
            }
            s.keys = keys;
        }
        Ok(())
    }
}

/// Keeps a candidate if it is live, acceptable and among the best `keep`.
fn keep_near(view: &View<'_>, keep: usize, near: Near, gate: &mut Gate<'_, '_>, s: &mut Scratch) -> Step<()> {
    let full = s.candidates.len() >= keep;
    if full && s.candidates.peek().is_none_or(|w| near >= *w) {
        return Ok(());
    }
    let Some(head) = view.store.head(near.1 as usize).filter(|h| is_live(h)) else { return Ok(()) };
    if !gate.pass(&mut s.marks, near.1, head)? {
        return Ok(());
    }
    if full {
        s.candidates.replace_top(near);
    } else {
        s.candidates.push(near)?;
    }
    Ok(())
}
