// SPDX-License-Identifier: GPL-2.0-only
//! Hierarchical navigable small world graph (Malkov and Yashunin, 2018). Owns the graph; promises that every link
//! leads to a node of at least the link's layer, and that results are live.
//!
//! A node has the number of its slot. Its level is drawn from a hash of the seed and the sequence number of
//! its vector, so the same history gives the same graph. A removed node stays as a *tombstone*: passed through,
//! never returned. A node whose vector was overwritten is *stale*: not even passed through. Consolidation
//! (`sweep`) takes both out and reconnects their neighbours.

mod build;
mod codes;
mod encode;
mod sweep;

pub(crate) use build::Select;
pub use encode::{GraphHead, GraphNode};

use super::refine::{self, pack, unpack, Near, Walk};
use super::{is_live, Gate, Index, IndexInfo, Inserted, Marks, Probe, Rows, Scratch, Table, View};
use crate::dist::{code_words, Batch, Meter, Rough, BATCH};
use crate::error::{Error, Step};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;
use codes::Codes;
use core::cell::Cell;
use sweep::Sweep;

/// Links per node and layer if the schema says 0.
pub const M_DEFAULT: u32 = 16;
/// Fewest links per node and layer.
pub const M_MIN: u32 = 2;
/// Most links per node and layer.
pub const M_MAX: u32 = 256;
/// Candidates while building if the schema says 0.
pub const EF_DEFAULT: u32 = 200;
/// Most candidates.
pub const EF_MAX: u32 = 65_536;
/// Highest level of a node; with two links per layer the hash is used up at 63.
const LEVEL_MAX: u8 = 63;
/// Distances that a search computes for each result that it keeps, about (measured; it falls slowly with ef).
const DISTANCES_PER_RESULT: u64 = 10;
/// Codes are used unless more than one in so many is a poor likeness.
const COARSE_PART: u64 = 16;
/// Fewest tombstones that start a consolidation.
const TOMBS_MIN: u64 = 16;

/// States of a slot in the graph. No node.
const EMPTY: u8 = 0;
/// A live record.
const LIVE: u8 = 1;
/// The record is gone, the vector is still there.
const TOMB: u8 = 2;
/// The vector is gone as well.
const STALE: u8 = 3;
/// A tombstone that the running consolidation takes out.
const DOOMED: u8 = 4;
/// A stale node that the running consolidation takes out.
const DOOMED_STALE: u8 = 5;

/// What a search on a layer does with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It may be among the nearest.
    Result,
    /// It is only passed through.
    Way,
    /// It is left aside.
    Nothing,
}

/// Says what a search does with a node at a key.
type Admit<'a> = dyn FnMut(&mut Marks, u32, u32) -> Step<Role> + 'a;

/// The rarely used part of a node.
#[derive(Debug, Default)]
struct Node {
    /// Sequence number of the vector that it was made from.
    seq: u64,
    /// Lists of the layers above 0: for each a count and room for `m` links.
    upper: Vec<u32>,
}

/// The graph.
#[derive(Debug)]
pub struct Hnsw {
    m: usize,
    ef: usize,
    seed: u64,
    /// A node of the highest level; traversable.
    entry: Option<u32>,
    /// Level of the entry.
    top: u8,
    states: Vec<u8>,
    levels: Vec<u8>,
    nodes: Table<Node>,
    /// Lists of layer 0: a count and room for `2m` links.
    lists: Rows,
    /// The vectors as codes.
    codes: Codes,
    /// Nodes in each state.
    counts: [u64; 6],
    sweep: Option<Sweep>,
}

