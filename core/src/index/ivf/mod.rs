// SPDX-License-Identifier: GPL-2.0-only
//! Inverted lists (Sivic and Zisserman 2003; as IVF in Jégou, Douze and Schmid 2011): k-means divides the
//! vectors into lists, a search measures the members of the lists whose centroids are nearest. Owns the lists; promises
//! that a slot is in one list at most, and that a member's vector is the one that it was put there for.
//!
//! Until there are vectors enough to train with there is one list and no centroid, and every search is a scan. Training
//! runs in steps of [`Index::maintain`]; what there was before serves until it is done. Then all members are let go
//! ([`Index::restarted`]) and come back through [`Index::insert`], each to its new list.

mod encode;

pub use encode::{IvfEntry, IvfHead};

use super::kmeans::{sample, scale, Matrix, Training};
use super::refine::{self, pack};
use super::{is_live, Gate, Index, IndexInfo, Inserted, Probe, Scratch, View};
use crate::dist::{code_words, is_coarse, Batch, Meter, Metric, Query, Rough, BATCH, CODED_DIM_MIN};
use crate::error::{Error, Step};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// Vectors that training waits for if the schema does not give the number of lists.
const TRAIN_MIN: u64 = 1024;
/// Vectors for each list before training.
const PER_LIST: u64 = 4;
/// Vectors of the sample for each list.
const SAMPLE: usize = 32;
/// Most lists that are chosen by count.
const LISTS_MAX: u64 = 1 << 16;
/// Most numbers in all centroids together, if the lists are chosen by count.
const CENTROIDS_MAX: u64 = 1 << 23;
/// So many times the vectors of a training came since then: it is time for another.
const GROWTH: u64 = 4;
/// A list of so many times the mean length is out of balance.
const UNEVEN: u64 = 16;

/// Codes are used unless more than one in so many is a poor likeness.
const COARSE_PART: u64 = 16;
/// So many times the candidates that are measured in any case are kept by their codes.
const KEEP: usize = 4;

/// Lists that a search looks at if it does not say: one in so many,
const NPROBE_SHARE: usize = 7;
/// and at least so many, or three quarters of few (measured on real embeddings, for a recall of 0.95).
const NPROBE_MIN: usize = 40;

/// One list.
#[derive(Debug, Default)]
struct List {
    slots: Vec<u32>,
    /// Codes of their vectors, one after the other, if vectors of this dimension have them: what a search reads.
    codes: Vec<u32>,
}

/// The lists.
#[derive(Debug)]
pub struct Ivf {
    /// Lists as the schema wants them; 0: by count.
    wanted: u32,
    seed: u64,
    /// Centroids; `None`: not trained, and there is one list.
    centroids: Option<Matrix>,
    lists: Vec<List>,
    /// Members whose codes are a poor likeness.
    coarse: u64,
    /// For each slot its list plus 1; 0: no member.
    list_of: Vec<u32>,
    /// For each slot its place in the list.
    place: Vec<u32>,
    members: u64,
    /// Length of the longest list since the training.
    longest: u64,
    /// Members at the time of the training.
    trained: u64,
    /// Inserts since the training.
    added: u64,
    training: Option<Training>,
    restarted: bool,
}

impl Ivf {
    /// Empty lists.
    pub fn new(lists: u32, seed: u64) -> Ivf {
        Ivf {
            wanted: lists,
            seed,
            centroids: None,
            lists: Vec::new(),
            coarse: 0,
            list_of: Vec::new(),
            place: Vec::new(),
            members: 0,
            longest: 0,
            trained: 0,
            added: 0,
            training: None,
            restarted: false,
        }
    }

