// SPDX-License-Identifier: GPL-2.0-only
//! Insertion: Algorithms 1 and 4 of the paper, as hnswlib carries them out (a new node gets at most M links a
//! layer; lists on layer 0 hold 2M; discarded candidates are not brought back).

use super::refine::{self, unpack, Near, Walk};
use super::{mix, Hnsw, Role, LIVE};
use crate::dist::{Batch, Meter, Pairs, BATCH};
use crate::error::{Error, Step, Stop};
use crate::index::{is_live, Inserted, Marks, Scratch, View};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;
use core::cell::Cell;

/// Lists of neighbour selection, used again.
#[derive(Debug, Default)]
pub(crate) struct Select {
    /// Whether neighbours are chosen by their codes.
    pub(super) coded: bool,
    /// Candidates by key.
    pub(super) candidates: Vec<Near>,
    /// Those selected, nearest first.
    pub(super) kept: Vec<u32>,
    /// Links of a new node: (layer, neighbour).
    plan: Vec<(u8, u32)>,
}

impl Select {
    pub(crate) const fn new() -> Select {
        Select { coded: false, candidates: Vec::new(), kept: Vec::new(), plan: Vec::new() }
    }

    pub(crate) fn memory(&self) -> usize {
        let pairs = self.candidates.capacity().saturating_add(self.plan.capacity());
        pairs.saturating_mul(16).saturating_add(self.kept.capacity().saturating_mul(4))
    }

    fn reserve(&mut self, candidates: usize, kept: usize) -> Result<(), NoMemory> {
        self.candidates.clear();
        self.kept.clear();
        mem::reserve(&mut self.candidates, candidates)?;
        mem::reserve(&mut self.kept, kept)
    }
}

/// Most steps from copy to copy.
const WALK_MAX: u64 = 64;

/// An error inside building: nothing there asks a filter, so nothing is ever fetched.
fn fail(stop: Stop) -> Error {
    match stop {
        Stop::Fail(e) => e,
        Stop::Need(_) => Error::Invalid,
    }
}

impl Hnsw {
    /// Sorts `sel.candidates`, measured from `base`, by distance and keeps at most `m` in `sel.kept` by the heuristic:
    /// one is kept if it is nearer to the base than to everything kept before it.
    ///
    /// Copies of the base may fill at most half of the list: otherwise copies would take each other's lists, and
    /// nothing would lead out of them. `newest` comes last among equals, so that copies do not push each other out.
    #[inline(never)]
    pub(super) fn choose(
        &self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        sel: &mut Select,
        m: usize,
        base: u32,
        newest: u32,
    ) -> Result<(), NoMemory> {
        let rank = |slot: u32| (slot == newest, slot);
        mem::sort_by(&mut sel.candidates, |a, b| a.0 < b.0 || (a.0 == b.0 && rank(a.1) < rank(b.1)));
        sel.kept.clear();
        let all = sel.candidates.len() < m;
        let own = match self.base(view, base, sel.coded) {
            Some(q) if !all => meter.rough_one(&q, q.words, q.inv_norm),
            _ => u32::MAX,
        };
        let mut copies = 0usize;
        for (key, slot) in &sel.candidates {
            if sel.kept.len() >= m {
                break;
            }
            if *key == own {
                copies = copies.wrapping_add(1);
                if copies > m / 2 {
                    continue;
                }
            } else if !all && self.covered(view, meter, (*key, *slot), &sel.kept, sel.coded) {
                continue;
            }
            mem::push(&mut sel.kept, *slot)?;
        }
        Ok(())
    }

    /// Whether `slot`, at `key` from the base, is nearer to one that was kept.
    #[inline(never)]
    fn covered(&self, view: &View<'_>, meter: &mut Meter<'_>, near: Near, kept: &[u32], coded: bool) -> bool {
        let (key, slot) = near;
        let Some(query) = self.base(view, slot, coded) else { return true };
        let mut batch = Batch::new(query.words.len());
        let mut keys = [u32::MAX; BATCH];
        // Small pieces: most candidates are covered by one of the first.
        for some in kept.chunks(4) {
            for other in some {
                if let Some((words, inv_norm)) = self.row(view, *other, query.coded) {
                    batch.push(words, inv_norm);
                }
            }
            meter.rough(&query, &batch, &mut keys);
            if keys.iter().take(batch.len()).any(|k| *k < key) {
                return true;
            }
            batch.clear();
        }
        false
    }

