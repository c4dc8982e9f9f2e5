// SPDX-License-Identifier: GPL-2.0-only
//! Bringing a collection's state into memory from its streams, piece by piece. Believes nothing of them: what does not fit is
//! damaged, made anew or left aside.

use super::{blocks, vector_crc, Collection};
use crate::dist::admit;
use crate::env::Env;
use crate::error::Error;
use crate::format::{IndexRoot, Slot, SLOT_LIVE};
use crate::index::{is_live, Absent, View, SLOTS_MAX};

impl Collection {
    /// Announces [`load_vector_bytes`](Self::load_vector_bytes): what does not come then is damaged, not absent.
    pub fn expect_vectors(&mut self) {
        self.whole = true;
        self.sets.bad.reset();
        for slot in 0..self.slots() {
            if self.slot_head(slot).is_some_and(|h| h.seq != 0) {
                self.sets.bad.set(slot);
            }
        }
    }

    /// The next bytes of the slot stream, a multiple of 32.
    pub fn load_slots(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.len() % Slot::SIZE != 0 {
            return Err(Error::Invalid);
        }
        let start = self.store.len();
        let slots = start.saturating_add(bytes.len() / Slot::SIZE);
        if slots as u64 > SLOTS_MAX {
            return Err(Error::Corrupt);
        }
        self.grow_sets(slots as u64)?;
        self.store.extend_heads(slots)?;
        for (slot, b) in (start..slots).zip(bytes.chunks_exact(Slot::SIZE)) {
            let head = Slot::parse(b).ok_or(Error::Invalid)?;
            if let Some(h) = self.store.head_mut(slot) {
                *h = head;
            }
        }
        Ok(())
    }

    /// Bytes of the vector stream at `offset`, both multiples of 4. Pieces come in order of offset and may cut a vector;
    /// what is missing or damaged (pass zeros, or nothing) makes [`damaged`](Self::damaged) slots. After all slots and
    /// [`expect_vectors`](Self::expect_vectors).
    pub fn load_vector_bytes(&mut self, env: &Env, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        if offset % 4 != 0 || bytes.len() % 4 != 0 {
            return Err(Error::Invalid);
        }
        let dim = self.store.dim();
        let mut rest = bytes;
        let (first, mut at) = self.vector_place(offset);
        for slot in first..self.slots() {
            if rest.is_empty() {
                break;
            }
            let len = dim.saturating_sub(at).saturating_mul(4).min(rest.len());
            let (now, later) = rest.split_at_checked(len).ok_or(Error::Invalid)?;
            rest = later;
            self.store.vector_room(slot as usize)?;
            let row = self.store.vector_mut(slot as usize).ok_or(Error::Invalid)?;
            for (to, b) in row.iter_mut().skip(at).zip(now.chunks_exact(4)) {
                *to = u32::from_le_bytes(b.try_into().unwrap_or([0; 4]));
            }
            let whole = at.saturating_add(len / 4) == dim;
            if whole && self.sets.bad.get(slot) {
                let (head, row) = (self.store.head(slot as usize), self.store.vector(slot as usize));
                if head.zip(row).is_some_and(|(h, row)| self.is_sound(env, h, row)) {
                    self.sets.bad.clear(slot);
                }
            }
            at = 0;
        }
        Ok(())
    }

    /// Whether a vector is the one of this head, and one that could have been inserted.
    pub fn is_sound(&self, env: &Env, head: &Slot, words: &[u32]) -> bool {
        words.len() == self.store.dim()
            && vector_crc(env, words) == head.crc
            && admit(env.distance, self.metric, words) == Ok(head.inv_norm)
    }

    /// Makes the head of a slot again that a damaged block took along, from its record. `sound`: the vector's own
    /// blocks are good; otherwise it is reported as damaged. After all vectors; no effect on a slot that has a head.
    pub fn restore_slot(&mut self, env: &Env, slot: u64, id: u64, seq: u64, sound: bool) -> Result<(), Error> {
        if self.slot_head(slot).is_none_or(|h| h.seq != 0) || seq == 0 {
            return Ok(());
        }
        self.store.vector_room(slot as usize)?;
        let Some(words) = self.store.vector(slot as usize) else { return Ok(()) };
        let crc = vector_crc(env, words);
        let norm = admit(env.distance, self.metric, words);
        let good = sound && norm.is_ok();
        let head = Slot { id, seq, inv_norm: norm.unwrap_or(0), flags: SLOT_LIVE, crc: if good { crc } else { !crc } };
        if !good {
            self.sets.bad.set(slot);
        }
        if let Some(h) = usize::try_from(slot).ok().and_then(|s| self.store.head_mut(s)) {
            *h = head;
        }
        self.sets.dirty_slots.set(blocks(slot.saturating_mul(Slot::SIZE as u64), u64::MAX).start);
        Ok(())
    }

    /// Ends loading, with the persisted index if there is one. An index that is damaged, of another kind or version
    /// is left aside: all live slots are then pending.
    pub fn load_index(&mut self, env: &Env, index: Option<(&IndexRoot, &[u8])>) -> Result<(), Error> {
        let used = self.store.heads().enumerate().filter(|(_, h)| h.seq != 0).map(|(i, _)| i).last();
        self.store.truncate(used.map_or(0, |i| i.saturating_add(1)));
        // Otherwise no page is there, and it comes from the device.
        if !self.whole {
            self.store.all_stored();
        }
        self.moment.newest = self.store.heads().map(|h| h.seq).max().unwrap_or(0);
        let s = &mut *self.sets;
        for set in [&mut s.searchable, &mut s.pending, &mut s.damaged, &mut s.free] {
            set.reset();
        }
        self.ids.clear();
        for slot in 0..self.slots() {
            self.admit_slot(slot)?;
        }
        if let Some((root, bytes)) = index {
            let whole = bytes.get(..usize::try_from(root.len).unwrap_or(usize::MAX));
            let sound = whole.filter(|b| root.kind == self.index.kind() && (env.crc32c)(0, b) == root.crc);
            if let Some(b) = sound {
                let absent = Absent::new(0);
                let view = View { store: &self.store, metric: self.metric, absent: &absent };
                self.index.load(&view, env.distance, root.version, b, &self.sets.bad)?;
            }
        }
        self.sort_slots();
        self.sets.bad.reset();
        self.changes = 0;
        Ok(())
    }

    /// Enters a loaded slot as live or damaged.
    fn admit_slot(&mut self, slot: u64) -> Result<(), Error> {
        let Some(head) = self.slot_head(slot).copied().filter(is_live) else { return Ok(()) };
        // Two slots of one id never come from this code; the newer vector counts.
        if let Some(other) = self.slot_of(head.id) {
            let newer = self.slot_head(other).is_some_and(|o| o.seq > head.seq);
            let loser = if newer { slot } else { other };
            if let Some(h) = self.store.head_mut(loser as usize) {
                h.flags &= !SLOT_LIVE;
            }
            self.sets.searchable.clear(loser);
            self.sets.damaged.clear(loser);
            self.sets.dirty_slots.set(blocks(loser.saturating_mul(Slot::SIZE as u64), u64::MAX).start);
            if newer {
                return Ok(());
            }
        }
        self.ids.insert(head.id, slot)?;
        if self.sets.bad.get(slot) {
            self.sets.damaged.set(slot);
        } else {
            self.sets.searchable.set(slot);
        }
        Ok(())
    }
}
