// SPDX-License-Identifier: GPL-2.0-only
//! The vectors of the graph as codes of a byte for each element, in memory only: a quarter of the memory to read for
//! a distance. They are made from the vector when a node is, so they are always the same for the same vector.

use crate::dist::{code_words, Distance, Query};
use crate::index::{Bits, Rows};
use crate::mem::NoMemory;

/// With fewer elements the vectors themselves are as fast, and codes too poor.
const DIM_MIN: usize = 48;

/// Codes by slot.
#[derive(Debug)]
pub(super) struct Codes {
    /// Elements of a vector; 0 until the first is there.
    dim: usize,
    rows: Rows,
    /// Slots whose codes are a poor likeness.
    poor: Bits,
    /// Nodes that searches measure whose codes are a poor likeness.
    pub(super) coarse: u64,
}

impl Codes {
    pub(super) const fn new() -> Codes {
        Codes { dim: 0, rows: Rows::new(0), poor: Bits::new(), coarse: 0 }
    }

    /// Whether vectors of this dimension have codes.
    pub(super) fn exist(&self) -> bool {
        self.dim >= DIM_MIN
    }

    /// Room for slots below `slots`.
    pub(super) fn grow(&mut self, dim: usize, slots: usize) -> Result<(), NoMemory> {
        if self.dim != dim {
            self.dim = dim;
            self.rows = Rows::new(code_words(dim));
        }
        if !self.exist() {
            return Ok(());
        }
        self.rows.grow(slots)?;
        self.poor.grow(slots as u64)
    }

    /// Makes the codes of a slot for which there is room.
    pub(super) fn set(&mut self, kernels: &dyn Distance, slot: u32, vector: &Query<'_>) {
        let Some(row) = self.rows.get_mut(slot as usize) else { return };
        if kernels.encode(vector, row) {
            self.poor.set(u64::from(slot));
        } else {
            self.poor.clear(u64::from(slot));
        }
    }

    /// Codes of a slot.
    pub(super) fn get(&self, slot: u32) -> Option<&[u32]> {
        self.rows.get(slot as usize)
    }

    /// Whether the slot's codes are a poor likeness.
    pub(super) fn is_coarse(&self, slot: u32) -> bool {
        self.poor.get(u64::from(slot))
    }

    pub(super) fn memory(&self) -> usize {
        self.rows.memory().saturating_add(self.poor.memory())
    }
}
