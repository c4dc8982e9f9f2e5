// SPDX-License-Identifier: GPL-2.0-only
//! Edits: memory for them, copy-on-write of the path, splits, merges, growth and collapse of the root.

use super::cache::Retired;
use super::{node, virtual_ptr, Dirty, Path, Tree, LEVELS, VIRTUAL};
use crate::error::{Error, Step, Stop};
use crate::format::{Key, BLOCK, TREE, VALUE_MAX};
use crate::mem::{self, Buf, NoMemory};

/// Spare buffers that are kept between transactions.
const POOL_KEEP: usize = 64;
/// A leaf that a split or a merge left overflows again only after so many further bytes.
const SPLIT_BYTES: usize = 980;
/// The same for entries of inner nodes.
const SPLIT_ENTRIES: usize = 31;

/// What the edits that were looked at so far will do to the node of one level on the current path.
#[derive(Clone, Copy, Default)]
struct Level {
    node: u64,
    /// Bytes that are added to a leaf; entries to an inner node.
    added: usize,
    puts: usize,
}

/// What a list of edits may need at most.
#[derive(Default)]
struct Bound {
    levels: [Level; LEVELS],
    splits: usize,
    own: usize,
    copies: usize,
    deletes: usize,
}

impl Tree {
    // Memory.

    /// Memory for `edits` edits, after which they cannot fail. Nothing changes if there is none.
    pub fn reserve(&mut self, edits: usize) -> Result<(), NoMemory> {
        let height = usize::from(self.level).saturating_add(1);
        // Each edit may split a node on every level and the root; the further levels that this adds
        // are split too seldom to exceed the spare one per edit.
        let splits = edits.saturating_mul(height.saturating_add(1)).saturating_add(1);
        let own = edits.saturating_mul(height).min(self.cache.len());
        let gone = edits.saturating_mul(height).saturating_mul(2);
        self.provide(splits, own, own.min(self.cache.writing()), gone)
    }

    fn provide(&mut self, splits: usize, own: usize, copies: usize, gone: usize) -> Result<(), NoMemory> {
        // Each node with an address can be given up once.
        let gone = gone.saturating_add(own).min(self.cache.len().saturating_add(self.dirty.len()));
        mem::reserve(&mut self.freed, gone)?;
        self.dirty.reserve(splits.saturating_add(own))?;
        if self.scratch.is_empty() {
            self.scratch = Buf::zeroed(BLOCK)?;
        }
        let want = splits.saturating_add(copies);
        let room = want.max(POOL_KEEP).saturating_sub(self.pool.len());
        mem::reserve(&mut self.pool, room)?;
        while self.pool.len() < want {
            mem::push(&mut self.pool, Buf::zeroed(BLOCK)?)?;
        }
        Ok(())
    }

    /// [`Tree::prepare`] and [`Tree::reserve`] in one walk for edits in ascending key order (as in
    /// `txn::Changes`): close to the real need, much less than the worst case for a large transaction.
    pub fn reserve_for(&mut self, edits: &[(Key, Option<(u32, u32)>)]) -> Step<()> {
        let mut bound = Bound { deletes: edits.iter().filter(|e| e.1.is_none()).count(), ..Bound::default() };
        let mut path = Path::new();
        for (key, value) in edits {
            if key.tree != TREE || value.is_some_and(|(_, len)| len as usize > VALUE_MAX) {
                return Err(Stop::Fail(Error::Corrupt));
            }
            self.walk(key, 0, &mut path)?;
            let mut l = usize::from(self.level).saturating_add(1);
            // From the top: the first level on which the path has changed, and all below it.
            while let Some(below) = l.checked_sub(1) {
                l = below;
                if bound.levels.get(l).is_some_and(|x| x.node != path.node(l)) {
                    self.settle(&mut bound, l);
                    self.start(&mut bound, &path, l);
                    break;
                }
            }
            if let (Some(leaf), Some((_, len))) = (bound.levels.first_mut(), value) {
                let bytes = node::SLOT.saturating_add(*len as usize);
                leaf.added = leaf.added.saturating_add(bytes);
                leaf.puts = leaf.puts.saturating_add(1);
            }
        }
        self.settle(&mut bound, usize::from(self.level));
        // Two new roots: the second one would take 62 splits of the first one's children each.
        let splits = bound.splits.saturating_add(2).saturating_add(bound.splits / SPLIT_ENTRIES);
        let height = usize::from(self.level).saturating_add(1);
        let gone = bound.deletes.saturating_mul(height).saturating_mul(2).saturating_add(bound.own);
        Ok(self.provide(splits, bound.own, bound.copies, gone)?)
    }