    /// Puts the distances from `base` to `slots` into `sel.candidates`.
    #[inline(never)]
    pub(super) fn measure(
        &self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        sel: &mut Select,
        base: u32,
        slots: impl Iterator<Item = u32>,
    ) -> Result<(), NoMemory> {
        sel.candidates.clear();
        let Some(query) = self.base(view, base, sel.coded) else { return Ok(()) };
        let mut batch = Batch::new(query.words.len());
        let mut ids = [0u32; BATCH];
        let mut keys = [u32::MAX; BATCH];
        let mut slots = slots;
        loop {
            let next = slots.next();
            if let Some(n) = next {
                if let (Some((words, inv_norm)), Some(id)) = (self.row(view, n, query.coded), ids.get_mut(batch.len()))
                {
                    if batch.push(words, inv_norm) {
                        mem::prefetch(words);
                        *id = n;
                    }
                }
            }
            if batch.is_full() || next.is_none() {
                meter.rough(&query, &batch, &mut keys);
                for (id, key) in ids.iter().zip(keys).take(batch.len()) {
                    mem::push(&mut sel.candidates, (key, *id))?;
                }
                batch.clear();
            }
            if next.is_none() {
                return Ok(());
            }
        }
    }

    /// What a search found into `sel.candidates`.
    fn take_found(&self, sel: &mut Select, walk: &Walk) -> Result<(), NoMemory> {
        sel.candidates.clear();
        for x in walk.found.items() {
            mem::push(&mut sel.candidates, unpack(*x))?;
        }
        Ok(())
    }

    /// Whether codes tell the nearest of `sel.candidates`, which is sorted, apart.
    #[inline(never)]
    fn apart(&self, view: &View<'_>, meter: &mut Meter<'_>, sel: &Select, slot: u32) -> bool {
        let Some(query) = view.query(slot) else { return true };
        let mut batch = Batch::new(view.store.dim());
        let mut keys = [u64::MAX; BATCH];
        for (_, n) in sel.candidates.iter().take(BATCH) {
            if let Some((words, inv_norm)) = view.row(*n) {
                batch.push(words, inv_norm);
                mem::prefetch(words);
            }
        }
        meter.many(&query, &batch, &mut keys);
        let mut pairs = Pairs::default();
        for ((rough, _), key) in sel.candidates.iter().zip(keys).take(batch.len()) {
            pairs.push(*rough, key);
        }
        refine::tells_apart(meter, &pairs)
    }

    /// Adds the link `from` → `to`; a full list is chosen anew. With `force` it gets in whatever the choice.
    #[allow(clippy::too_many_arguments)] // the link and what choosing takes
    #[inline(never)]
    pub(super) fn link_back(
        &mut self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        sel: &mut Select,
        from: u32,
        to: u32,
        layer: u8,
        force: bool,
    ) -> Result<(), NoMemory> {
        if self.links(from, layer).contains(&to) || self.push_link(from, layer, to) {
            return Ok(());
        }
        let old = self.links(from, layer).iter().copied().filter(|n| self.passable(*n));
        self.measure(view, meter, sel, from, old.chain(core::iter::once(to)))?;
        self.choose(view, meter, sel, self.capacity(layer), from, to)?;
        if force && !sel.kept.contains(&to) {
            let full = sel.kept.len() >= self.capacity(layer);
            match sel.kept.last_mut() {
                Some(last) if full => *last = to,
                _ => mem::push(&mut sel.kept, to)?,
            }
        }
        self.set_links(from, layer, &sel.kept);
        Ok(())
    }