/// Finaliser of splitmix64.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Hnsw {
    /// An empty graph; parameters out of range are brought into it.
    pub fn new(m: u32, ef_construction: u32, seed: u64) -> Hnsw {
        let m = if m == 0 { M_DEFAULT } else { m.clamp(M_MIN, M_MAX) } as usize;
        let ef = if ef_construction == 0 { EF_DEFAULT } else { ef_construction.clamp(1, EF_MAX) } as usize;
        Hnsw {
            m,
            ef: ef.max(m),
            seed,
            entry: None,
            top: 0,
            states: Vec::new(),
            levels: Vec::new(),
            nodes: Table::new(),
            lists: Rows::new(m.saturating_mul(2).saturating_add(1)),
            codes: Codes::new(),
            counts: [0; 6],
            sweep: None,
        }
    }

    /// Level of the node for a vector: at least `l` with probability `m^-l`, as with mL = 1/ln(m).
    fn draw(&self, seq: u64) -> u8 {
        let hash = mix(self.seed ^ mix(seq.wrapping_add(0x9e37_79b9_7f4a_7c15)));
        let mut level = 0u8;
        let mut below = u64::MAX;
        loop {
            below = below.checked_div(self.m as u64).unwrap_or(0);
            if hash >= below || level >= LEVEL_MAX {
                return level;
            }
            level = level.saturating_add(1);
        }
    }

    /// Most links of a node on a layer.
    fn capacity(&self, layer: u8) -> usize {
        if layer == 0 {
            self.m.saturating_mul(2)
        } else {
            self.m
        }
    }

    fn state(&self, slot: u32) -> u8 {
        self.states.get(slot as usize).copied().unwrap_or(EMPTY)
    }

    fn level(&self, slot: u32) -> u8 {
        self.levels.get(slot as usize).copied().unwrap_or(0)
    }

    fn set_state(&mut self, slot: u32, state: u8) {
        let Some(s) = self.states.get_mut(slot as usize) else { return };
        let old = core::mem::replace(s, state);
        if let Some(n) = self.counts.get_mut(usize::from(old)) {
            // EMPTY is not counted.
            *n = n.saturating_sub(1);
        }
        if let Some(n) = self.counts.get_mut(usize::from(state)) {
            *n = n.saturating_add(1);
        }
        let measured = |s: u8| i64::from(matches!(s, LIVE | TOMB | DOOMED));
        self.codes.count(slot, measured(state).wrapping_sub(measured(old)));
    }

    /// Whether codes are good enough to find by: unless too many of the vectors are such that they are not.
    fn coded(&self) -> bool {
        let nodes = [LIVE, TOMB, DOOMED].iter().fold(0, |n: u64, s| n.saturating_add(self.count(*s)));
        self.codes.exist() && self.codes.coarse() <= nodes / COARSE_PART
    }

    /// What is measured of a node: its codes or its vector.
    fn row<'a>(&'a self, view: &View<'a>, slot: u32, coded: bool) -> Option<(&'a [u32], u64)> {
        if coded {
            self.codes.get(slot).map(|words| (words, 0))
        } else {
            view.row(slot)
        }
    }

    /// A node to measure from.
    fn base<'a>(&'a self, view: &View<'a>, slot: u32, coded: bool) -> Option<Rough<'a>> {
        if coded {
            Some(Rough { metric: view.metric, words: self.codes.get(slot)?, inv_norm: 0, coded })
        } else {
            view.query(slot).as_ref().map(Rough::from)
        }
    }

    fn count(&self, state: u8) -> u64 {
        self.counts.get(usize::from(state)).copied().unwrap_or(0)
    }

    /// Whether a search may pass through the node.
    fn passable(&self, slot: u32) -> bool {
        matches!(self.state(slot), LIVE | TOMB | DOOMED)
    }

    /// Whether new links may lead to the node.
    fn linkable(&self, slot: u32) -> bool {
        matches!(self.state(slot), LIVE | TOMB)
    }

    fn list(&self, slot: u32, layer: u8) -> &[u32] {
        match layer.checked_sub(1) {
            None => self.lists.get(slot as usize),
            Some(above) => {
                let stride = self.m.wrapping_add(1);
                let at = usize::from(above).wrapping_mul(stride);
                self.nodes.get(slot as usize).and_then(|n| n.upper.get(at..at.wrapping_add(stride)))
            }
        }
        .unwrap_or(&[])
    }

    fn list_mut(&mut self, slot: u32, layer: u8) -> &mut [u32] {
        match layer.checked_sub(1) {
            None => self.lists.get_mut(slot as usize),
            Some(above) => {
                let stride = self.m.wrapping_add(1);
                let at = usize::from(above).wrapping_mul(stride);
                self.nodes.get_mut(slot as usize).and_then(|n| n.upper.get_mut(at..at.wrapping_add(stride)))
            }
        }
        .unwrap_or(&mut [])
    }

    /// Links of a node on a layer.
    fn links(&self, slot: u32, layer: u8) -> &[u32] {
        match self.list(slot, layer).split_first() {
            Some((n, rest)) => rest.get(..*n as usize).unwrap_or(&[]),
            None => &[],
        }
    }

    /// Replaces the links of a node on a layer; what does not fit is left out.
    fn set_links(&mut self, slot: u32, layer: u8, links: &[u32]) {
        if let Some((n, rest)) = self.list_mut(slot, layer).split_first_mut() {
            let mut done = 0u32;
            for (to, from) in rest.iter_mut().zip(links) {
                *to = *from;
                done = done.wrapping_add(1);
            }
            *n = done;
        }
    }

    /// Appends a link if there is room.
    fn push_link(&mut self, slot: u32, layer: u8, to: u32) -> bool {
        if let Some((n, rest)) = self.list_mut(slot, layer).split_first_mut() {
            if let Some(place) = rest.get_mut(*n as usize) {
                *place = to;
                *n = n.wrapping_add(1);
                return true;
            }
        }
        false
    }

    /// Room for nodes below `slots`.
    fn grow(&mut self, view: &View<'_>, slots: usize) -> Result<(), NoMemory> {
        self.codes.grow(view.store.dim(), slots)?;
        self.lists.grow(slots)?;
        self.nodes.extend_to(slots)?;
        if self.levels.len() < slots {
            mem::resize(&mut self.levels, slots, 0)?;
        }
        if self.states.len() < slots {
            mem::resize(&mut self.states, slots, EMPTY)?;
        }
        Ok(())
    }

    /// Makes a node of the highest level the entry: one that stays, or else a doomed one if something still leads
    /// from there (`doomed`).
    #[inline(never)] // keeps stack frames small
    fn repair_entry(&mut self, doomed: bool) {
        let mut best: Option<(bool, u8, u32)> = None;
        for (slot, (state, level)) in self.states.iter().zip(&self.levels).enumerate() {
            let stays = match *state {
                LIVE | TOMB => true,
                DOOMED if doomed => false,
                _ => continue,
            };
            if best.is_none_or(|(s, l, _)| (stays, *level) > (s, l)) {
                best = Some((stays, *level, slot as u32));
            }
        }
        self.entry = best.map(|b| b.2);
        self.top = best.map_or(0, |b| b.1);
    }

    /// Goes down from the entry to the layer above `to`, always to the nearest neighbour.
    #[inline(never)] // keeps stack frames small
    fn descend(
        &self,
        view: &View<'_>,
        query: &Rough<'_>,
        meter: &mut Meter<'_>,
        to: u8,
        hops: &mut u64,
    ) -> Option<Near> {
        let entry = self.entry?;
        let (words, inv_norm) = self.row(view, entry, query.coded)?;
        let mut near = (meter.rough_one(query, words, inv_norm), entry);
        let mut layer = self.top;
        while layer > to {
            near = self.greedy(view, query, meter, near, layer, hops);
            layer = layer.wrapping_sub(1);
        }
        Some(near)
    }

    #[inline(never)] // keeps stack frames small
    fn greedy(
        &self,
        view: &View<'_>,
        query: &Rough<'_>,
        meter: &mut Meter<'_>,
        mut near: Near,
        layer: u8,
        hops: &mut u64,
    ) -> Near {
        let mut batch = Batch::new(query.words.len());
        let mut ids = [0u32; BATCH];
        let mut keys = [u32::MAX; BATCH];
        loop {
            let before = near;
            *hops = hops.wrapping_add(1);
            let mut links = self.links(before.1, layer).iter();
            loop {
                let next = links.next();
                if let Some(n) = next.filter(|n| self.passable(**n)) {
                    if let (Some((words, inv_norm)), Some(id)) =
                        (self.row(view, *n, query.coded), ids.get_mut(batch.len()))
                    {
                        if batch.push(words, inv_norm) {
                            mem::prefetch(words);
                            *id = *n;
                        }
                    }
                }
                if batch.is_full() || next.is_none() {
                    meter.rough(query, &batch, &mut keys);
                    for (id, key) in ids.iter().zip(keys).take(batch.len()) {
                        if key < near.0 {
                            near = (key, *id);
                        }
                    }
                    batch.clear();
                }
                if next.is_none() {
                    break;
                }
            }
            if near == before {
                return near;
            }
        }
    }

    /// The `ef` nearest nodes of a layer that are a [`Role::Result`], into `walk.found`, beginning at `start`. The caller
    /// has begun `marks`. False: given up, as `give_up` said.
    #[allow(clippy::too_many_arguments)] // the state of one search, split so that each part is borrowed alone
    #[inline(never)] // keeps stack frames small
    fn search_layer(
        &self,
        view: &View<'_>,
        query: &Rough<'_>,
        meter: &mut Meter<'_>,
        marks: &mut Marks,
        walk: &mut Walk,
        start: Near,
        ef: usize,
        layer: u8,
        give_up: &Cell<bool>,
        hops: &mut u64,
        admit: &mut Admit<'_>,
    ) -> Step<bool> {
        walk.candidates.clear();
        walk.found.clear();
        marks.visit(start.1);
        walk.candidates.push(!pack(start))?;
        if admit(marks, start.1, start.0)? == Role::Result {
            walk.found.push(pack(start))?;
        }
        let mut batch = Batch::new(query.words.len());
        let mut ids = [0u32; BATCH];
        let mut keys = [u32::MAX; BATCH];
        // Nothing at this key or above is wanted any more.
        let mut bar = u32::MAX;
        if walk.found.len() >= ef {
            bar = start.0;
        }
        while let Some(next) = walk.candidates.pop() {
            let (key, slot) = unpack(!next);
            if key > bar {
                break;
            }
            if give_up.get() || view.absent.is_full() {
                return Ok(false);
            }
            *hops = hops.wrapping_add(1);
            if let Some(next) = walk.candidates.peek() {
                mem::prefetch(self.list(unpack(!*next).1, layer));
            }
            let mut links = self.links(slot, layer).iter();
            loop {
                let next = links.next();
                // Most links lead to what was visited: their states are not even read.
                if let Some(n) = next.filter(|n| marks.visit(**n) && self.passable(**n)) {
                    if let (Some((words, inv_norm)), Some(id)) =
                        (self.row(view, *n, query.coded), ids.get_mut(batch.len()))
                    {
                        if batch.push(words, inv_norm) {
                            mem::prefetch(words);
                            *id = *n;
                        }
                    }
                }
                if batch.is_full() || next.is_none() {
                    meter.rough(query, &batch, &mut keys);
                    for (id, key) in ids.iter().zip(keys).take(batch.len()) {
                        let full = walk.found.len() >= ef;
                        if full && key >= bar {
                            continue;
                        }
                        let role = admit(marks, *id, key)?;
                        let near = pack((key, *id));
                        if role != Role::Nothing {
                            if walk.candidates.peek().is_none_or(|top| !near > *top) {
                                mem::prefetch(self.list(*id, layer));
                            }
                            walk.candidates.push(!near)?;
                        }
                        if role == Role::Result {
                            if full {
                                walk.found.replace_top(near);
                            } else {
                                walk.found.push(near)?;
                            }
                            if walk.found.len() >= ef {
                                bar = walk.found.peek().map_or(u32::MAX, |w| unpack(*w).0);
                            }
                        }
                    }
                    batch.clear();
                }
                if next.is_none() {
                    break;
                }
            }
        }
        Ok(true)
    }

    /// The nearest acceptable nodes into `s.walk.found`. False: given up.
    #[allow(clippy::too_many_arguments)] // the state of one search
    #[inline(never)] // keeps stack frames small
    fn search_base(
        &self,
        view: &View<'_>,
        probe: &Probe<'_, '_>,
        query: &Rough<'_>,
        meter: &mut Meter<'_>,
        gate: &mut Gate<'_, '_>,
        s: &mut Scratch,
        hops: &mut u64,
    ) -> Step<bool> {
        s.walk.found.clear();
        let Some(start) = self.descend(view, query, meter, 0, hops) else { return Ok(true) };
        let give_up = Cell::new(false);
        let mut admit = |marks: &mut Marks, slot: u32, _: u32| -> Step<Role> {
            if !gate.is_filter() {
                return Ok(if self.state(slot) == LIVE { Role::Result } else { Role::Way });
            }
            give_up.set(gate.needed(probe.ef).saturating_mul(DISTANCES_PER_RESULT) > probe.limit);
            match view.store.head(slot as usize) {
                Some(head) if self.state(slot) == LIVE && is_live(head) && gate.pass(marks, slot, head)? => {
                    Ok(Role::Result)
                }
                _ => Ok(Role::Way),
            }
        };
        let (marks, walk) = (&mut s.marks, &mut s.walk);
        self.search_layer(view, query, meter, marks, walk, start, probe.ef, 0, &give_up, hops, &mut admit)
    }
}

