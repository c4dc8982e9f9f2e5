// SPDX-License-Identifier: GPL-2.0-only
//! The vectors of the graph as codes of a byte for each element: a quarter of the memory to read for
//! a distance. They are made from the vector when a node is, so they are always the same for the same vector, and kept with the
//! graph.

use crate::dist::{code_words, is_coarse, Distance, Query, CODED_DIM_MIN};
use crate::index::{Bits, Rows};
use crate::mem::{self, NoMemory};

#[derive(Debug)]
struct Parts {
    rows: Rows,
    /// Slots whose codes are a poor likeness.
    poor: Bits,
    /// Nodes that searches measure among them.
    coarse: u64,
}

/// Codes by slot, if vectors of this dimension have them.
#[derive(Debug)]
pub(super) struct Codes {
    /// On the heap, so that the graph stays a small value.
    parts: Option<mem::Box<Parts>>,
}

impl Codes {
    pub(super) const fn new() -> Codes {
        Codes { parts: None }
    }

    /// Whether there are any.
    pub(super) fn exist(&self) -> bool {
        self.parts.is_some()
    }

    /// Room for slots below `slots`.
    #[inline(never)] // keeps stack frames small
    pub(super) fn grow(&mut self, dim: usize, slots: usize) -> Result<(), NoMemory> {
        if self.parts.is_none() && dim >= CODED_DIM_MIN {
            self.parts =
                Some(mem::Box::try_new(Parts { rows: Rows::new(code_words(dim)), poor: Bits::new(), coarse: 0 })?);
        }
        let Some(p) = self.parts.as_mut() else { return Ok(()) };
        p.rows.grow(slots)?;
        p.poor.grow(slots as u64)
    }

    /// Makes the codes of a slot for which there is room.
    pub(super) fn set(&mut self, kernels: &dyn Distance, slot: u32, vector: &Query<'_>) {
        let Some(p) = self.parts.as_mut() else { return };
        let Some(row) = p.rows.get_mut(slot as usize) else { return };
        kernels.encode(vector, row);
        self.judge(slot);
    }

    /// Looks whether the codes of a slot that searches do not measure yet are a poor likeness.
    pub(super) fn judge(&mut self, slot: u32) {
        let Some(p) = self.parts.as_mut() else { return };
        if p.rows.get(slot as usize).is_some_and(is_coarse) {
            p.poor.set(u64::from(slot));
        } else {
            p.poor.clear(u64::from(slot));
        }
    }

    /// Codes of a slot, to be filled.
    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut [u32]> {
        self.parts.as_mut()?.rows.get_mut(slot as usize)
    }

    /// Codes of a slot.
    pub(super) fn get(&self, slot: u32) -> Option<&[u32]> {
        self.parts.as_ref()?.rows.get(slot as usize)
    }

    /// Whether the slot's codes are a poor likeness.
    pub(super) fn is_coarse(&self, slot: u32) -> bool {
        self.parts.as_ref().is_some_and(|p| p.poor.get(u64::from(slot)))
    }

    /// A node that searches measure comes (1) or goes (−1).
    pub(super) fn count(&mut self, slot: u32, by: i64) {
        if let Some(p) = self.parts.as_mut().filter(|p| p.poor.get(u64::from(slot))) {
            p.coarse = p.coarse.saturating_add_signed(by);
        }
    }

    /// Nodes that searches measure whose codes are a poor likeness.
    pub(super) fn coarse(&self) -> u64 {
        self.parts.as_ref().map_or(0, |p| p.coarse)
    }

    pub(super) fn memory(&self) -> usize {
        self.parts.as_ref().map_or(0, |p| p.rows.memory().saturating_add(p.poor.memory()))
    }
}