    /// The path leaves the nodes of level `top` and below: adds what happens to them.
    fn settle(&self, bound: &mut Bound, top: usize) {
        for l in 0..=top {
            let Some(x) = bound.levels.get_mut(l) else { return };
            let done = core::mem::take(x);
            let Some(b) = self.bytes(done.node) else { continue };
            let (room, more) = if l == 0 {
                (node::CAPACITY.saturating_sub(node::used(b)), done.added / SPLIT_BYTES)
            } else {
                (node::INNER_MAX.saturating_sub(node::items(b)), done.added / SPLIT_ENTRIES)
            };
            // A merge with a neighbour, after a delete, may leave less room than there seems to be.
            let first = usize::from(done.added > room || bound.deletes > 0);
            let splits = first.saturating_add(more).min(done.puts);
            bound.splits = bound.splits.saturating_add(splits);
            if let Some(up) = bound.levels.get_mut(l.saturating_add(1)) {
                up.added = up.added.saturating_add(splits);
                up.puts = up.puts.saturating_add(splits);
            }
        }
    }

    /// The path enters new nodes from level `top` down.
    fn start(&self, bound: &mut Bound, path: &Path, top: usize) {
        for l in 0..=top {
            let id = path.node(l);
            if let Some(x) = bound.levels.get_mut(l) {
                x.node = id;
            }
            if id & VIRTUAL == 0 {
                bound.own = bound.own.saturating_add(1);
                let writing = self.cache.get(id).is_some_and(|c| c.writing);
                bound.copies = bound.copies.saturating_add(usize::from(writing));
            }
        }
    }

    fn spare(&mut self) -> Result<Buf, Error> {
        match self.pool.pop() {
            Some(b) => Ok(b),
            None => Ok(Buf::zeroed(BLOCK)?),
        }
    }

    pub(super) fn give(&mut self, b: Buf) {
        if b.len() == BLOCK && self.pool.len() < self.pool.capacity() {
            // Within the capacity: cannot fail.
            let _ = mem::push(&mut self.pool, b);
        }
    }

    /// Lets go of spare buffers beyond a modest number.
    pub(super) fn trim_pool(&mut self) {
        if self.pool.len() > POOL_KEEP {
            self.pool.truncate(POOL_KEEP);
        }
    }

    // Copy-on-write.

    /// Makes every node of the path dirty.
    fn own(&mut self, path: &mut Path) -> Result<(), Error> {
        self.own_from(path, 0)
    }

    /// Makes every node of the path from the root down to level `low` dirty.
    fn own_from(&mut self, path: &mut Path, low: usize) -> Result<(), Error> {
        let top = usize::from(self.level);
        let mut l = top.wrapping_add(1);
        while let Some(below) = l.checked_sub(1).filter(|b| *b >= low) {
            l = below;
            let id = path.node(l);
            if id & VIRTUAL != 0 {
                continue;
            }
            let buf = self.unlink_clean(id, true)?.ok_or(Error::Corrupt)?;
            let fresh = self.new_id();
            self.dirty.insert(fresh, Dirty::new(buf))?;
            self.unassigned = self.unassigned.wrapping_add(1);
            if l == top {
                self.root = virtual_ptr(fresh);
            } else {
                let above = l.wrapping_add(1);
                let p = self.dirty.get_mut(path.node(above)).ok_or(Error::Corrupt)?;
                node::set_child(&mut p.buf, path.index(above), &virtual_ptr(fresh));
            }
            path.set(l, fresh, path.index(l));
        }
        Ok(())
    }