impl Index for Hnsw {
    fn version(&self) -> u32 {
        encode::VERSION
    }

    fn holds(&self, slot: u32) -> bool {
        self.state(slot) != EMPTY
    }

    fn finds(&self, slot: u32) -> bool {
        self.state(slot) == LIVE
    }

    fn insert(
        &mut self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        s: &mut Scratch,
        slot: u32,
    ) -> Result<Inserted, Error> {
        self.add(view, meter, s, slot)
    }

    fn remove(&mut self, slot: u32) {
        if self.state(slot) == LIVE {
            self.set_state(slot, TOMB);
        }
    }

    fn overwritten(&mut self, slot: u32) {
        match self.state(slot) {
            LIVE | TOMB => self.set_state(slot, STALE),
            DOOMED => self.set_state(slot, DOOMED_STALE),
            _ => return,
        }
        if self.entry == Some(slot) {
            self.repair_entry(!self.cut_off());
        }
    }

    fn needs_maintenance(&self) -> bool {
        let tombs = self.count(TOMB);
        let fifth = self.count(LIVE).saturating_add(tombs) / 5;
        self.sweep.is_some() || self.count(STALE) > 0 || tombs > fifth.max(TOMBS_MIN)
    }

    fn maintain(
        &mut self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        s: &mut Scratch,
        budget: usize,
        freed: &mut dyn FnMut(u32),
    ) -> Result<(), Error> {
        self.consolidate(view, meter, s, budget, freed)
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
        let most = refine::most(probe.k).min(probe.ef);
        if self.coded() {
            let mut codes = core::mem::take(&mut s.walk.query);
            mem::resize(&mut codes, code_words(view.store.dim()), 0)?;
            let coarse = meter.kernels().encode(probe.query, &mut codes);
            let query = Rough { metric: view.metric, words: &codes, inv_norm: 0, coded: true };
            let done = if coarse { Ok(true) } else { self.search_base(view, probe, &query, meter, gate, s, hops) };
            s.walk.query = codes;
            if !done? {
                return Ok(false);
            }
            if !coarse && refine::rerank(view, probe, meter, &mut s.walk, most, true, &mut s.found)? {
                return Ok(true);
            }
            s.marks.again();
        }
        if !self.search_base(view, probe, &Rough::from(probe.query), meter, gate, s, hops)? {
            return Ok(false);
        }
        refine::rerank(view, probe, meter, &mut s.walk, most, false, &mut s.found)?;
        Ok(true)
    }

