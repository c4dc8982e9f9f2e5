// SPDX-License-Identifier: GPL-2.0-only
//! The exact scan: the flat index, and what every other index falls back on. Reports the true nearest, ties by
//! lower id.

use super::{Bits, Gate, Heap, Index, IndexInfo, Inserted, Marks, Probe, Scratch, View};
use crate::dist::{Batch, Meter, Query, BATCH};
use crate::error::{Error, Step};
use crate::mem::NoMemory;
use alloc::vec::Vec;

/// The nearest so far: (key, id, slot), the farthest on top.
#[derive(Debug, Default)]
pub struct Best {
    heap: Heap<(u64, u64, u32)>,
    k: usize,
    radius: u64,
}

impl Best {
    /// Without memory yet.
    pub const fn new() -> Best {
        Best { heap: Heap::new(), k: 0, radius: u64::MAX }
    }

    /// Starts to collect the `k` nearest with a key of at most `radius`.
    pub fn begin(&mut self, k: usize, radius: Option<u64>) {
        self.heap.clear();
        self.k = k;
        self.radius = radius.unwrap_or(u64::MAX);
    }

    /// Number collected.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Whether such a record would be among them.
    pub fn wants(&self, key: u64, id: u64) -> bool {
        if key > self.radius || self.k == 0 {
            return false;
        }
        self.heap.len() < self.k || self.heap.peek().is_some_and(|(k, i, _)| (key, id) < (*k, *i))
    }

    /// Adds a record if it is among them.
    pub fn offer(&mut self, key: u64, id: u64, slot: u32) -> Result<(), NoMemory> {
        if !self.wants(key, id) {
            return Ok(());
        }
        if self.heap.len() < self.k {
            return self.heap.push((key, id, slot));
        }
        self.heap.replace_top((key, id, slot));
        Ok(())
    }

    /// All, nearest first.
    pub fn sorted(&mut self) -> &[(u64, u64, u32)] {
        self.heap.sorted()
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.heap.memory()
    }
}

/// Measures the slots of `slots` and offers those that pass to `best`.
pub fn scan(
    view: &View<'_>,
    query: &Query<'_>,
    slots: &Bits,
    meter: &mut Meter<'_>,
    gate: &mut Gate<'_, '_>,
    marks: &mut Marks,
    best: &mut Best,
) -> Step<()> {
    let mut batch = Batch::new(view.store.dim());
    let mut ids = [0u32; BATCH];
    let mut members = slots.iter(0);
    loop {
        let next = members.next();
        if let Some(slot) = next.and_then(|s| u32::try_from(s).ok()) {
            if let (Some((words, inv_norm)), Some(id)) = (view.row(slot), ids.get_mut(batch.len())) {
                if batch.push(words, inv_norm) {
                    *id = slot;
                }
            }
        }
        if batch.is_full() || next.is_none() {
            settle(view, query, &batch, &ids, meter, gate, marks, best)?;
            batch.clear();
        }
        if next.is_none() {
            return Ok(());
        }
    }
}

#[allow(clippy::too_many_arguments)] // the state of one search, split so that each part is borrowed alone
fn settle(
    view: &View<'_>,
    query: &Query<'_>,
    batch: &Batch<'_>,
    ids: &[u32; BATCH],
    meter: &mut Meter<'_>,
    gate: &mut Gate<'_, '_>,
    marks: &mut Marks,
    best: &mut Best,
) -> Step<()> {
    let mut keys = [u64::MAX; BATCH];
    meter.many(query, batch, &mut keys);
    for (slot, key) in ids.iter().zip(keys).take(batch.len()) {
        let Some(head) = view.store.head(*slot as usize) else { continue };
        // Measure first, ask the filter last: it may have to read the volume.
        if best.wants(key, head.id) && gate.pass(marks, *slot, head)? {
            best.offer(key, head.id, *slot)?;
        }
    }
    Ok(())
}

/// No structure at all: every search is a scan.
#[derive(Clone, Copy, Debug)]
pub struct Flat;

impl Index for Flat {
    fn version(&self) -> u32 {
        0
    }
    fn holds(&self, _: u32) -> bool {
        false
    }
    fn finds(&self, _: u32) -> bool {
        true
    }
    fn insert(&mut self, _: &View<'_>, _: &mut Meter<'_>, _: &mut Scratch, _: u32) -> Result<Inserted, Error> {
        Ok(Inserted::Yes)
    }
    fn remove(&mut self, _: u32) {}
    fn overwritten(&mut self, _: u32) {}
    fn needs_maintenance(&self) -> bool {
        false
    }
    fn maintain(
        &mut self,
        _: &View<'_>,
        _: &mut Meter<'_>,
        _: &mut Scratch,
        _: usize,
        _: &mut dyn FnMut(u32),
    ) -> Result<(), Error> {
        Ok(())
    }
    fn nearest(
        &self,
        _: &View<'_>,
        _: &Probe<'_, '_>,
        _: &mut Meter<'_>,
        _: &mut Gate<'_, '_>,
        _: &mut Scratch,
        _: &mut u64,
    ) -> Step<bool> {
        Ok(false)
    }
    fn encode(&self, _: &View<'_>) -> Result<Option<Vec<u8>>, NoMemory> {
        Ok(None)
    }
    fn info(&self) -> IndexInfo {
        IndexInfo::default()
    }
    fn memory(&self) -> usize {
        0
    }
}
