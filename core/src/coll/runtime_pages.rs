// SPDX-License-Identifier: GPL-2.0-only
//! The pages that a collection's vectors are in: which ones an insert needs, how one is brought in, which ones may go.
//! Promises that a vector which is not that of its slot is reported as damaged and never compared.

use super::{blocks, Collection, BLOCK_SHIFT};
use crate::env::Env;
use crate::format::BLOCK;
use crate::index::is_live;
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

impl Collection {
    /// Adds the pages that have to be in memory before the slot is put: its own, and those that share a block of the stream
    /// with it, as that will be written anew.
    pub fn absent_for_put(&self, slot: u64, pages: &mut Vec<u32>) -> Result<(), NoMemory> {
        // From the end of the table on, if slots between are left out.
        let start = slot.min(self.slots()).saturating_mul(self.vector_bytes());
        let end = slot.saturating_add(1).saturating_mul(self.vector_bytes()).next_multiple_of(BLOCK as u64);
        let (first, _) = self.vector_place(start >> BLOCK_SHIFT << BLOCK_SHIFT);
        let (last, _) = self.vector_place(end.saturating_sub(1));
        for page in self.store.page(first as usize)..=self.store.page(last as usize) {
            if self.store.is_absent(page) {
                mem::push(pages, page as u32)?;
            }
        }
        Ok(())
    }

    /// The bytes of the vector stream that a page is made of.
    pub fn page_bytes_range(&self, page: u32) -> core::ops::Range<u64> {
        let slots = self.store.page_slots(page as usize);
        let at = |slot: usize| (slot as u64).min(self.slots()).saturating_mul(self.vector_bytes());
        at(slots.start)..at(slots.end)
    }

    /// Brings an absent page in, from the bytes of the stream that [`page_bytes_range`](Self::page_bytes_range) says; zeros for what is
    /// damaged. Vectors that are not those of their slots are damaged from now on; those that are it again no longer.
    pub fn admit_page(&mut self, env: &Env, page: u32, bytes: &[u8], tick: u64) -> Result<(), NoMemory> {
        if !self.store.is_absent(page as usize) {
            return Ok(());
        }
        self.store.admit_page(page as usize, tick)?;
        self.index.get_mut().arrived(self.store.page_slots(page as usize));
        let per = self.vector_bytes().max(1) as usize;
        for (slot, bytes) in self.store.page_slots(page as usize).zip(bytes.chunks_exact(per)) {
            if let Some(row) = self.store.vector_mut(slot) {
                for (to, b) in row.iter_mut().zip(bytes.chunks_exact(4)) {
                    *to = u32::from_le_bytes(b.try_into().unwrap_or([0; 4]));
                }
            }
            let at = slot as u64;
            let Some(head) = self.store.head(slot).copied().filter(is_live) else { continue };
            let sound = self.store.vector(slot).is_some_and(|row| self.is_sound(env, &head, row));
            if !sound && self.sets.searchable.clear(at) {
                self.sets.damaged.set(at);
                self.sets.pending.clear(at);
                self.index.get_mut().overwritten(slot as u32);
                if let Some(old) = &mut self.serving {
                    old.went(at);
                }
                self.changes = self.changes.saturating_add(1);
                self.moment.drops = self.moment.drops.saturating_add(1);
            } else if sound && self.sets.damaged.clear(at) {
                self.sets.searchable.set(at);
                if !self.index.get().finds(slot as u32) {
                    self.sets.pending.set(at);
                }
                if let Some(old) = &mut self.serving {
                    old.came(at);
                }
                self.moment.restarts = self.moment.restarts.saturating_add(1);
            }
        }
        Ok(())
    }

    /// Drops pages whose vectors are on the device until `bytes` of memory are gone, except those used at tick `protect` or
    /// after. Gives the bytes that went.
    pub fn evict(&mut self, bytes: usize, protect: u64) -> usize {
        if self.whole {
            return 0;
        }
        // What only makes things quicker goes first.
        let spare = self.index.get_mut().drop_spare();
        if spare >= bytes {
            return spare;
        }
        let bytes = bytes.saturating_sub(spare);
        let per = self.vector_bytes();
        let sets = &*self.sets;
        let keep = |slots: core::ops::Range<usize>| {
            let of = blocks((slots.start as u64).saturating_mul(per), (slots.end as u64).saturating_mul(per));
            [&sets.dirty_vectors, &sets.writing].iter().any(|s| s.next(of.start).is_some_and(|b| b < of.end))
        };
        self.store.evict(bytes, protect, &keep).saturating_add(spare)
    }

    /// Gives codes for a scan the memory again that they had to give back, if all that is missing fits `room` bytes.
    pub fn allow_spare(&mut self, room: usize) {
        let absent = self
            .store
            .len()
            .saturating_mul(self.store.dim())
            .saturating_mul(4)
            .saturating_sub(self.store.resident_bytes());
        let index = self.index.get_mut();
        if index.spare_wanted(self.store.len()).is_some_and(|w| w.saturating_add(absent) <= room) {
            index.allow_spare();
        }
    }

    /// Bytes of memory that vectors take, and what may go as they may.
    pub fn vector_memory(&self) -> usize {
        self.store.resident_bytes().saturating_add(self.index.get().spare_memory())
    }
}