    /// Takes a clean node out of the tree; its blocks are freed. With `keep` its bytes are returned.
    fn unlink_clean(&mut self, id: u64, keep: bool) -> Result<Option<Buf>, Error> {
        let ptr = self.cache.get(id).ok_or(Error::Corrupt)?.ptr;
        let copy = match self.cache.get(id) {
            Some(c) if keep && c.writing => Some(self.spare()?),
            _ => None,
        };
        let kept = match (self.cache.retire(id).ok_or(Error::Corrupt)?, copy) {
            (Retired::Free(b), _) => Some(b),
            (Retired::Writing(bytes), Some(mut b)) => {
                node::copy_block(&mut b, bytes);
                Some(b)
            }
            (Retired::Writing(_), None) => None,
        };
        mem::push(&mut self.freed, (ptr.addr, ptr.twin))?;
        if keep {
            return Ok(kept);
        }
        if let Some(b) = kept {
            self.give(b);
        }
        Ok(None)
    }

    /// Takes a dirty node out of the tree; its blocks, if it has any yet, are freed.
    fn unlink_dirty(&mut self, id: u64) -> Result<(), Error> {
        self.set_vacant(id, true)?;
        let d = self.dirty.remove(id).ok_or(Error::Corrupt)?;
        self.give(d.buf);
        Ok(())
    }

    /// Notes whether a dirty node is vacant. One that is needs no blocks.
    fn set_vacant(&mut self, id: u64, vacant: bool) -> Result<(), Error> {
        let d = self.dirty.get_mut(id).ok_or(Error::Corrupt)?;
        if d.vacant == vacant {
            return Ok(());
        }
        d.vacant = vacant;
        if !vacant {
            self.unassigned = self.unassigned.wrapping_add(1);
        } else if d.addr == 0 {
            self.unassigned = self.unassigned.wrapping_sub(1);
        } else {
            mem::push(&mut self.freed, (d.addr, d.twin))?;
            d.addr = 0;
            d.twin = 0;
        }
        Ok(())
    }

    /// Finds out whether the dirty node `id` is vacant. The root never is.
    fn refresh(&mut self, id: u64) -> Result<(), Error> {
        let b = self.bytes(id).ok_or(Error::Corrupt)?;
        let vacant = |a: u64| a & VIRTUAL != 0 && self.dirty.get(a).is_some_and(|d| d.vacant);
        let all = node::level(b) == 0 || (0..node::items(b)).all(|i| vacant(node::child_addr(b, i)));
        let empty = all && (node::level(b) > 0 || node::items(b) == 0) && id != self.root.addr;
        self.set_vacant(id, empty)
    }

    fn add_dirty(&mut self, buf: Buf) -> Result<u64, Error> {
        let id = self.new_id();
        self.dirty.insert(id, Dirty::new(buf))?;
        self.unassigned = self.unassigned.wrapping_add(1);
        Ok(id)
    }

    fn buf(&mut self, id: u64) -> Result<&mut Buf, Error> {
        self.dirty.get_mut(id).map(|d| &mut d.buf).ok_or(Error::Corrupt)
    }

    // Edits.

    /// Sets the value of `key`, at most [`VALUE_MAX`] bytes. After [`Tree::prepare`] and [`Tree::reserve`] (or
    /// [`Tree::reserve_for`]) it fails only if the tree in memory contradicts itself.
    pub fn put(&mut self, key: &Key, value: &[u8]) -> Result<(), Error> {
        if value.len() > VALUE_MAX || key.tree != TREE {
            return Err(Error::Corrupt);
        }
        let mut path = Path::new();
        let leaf = self.walk(key, 0, &mut path).map_err(|_| Error::Corrupt)?;
        if let Ok(i) = node::find(leaf, key) {
            if node::value(leaf, i) == Some(value) {
                return Ok(());
            }
        }
        self.own(&mut path)?;
        for l in 1..=usize::from(self.level) {
            if path.index(l) == 0 {
                let b = self.buf(path.node(l))?;
                if node::key(b, 0).is_some_and(|k| *key < k) {
                    node::set_key(b, 0, key);
                }
            }
        }
        let mut scratch = core::mem::take(&mut self.scratch);
        let done = self.put_leaf(&path, key, value, &mut scratch);
        self.scratch = scratch;
        if let Some((sep, id)) = done? {
            return self.link(&path, sep, id);
        }
        if self.dirty.get(path.node(0)).is_some_and(|d| d.vacant) {
            for l in 0..=usize::from(self.level) {
                self.refresh(path.node(l))?;
            }
        }
        Ok(())
    }

