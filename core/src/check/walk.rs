// SPDX-License-Identifier: GPL-2.0-only
//! The tree as it lies on the device: every node, both copies, and every block that a leaf refers to.

use super::repair::Fix;
use super::space::Stored;
use super::{lost_key, Check, Out, Phase, Place, Repair};
use crate::error::Step;
use crate::format::{kind, Extent, Key, NodeHead, Ptr, NODE_MAGIC};
use crate::mem::{self, Buf};
use crate::tree::node;
use alloc::vec::Vec;

/// An inner node on the way to the present one.
#[derive(Debug)]
struct Frame {
    buf: Buf,
    level: u16,
    index: usize,
    high: Option<Key>,
}

/// The walk over the tree, depth first.
#[derive(Debug, Default)]
pub struct Walk {
    begun: bool,
    stack: Vec<Frame>,
}

impl Check {
    #[inline(never)]
    pub(super) fn walk_step(&mut self) -> Step<()> {
        if !self.walk.begun {
            let root = Ptr::parse(&self.sb.root).unwrap_or_default();
            self.visit(root, self.sb.root_level as u16, None, None)?;
            self.walk.begun = true;
            return Ok(());
        }
        let Some(f) = self.walk.stack.last() else {
            self.phase = Phase::Space;
            return Ok(());
        };
        let i = f.index;
        match (node::key(&f.buf, i), node::child(&f.buf, i)) {
            (Some(low), Some(ptr)) => {
                let high = node::key(&f.buf, i.saturating_add(1)).or(f.high);
                let depth = self.walk.stack.len();
                let level = f.level.saturating_sub(1);
                self.visit(ptr, level, Some(low), high)?;
                if let Some(f) = depth.checked_sub(1).and_then(|d| self.walk.stack.get_mut(d)) {
                    f.index = i.saturating_add(1);
                }
            }
            _ => {
                self.walk.stack.pop();
            }
        }
        Ok(())
    }

    /// Checks both copies of a node and what a leaf refers to; an inner node is put on the stack.
    fn visit(&mut self, ptr: Ptr, level: u16, low: Option<Key>, high: Option<Key>) -> Step<()> {
        let mut out = Out::default();
        let mut copies = [(ptr.addr, false), (ptr.twin, false)];
        let mut good = None;
        for (addr, ok) in &mut copies {
            if *addr == 0 {
                continue;
            }
            if let Some(b) = self.read(*addr, 1)? {
                *ok = self.tree.verify(&ptr, level, b);
                if *ok && good.is_none() {
                    good = Some(Buf::padded(b)?);
                }
            }
        }
        let [(_, first), _] = copies;
        if !first && self.superseded(&ptr)? {
            // What reads the tree believes the younger node; the second copy of this one is left over.
            good = None;
        }
        let place = Place::Node(ptr.addr);
        for (addr, ok) in copies {
            if addr != 0 && !ok {
                let root = low.is_none();
                let repair = match (good.is_some(), root) {
                    (true, _) => Repair::Safe,
                    (false, true) => Repair::No,
                    (false, false) => Repair::Loss,
                };
                out.bad(Place::Node(addr), "node", addr, "the node that its parent points to, whole", repair)?;
                if let Some(b) = &good {
                    if self.placeable(addr, 1) {
                        out.fix(Fix::Write { block: addr, buf: b.copy()? })?;
                    }
                }
            }
        }
        if let Some(b) = &good {
            let (first, last) = (node::key(b, 0), node::last_key(b));
            let above = low.is_none_or(|l| first.is_some_and(|k| k >= l));
            let below = high.is_none_or(|h| last.is_some_and(|k| k < h));
            if !above || !below {
                out.bad(
                    place,
                    "keys",
                    ptr.addr,
                    "within the bounds that the parent sets",
                    if low.is_some() { Repair::Loss } else { Repair::No },
                )?;
                good = None;
            }
        }
        for addr in [ptr.addr, ptr.twin] {
            if addr != 0 {
                self.claim(&mut out, place, "node", addr, 1)?;
            }
        }
        self.figures.nodes = self.figures.nodes.saturating_add(1);
        match good {
            None => {
                self.lost.insert(lost_key(&ptr), Some(high.unwrap_or(Key::MAX)))?;
                mem::push(&mut self.lost_list, (low, level))?;
            }
            Some(b) if level == 0 => self.leaf(&mut out, &b)?,
            Some(buf) => mem::push(&mut self.walk.stack, Frame { buf, level, index: 0, high })?,
        }
        self.say(out)
    }

    /// Whether a younger node of this volume is where the first copy of the node should be: its block was given away.
    fn superseded(&self, ptr: &Ptr) -> Step<bool> {
        let head = self.read(ptr.addr, 1)?.and_then(NodeHead::parse);
        Ok(head.is_some_and(|h| {
            h.magic == NODE_MAGIC && h.uuid == self.sb.uuid && h.addr == ptr.addr && h.birth > ptr.birth
        }))
    }

    /// Marks what the items of a leaf refer to, and keeps the bitmaps.
    fn leaf(&mut self, out: &mut Out, b: &[u8]) -> Step<()> {
        for i in 0..node::items(b) {
            let (Some(k), Some(v)) = (node::key(b, i), node::value(b, i)) else { continue };
            match k.kind {
                kind::EXTENT | kind::SLOT_EXTENT | kind::VECTOR_EXTENT | kind::INDEX_EXTENT => {
                    if let Some(e) = Extent::parse(v) {
                        self.claim(out, Place::Item(k), "Extent.addr", e.addr, u64::from(e.blocks))?;
                    }
                }
                kind::SPACE if k.object == 0 => {
                    if let Some(s) = Stored::parse(v)? {
                        self.groups.insert(k.offset, s)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
