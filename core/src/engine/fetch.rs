// SPDX-License-Identifier: GPL-2.0-only
//! Fetching what a task needs: tree nodes (from whichever copy is good; the bad one is healed), data, collections, bitmaps,
//! and space that a checkpoint gives back. A task runs again when all that it waits for has arrived.

use super::iotab::Purpose;
use super::{State, Volume};
use crate::error::{Error, Need, Step};
use crate::format::{kind, Key, SpaceHead, BLOCK};
use crate::io::{IoError, IoKind};
use crate::mem::{self, Buf};
use crate::op::Op;
use alloc::vec::Vec;

/// `Progress::extra` of a read counts the rounds of index work that it still waits for; here it waits no more.
pub(super) const PATIENCE_END: u64 = 1;

impl Volume {
    /// Fetches what a task needs; it runs again when that has arrived.
    #[inline(never)]
    pub(super) fn fetch(&mut self, id: u64, need: Need) -> Result<(), Error> {
        match need {
            Need::Node { parent, index, count } => self.fetch_nodes(id, parent, index, count),
            Need::Data { addr, blocks } => {
                self.space.check(addr, blocks.max(1))?;
                let len = (blocks as usize).checked_mul(BLOCK).ok_or(Error::Corrupt)?;
                let buf = Buf::zeroed(len)?;
                self.io.submit(IoKind::Read, addr, u64::from(blocks), buf, Purpose::TaskRead(id, addr))?;
                self.add_wait(id);
                Ok(())
            }
            Need::Collection(ino) => self.start_load(id, ino),
            Need::Vectors(ino) => self.bring_in(Some(id), ino),
            Need::CatchUp(ino) => {
                let Some(c) = self.view.collections.get_mut(ino) else {
                    self.wake(id);
                    return Ok(());
                };
                // Several times the rounds that the work of now needs; under inserts that never pause it would
                // not end by itself.
                let rounds = (c.pending() as u64).saturating_add(64);
                mem::push(&mut self.catching, (id, ino))?;
                if let Some(t) = self.tasks.get_mut(id) {
                    let left = if t.progress.extra == 0 { rounds } else { t.progress.extra };
                    t.progress.extra = left.saturating_sub(1).max(PATIENCE_END);
                }
                // The work is done in steps by `Volume::work`: all of it here would keep everybody from the volume.
                Ok(())
            }
            Need::Space => self.wait_for_space(id),
        }
    }

    pub(super) fn add_wait(&mut self, id: u64) {
        if let Some(t) = self.tasks.get_mut(id) {
            t.waits = t.waits.saturating_add(1);
        }
    }

    pub(super) fn drop_wait(&mut self, id: u64, error: Option<Error>) {
        if let Some(t) = self.tasks.get_mut(id) {
            t.waits = t.waits.saturating_sub(1);
            if t.fail.is_none() {
                t.fail = error;
            }
            if t.waits == 0 {
                self.wake(id);
            }
        }
    }

    /// Waits for a checkpoint that gives space back, or fails if none would.
    pub(super) fn wait_for_space(&mut self, id: u64) -> Result<(), Error> {
        let waiting = self.space.waiting();
        let trims = self.tasks.iter().any(|(t, x)| t != id && x.internal && matches!(x.op, Some(Op::Trim { .. })));
        // What is being discarded is free, only not at this moment.
        let discards = self.tasks.iter().any(|(_, x)| matches!(x.op, Some(Op::Discard { .. })));
        let Some(t) = self.tasks.get_mut(id) else { return Ok(()) };
        let log = self.log.spare.is_none() && (self.checkpoint.is_some() || !self.log.full.is_empty());
        let hope = waiting > 0 || trims || self.sealing || log;
        if !discards {
            if !hope || t.space_tries >= 4 {
                return Err(Error::NoSpace);
            }
            t.space_tries = t.space_tries.saturating_add(1);
        }
        self.space_wait.retain(|x| *x != id);
        mem::push(&mut self.space_wait, id)?;
        self.want_checkpoint |= hope;
        Ok(())
    }

    /// Space may have come back: who waited for it runs again.
    pub(super) fn wake_space(&mut self) {
        while let Some(id) = self.space_wait.pop() {
            self.wake(id);
        }
    }

