// SPDX-License-Identifier: GPL-2.0-only
//! Clean nodes in memory, by the address of their first copy. Owns their buffers and decides which to
//! drop: a clock hand goes round and drops a node that was not used since it passed last.

use crate::format::Ptr;
use crate::mem::{self, Buf, Map, NoMemory};
use crate::sync::atomic::{AtomicU64, Ordering};
use alloc::vec::Vec;

/// A clean node.
#[derive(Debug)]
pub struct Clean {
    /// What its parent says about it.
    pub ptr: Ptr,
    /// Its bytes.
    pub buf: Buf,
    /// Tick of the last use. Written by parallel readers; nothing else depends on it, hence relaxed.
    stamp: AtomicU64,
    /// `stamp` when the hand passed last.
    seen: u64,
    /// A write of it is under way: it stays.
    pub writing: bool,
    /// No longer part of the tree: it goes when it is written.
    dead: bool,
}

impl Clean {
    /// Notes a use. Stores only a new value, so that readers do not fight for the cache line.
    pub fn touch(&self, tick: u64) {
        if self.stamp.load(Ordering::Relaxed) != tick {
            self.stamp.store(tick, Ordering::Relaxed);
        }
    }
}

/// The clean nodes.
#[derive(Debug, Default)]
pub struct Cache {
    slots: Vec<Option<Clean>>,
    free: Vec<u32>,
    index: Map<u32>,
    hand: usize,
    writing: usize,
}

impl Cache {
    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Number of nodes that are being written.
    pub fn writing(&self) -> usize {
        self.writing
    }

    /// Room for `more` inserts that then cannot fail.
    pub fn reserve(&mut self, more: usize) -> Result<(), NoMemory> {
        self.index.reserve(more)?;
        mem::reserve(&mut self.slots, more)?;
        // Every slot may become free one day, without an allocation.
        let want = self.slots.len().saturating_add(more);
        let more = want.saturating_sub(self.free.len());
        mem::reserve(&mut self.free, more)
    }

    /// The node at `addr`.
    pub fn get(&self, addr: u64) -> Option<&Clean> {
        let i = *self.index.get(addr)?;
        self.slots.get(i as usize)?.as_ref()
    }

    fn get_mut(&mut self, addr: u64) -> Option<&mut Clean> {
        let i = *self.index.get(addr)?;
        self.slots.get_mut(i as usize)?.as_mut()
    }

    /// Takes a node in; one that is there under this address goes (it is of an earlier generation).
    pub fn insert(&mut self, ptr: Ptr, buf: Buf, tick: u64, writing: bool) -> Result<(), NoMemory> {
        self.reserve(1)?;
        self.remove(ptr.addr);
        let node = Clean { ptr, buf, stamp: AtomicU64::new(tick), seen: 0, writing, dead: false };
        let at = match self.free.pop() {
            Some(i) => i,
            None => {
                mem::push(&mut self.slots, None)?;
                u32::try_from(self.slots.len().wrapping_sub(1)).map_err(|_| NoMemory)?
            }
        };
        if let Some(slot) = self.slots.get_mut(at as usize) {
            *slot = Some(node);
        }
        self.writing = self.writing.wrapping_add(usize::from(writing));
        self.index.insert(ptr.addr, at)?;
        Ok(())
    }

    /// Takes the node at `addr` out.
    pub fn remove(&mut self, addr: u64) -> Option<Clean> {
        let i = self.index.remove(addr)?;
        let node = self.slots.get_mut(i as usize)?.take()?;
        self.writing = self.writing.wrapping_sub(usize::from(node.writing));
        // Reserved when the slot was made.
        let _ = mem::push(&mut self.free, i);
        Some(node)
    }

    /// The tree no longer uses the node at `addr`: returns its buffer, or a view of its bytes if a
    /// write of it is under way (it then goes when that ends).
    pub fn retire(&mut self, addr: u64) -> Option<Retired<'_>> {
        if self.get(addr)?.writing {
            let node = self.get_mut(addr)?;
            node.dead = true;
            return Some(Retired::Writing(&node.buf));
        }
        self.remove(addr).map(|n| Retired::Free(n.buf))
    }

    /// The write of the node at `addr` has ended.
    pub fn written(&mut self, addr: u64) {
        let mut dead = false;
        let mut was = false;
        if let Some(n) = self.get_mut(addr) {
            was = n.writing;
            n.writing = false;
            dead = n.dead;
        }
        self.writing = self.writing.wrapping_sub(usize::from(was));
        if dead {
            self.remove(addr);
        }
    }

    /// Drops nodes until `limit` are left, except those stamped at or after `protect` or being written.
    pub fn evict(&mut self, limit: usize, protect: u64) {
        // Two rounds: the first may do no more than look.
        let mut steps = self.slots.len().saturating_mul(2);
        while self.index.len() > limit && steps > 0 {
            steps = steps.wrapping_sub(1);
            let i = self.hand;
            self.hand = if i.wrapping_add(1) < self.slots.len() { i.wrapping_add(1) } else { 0 };
            let Some(Some(n)) = self.slots.get_mut(i) else { continue };
            let stamp = n.stamp.load(Ordering::Relaxed);
            if n.writing || stamp >= protect {
                continue;
            }
            if n.seen != stamp {
                n.seen = stamp;
                continue;
            }
            let addr = n.ptr.addr;
            self.remove(addr);
        }
    }
}

/// What [`Cache::retire`] found.
#[derive(Debug)]
pub enum Retired<'a> {
    /// The buffer, free for another use.
    Free(Buf),
    /// The bytes, which have to stay where they are for now.
    Writing(&'a [u8]),
}