    /// Inserts a live slot.
    #[inline(never)]
    pub(super) fn add(
        &mut self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        s: &mut Scratch,
        slot: u32,
    ) -> Result<Inserted, Error> {
        let head = view.store.head(slot as usize).filter(|h| is_live(h)).ok_or(Error::Invalid)?;
        let (seq, vector) = (head.seq, view.query(slot).ok_or(Error::Invalid)?);
        if self.state(slot) != super::EMPTY {
            return Ok(if self.finds_seq(slot, seq) { Inserted::Yes } else { Inserted::Later });
        }
        let level = self.draw(seq);
        // All memory first: nothing may fail once the graph changes.
        self.grow(view, (slot as usize).saturating_add(1))?;
        self.codes.set(meter.kernels(), slot, &vector);
        let room = usize::from(level).saturating_mul(self.m.saturating_add(1));
        let upper = mem::filled(room, 0u32)?;
        let widest = self.capacity(0).saturating_add(1);
        s.select.reserve(self.ef.max(widest), widest)?;
        s.select.plan.clear();

        let mut planned = None;
        if self.coded() && !self.codes.is_coarse(slot) {
            planned = self.plan(view, meter, s, slot, level, true)?;
        }
        if planned.is_none() {
            planned = self.plan(view, meter, s, slot, level, false)?;
        }
        if !s.select.coded {
            self.look_ahead(view, &s.select);
        }
        view.absent.none()?;
        let host = planned.flatten();
        if self.entry.is_some() && !s.select.plan.iter().any(|p| p.0 == 0) {
            // All that is there is being taken out; a link to it would not last.
            return Ok(Inserted::Later);
        }

        if let Some(node) = self.nodes.get_mut(slot as usize) {
            *node = super::Node { seq, upper };
        }
        if let Some(l) = self.levels.get_mut(slot as usize) {
            *l = level;
        }
        self.set_links(slot, 0, &[]);
        self.set_state(slot, LIVE);
        let mut at = 0usize;
        let mut done = u8::MAX;
        while let Some((layer, n)) = s.select.plan.get(at).copied() {
            self.push_link(slot, layer, n);
            // The nearest neighbour always links back, so that no node is born without a way to it.
            let force = match host {
                Some(h) if layer == 0 => n == h,
                _ => layer != done,
            };
            self.link_back(view, meter, &mut s.select, n, slot, layer, force)?;
            done = layer;
            at = at.wrapping_add(1);
        }
        if self.entry.is_none() || level > self.top {
            self.entry = Some(slot);
            self.top = level;
        }
        Ok(Inserted::Yes)
    }

    /// Looks at the vectors that linking back as planned may measure, so that those that are absent are noted before anything
    /// changes.
    fn look_ahead(&self, view: &View<'_>, sel: &Select) {
        for (layer, n) in &sel.plan {
            let links = self.links(*n, *layer);
            if links.len() >= self.capacity(*layer) {
                for slot in links.iter().chain(core::iter::once(n)) {
                    let _ = view.row(*slot);
                }
            }
        }
    }

    /// Chooses the links of a new node into `s.select.plan`; gives the copy that shall link to it, if there is one. `None`:
    /// not by codes.
    #[inline(never)]
    fn plan(
        &self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        s: &mut Scratch,
        slot: u32,
        level: u8,
        coded: bool,
    ) -> Result<Option<Option<u32>>, Error> {
        s.select.plan.clear();
        s.select.coded = coded;
        let mut hops = 0;
        let mut host = None;
        let query = self.base(view, slot, coded).ok_or(Error::Invalid)?;
        let own = meter.rough_one(&query, query.words, query.inv_norm);
        let mut layer = level.min(self.top);
        let Some(mut near) = self.descend(view, &query, meter, layer, &mut hops) else { return Ok(Some(None)) };
        loop {
            s.marks.begin(self.states.len())?;
            // Copies of the vector beyond a few tell nothing new and would hide what is around them.
            let mut copies = 0usize;
            let mut admit = |_: &mut Marks, n: u32, key: u32| -> Step<Role> {
                copies = copies.wrapping_add(usize::from(key == own));
                Ok(match self.linkable(n) {
                    _ if key == own && copies > self.capacity(0) => Role::Nothing,
                    true => Role::Result,
                    false => Role::Way,
                })
            };
            let (marks, walk, never) = (&mut s.marks, &mut s.walk, Cell::new(false));
            self.search_layer(view, &query, meter, marks, walk, near, self.ef, layer, &never, &mut hops, &mut admit)
                .map_err(fail)?;
            view.absent.none()?;
            let sel = &mut s.select;
            self.take_found(sel, &s.walk)?;
            self.choose(view, meter, sel, self.m, slot, slot)?;
            if let Some(nearest) = sel.candidates.first() {
                near = *nearest;
            }
            if layer == 0 {
                if coded {
                    // Measured next: all that is absent is brought in together.
                    for (_, n) in sel.candidates.iter().take(BATCH) {
                        let _ = view.row(*n);
                    }
                    view.absent.none()?;
                }
                if coded && !self.apart(view, meter, sel, slot) {
                    return Ok(None);
                }
                host = self.host(view, meter, sel, slot)?;
            }
            for n in &sel.kept {
                mem::push(&mut sel.plan, (layer, *n))?;
            }
            match layer.checked_sub(1) {
                Some(below) => layer = below,
                None => return Ok(Some(host)),
            }
        }
    }