    /// Whether the lists should be made anew.
    fn due(&self) -> bool {
        if self.centroids.is_none() {
            let least = if self.wanted == 0 { TRAIN_MIN } else { u64::from(self.wanted).saturating_mul(PER_LIST) };
            return self.members >= least;
        }
        let lists = self.lists.len().max(1) as u64;
        let mean = self.members.checked_div(lists).unwrap_or(0);
        let uneven = self.longest > mean.saturating_add(PER_LIST).saturating_mul(UNEVEN);
        let grown = if uneven { self.trained.saturating_mul(2) } else { self.trained.saturating_mul(GROWTH) };
        self.added >= grown.max(16)
    }

    /// Number of lists for the members of now.
    fn number(&self, dim: usize) -> usize {
        let n = self.members;
        let by_count = if self.wanted == 0 {
            let room = CENTROIDS_MAX.checked_div(dim as u64).unwrap_or(0).max(16);
            n.saturating_mul(2).isqrt().saturating_mul(2).clamp(16, LISTS_MAX.min(room))
        } else {
            u64::from(self.wanted)
        };
        by_count.min(n / PER_LIST).max(1) as usize
    }

    fn list(&self, slot: u32) -> u32 {
        self.list_of.get(slot as usize).copied().unwrap_or(0)
    }

    /// Words of codes for each member.
    fn stride(dim: usize) -> usize {
        if dim < CODED_DIM_MIN {
            0
        } else {
            code_words(dim)
        }
    }

    /// Codes of a member.
    fn codes(&self, slot: u32, stride: usize) -> &[u32] {
        let list = self.list(slot).checked_sub(1).and_then(|l| self.lists.get(l as usize));
        let start = self.place.get(slot as usize).map_or(usize::MAX, |p| *p as usize).saturating_mul(stride);
        list.and_then(|l| l.codes.get(start..start.saturating_add(stride))).unwrap_or(&[])
    }

    /// Puts a slot with its codes into a list. After an error nothing has changed.
    fn join(&mut self, slot: u32, list: u32, codes: &[u32]) -> Result<(), NoMemory> {
        let slots = (slot as usize).saturating_add(1);
        if self.list_of.len() < slots {
            mem::resize(&mut self.list_of, slots, 0)?;
        }
        if self.place.len() < slots {
            mem::resize(&mut self.place, slots, 0)?;
        }
        while self.lists.len() <= list as usize {
            mem::push(&mut self.lists, List::default())?;
        }
        let Some(members) = self.lists.get_mut(list as usize) else { return Err(NoMemory) };
        let at = members.slots.len() as u32;
        mem::reserve(&mut members.codes, codes.len())?;
        mem::push(&mut members.slots, slot)?;
        mem::extend(&mut members.codes, codes)?;
        self.coarse = self.coarse.saturating_add(u64::from(is_coarse(codes)));
        self.longest = self.longest.max(u64::from(at).saturating_add(1));
        if let (Some(l), Some(p)) = (self.list_of.get_mut(slot as usize), self.place.get_mut(slot as usize)) {
            *l = list.saturating_add(1);
            *p = at;
        }
        self.members = self.members.saturating_add(1);
        Ok(())
    }

    fn leave(&mut self, slot: u32) {
        let Some(list) = self.list_of.get_mut(slot as usize).and_then(|l| core::mem::take(l).checked_sub(1)) else {
            return;
        };
        let at = self.place.get(slot as usize).copied().unwrap_or(u32::MAX) as usize;
        if let Some(members) = self.lists.get_mut(list as usize) {
            let stride = members.codes.len().checked_div(members.slots.len()).unwrap_or(0);
            let last = members.codes.len().saturating_sub(stride);
            let start = at.saturating_mul(stride);
            let gone = members.codes.get(start..start.saturating_add(stride)).is_some_and(is_coarse);
            self.coarse = self.coarse.saturating_sub(u64::from(gone));
            if start < last {
                let (before, moved) = members.codes.split_at_mut_checked(last).unwrap_or_default();
                mem::copy(before.get_mut(start..).unwrap_or_default(), moved);
            }
            members.codes.truncate(last);
            mem::swap_remove(&mut members.slots, at);
            if let Some(moved) = members.slots.get(at) {
                if let Some(p) = self.place.get_mut(*moved as usize) {
                    *p = at as u32;
                }
            }
        }
        self.members = self.members.saturating_sub(1);
    }

