// SPDX-License-Identifier: GPL-2.0-only
//! The exact scan: the flat index, and what every other index falls back on. Reports the true nearest, ties by
//! lower id.

use super::sift::GROUP;
use super::{Accept, Bits, Codes, Gate, Heap, Index, IndexInfo, Inserted, Probe, Scratch, View};
use crate::dist::{sieve_bytes, Batch, Distance, Meter, Query, Sieve, Stays, BATCH, SIFT_PANELS, SIFT_ROWS};
use crate::error::{Error, Step};
use crate::mem::{self, NoMemory};
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

    /// Whether the record of the slot is among those collected. Looks at all of them.
    pub fn has(&self, slot: u32) -> bool {
        self.heap.items().iter().any(|x| x.2 == slot)
    }

    /// Drops those for whose slot and id `stays` is false; says whether there were any.
    pub fn retain(&mut self, stays: impl Fn(u32, u64) -> bool) -> bool {
        let before = self.heap.len();
        self.heap.retain(|x| stays(x.2, x.1));
        self.heap.len() < before
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

/// One of the queries of a scan.
#[derive(Debug)]
pub struct Seeker<'a> {
    /// The query.
    pub query: Query<'a>,
    /// What was found so far.
    pub best: &'a mut Best,
    /// Distances computed for it.
    pub distances: &'a mut u64,
}

/// Vectors in the memory of a reading ahead when a scan stops for an absent one.
const AHEAD_BYTES: usize = 4 << 20;

