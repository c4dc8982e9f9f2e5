// SPDX-License-Identifier: GPL-2.0-only
//! The copy-on-write B+tree: nodes in memory, lookups, edits, checkpoints. Owns the node cache and the
//! dirty nodes; promises that a node from the device is used only after it was checked whole
//! ([`Tree::admit`]), that an edit after [`Tree::prepare`] and [`Tree::reserve`] cannot fail, and that
//! every block that leaves the tree is named once in [`Tree::take_freed`].
//!
//! A node in memory has the form that it has on disk. A clean node's id is the address of its first
//! copy; a dirty node's id has bit 63 set, and its parent holds that id in place of an address until
//! [`Tree::seal`] gives all of them their addresses. The tree does no I/O: what is not in memory is a
//! [`Need::Node`], which [`Tree::missing`] turns into pointers and [`Tree::admit`] answers.
//!
//! The keys of an inner node are lower bounds of its children: child `i` holds keys from key `i` on and
//! below key `i + 1`. There may be a gap below the first one, when what was there is gone; a put into
//! the gap lowers that key.
//!
//! A leaf that loses its last item is *vacant*: it stays in memory, without an address, until its range
//! can go to a neighbour that is in memory, or until the generation ends. Otherwise a later edit of the same
//! transaction could end in a leaf that nobody has read. On disk only the root may be empty.

mod apply;
mod cache;
pub(crate) mod node;
mod seal;
#[cfg(test)]
mod tests;

use crate::error::{Error, Need, Step, Stop};
use crate::format::{Key, Ptr, TREE};
use crate::mem::{self, Buf, Map, NoMemory};
use alloc::vec::Vec;
use cache::Cache;

/// Checksum function: CRC-32C, going on from the first argument.
pub type Crc32c = fn(u32, &[u8]) -> u32;

/// Ids of dirty nodes start here; no block address reaches this far.
const VIRTUAL: u64 = 1 << 63;
/// Levels that a path can have.
const LEVELS: usize = node::LEVEL_MAX as usize + 1;
/// Most leaves that a scan reads ahead.
const AHEAD: usize = 16;

/// A dirty node.
#[derive(Debug)]
struct Dirty {
    buf: Buf,
    /// Address pair where it will be written, 0 until it is assigned.
    addr: u64,
    twin: u64,
    /// Nothing below it holds an item: it is left out when the generation ends.
    vacant: bool,
}

impl Dirty {
    fn new(buf: Buf) -> Dirty {
        Dirty { buf, addr: 0, twin: 0, vacant: false }
    }
}

/// The way to a leaf: by level, the node's id and the index of the child that was taken.
struct Path {
    node: [u64; LEVELS],
    index: [u16; LEVELS],
}

impl Path {
    fn new() -> Path {
        Path { node: [0; LEVELS], index: [0; LEVELS] }
    }

    fn node(&self, level: usize) -> u64 {
        self.node.get(level).copied().unwrap_or(0)
    }

    fn index(&self, level: usize) -> usize {
        usize::from(self.index.get(level).copied().unwrap_or(0))
    }

    fn set(&mut self, level: usize, node: u64, index: usize) {
        if let (Some(n), Some(i)) = (self.node.get_mut(level), self.index.get_mut(level)) {
            *n = node;
            *i = index as u16;
        }
    }
}

/// A pointer to the dirty node `id`, as its parent holds it.
fn virtual_ptr(id: u64) -> Ptr {
    Ptr { addr: id, ..Ptr::default() }
}

/// The tree.
#[derive(Debug)]
pub struct Tree {
    uuid: [u8; 16],
    copies: u32,
    crc32c: Crc32c,
    root: Ptr,
    level: u16,
    /// Root and level on disk, or as sealed for it.
    sealed: (Ptr, u16),
    dirty: Map<Dirty>,
    unassigned: usize,
    cache: Cache,
    freed: Vec<(u64, u64)>,
    /// Spare buffers for new nodes.
    pool: Vec<Buf>,
    /// A block of working space for edits; there after the first [`Tree::reserve`].
    scratch: Buf,
    next_id: u64,
    tick: u64,
}

