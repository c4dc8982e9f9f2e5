// SPDX-License-Identifier: GPL-2.0-only
//! Multi-probe: buckets in the order of how far the query is from them, over all tables at once.

use super::super::pq::rerank;
use super::{fits, Lsh, NONE};
use crate::dist::{Meter, Metric, Query};
use crate::error::Step;
use crate::index::{Gate, Heap, Probe, Scratch, View};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// Buckets that a search looks into, at least: so many for each candidate that it wants.
const PROBES: u64 = 4;

/// Memory of a search.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    /// Codes of the query.
    pub(super) codes: Vec<u32>,
    /// For each table its bits in the order of their margins: margin and number.
    margins: Vec<(u32, u32)>,
    /// Buckets to look into, the nearest on top: complement of the distance, table, which of the bits in order are
    /// flipped.
    heap: Heap<(u64, u32, u32)>,
}

impl Probes {
    pub(crate) const fn new() -> Probes {
        Probes { codes: Vec::new(), margins: Vec::new(), heap: Heap::new() }
    }

    pub(crate) fn memory(&self) -> usize {
        let words = self.codes.capacity().saturating_add(self.margins.capacity().saturating_mul(2));
        words.saturating_mul(4).saturating_add(self.heap.memory())
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

    /// The code with the flips of a probe.
    fn flipped(&self, bits: usize, table: u32, flips: u32) -> u32 {
        let mut code = self.codes.get(table as usize).copied().unwrap_or(0);
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
        self.codes(kernels, q.words, factor, keys, &mut p.codes)?;
        let bits = self.shape.bits;
        p.margins.clear();
        mem::reserve(&mut p.margins, keys.len())?;
        let margins = &mut p.margins;
        let (mut bit, mut failed) = (0, Ok(()));
        self.sides(kernels, q.words, factor, keys, &mut |_, margin| {
            failed = failed.and(mem::push(margins, (margin, bit)));
            bit = bit.wrapping_add(1);
            if bit == bits {
                bit = 0;
            }
        })?;
        failed?;
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
            Ok(()) => self.look(view, probe, gate, s, &mut p, hops),
            Err(e) => Err(e),
        };
        s.probes = p;
        if !found? {
            return Ok(false);
        }
        rerank(view, probe.query, meter, s)?;
        Ok(true)
    }

    #[inline(never)] // keeps stack frames small
    fn look(
        &self,
        view: &View<'_>,
        probe: &Probe<'_, '_>,
        gate: &mut Gate<'_, '_>,
        s: &mut Scratch,
        p: &mut Probes,
        hops: &mut u64,
    ) -> Step<bool> {
        let bits = self.shape.bits as usize;
        let most = (probe.ef as u64).saturating_add(64).saturating_mul(PROBES);
        let mut probed = 0u64;
        while let Some((nearness, table, flips)) = p.heap.pop() {
            if s.candidates.len() >= probe.ef || probed > most {
                break;
            }
            if gate.needed(probe.ef) > probe.limit {
                return Ok(false);
            }
            probed = probed.saturating_add(1);
            *hops = hops.wrapping_add(1);
            let code = p.flipped(bits, table, flips);
            let (at, next, _) = self.places(table as usize);
            let mut slot = self.heads.get(self.bucket(table as usize, code)).copied().unwrap_or(NONE);
            while slot != NONE {
                // Buckets of long codes are shared.
                if self.word(slot, at) == code && s.marks.visit(slot) && fits(view, gate, s, slot)? {
                    s.candidates.push((0, slot))?;
                }
                slot = self.word(slot, next);
            }
            p.follow(bits, table, flips, !nearness)?;
        }
        Ok(true)
    }
}