    #[inline(never)] // keeps stack frames small
    fn begin(&mut self, view: &View<'_>) -> Result<(), NoMemory> {
        let columns = self.number(view.store.dim());
        let n = columns.saturating_mul(SAMPLE);
        let chosen = sample(self.list_of.len(), self.members as usize, n, |s| self.list(s) != 0)?;
        let mut bounds = Vec::new();
        mem::extend(&mut bounds, &[0, view.store.dim() as u32])?;
        self.training = Some(Training::new(self.seed, bounds, columns, chosen));
        Ok(())
    }

    /// A training is done: all members have to find their lists.
    #[inline(never)] // keeps stack frames small
    fn renew(&mut self, matrix: Matrix) -> Result<(), NoMemory> {
        let mut lists = Vec::new();
        mem::reserve(&mut lists, matrix.columns())?;
        for _ in 0..matrix.columns() {
            mem::push(&mut lists, List::default())?;
        }
        self.lists = lists;
        self.list_of.fill(0);
        self.trained = self.members.max(1);
        (self.members, self.added, self.longest, self.coarse) = (0, 0, 0, 0);
        self.centroids = Some(matrix);
        self.restarted = true;
        Ok(())
    }

    /// Measures the members of a list and keeps the `k` nearest acceptable ones in `s.found`.
    #[inline(never)] // keeps stack frames small
    fn visit(
        &self,
        view: &View<'_>,
        probe: &Probe<'_, '_>,
        list: u32,
        meter: &mut Meter<'_>,
        gate: &mut Gate<'_, '_>,
        s: &mut Scratch,
    ) -> Step<()> {
        let members = self.lists.get(list as usize).map_or(&[][..], |l| &l.slots);
        let mut batch = Batch::new(view.store.dim());
        let mut keys = [u64::MAX; BATCH];
        for some in members.chunks(BATCH) {
            batch.clear();
            for slot in some {
                if let Some((words, inv_norm)) = view.row(*slot) {
                    batch.push(words, inv_norm);
                }
            }
            if view.absent.any() || batch.len() != some.len() {
                // What could be measured is worth nothing; the others are looked for all the same, to be brought in.
                continue;
            }
            meter.many(probe.query, &batch, &mut keys);
            for (slot, key) in some.iter().zip(keys) {
                let near = (key, *slot);
                let full = s.found.len() >= probe.k;
                if full && s.found.peek().is_none_or(|worst| near >= *worst) {
                    continue;
                }
                let Some(head) = view.store.head(*slot as usize).filter(|h| is_live(h)) else { continue };
                if !gate.pass(&mut s.marks, *slot, head)? {
                    continue;
                }
                if full {
                    s.found.replace_top(near);
                } else {
                    s.found.push(near)?;
                }
            }
        }
        Ok(())
    }
}

impl Index for Ivf {
    fn version(&self) -> u32 {
        encode::VERSION
    }

    fn holds(&self, slot: u32) -> bool {
        self.list(slot) != 0
    }

    fn finds(&self, slot: u32) -> bool {
        self.list(slot) != 0
    }

    fn insert(
        &mut self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        s: &mut Scratch,
        slot: u32,
    ) -> Result<Inserted, Error> {
        if self.training.is_some() || self.due() {
            return Ok(Inserted::NotNow);
        }
        let (words, inv_norm) = view.row(slot).ok_or(Error::NoMemory)?;
        let mut codes = core::mem::take(&mut s.walk.query);
        codes.clear();
        mem::resize(&mut codes, Ivf::stride(words.len()), 0)?;
        if !codes.is_empty() {
            meter.kernels().encode(&Query { metric: view.metric, words, inv_norm }, &mut codes);
        }
        self.leave(slot);
        let list = match &self.centroids {
            Some(m) => m.nearest(meter.kernels(), words, scale(view.metric, inv_norm), &mut s.keys)?,
            None => 0,
        };
        self.join(slot, list, &codes)?;
        s.walk.query = codes;
        self.added = self.added.saturating_add(1);
        Ok(Inserted::Yes)
    }

