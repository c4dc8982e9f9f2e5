// SPDX-License-Identifier: GPL-2.0-only
//! The index that goes on answering searches while another one is built in its place. Owns that index and which slots it
//! does not find; promises that it knows of every slot that comes, goes or changes hands meanwhile. It takes nothing in.

use crate::index::{AnyIndex, Bits, Index};
use crate::mem::{self, NoMemory};

/// An index at the end of its service.
#[derive(Debug)]
pub(super) struct Serving {
    index: mem::Box<AnyIndex>,
    /// Searchable slots that it does not find.
    pending: Bits,
}

impl Serving {
    /// `index`, which does not find the slots in `pending`.
    pub(super) fn new(index: mem::Box<AnyIndex>, pending: Bits) -> Serving {
        Serving { index, pending }
    }

    pub(super) fn index(&self) -> &dyn Index {
        self.index.get()
    }

    pub(super) fn pending(&self) -> &Bits {
        &self.pending
    }

    pub(super) fn grow(&mut self, slots: u64) -> Result<(), NoMemory> {
        self.pending.grow(slots)
    }

    /// Whether it needs the slot as it is.
    pub(super) fn holds(&self, slot: u64) -> bool {
        self.index.get().holds(slot as u32)
    }

    /// The vector of the slot is another one.
    pub(super) fn overwritten(&mut self, slot: u64) {
        self.index.get_mut().overwritten(slot as u32);
    }

    /// The slot can be found from now on.
    pub(super) fn came(&mut self, slot: u64) {
        if !self.index.get().finds(slot as u32) {
            self.pending.set(slot);
        }
    }

    /// The slot is not to be found any more.
    pub(super) fn went(&mut self, slot: u64) {
        self.pending.clear(slot);
        if self.holds(slot) {
            self.index.get_mut().remove(slot as u32);
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.index.get().memory().saturating_add(self.pending.memory())
    }
}
