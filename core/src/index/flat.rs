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

    /// The largest key that a record among them could have.
    pub fn bar(&self) -> u64 {
        match self.heap.peek() {
            _ if self.k == 0 => 0,
            Some((key, ..)) if self.heap.len() >= self.k => self.radius.min(*key),
            _ => self.radius,
        }
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

/// Measures the slots of `slots` and offers those that pass to `best`. Lower bounds of the distances come first, at a
/// fraction of the cost; what they do not rule out is measured with the canonical kernel. So the answer is that of the
/// canonical kernel alone.
pub fn scan(
    view: &View<'_>,
    query: &Query<'_>,
    slots: &Bits,
    meter: &mut Meter<'_>,
    gate: &mut Gate<'_, '_>,
    marks: &mut Marks,
    best: &mut Best,
) -> Step<()> {
    let mut near = Rows::new(view);
    let mut members = slots.iter(0);
    loop {
        let next = members.next();
        if let Some(slot) = next.and_then(|s| u32::try_from(s).ok()) {
            near.push(view, slot);
        }
        if near.batch.is_full() || next.is_none() {
            filter(view, query, &near, meter, gate, marks, best)?;
            near.batch.clear();
        }
        if next.is_none() {
            return Ok(());
        }
    }
}

/// A batch with the slots of its rows.
struct Rows<'a> {
    batch: Batch<'a>,
    slots: [u32; BATCH],
}

impl<'a> Rows<'a> {
    fn new(view: &View<'a>) -> Rows<'a> {
        Rows { batch: Batch::new(view.store.dim()), slots: [0; BATCH] }
    }

    fn push(&mut self, view: &View<'a>, slot: u32) {
        if let (Some((words, inv_norm)), Some(place)) = (view.row(slot), self.slots.get_mut(self.batch.len())) {
            if self.batch.push(words, inv_norm) {
                *place = slot;
            }
        }
    }
}

/// Measures those of `rows` whose lower bound could be among the best.
#[inline(never)] // keeps stack frames small
fn filter(
    view: &View<'_>,
    query: &Query<'_>,
    rows: &Rows<'_>,
    meter: &mut Meter<'_>,
    gate: &mut Gate<'_, '_>,
    marks: &mut Marks,
    best: &mut Best,
) -> Step<()> {
    if best.bar() == u64::MAX {
        // Everything is wanted.
        return settle(view, query, rows, meter, gate, marks, best);
    }
    let mut bounds = [0u64; BATCH];
    meter.bounds(query, &rows.batch, &mut bounds);
    if bounds.iter().take(rows.batch.len()).all(|b| *b > best.bar()) {
        return Ok(());
    }
    let mut near = Rows::new(view);
    for (slot, bound) in rows.slots.iter().zip(bounds).take(rows.batch.len()) {
        if bound <= best.bar() {
            near.push(view, *slot);
        }
    }
    settle(view, query, &near, meter, gate, marks, best)
}

#[inline(never)] // keeps stack frames small
fn settle(
    view: &View<'_>,
    query: &Query<'_>,
    rows: &Rows<'_>,
    meter: &mut Meter<'_>,
    gate: &mut Gate<'_, '_>,
    marks: &mut Marks,
    best: &mut Best,
) -> Step<()> {
    let mut keys = [u64::MAX; BATCH];
    meter.many(query, &rows.batch, &mut keys);
    for (slot, key) in rows.slots.iter().zip(keys).take(rows.batch.len()) {
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
