// SPDX-License-Identifier: GPL-2.0-only
//! Consolidation, after FreshDiskANN (Singh et al. 2021): takes removed nodes out in bounded steps while searches
//! and inserts go on. The removed nodes of the moment are *doomed*; then
//!
//! 1. relink: a node with doomed neighbours chooses anew among its other neighbours and theirs;
//! 2. reach: from the entry, layer 0 is walked; a live node that was not met is connected again. That may cost another
//!    node its last link, so the walk is repeated until it meets all (or has been tried often enough);
//! 3. free: the doomed nodes go, their slots may be used again.
//!
//! New links never lead to doomed nodes, so after the first stage nothing leads to them any more.

use super::{Hnsw, Node, DOOMED, DOOMED_STALE, EMPTY, LIVE, STALE, TOMB};
use crate::dist::Meter;
use crate::error::Error;
use crate::index::{Bits, Scratch, View};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// About the distances that an insert takes; the measure of a step.
const INSERT_DISTANCES: u64 = 2000;
/// Walks from the entry at most.
const WALKS_MAX: u32 = 8;
/// Nodes looked at in a step for each unit of its budget, however cheap they are.
const NODES_PER_UNIT: u64 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Relink,
    Reach,
    Free,
}

/// A consolidation under way.
#[derive(Debug)]
pub(super) struct Sweep {
    stage: Stage,
    /// The next slot to look at.
    next: u32,
    /// Nodes that were reached.
    seen: Bits,
    /// Those whose links are still to be followed.
    queue: Vec<u32>,
    /// Candidates of the node in hand.
    around: Vec<u32>,
    /// Walks begun.
    walks: u32,
    /// Nodes connected in this one.
    connected: u32,
}

impl Sweep {
    pub(super) fn memory(&self) -> usize {
        let lists = self.queue.capacity().saturating_add(self.around.capacity());
        self.seen.memory().saturating_add(lists.saturating_mul(4))
    }
}

impl Hnsw {
    /// Whether nothing leads to doomed nodes any more.
    pub(super) fn cut_off(&self) -> bool {
        self.sweep.as_ref().is_some_and(|s| s.stage != Stage::Relink)
    }

    #[inline(never)]
    pub(super) fn consolidate(
        &mut self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        s: &mut Scratch,
        budget: usize,
        freed: &mut dyn FnMut(u32),
    ) -> Result<(), Error> {
        let mut sweep = match self.sweep.take() {
            Some(sweep) => sweep,
            None => self.begin_sweep(),
        };
        let result = self.steps(view, meter, s, budget.max(1), freed, &mut sweep);
        match result {
            Ok(true) => {}
            Ok(false) | Err(_) => self.sweep = Some(sweep),
        }
        result.map(|_| ())
    }

    fn begin_sweep(&mut self) -> Sweep {
        for slot in 0..self.states.len() as u32 {
            match self.state(slot) {
                TOMB => self.set_state(slot, DOOMED),
                STALE => self.set_state(slot, DOOMED_STALE),
                _ => {}
            }
        }
        Sweep {
            stage: Stage::Relink,
            next: 0,
            seen: Bits::new(),
            queue: Vec::new(),
            around: Vec::new(),
            walks: 0,
            connected: 0,
        }
    }