    fn remove(&mut self, slot: u32) {
        self.leave(slot);
    }

    fn overwritten(&mut self, slot: u32) {
        self.leave(slot);
    }

    fn needs_maintenance(&self) -> bool {
        self.training.is_some() || self.due()
    }

    fn maintain(
        &mut self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        s: &mut Scratch,
        budget: usize,
        _: &mut dyn FnMut(u32),
    ) -> Result<(), Error> {
        if self.training.is_none() && self.due() {
            return Ok(self.begin(view)?);
        }
        let Some(t) = &mut self.training else { return Ok(()) };
        if let Some(mut done) = t.step(view, meter.kernels(), s, budget)? {
            if let Some(matrix) = done.pop() {
                self.renew(matrix)?;
            }
            self.training = None;
        }
        Ok(())
    }

    fn restarted(&mut self) -> bool {
        core::mem::take(&mut self.restarted)
    }

    fn training(&self) -> bool {
        self.needs_maintenance()
    }

    fn inserts_at_once(&self) -> usize {
        16
    }

    fn plan(&self, effort: usize, _: usize, _: u64) -> Option<usize> {
        let lists = self.lists.len();
        let default = (lists / NPROBE_SHARE).max(NPROBE_MIN.min(lists.saturating_mul(3) / 4)).max(1);
        let nprobe = if effort == 0 { default } else { effort };
        (self.centroids.is_some() && nprobe < lists).then_some(nprobe)
    }

    fn nearest(
        &self,
        view: &View<'_>,
        probe: &Probe<'_, '_>,
        meter: &mut Meter<'_>,
        gate: &mut Gate<'_, '_>,
        s: &mut Scratch,
        hops: &mut u64,
    ) -> Step<bool> {
        let coded = Ivf::stride(view.store.dim()) > 0 && self.coarse <= self.members / COARSE_PART;
        if coded {
            let mut codes = core::mem::take(&mut s.walk.query);
            codes.clear();
            mem::resize(&mut codes, code_words(view.store.dim()), 0)?;
            let coarse = meter.kernels().encode(probe.query, &mut codes);
            let query = Rough { metric: view.metric, words: &codes, inv_norm: 0, coded: true };
            let done = if coarse { Ok(true) } else { self.go_through(view, probe, Some(&query), meter, gate, s, hops) };
            s.walk.query = codes;
            if !done? {
                return Ok(false);
            }
            let most = refine::most(probe.k);
            if !coarse && refine::rerank(view, probe, meter, &mut s.walk, most, true, &mut s.found)? {
                return Ok(true);
            }
        }
        self.go_through(view, probe, None, meter, gate, s, hops)
    }

    fn encode(&self, view: &View<'_>) -> Result<Option<Vec<u8>>, NoMemory> {
        self.bytes(view).map(Some)
    }

    fn info(&self) -> IndexInfo {
        let lists = if self.centroids.is_some() { self.lists.len() as u64 } else { 0 };
        IndexInfo { tombstones: 0, layers: 0, links: 0, parts: lists }
    }

    fn memory(&self) -> usize {
        let words = |l: &List| l.slots.capacity().saturating_add(l.codes.capacity());
        let lists = self.lists.iter().fold(0, |n: usize, l| n.saturating_add(words(l)));
        lists
            .saturating_add(self.list_of.capacity())
            .saturating_add(self.place.capacity())
            .saturating_mul(4)
            .saturating_add(self.lists.capacity().saturating_mul(core::mem::size_of::<List>()))
            .saturating_add(self.centroids.as_ref().map_or(0, Matrix::memory))
            .saturating_add(self.training.as_ref().map_or(0, Training::memory))
    }
}