    #[inline(never)]
    pub(super) fn fetch_nodes(&mut self, id: u64, parent: u64, index: u16, count: u16) -> Result<(), Error> {
        let mut list = Vec::new();
        self.view.tree.missing(parent, index, count, &mut list)?;
        let mut first = true;
        for (ptr, level) in list {
            if let Some(r) = self.node_reads.get_mut(ptr.addr) {
                if first {
                    mem::push(&mut r.waiters, id)?;
                    self.add_wait(id);
                }
            } else {
                self.space.check(ptr.addr, 1)?;
                if ptr.twin != 0 {
                    self.space.check(ptr.twin, 1)?;
                }
                let mut waiters = Vec::new();
                mem::reserve(&mut waiters, 1)?;
                if first {
                    mem::push(&mut waiters, id)?;
                }
                self.node_reads.reserve(1)?;
                let buf = Buf::zeroed(BLOCK)?;
                self.io.submit(IoKind::Read, ptr.addr, 1, buf, Purpose::Node(ptr.addr))?;
                let r = super::NodeRead { ptr, level, twin: false, error: None, waiters };
                self.node_reads.insert(ptr.addr, r)?;
                if first {
                    self.add_wait(id);
                }
            }
            first = false;
        }
        if first {
            // It has arrived meanwhile.
            self.wake(id);
        }
        Ok(())
    }

    /// A copy of a tree node was read.
    pub(super) fn node_arrived(&mut self, addr: u64, result: Result<(), IoError>, buf: Buf) {
        let Some(r) = self.node_reads.get_mut(addr) else { return };
        let good = result.is_ok() && self.view.tree.verify(&r.ptr, r.level, &buf);
        let error = if result.is_err() { Error::Io } else { Error::Corrupt };
        let (ptr, level) = (r.ptr, r.level);
        if !good && !r.twin && ptr.twin != 0 {
            r.twin = true;
            r.error = Some(error);
            let made =
                Buf::zeroed(BLOCK).and_then(|b| self.io.submit(IoKind::Read, ptr.twin, 1, b, Purpose::Node(addr)));
            if made.is_ok() {
                return;
            }
        }
        let Some(r) = self.node_reads.remove(addr) else { return };
        let mut fail = None;
        if good {
            // The other copy was bad: write the good one over it, if this volume may write.
            let writable = !self.read_only && !self.quiet && self.state == State::Ready;
            let heal = r.twin && r.error == Some(Error::Corrupt) && writable;
            let copy = if heal { buf.copy().ok() } else { None };
            match (self.view.tree.admit(ptr, level, buf), copy) {
                (Err(e), _) => fail = Some(e),
                (Ok(()), Some(copy)) => {
                    if self.io.submit(IoKind::Write, ptr.addr, 1, copy, Purpose::Heal).is_ok() {
                        self.heals = self.heals.saturating_add(1);
                    }
                }
                (Ok(()), None) => {}
            }
        } else {
            fail = Some(r.error.filter(|e| *e == Error::Corrupt).unwrap_or(error));
        }
        for id in r.waiters {
            self.drop_wait(id, fail);
        }
    }

    /// Data for a task was read.
    pub(super) fn data_arrived(&mut self, id: u64, addr: u64, result: Result<(), IoError>, buf: Buf) {
        let mut fail = None;
        if id == super::RECOVER && result.is_err() {
            let blocks = (buf.len() / BLOCK) as u32;
            if let Err(m) = self.recovery_read_failed(addr, blocks) {
                return self.drop_wait(id, Some(m.into()));
            }
        }
        match (self.tasks.get_mut(id), result) {
            (Some(t), Ok(())) => fail = t.arrived.insert(addr, buf).err().map(Error::from),
            (_, Err(_)) => fail = Some(Error::Io),
            _ => {}
        }
        self.drop_wait(id, fail);
    }

    /// A data write of a task is done. A failed one fails the task: nothing refers to the blocks.
    pub(super) fn data_written(&mut self, id: u64, result: Result<(), IoError>) {
        self.drop_wait(id, result.err().map(|_| Error::Io));
    }

    /// Brings the bitmap of a group in.
    pub(super) fn load_group(&mut self, group: u64) -> Step<()> {
        let key = Key::new(0, kind::SPACE, group);
        match self.view.tree.get(&key)? {
            None => self.space.load(group, None)?,
            Some(v) => {
                let bitmap = v.get(SpaceHead::SIZE..).ok_or(Error::Corrupt)?;
                self.space.load(group, Some(bitmap))?;
            }
        }
        Ok(())
    }
}