    fn encode(&self, view: &View<'_>) -> Result<Option<Vec<u8>>, NoMemory> {
        self.bytes(view).map(Some)
    }

    fn info(&self) -> IndexInfo {
        let mut links = 0u64;
        for (slot, state) in self.states.iter().enumerate() {
            if *state != EMPTY {
                for layer in 0..=self.level(slot as u32) {
                    links = links.saturating_add(self.links(slot as u32, layer).len() as u64);
                }
            }
        }
        let gone = [TOMB, STALE, DOOMED, DOOMED_STALE];
        IndexInfo {
            tombstones: gone.iter().fold(0, |n: u64, s| n.saturating_add(self.count(*s))),
            layers: if self.entry.is_some() { u32::from(self.top).saturating_add(1) } else { 0 },
            links,
            parts: 0,
        }
    }

    fn memory(&self) -> usize {
        let upper: usize = self.nodes.iter().fold(0, |n: usize, x| n.saturating_add(x.upper.capacity()));
        self.lists
            .memory()
            .saturating_add(self.codes.memory())
            .saturating_add(self.nodes.memory())
            .saturating_add(upper.saturating_mul(4))
            .saturating_add(self.states.capacity())
            .saturating_add(self.levels.capacity())
            .saturating_add(self.sweep.as_ref().map_or(0, Sweep::memory))
    }
}

#[cfg(test)]
mod tests;