    /// True when the sweep is finished.
    #[inline(never)]
    fn steps(
        &mut self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        s: &mut Scratch,
        budget: usize,
        freed: &mut dyn FnMut(u32),
        sweep: &mut Sweep,
    ) -> Result<bool, Error> {
        let stop = meter.count.saturating_add(INSERT_DISTANCES.saturating_mul(budget as u64));
        let mut looks = NODES_PER_UNIT.saturating_mul(budget as u64);
        while looks > 0 && meter.count < stop {
            looks = looks.wrapping_sub(1);
            let slot = sweep.next;
            let end = slot as usize >= self.states.len();
            match sweep.stage {
                Stage::Relink if end => {
                    // The entry may be doomed, or not of the highest level of those that stay.
                    self.repair_entry(false);
                    self.begin_walk(sweep)?;
                    sweep.stage = Stage::Reach;
                }
                Stage::Relink => {
                    self.relink(view, meter, s, slot, &mut sweep.around)?;
                    sweep.next = slot.saturating_add(1);
                }
                Stage::Reach => {
                    if let Some(node) = sweep.queue.last().copied() {
                        self.follow(sweep, node)?;
                    } else if end && sweep.connected > 0 && sweep.walks < WALKS_MAX {
                        self.begin_walk(sweep)?;
                    } else if end {
                        (sweep.stage, sweep.next) = (Stage::Free, 0);
                    } else {
                        if self.state(slot) == LIVE && !sweep.seen.get(u64::from(slot)) {
                            sweep.seen.grow(self.states.len() as u64)?;
                            mem::reserve(&mut sweep.queue, 1)?;
                            let seen = &sweep.seen;
                            self.connect(view, meter, s, slot, |_, n| seen.get(u64::from(n)))?;
                            sweep.connected = sweep.connected.saturating_add(1);
                            sweep.seen.set(u64::from(slot));
                            mem::push(&mut sweep.queue, slot)?;
                        }
                        sweep.next = slot.saturating_add(1);
                    }
                }
                Stage::Free if end => return Ok(true),
                Stage::Free => {
                    if matches!(self.state(slot), DOOMED | DOOMED_STALE) {
                        self.set_state(slot, EMPTY);
                        if let Some(node) = self.nodes.get_mut(slot as usize) {
                            *node = Node::default();
                        }
                        self.set_links(slot, 0, &[]);
                        freed(slot);
                    }
                    sweep.next = slot.saturating_add(1);
                }
            }
        }
        Ok(false)
    }

    fn begin_walk(&self, sweep: &mut Sweep) -> Result<(), NoMemory> {
        mem::reserve(&mut sweep.queue, 1)?;
        sweep.seen.grow(self.states.len() as u64)?;
        sweep.seen.reset();
        if let Some(entry) = self.entry {
            sweep.seen.set(u64::from(entry));
            mem::push(&mut sweep.queue, entry)?;
        }
        sweep.walks = sweep.walks.saturating_add(1);
        (sweep.next, sweep.connected) = (0, 0);
        Ok(())
    }

    /// Walks from the node on top of the queue to those that were not met.
    fn follow(&self, sweep: &mut Sweep, node: u32) -> Result<(), NoMemory> {
        let links = self.links(node, 0);
        mem::reserve(&mut sweep.queue, links.len())?;
        sweep.seen.grow(self.states.len() as u64)?;
        sweep.queue.pop();
        for n in links {
            if self.linkable(*n) && sweep.seen.set(u64::from(*n)) {
                mem::push(&mut sweep.queue, *n)?;
            }
        }
        Ok(())
    }

    fn doomed(&self, slot: u32) -> bool {
        matches!(self.state(slot), DOOMED | DOOMED_STALE)
    }

    /// Chooses the links of a node anew on each layer where some lead to doomed nodes.
    #[inline(never)]
    fn relink(
        &mut self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        s: &mut Scratch,
        slot: u32,
        around: &mut Vec<u32>,
    ) -> Result<(), Error> {
        let state = self.state(slot);
        if !matches!(state, LIVE | TOMB | STALE) {
            return Ok(());
        }
        for layer in 0..=self.level(slot) {
            if !self.links(slot, layer).iter().any(|n| self.doomed(*n)) {
                continue;
            }
            around.clear();
            s.marks.begin(self.states.len())?;
            s.marks.visit(slot);
            for n in self.links(slot, layer) {
                if !self.doomed(*n) {
                    if s.marks.visit(*n) {
                        mem::push(around, *n)?;
                    }
                    continue;
                }
                // A stale node cannot measure; it only loses the links that will lead nowhere.
                for far in self.links(*n, layer).iter().filter(|_| state != STALE) {
                    if self.linkable(*far) && self.level(*far) >= layer && s.marks.visit(*far) {
                        mem::push(around, *far)?;
                    }
                }
            }
            if state == STALE {
                self.set_links(slot, layer, around);
                continue;
            }
            around.retain(|n| self.linkable(*n));
            s.select.coded = false;
            self.measure(view, meter, &mut s.select, slot, around.iter().copied())?;
            self.choose(view, meter, &mut s.select, self.capacity(layer), slot, slot)?;
            view.absent.none()?;
            self.set_links(slot, layer, &s.select.kept);
            if layer == 0 && s.select.kept.is_empty() {
                self.connect(view, meter, s, slot, |_, _| true)?;
            }
        }
        Ok(())
    }
}