    /// Makes the path to the place of `key` dirty, whether or not a change follows. Needs what [`Tree::put`] needs.
    pub fn touch(&mut self, key: &Key) -> Result<(), Error> {
        let mut path = Path::new();
        self.walk(key, 0, &mut path).map_err(|_| Error::Corrupt)?;
        self.own(&mut path)
    }

    /// Puts the item into its leaf. If that splits: the first key of the new node and its id.
    fn put_leaf(
        &mut self,
        path: &Path,
        key: &Key,
        value: &[u8],
        scratch: &mut Buf,
    ) -> Result<Option<(Key, u64)>, Error> {
        if scratch.is_empty() {
            *scratch = Buf::zeroed(BLOCK)?;
        }
        let b = self.buf(path.node(0))?;
        let i = match node::find(b, key) {
            Ok(i) => {
                if node::replace(b, i, value, scratch) {
                    return Ok(None);
                }
                node::remove(b, i);
                i
            }
            Err(i) => i,
        };
        if node::insert(b, i, key, value, scratch) {
            return Ok(None);
        }
        let mut right = self.spare()?;
        let b = self.buf(path.node(0))?;
        node::split(b, &mut right, i, key, value, scratch);
        let sep = node::key(&right, 0).ok_or(Error::Corrupt)?;
        Ok(Some((sep, self.add_dirty(right)?)))
    }

    /// Enters a new node into the parent of its left neighbour, level by level as long as that splits.
    fn link(&mut self, path: &Path, sep: Key, id: u64) -> Result<(), Error> {
        let (mut sep, mut id) = (sep, id);
        for l in 1..=usize::from(self.level) {
            let at = path.index(l).wrapping_add(1);
            let p = virtual_ptr(id);
            let b = self.buf(path.node(l))?;
            if node::insert_child(b, at, &sep, &p) {
                return Ok(());
            }
            let mut right = self.spare()?;
            let left = path.node(l);
            node::split_inner(self.buf(left)?, &mut right, at, &sep, &p);
            sep = node::key(&right, 0).ok_or(Error::Corrupt)?;
            id = self.add_dirty(right)?;
            self.refresh(left)?;
            self.refresh(id)?;
        }
        let level = self.level.wrapping_add(1);
        if level > node::LEVEL_MAX {
            return Err(Error::Corrupt);
        }
        let first = self.bytes(self.root.addr).and_then(|b| node::key(b, 0)).ok_or(Error::Corrupt)?;
        let mut top = self.spare()?;
        node::init(&mut top, level);
        node::insert_child(&mut top, 0, &first, &self.root);
        node::insert_child(&mut top, 1, &sep, &virtual_ptr(id));
        let top = virtual_ptr(self.add_dirty(top)?);
        let old = core::mem::replace(&mut self.root, top);
        self.level = level;
        self.refresh(old.addr)
    }

    /// Takes the item of `key` away, if there is one. Fails as rarely as [`Tree::put`].
    pub fn del(&mut self, key: &Key) -> Result<(), Error> {
        let mut path = Path::new();
        let leaf = self.walk(key, 0, &mut path).map_err(|_| Error::Corrupt)?;
        let Ok(i) = node::find(leaf, key) else { return Ok(()) };
        self.own(&mut path)?;
        node::remove(self.buf(path.node(0))?, i);
        let mut merging = true;
        for l in 0..usize::from(self.level) {
            let id = path.node(l);
            merging = merging && self.bytes(id).is_some_and(node::underfull) && self.merge(&path, l)?;
            if self.dirty.contains(id) {
                self.refresh(id)?;
            }
        }
        self.collapse()
    }

