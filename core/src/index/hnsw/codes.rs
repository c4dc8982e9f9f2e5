// SPDX-License-Identifier: GPL-2.0-only
//! The vectors of the graph as codes of a byte for each element, in memory only: a quarter of the memory to read for
//! a distance. They are made from the vector when a node is, so they are always the same for the same vector.

use crate::dist::{self, code_words, Distance, Query};
use crate::index::{Rows, Table};
use crate::mem::NoMemory;

/// With fewer elements the vectors themselves are as fast, and codes too poor.
const DIM_MIN: usize = 48;

/// Codes by slot.
#[derive(Debug)]
pub(super) struct Codes {
    /// Elements of a vector; 0 until the first is there.
    dim: usize,
    rows: Rows,
    terms: Table<dist::Codes>,
    /// Nodes that searches measure whose codes are a poor likeness.
    pub(super) coarse: u64,
}

impl Codes {
    pub(super) const fn new() -> Codes {
        Codes { dim: 0, rows: Rows::new(0), terms: Table::new(), coarse: 0 }
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
        self.terms.extend_to(slots)
    }

    /// Makes the codes of a slot for which there is room.
    pub(super) fn set(&mut self, kernels: &dyn Distance, slot: u32, vector: &Query<'_>) {
        if let (Some(row), Some(t)) = (self.rows.get_mut(slot as usize), self.terms.get_mut(slot as usize)) {
            *t = kernels.encode(vector, row);
        }
    }

    /// Codes of a slot and their terms.
    pub(super) fn get(&self, slot: u32) -> Option<(&[u32], dist::Codes)> {
        Some((self.rows.get(slot as usize)?, *self.terms.get(slot as usize)?))
    }

    /// Whether the slot's codes are a poor likeness.
    pub(super) fn is_coarse(&self, slot: u32) -> bool {
        self.terms.get(slot as usize).is_some_and(|t| t.coarse)
    }

    pub(super) fn memory(&self) -> usize {
        self.rows.memory().saturating_add(self.terms.memory())
    }
}
