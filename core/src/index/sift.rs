// SPDX-License-Identifier: GPL-2.0-only
//! Codes for the exact scan: a byte for each element, 16 vectors side by side, from which the leaf tells what cannot be among the
//! nearest. Owns the codes and which slots have right ones; promises that a slot without is never taken for one with.
//!
//! They are made from vectors that are in memory, in bounded steps, and are memory that may go at any time: a scan without
//! them gives the same. Groups are of 64 slots, so that a word of a set of slots is about one group.

use super::{is_live, View};
use crate::dist::{panel_bytes, Distance, Panels, Query, SIFT_DIM_MAX, SIFT_PANELS, SIFT_ROWS};
use crate::mem::{self, Aligned, NoMemory};
use alloc::vec::Vec;

/// Slots of a group.
pub(super) const GROUP: usize = SIFT_ROWS * SIFT_PANELS;
/// Size of an allocation in bytes, unless one panel is larger.
const CHUNK_BYTES: usize = 64 * 1024;
/// Groups that are looked at for the cost of one whose codes are made.
const LOOKS: usize = 64;

/// Codes of the slots of a collection.
#[derive(Debug)]
pub struct Codes {
    dim: usize,
    chunks: Vec<Aligned<64>>,
    /// Panels of a chunk: two to this power.
    shift: u32,
    /// For each group a bit for each slot whose code is that of its vector.
    valid: Vec<u64>,
    /// Groups in which codes may be missing.
    due: core::ops::Range<usize>,
    /// No memory for them.
    refused: bool,
    bytes: usize,
}

