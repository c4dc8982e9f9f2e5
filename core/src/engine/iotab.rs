// SPDX-License-Identifier: GPL-2.0-only
//! Requests under way: slots with generations, and what each completion is for.

use crate::io::{Io, IoId, IoKind};
use crate::mem::{self, Buf, NoMemory, Queue};
use alloc::vec::Vec;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A tree node, by the address of its first copy.
    Node(u64),
    /// Data for a task: task, address.
    TaskRead(u64, u64),
    /// A task's data write or discard.
    TaskWrite(u64),
    /// One copy of the log group under way.
    LogWrite,
    /// The flush that makes the log durable.
    LogFlush,
    /// A write of the checkpoint.
    CheckpointWrite,
    /// The checkpoint's flush before the superblock.
    CheckpointFlush,
    /// One of the two superblock writes.
    SuperWrite,
    /// A bad copy is rewritten from the good one.
    Heal,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    purpose: Option<Purpose>,
}

/// The table of requests.
#[derive(Debug, Default)]
pub struct IoTable {
    slots: Vec<Slot>,
    free: Vec<u32>,
    queue: Queue<Io>,
    /// Requests made and not completed.
    pub outstanding: usize,
}

impl IoTable {
    /// Room for `n` more requests, so that as many submits cannot fail.
    pub fn reserve(&mut self, n: usize) -> Result<(), NoMemory> {
        mem::reserve(&mut self.slots, n)?;
        let want = self.slots.len().saturating_add(n).saturating_sub(self.free.len());
        mem::reserve(&mut self.free, want)?;
        self.queue.reserve(n)
    }

    /// Queues a request for the driver.
    pub fn submit(&mut self, kind: IoKind, block: u64, count: u64, buf: Buf, purpose: Purpose) -> Result<(), NoMemory> {
        // Reserve first: a slot that is taken must be queued.
        let slots = self.slots.len();
        let want = slots.saturating_add(1).saturating_sub(self.free.len());
        mem::reserve(&mut self.free, want)?;
        mem::reserve(&mut self.slots, 1)?;
        let (slot, fresh) = match self.free.last() {
            Some(s) => (*s, false),
            None => (slots as u32, true),
        };
        let generation = if fresh { 0 } else { self.slots.get(slot as usize).map_or(0, |s| s.generation) };
        self.queue.push(Io { id: IoId { slot, generation }, kind, block, count, buf })?;
        if fresh {
            mem::push(&mut self.slots, Slot { generation, purpose: Some(purpose) })?;
        } else {
            self.free.pop();
            if let Some(s) = self.slots.get_mut(slot as usize) {
                s.purpose = Some(purpose);
            }
        }
        self.outstanding = self.outstanding.saturating_add(1);
        Ok(())
    }

    /// The next request for the driver.
    pub fn next(&mut self) -> Option<Io> {
        self.queue.pop()
    }

    /// Ends a request; `None` if it is not under way (late, doubled or made up).
    pub fn end(&mut self, id: IoId) -> Option<Purpose> {
        let s = self.slots.get_mut(id.slot as usize)?;
        if s.generation != id.generation {
            return None;
        }
        let p = s.purpose.take()?;
        s.generation = s.generation.wrapping_add(1);
        // Reserved in `submit`: `free` has room for every slot.
        let _ = mem::push(&mut self.free, id.slot);
        self.outstanding = self.outstanding.saturating_sub(1);
        Some(p)
    }

    /// Whether requests wait for the driver.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }
}