impl Ivf {
    /// Goes through the nearest lists: by codes with `rough`, into `s.walk.found`, else by vectors, into `s.found`. False: it
    /// gave up.
    #[allow(clippy::too_many_arguments)] // the state of one search
    #[inline(never)] // keeps stack frames small
    fn go_through(
        &self,
        view: &View<'_>,
        probe: &Probe<'_, '_>,
        rough: Option<&Rough<'_>>,
        meter: &mut Meter<'_>,
        gate: &mut Gate<'_, '_>,
        s: &mut Scratch,
        hops: &mut u64,
    ) -> Step<bool> {
        s.found.clear();
        s.walk.found.clear();
        s.candidates.clear();
        let Some(m) = &self.centroids else { return Ok(false) };
        let q = probe.query;
        m.keys(meter.kernels(), q.words, scale(q.metric, q.inv_norm), q.metric != Metric::Ip, &mut s.keys)?;
        meter.count = meter.count.saturating_add(m.columns() as u64);
        for (key, list) in s.keys.iter().zip(0u32..) {
            s.candidates.push((!u64::from(*key), !list))?;
        }
        let (want, lists) = (probe.ef as u64, self.lists.len() as u64);
        let (mut probed, mut measured) = (0u64, 0u64);
        while let Some((_, list)) = s.candidates.pop() {
            // The fewer pass the filter, the more lists its nearest are spread over.
            let filtered = gate.needed(probe.ef);
            let found = if rough.is_some() { s.walk.found.len() } else { s.found.len() };
            if probed >= want.max(filtered) && found >= probe.k {
                return Ok(true);
            }
            if view.absent.is_full() || measured > probe.limit || filtered.saturating_mul(2) > lists {
                return Ok(false);
            }
            let list = !list;
            let n = self.lists.get(list as usize).map_or(0, |l| l.slots.len());
            measured = measured.saturating_add(n as u64);
            probed = probed.saturating_add(1);
            *hops = hops.wrapping_add(1);
            match rough {
                Some(query) => self.visit_codes(view, probe, query, list, meter, gate, s)?,
                None => self.visit(view, probe, list, meter, gate, s)?,
            }
        }
        Ok(true)
    }

    /// Keeps the nearest acceptable members of a list by their codes in `s.walk.found`.
    #[allow(clippy::too_many_arguments)] // the state of one search
    #[inline(never)] // keeps stack frames small
    fn visit_codes(
        &self,
        view: &View<'_>,
        probe: &Probe<'_, '_>,
        query: &Rough<'_>,
        list: u32,
        meter: &mut Meter<'_>,
        gate: &mut Gate<'_, '_>,
        s: &mut Scratch,
    ) -> Step<()> {
        let Some(members) = self.lists.get(list as usize) else { return Ok(()) };
        let stride = query.words.len();
        let keep = refine::most(probe.k).saturating_mul(KEEP);
        let mut batch = Batch::new(stride);
        let mut keys = [u32::MAX; BATCH];
        let mut rows = members.codes.chunks_exact(stride.max(1));
        for some in members.slots.chunks(BATCH) {
            batch.clear();
            for (_, words) in some.iter().zip(rows.by_ref()) {
                batch.push(words, 0);
            }
            meter.rough(query, &batch, &mut keys);
            for (slot, key) in some.iter().zip(keys).take(batch.len()) {
                let near = pack((key, *slot));
                let full = s.walk.found.len() >= keep;
                if full && s.walk.found.peek().is_none_or(|worst| near >= *worst) {
                    continue;
                }
                let Some(head) = view.store.head(*slot as usize).filter(|h| is_live(h)) else { continue };
                if !gate.pass(&mut s.marks, *slot, head)? {
                    continue;
                }
                if full {
                    s.walk.found.replace_top(near);
                } else {
                    s.walk.found.push(near)?;
                }
            }
        }
        Ok(())
    }
}
