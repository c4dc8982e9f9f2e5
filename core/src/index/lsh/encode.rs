// SPDX-License-Identifier: GPL-2.0-only
//! Hash tables as bytes: [`LshHead`], then each member in order of slot ([`LshEntry`] and its codes). The hash
//! functions come from the seed, the buckets from the codes.
//!
//! Loading believes nothing: any inconsistency means that the tables are made again from the vectors.

use super::{Lsh, Shape};
use crate::dist::Distance;
use crate::format::layout::layout;
use crate::index::{is_live, Bits, View};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// Version of the encoding.
pub(super) const VERSION: u32 = 2;
const MAGIC: u64 = u64::from_le_bytes(*b"VXlsh\0\0\0");

layout! {
    /// Head of a stored LSH index, the byte string that an `INDEX` item describes. For each bit of each table an f32
    /// follows: what is added to minus the product with its direction. Then the members.
    pub struct LshHead [64] {
        0 magic: u64 = "`VXlsh`",
        8 version: u32 = "version of the encoding, 2",
        12 dim: u32 = "dimension",
        16 metric: u32 = "metric as in the schema",
        20 tables: u32 = "number of tables; 0: not made yet, no codes",
        24 bits: u32 = "bits of a code, at most 32",
        28 unit: u32 = "l2: f32 factor by which most products differ by at most 32768; 0 if they are all the same, and for other metrics",
        32 seed: u64 = "seed of the hash functions",
        40 members: u64 = "number of members",
        48 trained: u64 = "members when the tables were made; 0: not made yet",
        56 added: u64 = "inserts since they were made",
    }
}

layout! {
    /// A member of a stored LSH index, in order of slots. Its code follows: the bits of all tables in order, in u32 words, the
    /// lowest bit first; the last word is filled up with zeros.
    pub struct LshEntry [16] {
        0 slot: u32 = "slot of the vector",
        4 reserved: u32 = "zero",
        8 seq: u64 = "sequence number of the vector; if the slot has another, the member is left out",
    }
}

impl Lsh {
    fn head(&self, view: &View<'_>) -> LshHead {
        LshHead {
            magic: MAGIC,
            version: VERSION,
            dim: view.store.dim() as u32,
            metric: view.metric as u32,
            tables: self.shape.tables,
            bits: self.shape.bits,
            unit: self.shape.unit,
            seed: self.seed,
            members: self.members,
            trained: self.trained,
            added: self.added,
        }
    }

    /// Bytes of a stored code and of the biases.
    fn sizes(shape: &Shape) -> (usize, usize) {
        let columns = (shape.tables as usize).saturating_mul(shape.bits as usize);
        (columns.div_ceil(32).saturating_mul(4), columns.saturating_mul(4))
    }

    pub(super) fn bytes(&self, view: &View<'_>) -> Result<Vec<u8>, NoMemory> {
        let mut out = Vec::new();
        let each = LshEntry::SIZE.saturating_add(Lsh::sizes(&self.shape).0);
        mem::reserve(&mut out, (self.members as usize).saturating_mul(each).saturating_add(LshHead::SIZE))?;
        mem::resize(&mut out, LshHead::SIZE, 0)?;
        self.head(view).emit(&mut out);
        if let Some(m) = &self.planes {
            for w in m.bias.iter().take(m.columns()) {
                mem::extend(&mut out, &w.to_le_bytes())?;
            }
        }
        for slot in (0..self.states.len() as u32).filter(|s| self.member(*s)) {
            let seq = view.store.head(slot as usize).map_or(0, |h| h.seq);
            let mut bytes = [0u8; LshEntry::SIZE];
            LshEntry { slot, reserved: 0, seq }.emit(&mut bytes);
            mem::extend(&mut out, &bytes)?;
            for w in self.code(slot) {
                mem::extend(&mut out, &w.to_le_bytes())?;
            }
        }
        Ok(out)
    }