    /// Merges the node of level `l` on the path with a neighbour under the same parent, if one is in
    /// memory and both fit one node.
    fn merge(&mut self, path: &Path, l: usize) -> Result<bool, Error> {
        let above = l.wrapping_add(1);
        let (id, parent, at) = (path.node(l), path.node(above), path.index(above));
        for right in [true, false] {
            let Some(j) = (if right { at.checked_add(1) } else { at.checked_sub(1) }) else { continue };
            let p = self.bytes(parent).ok_or(Error::Corrupt)?;
            let (Some(sep), Some(low)) = (node::key(p, j), node::key(p, at)) else { continue };
            // The way down from the root checks the neighbour's bounds, if it is in memory.
            let mut way = Path::new();
            let Ok(other) = self.walk(&sep, l as u16, &mut way) else { continue };
            let oid = way.node(l);
            let own = self.bytes(id).ok_or(Error::Corrupt)?;
            if oid == id || !node::mergeable(own, other) {
                continue;
            }
            if node::items(own) == 0 {
                // The neighbour takes over the range, and need not become dirty for that.
                self.unlink_dirty(id)?;
                let p = self.buf(parent)?;
                if right {
                    node::set_key(p, j, &low);
                }
                node::remove(p, at);
                return Ok(true);
            }
            let mut scratch = core::mem::take(&mut self.scratch);
            let mut buf = core::mem::take(self.buf(id)?);
            if let Some(other) = self.bytes(oid) {
                node::merge(&mut buf, other, right, if right { &sep } else { &low }, &mut scratch);
            }
            *self.buf(id)? = buf;
            self.scratch = scratch;
            if oid & VIRTUAL != 0 {
                self.unlink_dirty(oid)?;
            } else {
                self.unlink_clean(oid, false)?;
            }
            let p = self.buf(parent)?;
            if !right {
                node::set_key(p, at, &sep);
            }
            node::remove(p, j);
            return Ok(true);
        }
        Ok(false)
    }

    /// For repairs: puts an empty subtree in the place of the node of `level` whose range holds `key`, which cannot be
    /// read; its items are given up, its blocks freed. The way down to it has to be in memory, and
    /// [`Tree::reserve`] called for one edit. Not for the root.
    pub fn give_up(&mut self, key: &Key, level: u16) -> Result<(), Error> {
        if level >= self.level {
            return Err(Error::Corrupt);
        }
        let mut path = Path::new();
        let above = level.wrapping_add(1);
        let parent = self.walk(key, above, &mut path).map_err(|_| Error::Corrupt)?;
        let at = node::find_child(parent, key);
        let low = node::key(parent, at).ok_or(Error::Corrupt)?;
        let lost = node::child(parent, at).ok_or(Error::Corrupt)?;
        if lost.addr & VIRTUAL != 0 {
            return Err(Error::Corrupt);
        }
        self.own_from(&mut path, usize::from(above))?;
        let mut child = None;
        for l in 0..=level {
            let mut b = self.spare()?;
            node::init(&mut b, l);
            if let Some(id) = child {
                node::insert_child(&mut b, 0, &low, &virtual_ptr(id));
            }
            child = Some(self.add_dirty(b)?);
            self.refresh(child.unwrap_or(0))?;
        }
        let id = path.node(usize::from(above));
        node::set_child(self.buf(id)?, at, &virtual_ptr(child.ok_or(Error::Corrupt)?));
        self.cache.retire(lost.addr);
        mem::push(&mut self.freed, (lost.addr, lost.twin))?;
        for l in usize::from(above)..usize::from(self.level) {
            self.refresh(path.node(l))?;
        }
        Ok(())
    }

    /// An inner root with one child gives way to it; one without becomes an empty leaf.
    fn collapse(&mut self) -> Result<(), Error> {
        while self.level > 0 && self.root.addr & VIRTUAL != 0 {
            let id = self.root.addr;
            let b = self.buf(id)?;
            match node::items(b) {
                0 => {
                    node::init(b, 0);
                    self.level = 0;
                }
                1 => {
                    let child = node::child(b, 0).ok_or(Error::Corrupt)?;
                    self.root = child;
                    self.level = self.level.wrapping_sub(1);
                    self.unlink_dirty(id)?;
                    if child.addr & VIRTUAL != 0 {
                        self.set_vacant(child.addr, false)?;
                    }
                }
                _ => break,
            }
        }
        Ok(())
    }
}