impl Codes {
    /// None yet, for vectors of `dim` elements.
    pub fn new(dim: usize) -> Codes {
        let mut shift = SIFT_PANELS.trailing_zeros();
        while shift > 0 && panel_bytes(dim) << shift > CHUNK_BYTES {
            shift = shift.wrapping_sub(1);
        }
        Codes { dim, chunks: Vec::new(), shift, valid: Vec::new(), due: 0..0, refused: false, bytes: 0 }
    }

    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        self.bytes > 0
    }

    /// Bytes of memory.
    pub(super) fn memory(&self) -> usize {
        self.bytes.saturating_add(self.valid.capacity().saturating_mul(8))
    }

    /// The slots of a group that have codes.
    pub(super) fn valid(&self, group: usize) -> u64 {
        self.valid.get(group).copied().unwrap_or(0)
    }

    /// The vectors of these slots are others, or were not in memory before.
    pub(super) fn changed(&mut self, slots: core::ops::Range<usize>) {
        let (first, end) = (slots.start / GROUP, slots.end.div_ceil(GROUP));
        for group in first..end.min(self.valid.len()) {
            let from = slots.start.saturating_sub(group.saturating_mul(GROUP));
            let to = slots.end.saturating_sub(group.saturating_mul(GROUP)).min(GROUP);
            let below = |n: usize| if n >= GROUP { u64::MAX } else { (1u64 << (n & 63)).wrapping_sub(1) };
            if let Some(v) = self.valid.get_mut(group) {
                *v &= !(below(to) & !below(from));
            }
        }
        if self.due.is_empty() {
            self.due = first..end;
        } else {
            self.due = self.due.start.min(first)..self.due.end.max(end);
        }
    }

    /// Whether codes are to be made.
    pub(super) fn is_due(&self) -> bool {
        !self.due.is_empty() && !self.refused && self.dim <= SIFT_DIM_MAX
    }

    /// Gives all memory back, and makes no codes until they are allowed again. Gives the bytes that went.
    pub(super) fn refuse(&mut self) -> usize {
        let bytes = self.memory();
        let groups = self.valid.len();
        (self.chunks, self.valid, self.bytes) = (Vec::new(), Vec::new(), 0);
        self.due = 0..self.due.end.max(groups);
        self.refused = true;
        bytes
    }

    /// Bytes that they would need if they were not refused, about; `None` if they are not.
    pub(super) fn refused(&self, slots: usize) -> Option<usize> {
        let all = slots.div_ceil(SIFT_ROWS).saturating_mul(panel_bytes(self.dim));
        self.refused.then_some(all)
    }

    /// They may be made.
    pub(super) fn allow(&mut self) {
        self.refused = false;
    }

    /// Makes codes that are missing, of at most `groups` groups. Without memory for them there are none.
    #[inline(never)] // keeps stack frames small
    pub(super) fn make(&mut self, view: &View<'_>, kernels: &dyn Distance, groups: usize) {
        let end = self.due.end.min(view.store.len().div_ceil(GROUP));
        let mut budget = groups.saturating_mul(LOOKS);
        let mut group = self.due.start;
        while group < end && budget > 0 {
            match self.fill(view, kernels, group) {
                Ok(done) => budget = budget.saturating_sub(if done { LOOKS } else { 1 }),
                Err(NoMemory) => {
                    self.refuse();
                    return;
                }
            }
            group = group.saturating_add(1);
        }
        self.due = if group < end { group..self.due.end } else { 0..0 };
    }

    /// Makes the missing codes of a group; whether there were any.
    fn fill(&mut self, view: &View<'_>, kernels: &dyn Distance, group: usize) -> Result<bool, NoMemory> {
        let have = self.valid(group);
        if have == u64::MAX {
            return Ok(false);
        }
        let first = group.saturating_mul(GROUP);
        let (mut made, mut bit) = (0u64, 1u64);
        for slot in first..first.saturating_add(GROUP) {
            let head = view.store.head(slot).filter(|h| have & bit == 0 && is_live(h));
            if let Some((head, words)) = head.zip(view.store.vector(slot)) {
                let query = Query { metric: view.metric, words, inv_norm: head.inv_norm };
                let panel = self.room(slot / SIFT_ROWS)?;
                kernels.panel_put(&query, panel, slot % SIFT_ROWS);
                made |= bit;
            }
            bit = bit.wrapping_shl(1);
        }
        if made != 0 {
            if self.valid.len() <= group {
                mem::resize(&mut self.valid, group.saturating_add(1), 0)?;
            }
            if let Some(v) = self.valid.get_mut(group) {
                *v |= made;
            }
        }
        Ok(made != 0)
    }

    /// Where a panel is: chunk and bytes in it.
    fn place(&self, panel: usize) -> (usize, core::ops::Range<usize>) {
        let size = panel_bytes(self.dim);
        let at = (panel & (1usize << self.shift).wrapping_sub(1)).saturating_mul(size);
        (panel >> self.shift, at..at.saturating_add(size))
    }

    /// A panel to write to.
    fn room(&mut self, panel: usize) -> Result<&mut [u8], NoMemory> {
        let (chunk, range) = self.place(panel);
        while self.chunks.len() <= chunk {
            mem::push(&mut self.chunks, Aligned::empty())?;
        }
        let memory = self.chunks.get_mut(chunk).ok_or(NoMemory)?;
        if memory.is_empty() {
            *memory = Aligned::zeroed(panel_bytes(self.dim) << self.shift)?;
            self.bytes = self.bytes.saturating_add(memory.len());
        }
        memory.get_mut(range).ok_or(NoMemory)
    }

    /// The panels of a group in which one of `wanted` is, and for each its number in the group.
    pub(super) fn panels(&self, group: usize, wanted: u64) -> (Panels<'_>, [u32; SIFT_PANELS]) {
        let mut panels = Panels::new(self.dim);
        let mut numbers = [0; SIFT_PANELS];
        for n in 0..SIFT_PANELS {
            let mask = 0xffffu64.wrapping_shl(n.wrapping_mul(SIFT_ROWS) as u32);
            if wanted & mask == 0 {
                continue;
            }
            let (chunk, range) = self.place(group.saturating_mul(SIFT_PANELS).saturating_add(n));
            if let Some(bytes) = self.chunks.get(chunk).and_then(|c| c.get(range)) {
                if let Some(to) = numbers.get_mut(panels.len()) {
                    *to = n as u32;
                }
                panels.push(bytes);
            }
        }
        (panels, numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::{native, Metric};
    use crate::format::{Slot, SLOT_LIVE};
    use crate::index::{Absent, VectorStore};

    #[test]
    fn what_changes_has_no_codes_until_they_are_made_again() {
        let mut store = VectorStore::new(20);
        store.extend_to(1000).unwrap();
        for slot in 0..1000 {
            store.vector_mut(slot).unwrap().fill((slot as f32 + 1.0).to_bits());
            *store.head_mut(slot).unwrap() = Slot { id: 1, seq: 1, inv_norm: 0, flags: SLOT_LIVE, crc: 0 };
        }
        let absent = Absent::new(0);
        let view = View { store: &store, metric: Metric::L2, absent: &absent };
        let mut codes = Codes::new(20);
        assert!(!codes.is_due() && !codes.any());
        codes.changed(0..1000);
        let mut steps = 0;
        while codes.is_due() {
            codes.make(&view, native(), 3);
            steps += 1;
        }
        assert_eq!(steps, 16usize.div_ceil(3));
        let count = |c: &Codes| (0..20).map(|g| c.valid(g).count_ones()).sum::<u32>();
        assert_eq!(count(&codes), 1000);
        for range in [0..1, 63..64, 64..65, 60..70, 10..200, 128..192, 999..1000] {
            codes.changed(range.clone());
            for slot in 0..1000 {
                let has = codes.valid(slot / GROUP) >> (slot % GROUP) & 1 != 0;
                assert_eq!(has, !range.contains(&slot), "{slot} of {range:?}");
            }
            assert!(codes.is_due());
            codes.make(&view, native(), 100);
            assert!(!codes.is_due());
            assert_eq!(count(&codes), 1000);
        }
        let bytes = codes.memory();
        assert!(bytes >= 1000 * 20);
        assert_eq!((codes.refuse(), codes.memory(), codes.any(), codes.is_due()), (bytes, 0, false, false));
        codes.changed(5..6);
        assert!(!codes.is_due() && codes.refused(1000).unwrap() > 1000 * 20);
        codes.allow();
        codes.make(&view, native(), 100);
        assert_eq!((count(&codes), codes.refused(1000)), (1000, None));
    }
}
