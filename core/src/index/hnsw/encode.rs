// SPDX-License-Identifier: GPL-2.0-only
//! The graph as bytes: [`GraphHead`], then each node in order of slot ([`GraphNode`], its links, its codes): all that a search
//! needs until it measures candidates, so that the vectors need not be read first.
//!
//! Loading believes nothing: any inconsistency means that the graph is built again from the vectors.

use super::{Hnsw, Node, DOOMED, DOOMED_STALE, EMPTY, LEVEL_MAX, LIVE, STALE, TOMB};
use crate::format::layout::layout;
use crate::format::Wire;
use crate::index::{is_live, Bits, Marks, View};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// Version of the encoding.
pub(super) const VERSION: u32 = 2;
const MAGIC: u64 = u64::from_le_bytes(*b"VXhnsw\0\0");
const NO_ENTRY: u64 = u64::MAX;

layout! {
    /// Head of a stored HNSW index, the byte string that an `INDEX` item describes. Its nodes follow.
    pub struct GraphHead [64] {
        0 magic: u64 = "`VXhnsw`",
        8 version: u32 = "version of the encoding, 2",
        12 dim: u32 = "dimension",
        16 metric: u32 = "metric as in the schema",
        20 m: u32 = "links per node and layer",
        24 ef_construction: u32 = "candidates while building",
        28 top: u32 = "level of the entry",
        32 seed: u64 = "seed of the levels",
        40 nodes: u64 = "number of nodes",
        48 entry: u64 = "slot of the entry; all ones: none",
        56 reserved: u64 = "zero",
    }
}

