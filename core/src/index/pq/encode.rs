// SPDX-License-Identifier: GPL-2.0-only
//! Codebooks and codes as bytes: [`PqHead`], the codebooks, then each member in order of slot ([`PqEntry`] and its
//! code).
//!
//! Loading believes nothing: any inconsistency means that all is made again from the vectors.

use super::super::kmeans::Matrix;
use super::Pq;
use crate::format::layout::layout;
use crate::index::{is_live, Bits, View};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// Version of the encoding.
pub(super) const VERSION: u32 = 1;
const MAGIC: u64 = u64::from_le_bytes(*b"VXpq\0\0\0\0");

layout! {
    /// Head of a stored PQ index, the byte string that an `INDEX` item describes. If it is trained, the codebooks of all
    /// subvectors follow, as f32: for each in panels of 16 centroids, element by element; then for each centroid half its
    /// squared norm. Subvector `j` of `n` begins at element `j * dim / n`, rounded down. Then the members.
    pub struct PqHead [64] {
        0 magic: u64 = "`VXpq`",
        8 version: u32 = "version of the encoding, 1",
        12 dim: u32 = "dimension",
        16 metric: u32 = "metric as in the schema",
        20 subvectors: u32 = "number of subvectors",
        24 cells: u32 = "centroids in a codebook: 16 or 256",
        28 reserved: u32 = "zero",
        32 seed: u64 = "seed of the training",
        40 members: u64 = "number of members",
        48 trained: u64 = "members when it was trained; 0: not trained, no codebooks and no codes",
        56 added: u64 = "inserts since it was trained",
    }
}

layout! {
    /// A member of a stored PQ index, in order of slots. If the index is trained, its code follows: a byte for each
    /// subvector, or (with 16 centroids) four bits, the lower ones first; the last byte is filled up with zeros.
    pub struct PqEntry [16] {
        0 slot: u32 = "slot of the vector",
        4 reserved: u32 = "zero",
        8 seq: u64 = "sequence number of the vector; if the slot has another, the member is left out",
    }
}

impl Pq {
    fn head(&self, view: &View<'_>) -> PqHead {
        PqHead {
            magic: MAGIC,
            version: VERSION,
            dim: view.store.dim() as u32,
            metric: view.metric as u32,
            subvectors: self.parts as u32,
            cells: self.cells as u32,
            reserved: 0,
            seed: self.seed,
            members: self.members,
            trained: self.trained,
            added: self.added,
        }
    }

    /// Bytes of a stored code, and of all stored codebooks.
    fn sizes(&self, trained: bool) -> Option<(usize, usize)> {
        if !trained {
            return Some((0, 0));
        }
        // The parts cover all elements, so the words of all codebooks are those of one, and a bias for each centroid.
        let words = self.cells.checked_mul(self.dim.checked_add(self.parts)?)?;
        Some((self.code_len(), words.checked_mul(4)?))
    }

    pub(super) fn bytes(&self, view: &View<'_>) -> Result<Vec<u8>, NoMemory> {
        let mut out = Vec::new();
        mem::resize(&mut out, PqHead::SIZE, 0)?;
        self.head(view).emit(&mut out);
        for b in &self.books {
            b.put(&mut out)?;
        }
        let each = PqEntry::SIZE.saturating_add(self.code_len());
        mem::reserve(&mut out, (self.members as usize).saturating_mul(each))?;
        for slot in (0..self.states.len() as u32).filter(|s| self.member(*s)) {
            let seq = view.store.head(slot as usize).map_or(0, |h| h.seq);
            let mut bytes = [0u8; PqEntry::SIZE];
            PqEntry { slot, reserved: 0, seq }.emit(&mut bytes);
            mem::extend(&mut out, &bytes)?;
            if !self.books.is_empty() {
                for b in 0..self.code_len() {
                    mem::push(&mut out, self.byte(slot, b))?;
                }
            }
        }
        Ok(out)
    }

    /// See `AnyIndex::load`.
    pub(in crate::index) fn load(
        &mut self,
        view: &View<'_>,
        version: u32,
        bytes: &[u8],
        bad: &Bits,
    ) -> Result<bool, NoMemory> {
        let mut fresh = self.empty();
        let good = version == VERSION && fresh.read(view, bytes, bad)?.is_some();
        *self = if good { fresh } else { self.empty() };
        Ok(good)
    }

    #[inline(never)] // keeps stack frames small
    fn read(&mut self, view: &View<'_>, bytes: &[u8], bad: &Bits) -> Result<Option<()>, NoMemory> {
        let Some(head) = PqHead::parse(bytes) else { return Ok(None) };
        let want = PqHead { members: head.members, trained: head.trained, added: head.added, ..self.head(view) };
        if head != want || head.members > view.store.len() as u64 {
            return Ok(None);
        }
        // The lengths have to add up before anything is allocated.
        let trained = head.trained != 0;
        let Some((code, books)) = self.sizes(trained) else { return Ok(None) };
        let each = PqEntry::SIZE.saturating_add(code);
        let entries = usize::try_from(head.members).ok().and_then(|n| n.checked_mul(each));
        let rest = bytes.get(PqHead::SIZE..).unwrap_or(&[]);
        if entries.and_then(|e| e.checked_add(books)) != Some(rest.len()) {
            return Ok(None);
        }
        let Some((mut books, entries)) = rest.split_at_checked(books) else { return Ok(None) };
        if trained {
            let mut all = Vec::new();
            for part in 0..self.parts {
                let dim = self.bound(part.saturating_add(1)).saturating_sub(self.bound(part));
                let len = Matrix::words(dim, self.cells).unwrap_or(usize::MAX).saturating_mul(4);
                let Some((now, later)) = books.split_at_checked(len) else { return Ok(None) };
                let Some(book) = Matrix::read(dim, self.cells, now)? else { return Ok(None) };
                mem::push(&mut all, book)?;
                books = later;
            }
            self.renew(all);
            self.restarted = false;
        }
        let mut least = 0u32;
        for b in entries.chunks_exact(each) {
            let (Some(e), Some(code)) = (PqEntry::parse(b), b.get(PqEntry::SIZE..)) else { return Ok(None) };
            let Some(slot) = view.store.head(e.slot as usize) else { return Ok(None) };
            if e.slot < least || e.reserved != 0 || e.seq == 0 {
                return Ok(None);
            }
            if self.cells == 16 && self.parts % 2 == 1 && code.last().is_some_and(|b| *b > 15) {
                return Ok(None);
            }
            least = e.slot.saturating_add(1);
            if is_live(slot) && slot.seq == e.seq && !bad.get(u64::from(e.slot)) {
                self.grow(e.slot)?;
                for (b, byte) in code.iter().enumerate() {
                    self.put(e.slot, b, *byte);
                }
                self.join(e.slot);
            }
        }
        (self.trained, self.added) = (head.trained, head.added);
        Ok(Some(()))
    }
}