    /// See `AnyIndex::load`.
    pub(in crate::index) fn load(
        &mut self,
        view: &View<'_>,
        kernels: &dyn Distance,
        version: u32,
        bytes: &[u8],
        bad: &Bits,
    ) -> Result<bool, NoMemory> {
        let mut fresh = self.empty();
        let good = version == VERSION && fresh.read(view, kernels, bytes, bad)?.is_some();
        *self = if good { fresh } else { self.empty() };
        Ok(good)
    }

    #[inline(never)] // keeps stack frames small
    fn read(
        &mut self,
        view: &View<'_>,
        kernels: &dyn Distance,
        bytes: &[u8],
        bad: &Bits,
    ) -> Result<Option<()>, NoMemory> {
        let Some(head) = LshHead::parse(bytes) else { return Ok(None) };
        let shape = Shape { tables: head.tables, bits: head.bits, unit: head.unit };
        let want = LshHead {
            tables: head.tables,
            bits: head.bits,
            unit: head.unit,
            members: head.members,
            trained: head.trained,
            added: head.added,
            ..self.head(view)
        };
        if head != want || head.members > view.store.len() as u64 || !self.plausible(view, &head) {
            return Ok(None);
        }
        let (code, bias) = Lsh::sizes(&shape);
        let each = LshEntry::SIZE.saturating_add(code);
        let Some((bias, rest)) = bytes.get(LshHead::SIZE..).and_then(|b| b.split_at_checked(bias)) else {
            return Ok(None);
        };
        if usize::try_from(head.members).ok().and_then(|n| n.checked_mul(each)) != Some(rest.len()) {
            return Ok(None);
        }
        if shape.tables != 0 {
            let mut planes = self.directions(kernels, shape.tables, shape.bits)?;
            for (to, b) in planes.bias.iter_mut().zip(bias.chunks_exact(4)) {
                *to = u32::from_le_bytes(b.try_into().unwrap_or([0xff; 4]));
                if *to & 0x7f80_0000 == 0x7f80_0000 {
                    return Ok(None);
                }
            }
            self.renew(planes, shape)?;
            self.restarted = false;
        }
        let mut least = 0u32;
        let mut code = Vec::new();
        // Bits of the last word that belong to no table.
        let used = (shape.tables as usize).saturating_mul(shape.bits as usize) % 32;
        let beyond = if used == 0 { 0 } else { u32::MAX << used };
        for b in rest.chunks_exact(each) {
            let (Some(e), Some(words)) = (LshEntry::parse(b), b.get(LshEntry::SIZE..)) else { return Ok(None) };
            let Some(slot) = view.store.head(e.slot as usize) else { return Ok(None) };
            if e.slot < least || e.reserved != 0 || e.seq == 0 {
                return Ok(None);
            }
            least = e.slot.saturating_add(1);
            code.clear();
            for w in words.chunks_exact(4) {
                mem::push(&mut code, u32::from_le_bytes(w.try_into().unwrap_or([0; 4])))?;
            }
            if code.last().is_some_and(|w| w & beyond != 0) {
                return Ok(None);
            }
            if is_live(slot) && slot.seq == e.seq && !bad.get(u64::from(e.slot)) {
                self.grow(e.slot)?;
                self.join(e.slot, &code);
            }
        }
        (self.trained, self.added) = (head.trained, head.added);
        Ok(Some(()))
    }

    /// Whether the shape is one that this schema can have.
    fn plausible(&self, view: &View<'_>, head: &LshHead) -> bool {
        let l2 = view.metric == crate::dist::Metric::L2;
        if head.tables == 0 {
            return head.bits == 0 && head.unit == 0 && head.trained == 0;
        }
        // By default both are chosen by count: as few tables and as many bits as there may be.
        let tables = if self.wanted.0 == 0 { 1..=super::TABLES_DEFAULT } else { self.wanted.0..=self.wanted.0 };
        let bits = if self.wanted.1 == 0 { 4..=20 } else { self.wanted.1..=self.wanted.1 };
        // All products the same: there is no unit.
        let unit = head.unit == 0 || (l2 && super::widen(head.unit) != 0);
        tables.contains(&head.tables) && bits.contains(&head.bits) && unit && head.trained != 0
    }
}
