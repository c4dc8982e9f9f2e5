// SPDX-License-Identifier: GPL-2.0-only
//! Inverted lists as bytes: [`IvfHead`], the centroids, then each member in order of slot ([`IvfEntry`]).
//!
//! Loading believes nothing: any inconsistency means that the lists are built again from the vectors.

use super::super::kmeans::Matrix;
use super::Ivf;
use crate::format::layout::layout;
use crate::index::{is_live, Bits, View};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// Version of the encoding.
pub(super) const VERSION: u32 = 2;
const MAGIC: u64 = u64::from_le_bytes(*b"VXivf\0\0\0");

layout! {
    /// Head of a stored IVF index, the byte string that an `INDEX` item describes. If there are lists, their centroids
    /// follow as f32: in panels of 16 lists, dimension by dimension; then for each list half the squared norm of its
    /// centroid (both filled up with zeros to a multiple of 16 lists). Then the members.
    pub struct IvfHead [64] {
        0 magic: u64 = "`VXivf`",
        8 version: u32 = "version of the encoding, 2",
        12 dim: u32 = "dimension",
        16 metric: u32 = "metric as in the schema",
        20 wanted: u32 = "number of lists as in the schema",
        24 lists: u32 = "number of lists; 0: not trained, no centroids",
        28 reserved: u32 = "zero",
        32 seed: u64 = "seed of the training",
        40 members: u64 = "number of members",
        48 trained: u64 = "members when it was trained; 0: not trained",
        56 added: u64 = "inserts since it was trained",
    }
}

layout! {
    /// A member of a stored IVF index, in order of slots. If the dimension is 48 or more, the vector's codes follow, as in a
    /// stored HNSW index.
    pub struct IvfEntry [16] {
        0 slot: u32 = "slot of the vector",
        4 list: u32 = "its list",
        8 seq: u64 = "sequence number of the vector; if the slot has another, the member is left out",
    }
}

/// Bytes of a member with `stride` words of codes.
fn entry_bytes(stride: usize) -> usize {
    IvfEntry::SIZE.saturating_add(stride.saturating_mul(4))
}

impl Ivf {
    fn head(&self, view: &View<'_>) -> IvfHead {
        IvfHead {
            magic: MAGIC,
            version: VERSION,
            dim: view.store.dim() as u32,
            metric: view.metric as u32,
            wanted: self.wanted,
            lists: self.centroids.as_ref().map_or(0, |m| m.columns() as u32),
            reserved: 0,
            seed: self.seed,
            members: self.members,
            trained: self.trained,
            added: self.added,
        }
    }

    pub(super) fn bytes(&self, view: &View<'_>) -> Result<Vec<u8>, NoMemory> {
        let mut out = Vec::new();
        let stride = Ivf::stride(view.store.dim());
        let entries = (self.members as usize).saturating_mul(entry_bytes(stride));
        mem::reserve(&mut out, IvfHead::SIZE.saturating_add(entries))?;
        mem::resize(&mut out, IvfHead::SIZE, 0)?;
        self.head(view).emit(&mut out);
        if let Some(m) = &self.centroids {
            m.put(&mut out)?;
        }
        for (slot, list) in (0u32..).zip(&self.list_of) {
            let Some(list) = list.checked_sub(1) else { continue };
            let seq = view.store.head(slot as usize).map_or(0, |h| h.seq);
            let mut bytes = [0u8; IvfEntry::SIZE];
            IvfEntry { slot, list, seq }.emit(&mut bytes);
            mem::extend(&mut out, &bytes)?;
            for word in self.codes(slot, stride) {
                mem::extend(&mut out, &word.to_le_bytes())?;
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
        let mut fresh = Ivf::new(self.wanted, self.seed);
        let good = version == VERSION && fresh.read(view, bytes, bad)?.is_some();
        *self = if good { fresh } else { Ivf::new(self.wanted, self.seed) };
        Ok(good)
    }

    #[inline(never)] // keeps stack frames small
    fn read(&mut self, view: &View<'_>, bytes: &[u8], bad: &Bits) -> Result<Option<()>, NoMemory> {
        let Some(head) = IvfHead::parse(bytes) else { return Ok(None) };
        let want = IvfHead {
            lists: head.lists,
            members: head.members,
            trained: head.trained,
            added: head.added,
            ..self.head(view)
        };
        let untrained = head.lists == 0;
        if head != want || head.members > view.store.len() as u64 || untrained != (head.trained == 0) {
            return Ok(None);
        }
        if head.wanted != 0 && head.lists > head.wanted {
            return Ok(None);
        }
        // The lengths have to add up before anything is allocated.
        let columns = head.lists as usize;
        let dim = view.store.dim();
        let centroids = if untrained { Some(0) } else { Matrix::words(dim, columns).and_then(|w| w.checked_mul(4)) };
        let stride = Ivf::stride(dim);
        let entries = usize::try_from(head.members).ok().and_then(|n| n.checked_mul(entry_bytes(stride)));
        let (Some(centroids), Some(entries)) = (centroids, entries) else { return Ok(None) };
        let rest = bytes.get(IvfHead::SIZE..).unwrap_or(&[]);
        if centroids.checked_add(entries) != Some(rest.len()) {
            return Ok(None);
        }
        let Some((centroids, entries)) = rest.split_at_checked(centroids) else { return Ok(None) };
        if !untrained {
            let Some(m) = Matrix::read(dim, columns, centroids)? else { return Ok(None) };
            self.renew(m)?;
            self.restarted = false;
        }
        let lists = head.lists.max(1);
        let mut least = 0u32;
        let mut codes = mem::filled(stride, 0u32)?;
        for b in entries.chunks_exact(entry_bytes(stride)) {
            let Some(e) = IvfEntry::parse(b) else { return Ok(None) };
            let Some(slot) = view.store.head(e.slot as usize) else { return Ok(None) };
            if e.slot < least || e.list >= lists || e.seq == 0 {
                return Ok(None);
            }
            least = e.slot.saturating_add(1);
            if is_live(slot) && slot.seq == e.seq && !bad.get(u64::from(e.slot)) {
                let bytes = b.get(IvfEntry::SIZE..).unwrap_or(&[]);
                for (to, b) in codes.iter_mut().zip(bytes.chunks_exact(4)) {
                    *to = u32::from_le_bytes(b.try_into().unwrap_or([0; 4]));
                }
                self.join(e.slot, e.list, &codes)?;
            }
        }
        (self.trained, self.added) = (head.trained, head.added);
        Ok(Some(()))
    }
}