layout! {
    /// A node of a stored HNSW index, in order of slots. For each layer from 0 to `level` a u32 count and as many u32
    /// slots follow: the links. If the dimension is 48 or more, the vector's codes come next: a signed byte for each element, zeros up
    /// to a multiple of 64, and four words that belong to them (the last says that they are a poor likeness).
    pub struct GraphNode [16] {
        0 slot: u32 = "slot of the vector",
        4 level: u32 = "highest layer that the node is on, at most 63",
        8 seq: u64 = "sequence number of the vector that it was made from; if the slot has another, the node is taken out",
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<T: Wire>(&mut self) -> Option<T> {
        let v = T::get(self.bytes, self.at)?;
        self.at = self.at.checked_add(core::mem::size_of::<T>())?;
        Some(v)
    }
}

impl Hnsw {
    fn head(&self, view: &View<'_>) -> GraphHead {
        GraphHead {
            magic: MAGIC,
            version: VERSION,
            dim: view.store.dim() as u32,
            metric: view.metric as u32,
            m: self.m as u32,
            ef_construction: self.ef as u32,
            top: u32::from(self.top),
            seed: self.seed,
            nodes: 0,
            entry: self.entry.map_or(NO_ENTRY, u64::from),
            reserved: 0,
        }
    }

    /// Whether the node is part of what is persisted.
    fn kept(&self, slot: u32) -> bool {
        match self.state(slot) {
            EMPTY => false,
            DOOMED | DOOMED_STALE => !self.cut_off(),
            _ => true,
        }
    }

    pub(super) fn bytes(&self, view: &View<'_>) -> Result<Vec<u8>, NoMemory> {
        let slots = self.states.len() as u32;
        let mut size = GraphHead::SIZE;
        let mut head = self.head(view);
        for slot in (0..slots).filter(|s| self.kept(*s)) {
            head.nodes = head.nodes.wrapping_add(1);
            size = size.saturating_add(GraphNode::SIZE);
            for layer in 0..=self.level(slot) {
                size = size.saturating_add(4).saturating_add(self.links(slot, layer).len().saturating_mul(4));
            }
            size = size.saturating_add(self.codes.get(slot).map_or(0, |c| c.len().saturating_mul(4)));
        }
        let mut out = Vec::new();
        out.try_reserve_exact(size).map_err(|_| NoMemory)?;
        mem::resize(&mut out, GraphHead::SIZE, 0)?;
        head.emit(&mut out);
        for slot in (0..slots).filter(|s| self.kept(*s)) {
            let level = self.level(slot);
            let seq = self.nodes.get(slot as usize).map_or(0, |n| n.seq);
            let mut bytes = [0u8; GraphNode::SIZE];
            GraphNode { slot, level: u32::from(level), seq }.emit(&mut bytes);
            mem::extend(&mut out, &bytes)?;
            for layer in 0..=level {
                let links = self.links(slot, layer);
                let count = links.iter().filter(|n| self.kept(**n)).count() as u32;
                mem::extend(&mut out, &count.to_le_bytes())?;
                for n in links.iter().filter(|n| self.kept(**n)) {
                    mem::extend(&mut out, &n.to_le_bytes())?;
                }
            }
            for word in self.codes.get(slot).unwrap_or(&[]) {
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
        let mut fresh = Hnsw::new(self.m as u32, self.ef as u32, self.seed);
        let good = version == VERSION && fresh.read(view, bytes, bad)?.is_some() && fresh.sound()?;
        // A graph of which most is gone is cheaper to build than to mend.
        let worth = fresh.count(STALE) <= fresh.count(LIVE);
        if !good || !worth {
            *self = Hnsw::new(self.m as u32, self.ef as u32, self.seed);
            return Ok(false);
        }
        if !fresh.entry.is_some_and(|e| fresh.passable(e)) {
            fresh.repair_entry(false);
        }
        *self = fresh;
        Ok(true)
    }

    /// Reads head and nodes; `None` if they make no sense in themselves.
    fn read(&mut self, view: &View<'_>, bytes: &[u8], bad: &Bits) -> Result<Option<()>, NoMemory> {
        let Some(head) = GraphHead::parse(bytes) else { return Ok(None) };
        let want = GraphHead { top: head.top, nodes: head.nodes, entry: head.entry, ..self.head(view) };
        let slots = view.store.len();
        if head != want || head.nodes > slots as u64 || (head.nodes == 0) != (head.entry == NO_ENTRY) {
            return Ok(None);
        }
        self.grow(view, slots)?;
        let mut r = Reader { bytes, at: GraphHead::SIZE };
        let mut least = 0u32;
        for _ in 0..head.nodes {
            match self.read_node(view, &mut r, least, bad)? {
                Some(slot) => least = slot.saturating_add(1),
                None => return Ok(None),
            }
        }
        if r.at != bytes.len() {
            return Ok(None);
        }
        if head.entry == NO_ENTRY {
            return Ok((head.top == 0).then_some(()));
        }
        // A node that searches cannot pass through may be higher than the entry.
        let Ok(entry) = u32::try_from(head.entry) else { return Ok(None) };
        if self.state(entry) == EMPTY || u32::from(self.level(entry)) != head.top {
            return Ok(None);
        }
        (self.entry, self.top) = (Some(entry), self.level(entry));
        Ok(Some(()))
    }

    fn read_node(
        &mut self,
        view: &View<'_>,
        r: &mut Reader<'_>,
        least: u32,
        bad: &Bits,
    ) -> Result<Option<u32>, NoMemory> {
        let Some(GraphNode { slot, level, seq }) = r.bytes.get(r.at..).and_then(GraphNode::parse) else {
            return Ok(None);
        };
        r.at = r.at.saturating_add(GraphNode::SIZE);
        let (Some(head), Ok(level)) = (view.store.head(slot as usize), u8::try_from(level)) else { return Ok(None) };
        if slot < least || level > LEVEL_MAX || seq == 0 {
            return Ok(None);
        }
        // Each layer takes at least its count: a level without the bytes for it ends here, before memory is taken.
        if r.bytes.len().saturating_sub(r.at) < usize::from(level).saturating_add(1).saturating_mul(4) {
            return Ok(None);
        }
        let state = if head.seq != seq || bad.get(u64::from(slot)) {
            STALE
        } else if is_live(head) {
            LIVE
        } else {
            TOMB
        };
        let upper = mem::filled(usize::from(level).saturating_mul(self.m.saturating_add(1)), 0u32)?;
        if let Some(node) = self.nodes.get_mut(slot as usize) {
            *node = Node { seq, upper };
        }
        if let Some(l) = self.levels.get_mut(slot as usize) {
            *l = level;
        }
        for layer in 0..=level {
            let Some(count) = r.take::<u32>() else { return Ok(None) };
            if count as usize > self.capacity(layer) {
                return Ok(None);
            }
            for _ in 0..count {
                let Some(n) = r.take::<u32>() else { return Ok(None) };
                if n == slot || n as usize >= self.states.len() || !self.push_link(slot, layer, n) {
                    return Ok(None);
                }
            }
        }
        for word in self.codes.get_mut(slot).unwrap_or(&mut []) {
            let Some(w) = r.take::<u32>() else { return Ok(None) };
            *word = w;
        }
        self.codes.judge(slot);
        self.set_state(slot, state);
        Ok(Some(slot))
    }

    /// Whether every link leads to a node of its layer, and none is there twice.
    fn sound(&self) -> Result<bool, NoMemory> {
        let mut marks = Marks::default();
        for slot in 0..self.states.len() as u32 {
            if self.state(slot) == EMPTY {
                continue;
            }
            for layer in 0..=self.level(slot) {
                marks.begin(self.states.len())?;
                for n in self.links(slot, layer) {
                    if self.state(*n) == EMPTY || self.level(*n) < layer || !marks.visit(*n) {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }
}