    /// If there are copies of the vector of `slot`: the one that shall link to it, made one of `sel.kept`.
    /// It is found by walking from copy to copy, at random, to one with room for a further copy. So copies form a tree,
    /// and however many there are, each can be reached.
    fn host(
        &self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        sel: &mut Select,
        slot: u32,
    ) -> Result<Option<u32>, NoMemory> {
        let Some(query) = self.base(view, slot, sel.coded) else { return Ok(None) };
        let own = meter.rough_one(&query, query.words, query.inv_norm);
        let Some(nearest) = sel.candidates.iter().find(|c| c.0 == own).map(|c| c.1) else { return Ok(None) };
        let mut host = nearest;
        for step in 0..WALK_MAX {
            let links = self.links(host, 0).iter().copied().filter(|n| self.linkable(*n));
            self.measure(view, meter, sel, slot, links)?;
            sel.candidates.retain(|c| c.0 == own);
            let copies = sel.candidates.len();
            let pick = mix(self.seed ^ mix(u64::from(slot)) ^ step).checked_rem(copies as u64).unwrap_or(0);
            match sel.candidates.get(pick as usize) {
                Some(next) if copies >= self.m => host = next.1,
                _ => break,
            }
        }
        if !sel.kept.contains(&host) {
            let full = sel.kept.len() >= self.m;
            match sel.kept.last_mut() {
                Some(last) if full => *last = host,
                _ => mem::push(&mut sel.kept, host)?,
            }
        }
        Ok(Some(host))
    }

    fn finds_seq(&self, slot: u32, seq: u64) -> bool {
        self.state(slot) == LIVE && self.nodes.get(slot as usize).is_some_and(|n| n.seq == seq)
    }

    /// Connects a node that lost its links on layer 0, or that nothing leads to, with near ones that `admit` lets in.
    #[inline(never)]
    pub(super) fn connect(
        &mut self,
        view: &View<'_>,
        meter: &mut Meter<'_>,
        s: &mut Scratch,
        slot: u32,
        admit: impl Fn(&Hnsw, u32) -> bool,
    ) -> Result<(), Error> {
        s.select.coded = false;
        let query = self.base(view, slot, false).ok_or(Error::Invalid)?;
        let widest = self.capacity(0).saturating_add(1);
        s.select.reserve(self.ef.max(widest), widest)?;
        let mut hops = 0;
        let mut good = |_: &mut Marks, n: u32, _: u32| -> Step<Role> {
            let fit = n != slot && self.linkable(n) && admit(self, n);
            Ok(if fit { Role::Result } else { Role::Way })
        };
        // From the nearest on the upper layers; if that is in a part of layer 0 without such nodes, from the entry.
        for to in [0, self.top] {
            let Some(near) = self.descend(view, &query, meter, to, &mut hops) else { return Ok(()) };
            s.marks.begin(self.states.len())?;
            let (marks, walk) = (&mut s.marks, &mut s.walk);
            self.search_layer(
                view,
                &query,
                meter,
                marks,
                walk,
                near,
                self.ef,
                0,
                &Cell::new(false),
                &mut hops,
                &mut good,
            )
            .map_err(fail)?;
            if !s.walk.found.is_empty() {
                break;
            }
        }
        let sel = &mut s.select;
        self.take_found(sel, &s.walk)?;
        self.choose(view, meter, sel, self.m, slot, slot)?;
        sel.plan.clear();
        for n in &sel.kept {
            mem::push(&mut sel.plan, (0, *n))?;
        }
        self.look_ahead(view, sel);
        view.absent.none()?;
        // Only lists with room take a link back, so that no other node loses its own: the nearest of all that were
        // found. If there is none, the nearest has to.
        let room = |n: u32| self.links(n, 0).len() < self.capacity(0);
        let host = sel.candidates.iter().map(|c| c.1).find(|n| room(*n));
        let mut at = 0usize;
        while let Some((_, n)) = s.select.plan.get(at).copied() {
            if !self.links(slot, 0).contains(&n) {
                self.push_link(slot, 0, n);
            }
            if !self.links(n, 0).contains(&slot) && !self.push_link(n, 0, slot) && at == 0 && host.is_none() {
                self.link_back(view, meter, &mut s.select, n, slot, 0, true)?;
            }
            at = at.wrapping_add(1);
        }
        if let Some(host) = host.filter(|h| !self.links(*h, 0).contains(&slot)) {
            self.push_link(host, 0, slot);
        }
        Ok(())
    }
}