impl Tree {
    /// A new tree with an empty leaf as its root, dirty. `copies`: of each node, 1 or 2.
    pub fn create(uuid: [u8; 16], copies: u32, crc32c: Crc32c) -> Result<Tree, NoMemory> {
        let mut t = Tree::open(uuid, copies, Ptr::default(), 0, crc32c);
        let mut buf = Buf::zeroed(crate::format::BLOCK)?;
        node::init(&mut buf, 0);
        t.root = virtual_ptr(t.new_id());
        t.dirty.insert(t.root.addr, Dirty::new(buf))?;
        t.unassigned = 1;
        Ok(t)
    }

    /// The tree under `root`, of which nothing is in memory yet.
    pub fn open(uuid: [u8; 16], copies: u32, root: Ptr, level: u16, crc32c: Crc32c) -> Tree {
        Tree {
            uuid,
            copies,
            crc32c,
            root,
            level,
            sealed: (root, level),
            dirty: Map::new(),
            unassigned: 0,
            cache: Cache::default(),
            freed: Vec::new(),
            pool: Vec::new(),
            scratch: Buf::empty(),
            next_id: VIRTUAL,
            tick: 1,
        }
    }

    fn new_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1) | VIRTUAL;
        id
    }

    // Looking at nodes.

    /// The bytes of the node `id` if it is in memory.
    fn bytes(&self, id: u64) -> Option<&[u8]> {
        if id & VIRTUAL != 0 {
            self.dirty.get(id).map(|d| &*d.buf)
        } else {
            self.cache.get(id).map(|c| &*c.buf)
        }
    }

    /// Whether the node that `ptr` points to is in memory.
    fn present(&self, ptr: &Ptr) -> bool {
        if ptr.addr & VIRTUAL != 0 {
            self.dirty.contains(ptr.addr)
        } else {
            self.cache.get(ptr.addr).is_some_and(|c| c.ptr == *ptr)
        }
    }

    /// The bytes of child `index` of `parent`, which `ptr` points to. A clean node has to lie within the bounds
    /// that the way to it sets; a damaged tree could lead to one node on two ways.
    fn enter(&self, ptr: &Ptr, level: u16, low: Option<&Key>, high: Option<&Key>) -> Result<Option<&[u8]>, Error> {
        if ptr.addr & VIRTUAL != 0 {
            return self.bytes(ptr.addr).map(Some).ok_or(Error::Corrupt);
        }
        let Some(c) = self.cache.get(ptr.addr).filter(|c| c.ptr == *ptr) else { return Ok(None) };
        c.touch(self.tick);
        let b = &*c.buf;
        let above = low.is_none_or(|l| node::key(b, 0).is_some_and(|k| k >= *l));
        let below = high.is_none_or(|h| node::last_key(b).is_some_and(|k| k < *h));
        if node::level(b) != level || !above || !below {
            return Err(Error::Corrupt);
        }
        Ok(Some(b))
    }

    /// Goes down to the node of level `stop` whose range holds `k`, and notes the way.
    fn walk(&self, k: &Key, stop: u16, path: &mut Path) -> Step<&[u8]> {
        if self.level > node::LEVEL_MAX {
            return Err(Stop::Fail(Error::Corrupt));
        }
        let (mut ptr, mut level) = (self.root, self.level);
        let (mut parent, mut index) = (0, 0);
        let (mut low, mut high) = (None, None);
        loop {
            let Some(b) = self.enter(&ptr, level, low.as_ref(), high.as_ref())? else {
                return Err(Stop::Need(Need::Node { parent, index, count: 1 }));
            };
            let id = ptr.addr;
            if level <= stop {
                path.set(usize::from(level), id, 0);
                return Ok(b);
            }
            let i = node::find_child(b, k);
            path.set(usize::from(level), id, i);
            low = node::key(b, i);
            high = node::key(b, i.wrapping_add(1)).or(high);
            ptr = node::child(b, i).ok_or(Error::Corrupt)?;
            parent = id;
            index = i as u16;
            level = level.wrapping_sub(1);
        }
    }

    // Looking up items.

    /// The value of `key`.
    pub fn get(&self, key: &Key) -> Step<Option<&[u8]>> {
        let b = self.walk(key, 0, &mut Path::new())?;
        Ok(node::find(b, key).ok().and_then(|i| node::value(b, i)))
    }

    /// The first item with `from <= key <= to`. Asks for up to 16 of the leaves that follow ahead of time.
    pub fn next(&self, from: &Key, to: &Key) -> Step<Option<(Key, &[u8])>> {
        let mut path = Path::new();
        let mut way = *from;
        // The second round looks at the leaf to the right, which has a later key unless it is vacant.
        for _ in 0..self.dirty.len().saturating_add(2) {
            let b = self.walk(&way, 0, &mut path).map_err(|s| self.ahead(s, to))?;
            let i = match node::find(b, from) {
                Ok(i) | Err(i) => i,
            };
            if let Some(k) = node::key(b, i) {
                let v = node::value(b, i).ok_or(Error::Corrupt)?;
                return Ok(Some((k, v)).filter(|(k, _)| k <= to));
            }
            let mut right = None;
            for l in 1..=usize::from(self.level) {
                let b = self.bytes(path.node(l)).ok_or(Error::Corrupt)?;
                right = node::key(b, path.index(l).wrapping_add(1));
                if right.is_some() {
                    break;
                }
            }
            match right {
                Some(k) if k <= *to => way = k,
                _ => return Ok(None),
            }
        }
        Err(Stop::Fail(Error::Corrupt))
    }

    /// Extends the request for a leaf to its siblings up to the key `to`.
    fn ahead(&self, stop: Stop, to: &Key) -> Stop {
        let Stop::Need(Need::Node { parent, index, .. }) = stop else { return stop };
        let Some(b) = self.bytes(parent).filter(|b| node::level(b) == 1) else { return stop };
        let first = usize::from(index);
        let mut count = 1u16;
        while usize::from(count) < AHEAD {
            match node::key(b, first.wrapping_add(usize::from(count))) {
                Some(k) if k <= *to => count = count.wrapping_add(1),
                _ => break,
            }
        }
        Stop::Need(Need::Node { parent, index, count })
    }

    /// The last item with `from <= key <= to`.
    pub fn prev(&self, from: &Key, to: &Key) -> Step<Option<(Key, &[u8])>> {
        let mut path = Path::new();
        let mut way = *to;
        for _ in 0..self.dirty.len().saturating_add(2) {
            let b = self.walk(&way, 0, &mut path)?;
            let end = match node::find(b, to) {
                Ok(i) => i.wrapping_add(1),
                Err(i) => i,
            };
            if let Some(i) = end.checked_sub(1) {
                let k = node::key(b, i).ok_or(Error::Corrupt)?;
                let v = node::value(b, i).ok_or(Error::Corrupt)?;
                return Ok(Some((k, v)).filter(|(k, _)| k >= from));
            }
            let mut left = None;
            for l in 1..=usize::from(self.level) {
                if path.index(l) > 0 {
                    let b = self.bytes(path.node(l)).ok_or(Error::Corrupt)?;
                    left = node::key(b, path.index(l));
                    break;
                }
            }
            match left {
                Some(k) if k > *from => way = crate::txn::before(&k).ok_or(Error::Corrupt)?,
                _ => return Ok(None),
            }
        }
        Err(Stop::Fail(Error::Corrupt))
    }

    /// Succeeds when the path to the leaf of `key`, a key of the live tree, is in memory.
    pub fn prepare(&self, key: &Key) -> Step<()> {
        if key.tree != TREE {
            return Err(Stop::Fail(Error::Corrupt));
        }
        self.walk(key, 0, &mut Path::new()).map(|_| ())
    }

    /// Succeeds when the path to the parent of the node of `level` whose range holds `key` is in memory.
    pub fn prepare_above(&self, key: &Key, level: u16) -> Step<()> {
        self.walk(key, level.saturating_add(1), &mut Path::new()).map(|_| ())
    }

    // Nodes from the device.

    /// Resolves a [`Need::Node`] into pointers (and levels) of nodes that are not in memory. Nothing is
    /// added if all are there by now or if the parent has changed its id since: run the operation again.
    pub fn missing(&self, parent: u64, index: u16, count: u16, out: &mut Vec<(Ptr, u16)>) -> Result<(), NoMemory> {
        if parent == 0 {
            if !self.present(&self.root) {
                mem::push(out, (self.root, self.level))?;
            }
            return Ok(());
        }
        let Some(b) = self.bytes(parent) else { return Ok(()) };
        let level = node::level(b).saturating_sub(1);
        for i in index..index.saturating_add(count) {
            match node::child(b, usize::from(i)) {
                Some(p) if p.addr & VIRTUAL == 0 && !self.present(&p) => mem::push(out, (p, level))?,
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    }

    /// Takes in a node that was read. [`Error::Corrupt`] if it is not what `ptr` says. No harm if it is
    /// there already. A pointer may be out of date by the time its node arrives (the node was changed
    /// and its block used for something else): then [`Error::Corrupt`] means nothing, and running the operation
    /// again shows what is needed now.
    ///
    /// A block is given to a new node only when nothing leads to the old one. So of two nodes at one address the younger
    /// stays, and the older is not what it should be: on a damaged volume, where both are reached (one by its second copy), an
    /// operation that needs them at the same time would have them take turns for ever.
    pub fn admit(&mut self, ptr: Ptr, level: u16, buf: Buf) -> Result<(), Error> {
        if self.present(&ptr) {
            return Ok(());
        }
        let taken = self.cache.get(ptr.addr).is_some_and(|c| c.writing || c.ptr.birth >= ptr.birth);
        if taken || !self.verify(&ptr, level, &buf) {
            return Err(Error::Corrupt);
        }
        Ok(self.cache.insert(ptr, buf, self.tick, false)?)
    }

    /// Whether `bytes` are the node of `level` that `ptr` points to, complete and well-formed.
    pub fn verify(&self, ptr: &Ptr, level: u16, bytes: &[u8]) -> bool {
        let root = *ptr == self.root || *ptr == self.sealed.0;
        ptr.addr & VIRTUAL == 0
            && (self.crc32c)(0, bytes) == ptr.crc
            && node::valid(bytes, ptr, level, &self.uuid, self.copies, root)
    }

    /// A clean node in memory: the address of its second copy (or 0) and its bytes.
    pub fn node(&self, addr: u64) -> Option<(u64, &[u8])> {
        self.cache.get(addr).map(|c| (c.ptr.twin, &*c.buf))
    }

    /// The node was written (all copies); it may be dropped from memory from now on.
    pub fn written(&mut self, addr: u64) {
        self.cache.written(addr);
    }

    /// The root and its level as of the last [`Tree::seal`] or [`Tree::open`].
    pub fn root(&self) -> (Ptr, u16) {
        self.sealed
    }

    /// Takes the list of address pairs (block, twin or 0) that the tree has given up since the last call.
    pub fn take_freed(&mut self) -> Vec<(u64, u64)> {
        core::mem::take(&mut self.freed)
    }

    /// Number of dirty nodes.
    pub fn dirty(&self) -> usize {
        self.dirty.len()
    }

    /// Number of dirty nodes that have no address yet.
    pub fn unassigned(&self) -> usize {
        self.unassigned
    }

    /// Number of clean nodes in memory.
    pub fn cached(&self) -> usize {
        self.cache.len()
    }

    /// Advances the clock of the cache and returns it: lookups from now on stamp nodes with this number.
    pub fn tick(&mut self) -> u64 {
        self.tick = self.tick.wrapping_add(1);
        self.tick
    }

    /// What [`Tree::tick`] returned last.
    pub fn time(&self) -> u64 {
        self.tick
    }

    /// Drops clean nodes, the least recently used ones first as far as a second-chance sweep can tell,
    /// until at most `limit_nodes` are left. Nodes stamped at or after `protect`, and nodes that are
    /// not yet [`Tree::written`], stay.
    pub fn evict(&mut self, limit_nodes: usize, protect: u64) {
        self.cache.evict(limit_nodes, protect);
    }
}