/// Measures `slots` from `*at` on for all `seekers` and offers those that pass. Lower bounds of the distances come first,
/// at a fraction of the cost; what they do not rule out is measured with the canonical kernel. So the answer is that of
/// the canonical kernel alone. False: it stopped at an absent vector, and is to be called again with the same `at`, which
/// says how far it came (also if `accept` stops it). `repeats`: in so many of the first batches there may be vectors that were
/// offered before.
pub fn scan(
    view: &View<'_>,
    seekers: &mut [Seeker<'_>],
    slots: &mut dyn Iterator<Item = u32>,
    kernels: &dyn Distance,
    accept: &mut Option<&mut Accept<'_>>,
    at: &mut u64,
    repeats: usize,
) -> Step<bool> {
    let mut rows = Rows::new(view);
    let mut repeats = repeats;
    let mut stopped = false;
    loop {
        let next = if stopped { None } else { slots.next() };
        if let Some(slot) = next {
            if !rows.push(view, slot) && view.absent.any() {
                view.store.note_absent(view.absent, slot as usize, AHEAD_BYTES);
                stopped = true;
            }
        }
        if rows.batch.is_full() || stopped || next.is_none() {
            for s in seekers.iter_mut() {
                let mut meter = Meter::new(kernels);
                let done = filter(view, s, &rows, &mut meter, accept, repeats > 0);
                *s.distances = s.distances.saturating_add(meter.count);
                done?;
            }
            if let Some(last) = rows.batch.len().checked_sub(1).and_then(|i| rows.slots.get(i)) {
                *at = u64::from(*last).saturating_add(1);
            }
            repeats = repeats.saturating_sub(1);
            rows.batch.clear();
        }
        if stopped || next.is_none() {
            return Ok(!stopped);
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

    fn push(&mut self, view: &View<'a>, slot: u32) -> bool {
        if let (Some((words, inv_norm)), Some(place)) = (view.row(slot), self.slots.get_mut(self.batch.len())) {
            if self.batch.push(words, inv_norm) {
                *place = slot;
                return true;
            }
        }
        false
    }
}

/// Measures those of `rows` whose lower bound could be among the best.
#[inline(never)] // keeps stack frames small
fn filter(
    view: &View<'_>,
    seeker: &mut Seeker<'_>,
    rows: &Rows<'_>,
    meter: &mut Meter<'_>,
    accept: &mut Option<&mut Accept<'_>>,
    again: bool,
) -> Step<()> {
    if seeker.best.bar() == u64::MAX {
        // Everything is wanted.
        return settle(view, seeker, rows, meter, accept, again);
    }
    let mut bounds = [0u64; BATCH];
    meter.bounds(&seeker.query, &rows.batch, &mut bounds);
    if bounds.iter().take(rows.batch.len()).all(|b| *b > seeker.best.bar()) {
        return Ok(());
    }
    let mut near = Rows::new(view);
    for (slot, bound) in rows.slots.iter().zip(bounds).take(rows.batch.len()) {
        if bound <= seeker.best.bar() {
            near.push(view, *slot);
        }
    }
    settle(view, seeker, &near, meter, accept, again)
}

#[inline(never)] // keeps stack frames small
fn settle(
    view: &View<'_>,
    seeker: &mut Seeker<'_>,
    rows: &Rows<'_>,
    meter: &mut Meter<'_>,
    accept: &mut Option<&mut Accept<'_>>,
    again: bool,
) -> Step<()> {
    let mut keys = [u64::MAX; BATCH];
    meter.many(&seeker.query, &rows.batch, &mut keys);
    for (slot, key) in rows.slots.iter().zip(keys).take(rows.batch.len()) {
        let Some(head) = view.store.head(*slot as usize) else { continue };
        if !seeker.best.wants(key, head.id) || (again && seeker.best.has(*slot)) {
            continue;
        }
        // Measure first, ask the filter last: it may have to read the volume.
        let passes = match accept {
            Some(f) => f(u64::from(*slot), head)?,
            None => true,
        };
        if passes {
            seeker.best.offer(key, head.id, *slot)?;
        }
    }
    Ok(())
}

/// Queries that are sifted with in one call: the time that a kernel does not preempt.
const SIEVES: usize = 15;

/// As [`scan`] of the members of `slots` from `*at` on, for those with codes over the codes first: what these do not rule out is
/// measured as there. Goes by groups of 64 slots, for all seekers before the next; one at which it stopped is done again,
/// so `again` says whether some may have been offered before.
#[allow(clippy::too_many_arguments)] // the state of one scan
#[inline(never)] // keeps stack frames small
pub fn scan_coded(
    view: &View<'_>,
    codes: &Codes,
    seekers: &mut [Seeker<'_>],
    slots: &Bits,
    kernels: &dyn Distance,
    accept: &mut Option<&mut Accept<'_>>,
    at: &mut u64,
    again: bool,
) -> Step<bool> {
    let len = sieve_bytes(view.store.dim());
    let mut bytes = mem::filled(len.saturating_mul(seekers.len()), 0u8)?;
    let mut sieves = Vec::new();
    mem::reserve(&mut sieves, seekers.len())?;
    for (s, to) in seekers.iter().zip(bytes.chunks_exact_mut(len.max(1))) {
        mem::push(&mut sieves, kernels.sieve(&s.query, to).ok_or(Error::Invalid)?)?;
    }
    while let Some(next) = slots.next(*at) {
        let group = next as usize / GROUP;
        let first = group.saturating_mul(GROUP) as u64;
        // What is before the place of the scan was done.
        let behind = u64::MAX.wrapping_shl((*at).max(first).wrapping_sub(first) as u32 & 63);
        let wanted = slots.word(group) & behind;
        let coded = wanted & codes.valid(group);
        if coded != 0 {
            let mut rest = seekers.iter_mut();
            for some in sieves.chunks_mut(SIEVES) {
                sift(view, codes, (group, coded), &mut rest, some, kernels, accept, again)?;
            }
        }
        if wanted != coded {
            let mut others = Ones(wanted & !coded, first);
            scan(view, seekers, &mut others, kernels, accept, &mut 0, if again { usize::MAX } else { 0 })?;
        }
        if view.absent.any() {
            view.store.note_absent(view.absent, next as usize, AHEAD_BYTES);
            return Ok(false);
        }
        *at = first.saturating_add(GROUP as u64);
    }
    Ok(true)
}

/// The slots of a group, as bits and the number of the first.
struct Ones(u64, u64);

impl Iterator for Ones {
    type Item = u32;
    fn next(&mut self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let slot = self.1.saturating_add(u64::from(self.0.trailing_zeros()));
        self.0 &= self.0.wrapping_sub(1);
        Some(slot as u32)
    }
}

/// Sifts the slots `coded` of a group for as many seekers as there are sieves, and measures what stays.
#[allow(clippy::too_many_arguments)] // the state of one scan
#[inline(never)] // keeps stack frames small
fn sift<'s, 'q: 's>(
    view: &View<'_>,
    codes: &Codes,
    (group, coded): (usize, u64),
    seekers: &mut dyn Iterator<Item = &'s mut Seeker<'q>>,
    sieves: &mut [Sieve<'_>],
    kernels: &dyn Distance,
    accept: &mut Option<&mut Accept<'_>>,
    again: bool,
) -> Step<()> {
    let (panels, numbers) = codes.panels(group, coded);
    let mut stays: [Stays; SIEVES] = [[u16::MAX; SIFT_PANELS]; SIEVES];
    kernels.sift(view.metric, &panels, sieves, &mut stays);
    for (stays, sieve) in stays.iter().zip(sieves) {
        let Some(seeker) = seekers.next() else { return Ok(()) };
        *seeker.distances = seeker.distances.saturating_add(u64::from(coded.count_ones()));
        let mut left = 0u64;
        for (stays, number) in stays.iter().zip(numbers).take(panels.len()) {
            left |= u64::from(*stays).wrapping_shl(number.wrapping_mul(SIFT_ROWS as u32));
        }
        if left & coded != 0 {
            let mut ones = Ones(left & coded, (group as u64).saturating_mul(GROUP as u64));
            measure(view, seeker, &mut ones, kernels, accept, again)?;
            sieve.limit(seeker.best.bar());
        }
    }
    Ok(())
}

/// Measures slots for one seeker. Absent ones are noted.
#[inline(never)] // keeps stack frames small
fn measure(
    view: &View<'_>,
    seeker: &mut Seeker<'_>,
    slots: &mut Ones,
    kernels: &dyn Distance,
    accept: &mut Option<&mut Accept<'_>>,
    again: bool,
) -> Step<()> {
    let mut meter = Meter::new(kernels);
    let mut rows = Rows::new(view);
    let mut done = Ok(());
    while done.is_ok() {
        let next = slots.next();
        if let Some(slot) = next {
            rows.push(view, slot);
        }
        if rows.batch.is_full() || next.is_none() {
            done = filter(view, seeker, &rows, &mut meter, accept, again);
            rows.batch.clear();
        }
        if next.is_none() {
            break;
        }
    }
    *seeker.distances = seeker.distances.saturating_add(meter.count);
    done
}

/// No structure but codes that make a scan quicker: every search is a scan.
#[derive(Debug)]
pub struct Flat {
    codes: Codes,
}

/// Groups whose codes are made for the cost of one insert into a graph.
const CODED_AT_ONCE: usize = 2;

impl Flat {
    /// Without codes yet.
    pub fn new(dim: u32) -> Flat {
        Flat { codes: Codes::new(dim as usize) }
    }
}

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
    fn overwritten(&mut self, slot: u32) {
        self.codes.changed(slot as usize..(slot as usize).saturating_add(1));
    }
    fn arrived(&mut self, slots: core::ops::Range<usize>) {
        self.codes.changed(slots);
    }
    fn codes(&self) -> Option<&Codes> {
        Some(&self.codes).filter(|c| c.any())
    }
    fn spare_memory(&self) -> usize {
        self.codes.memory()
    }
    fn drop_spare(&mut self) -> usize {
        self.codes.refuse()
    }
    fn spare_wanted(&self, slots: usize) -> Option<usize> {
        self.codes.refused(slots)
    }
    fn allow_spare(&mut self) {
        self.codes.allow();
    }
    fn needs_maintenance(&self) -> bool {
        self.codes.is_due()
    }
    fn maintain(
        &mut self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        _: &mut Scratch,
        budget: usize,
        _: &mut dyn FnMut(u32),
    ) -> Result<(), Error> {
        self.codes.make(view, meter.kernels(), budget.saturating_mul(CODED_AT_ONCE));
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
        self.codes.memory()
    }
}
