// SPDX-License-Identifier: GPL-2.0-only
//! The end of a generation: addresses for the dirty nodes, then their final bytes. Owns the walk over
//! the dirty nodes, children before parents and in key order, so that neighbours get neighbouring blocks.

use super::{node, Path, Tree, VIRTUAL};
use crate::error::Error;
use crate::format::Ptr;
use crate::mem;
use alloc::vec::Vec;

/// The walk over the dirty nodes.
struct Walk {
    path: Path,
    level: usize,
}

impl Walk {
    fn new(t: &Tree) -> Option<Walk> {
        if t.root.addr & VIRTUAL == 0 {
            return None;
        }
        let mut path = Path::new();
        let level = usize::from(t.level);
        path.set(level, t.root.addr, 0);
        Some(Walk { path, level })
    }

    /// The next dirty node and its level; its parent's entry for it is then the one before `path.index(level + 1)`.
    fn next(&mut self, t: &Tree) -> Option<(u64, usize)> {
        if self.level > usize::from(t.level) {
            return None;
        }
        loop {
            let id = self.path.node(self.level);
            let below = if self.level == 0 { None } else { self.level.checked_sub(1) };
            let b = t.bytes(id)?;
            let mut i = self.path.index(self.level);
            let n = node::items(b);
            while i < n && node::child_addr(b, i) & VIRTUAL == 0 {
                i = i.wrapping_add(1);
            }
            match below {
                Some(l) if i < n => {
                    self.path.set(self.level, id, i.wrapping_add(1));
                    self.path.set(l, node::child_addr(b, i), 0);
                    self.level = l;
                }
                _ => {
                    let at = self.level;
                    self.level = at.wrapping_add(1);
                    return Some((id, at));
                }
            }
        }
    }
}

impl Tree {
    /// Gives an address pair to each dirty node that has none. [`Error::NoSpace`] if `alloc` has no
    /// more; what was given stays given.
    pub fn assign(&mut self, alloc: &mut dyn FnMut() -> Option<(u64, u64)>) -> Result<(), Error> {
        let Some(mut walk) = Walk::new(self) else { return Ok(()) };
        while self.unassigned > 0 {
            let Some((id, _)) = walk.next(self) else { return Err(Error::Corrupt) };
            if let Some(d) = self.dirty.get_mut(id).filter(|d| d.addr == 0 && !d.vacant) {
                let (addr, twin) = alloc().ok_or(Error::NoSpace)?;
                d.addr = addr;
                d.twin = twin;
                self.unassigned = self.unassigned.wrapping_sub(1);
            }
        }
        Ok(())
    }

    /// Ends the generation: every dirty node (all assigned) gets its head, child pointers and checksum and
    /// becomes a clean node that stays in memory until [`Tree::written`]; its address is appended to
    /// `out`. Returns the pointer to the root. Nothing changes if it fails.
    pub fn seal(&mut self, generation: u64, out: &mut Vec<u64>) -> Result<Ptr, Error> {
        if self.unassigned > 0 {
            return Err(Error::Corrupt);
        }
        let busy = |addr| self.cache.get(addr).is_some_and(|c| c.writing);
        if self.dirty.iter().any(|(_, d)| busy(d.addr)) {
            return Err(Error::Corrupt);
        }
        mem::reserve(out, self.dirty.len())?;
        self.cache.reserve(self.dirty.len())?;
        if let Some(mut walk) = Walk::new(self) {
            while let Some((id, level)) = walk.next(self) {
                let mut d = self.dirty.remove(id).ok_or(Error::Corrupt)?;
                let above = level.wrapping_add(1);
                let entry = walk.path.index(above).wrapping_sub(1);
                if d.vacant {
                    let parent = walk.path.node(above);
                    walk.path.set(above, parent, entry);
                    node::remove(&mut self.dirty.get_mut(parent).ok_or(Error::Corrupt)?.buf, entry);
                    self.give(d.buf);
                    continue;
                }
                if level == usize::from(self.level) && node::items(&d.buf) == 0 {
                    node::init(&mut d.buf, 0);
                    self.level = 0;
                }
                node::finish(&mut d.buf, &self.uuid, d.addr, d.twin, generation);
                let crc = (self.crc32c)(0, &d.buf);
                let ptr = Ptr { addr: d.addr, twin: d.twin, birth: generation, crc, reserved: 0 };
                match self.dirty.get_mut(walk.path.node(above)) {
                    Some(p) if level < usize::from(self.level) => node::set_child(&mut p.buf, entry, &ptr),
                    _ => self.root = ptr,
                }
                mem::push(out, ptr.addr)?;
                self.cache.insert(ptr, d.buf, self.tick, true)?;
            }
        }
        self.sealed = (self.root, self.level);
        self.trim_pool();
        Ok(self.root)
    }
}
