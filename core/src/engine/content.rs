// SPDX-License-Identifier: GPL-2.0-only
//! Operations that place data: contents of files (plan, place, write, commit) and the discarding of free space. Owns the content
//! locks of inodes and the counts of open inodes; promises that blocks are written before anything refers to them.

use super::iotab::Purpose;
use super::space::{AllocStop, Zone};
use super::task::Stage;
use super::{State, Volume};
use crate::coll;
use crate::data;
use crate::error::{Error, Need, Step, Stop};
use crate::format::{BLOCK, EXTENT_BLOCKS_MAX, EXTENT_UNWRITTEN_MAX};
use crate::io::IoKind;
use crate::mem::{self, Buf, Map, NoMemory, Queue};
use crate::op::{Ino, Op, Reply};
use crate::txn::{Changes, Outcome, Progress, Txn};
use alloc::vec::Vec;

/// The inode whose contents `op` changes, if it does.
pub(super) fn content_ino(op: &Op) -> Option<Ino> {
    match op {
        Op::Write { ino, .. } | Op::Fallocate { ino, .. } | Op::Trim { ino } => Some(*ino),
        Op::SetAttr { ino, set } if set.size.is_some() => Some(*ino),
        _ => None,
    }
}

impl Volume {
    /// Counts an inode as open.
    pub(super) fn open_inode(&mut self, ino: Ino) -> Result<Reply, Error> {
        let n = self.opens.get(ino).copied().unwrap_or(0);
        self.opens.insert(ino, n.saturating_add(1))?;
        Ok(Reply::Done)
    }

    /// Counts an inode as open once less; one without a name then goes.
    pub(super) fn close_inode(&mut self, ino: Ino) {
        let n = self.opens.get(ino).copied().unwrap_or(0).saturating_sub(1);
        if n > 0 {
            if let Some(x) = self.opens.get_mut(ino) {
                *x = n;
            }
            return;
        }
        self.opens.remove(ino);
        if self.orphans.contains(ino) && self.state == State::Ready && !self.read_only {
            // Without memory now it goes when the volume is opened next.
            let _ = mem::push(&mut self.gone, ino);
        }
    }

    #[inline(never)]
    pub(super) fn trim_step(&self, id: u64, ino: Ino, p: &mut Progress, out: &mut Changes) -> Step<Outcome> {
        let Some(task) = self.tasks.get(id) else { return Err(Stop::Fail(Error::Invalid)) };
        // The lock's own count must not keep the inode alive.
        let own = self.driver_opens(ino)?;
        let mut t = Txn::new(&*self.view, &task.arrived, &own, task.now);
        let o = match coll::trim(&mut t, ino, p)? {
            None => data::trim(&mut t, ino, p)?,
            Some(o) => o,
        };
        *out = t.finish();
        Ok(o)
    }

    #[inline(never)]
    pub(super) fn content_step(&self, id: u64, p: &mut Progress, out: &mut Changes) -> Step<Outcome> {
        let Some(task) = self.tasks.get(id) else { return Err(Stop::Fail(Error::Invalid)) };
        let (Some(op), Some(plan)) = (&task.op, &task.plan) else { return Err(Stop::Fail(Error::Invalid)) };
        let mut t = Txn::new(&*self.view, &task.arrived, &self.opens, task.now);
        let o = data::commit(&mut t, op, p, plan, &task.placed)?;
        *out = t.finish();
        Ok(o)
    }

    #[inline(never)]
    pub(super) fn plan_step(&self, id: u64) -> Step<data::Plan> {
        let Some(task) = self.tasks.get(id) else { return Err(Stop::Fail(Error::Invalid)) };
        let Some(op) = &task.op else { return Err(Stop::Fail(Error::Invalid)) };
        let t = Txn::new(&*self.view, &task.arrived, &self.opens, task.now);
        data::prepare(&t, op, &task.progress)
    }

    /// Contents: lock, plan, place, write; then [`Volume::run_content_commit`].
    #[inline(never)]
    pub(super) fn run_content(&mut self, id: u64, ino: Ino) {
        if !self.lock(id, ino) {
            return;
        }
        let trim = matches!(self.tasks.get(id).and_then(|t| t.op.as_ref()), Some(Op::Trim { .. }));
        if trim {
            let mut p = self.tasks.get(id).map(|t| t.progress).unwrap_or_default();
            let mut c = Changes::default();
            let r = self.trim_step(id, ino, &mut p, &mut c);
            return self.step_done(id, r, p, &c);
        }
        let plan = self.plan_step(id);
        match plan.and_then(|plan| self.place(id, plan)) {
            Ok(()) => {
                if let Some(t) = self.tasks.get_mut(id) {
                    t.stage = Stage::Commit;
                    if t.waits == 0 {
                        self.wake(id);
                    }
                }
            }
            Err(s) => {
                self.unplace(id);
                self.stopped(id, s);
            }
        }
    }

    /// Finds room for a plan and starts to write it.
    #[inline(never)]
    pub(super) fn place(&mut self, id: u64, mut plan: data::Plan) -> Step<()> {
        let mut blocks = 0u64;
        for r in plan.runs.iter().filter(|r| r.place == 0) {
            blocks = blocks.saturating_add(r.blocks);
        }
        for (_, n) in &plan.reserve {
            blocks = blocks.saturating_add(u64::from(*n));
        }
        if blocks > 0 && self.space.free() < blocks.saturating_add(self.reserve_of(id)) {
            return Err(Stop::Need(Need::Space));
        }
        // First all the room, then all the writes: nothing is in flight when room is short.
        for r in &plan.runs {
            let n = (r.buf.len() / BLOCK) as u32;
            if r.place != 0 {
                self.space.check(r.place, n)?;
                self.add_placement(id, r.file_block, r.place, n, Some(&r.buf))?;
            } else {
                self.allocate(id, r.file_block, n, EXTENT_BLOCKS_MAX, Some(&r.buf))?;
            }
        }
        for (file_block, n) in &plan.reserve {
            self.allocate(id, *file_block, *n, EXTENT_UNWRITTEN_MAX, None)?;
        }
        let Some(task) = self.tasks.get_mut(id) else { return Ok(()) };
        let mut bufs = Vec::new();
        mem::reserve(&mut bufs, task.placed.len())?;
        for p in task.placed.iter().filter(|p| !p.crcs.is_empty()) {
            let mut found = None;
            let whole = plan.runs.iter_mut().find(|r| r.file_block == p.file_block && r.blocks == u64::from(p.blocks));
            if let Some(r) = whole {
                mem::push(&mut bufs, (p.addr, p.blocks, core::mem::take(&mut r.buf)))?;
                continue;
            }
            for r in &plan.runs {
                let skip = p
                    .file_block
                    .checked_sub(r.file_block)
                    .and_then(|d| usize::try_from(d).ok())
                    .and_then(|d| d.checked_mul(BLOCK));
                let len = (p.blocks as usize).saturating_mul(BLOCK);
                found = skip.and_then(|s| r.buf.get(s..s.checked_add(len)?)).or(found);
            }
            mem::push(&mut bufs, (p.addr, p.blocks, Buf::padded(found.ok_or(Error::Invalid)?)?))?;
        }
        self.io.reserve(bufs.len())?;
        for (addr, n, buf) in bufs {
            self.io.submit(IoKind::Write, addr, u64::from(n), buf, Purpose::TaskWrite(id))?;
            task.waits = task.waits.saturating_add(1);
        }
        task.plan = Some(plan);
        Ok(())
    }

    pub(super) fn add_placement(
        &mut self,
        id: u64,
        file_block: u64,
        addr: u64,
        n: u32,
        data: Option<&[u8]>,
    ) -> Result<(), NoMemory> {
        let mut crcs = Vec::new();
        if let Some(data) = data {
            mem::reserve(&mut crcs, n as usize)?;
            for b in data.chunks_exact(BLOCK) {
                mem::push(&mut crcs, (self.view.env.crc32c)(0, b))?;
            }
        }
        match self.tasks.get_mut(id) {
            Some(t) => mem::push(&mut t.placed, data::Placement { file_block, addr, blocks: n, crcs }),
            None => Ok(()),
        }
    }

    pub(super) fn allocate(&mut self, id: u64, file_block: u64, n: u32, max: u32, data: Option<&[u8]>) -> Step<()> {
        let mut done = 0u32;
        while done < n {
            let want = n.saturating_sub(done).min(max);
            // Room for its entry first, so that what is handed out is never forgotten.
            if let Some(t) = self.tasks.get_mut(id) {
                mem::reserve(&mut t.placed, 1)?;
            }
            match self.space.alloc(Zone::Data, want, false)? {
                Ok((addr, got)) => {
                    let from = (done as usize).saturating_mul(BLOCK);
                    let to = from.saturating_add((got as usize).saturating_mul(BLOCK));
                    let piece = data.and_then(|d| d.get(from..to));
                    let at = file_block.saturating_add(u64::from(done));
                    if let Err(e) = self.add_placement(id, at, addr, got, piece) {
                        self.space.release(addr, got);
                        return Err(e.into());
                    }
                    done = done.saturating_add(got);
                }
                Err(AllocStop::Load(g)) => self.load_group(g)?,
                Err(AllocStop::Full) => return Err(Stop::Need(Need::Space)),
            }
        }
        Ok(())
    }

    /// Gives back what was placed and not committed.
    #[inline(never)]
    pub(super) fn unplace(&mut self, id: u64) {
        let Some(t) = self.tasks.get_mut(id) else { return };
        let placed = core::mem::take(&mut t.placed);
        let plan = t.plan.take();
        for p in &placed {
            let own = plan.as_ref().is_some_and(|pl| pl.runs.iter().any(|r| r.place != 0 && p.addr == r.place));
            if !own && self.space.is_reserved(p.addr) {
                self.space.release(p.addr, p.blocks);
            }
        }
    }

    pub(super) fn run_content_commit(&mut self, id: u64) {
        self.refresh_info();
        let mut p = self.tasks.get(id).map(|t| t.progress).unwrap_or_default();
        let mut c = Changes::default();
        let r = self.content_step(id, &mut p, &mut c);
        self.step_done(id, r, p, &c);
    }

    /// Takes the content lock of `ino` for a task, or queues it. The inode counts as open meanwhile.
    pub(super) fn lock(&mut self, id: u64, ino: Ino) -> bool {
        if self.tasks.get(id).is_some_and(|t| t.locked == Some(ino)) {
            return true;
        }
        if let Some(q) = self.locks.get_mut(ino) {
            if q.push(id).is_err() {
                self.finish(id, Err(Error::NoMemory));
            }
            return false;
        }
        if self.locks.insert(ino, Queue::new()).is_err() {
            self.finish(id, Err(Error::NoMemory));
            return false;
        }
        if self.open_inode(ino).is_err() {
            self.locks.remove(ino);
            self.finish(id, Err(Error::NoMemory));
            return false;
        }
        if let Some(t) = self.tasks.get_mut(id) {
            t.locked = Some(ino);
        }
        true
    }

    /// How often the driver holds `ino` open, without the count of the lock on its contents.
    pub(super) fn driver_opens(&self, ino: Ino) -> Result<Map<u32>, NoMemory> {
        let n = self.opens.get(ino).copied().unwrap_or(0).saturating_sub(u32::from(self.locks.contains(ino)));
        let mut own = Map::new();
        if n > 0 {
            own.insert(ino, n)?;
        }
        Ok(own)
    }

    pub(super) fn unlock(&mut self, ino: Ino) {
        let Some(mut q) = self.locks.remove(ino) else { return };
        // The next in the queue takes the lock over by running: everyone else queues up behind it again.
        while let Some(next) = q.pop() {
            self.wake(next);
        }
        self.close_inode(ino);
    }

    /// What was left of an inode could not be given back. Not to be tried again at once, for ever: after a checkpoint, if
    /// that may help; in any case when the volume is opened next.
    pub(super) fn trim_failed(&mut self, ino: Ino, e: Error) {
        self.gone.retain(|x| *x != ino);
        let floor = match e {
            Error::NoSpace => self.space.free().saturating_add(1),
            Error::NoMemory | Error::Io => 0,
            _ => return,
        };
        if !self.stuck.iter().any(|(x, _)| *x == ino) {
            // Without memory for the note it goes when the volume is opened next.
            let _ = mem::push(&mut self.stuck, (ino, floor));
        }
    }

    /// A checkpoint is on disk: has them tried again.
    pub(super) fn retry_trims(&mut self) {
        let free = self.space.free();
        let gone = &mut self.gone;
        self.stuck.retain(|(ino, floor)| free < *floor || mem::push(gone, *ino).is_err());
    }

    /// Discards free runs, a group at a time: reserve them, discard, give them back.
    #[inline(never)]
    pub(super) fn run_discard(&mut self, id: u64) {
        let Some(task) = self.tasks.get(id) else { return };
        let Some(Op::Discard { offset, len, min }) = task.op else { return };
        if self.placing_nodes() {
            // A checkpoint is finding places for what it writes: it goes first.
            return self.stopped(id, Stop::Need(Need::Space));
        }
        let mut p = task.progress;
        let unit = BLOCK as u64;
        let first = offset.div_ceil(unit);
        let end = offset.saturating_add(len).checked_div(unit).unwrap_or(0).min(self.view.info.blocks);
        let at = p.pos.max(first);
        // What the last step discarded is free again.
        let done = task.placed.iter().fold(0u64, |s, x| s.saturating_add(u64::from(x.blocks)));
        p.done = p.done.saturating_add(done.saturating_mul(unit));
        self.unplace(id);
        if let Some(t) = self.tasks.get_mut(id) {
            t.progress = p;
        }
        if done > 0 {
            self.wake_space();
        }
        if at >= end {
            return self.finish(id, Ok(Reply::Offset(p.done)));
        }
        let group = at / crate::format::GROUP_BLOCKS;
        let next = group.saturating_add(1).saturating_mul(crate::format::GROUP_BLOCKS);
        if let Err(s) = self.discard_group(id, group, at, end, (min.div_ceil(unit)).max(1)) {
            return self.stopped(id, s);
        }
        if let Some(t) = self.tasks.get_mut(id) {
            t.progress.pos = next;
            if t.waits == 0 {
                self.wake(id);
            }
        }
    }

    #[inline(never)]
    pub(super) fn discard_group(&mut self, id: u64, group: u64, from: u64, end: u64, min: u64) -> Step<()> {
        self.load_group(group)?;
        let min = u32::try_from(min).unwrap_or(u32::MAX);
        let mut at = from;
        // What a checkpoint may need meanwhile is left alone.
        let floor = self.reserve().saturating_mul(2).saturating_add(self.kept);
        loop {
            if let Some(t) = self.tasks.get_mut(id) {
                mem::reserve(&mut t.placed, 1)?;
            }
            self.io.reserve(1)?;
            let max = u32::try_from(self.space.free().saturating_sub(floor)).unwrap_or(u32::MAX);
            if max < min {
                break;
            }
            let Some((addr, n)) = self.space.reserve_free(group, at, min, max)? else { break };
            self.add_placement(id, 0, addr, n, None)?;
            at = addr.saturating_add(u64::from(n));
            if addr >= end {
                break;
            }
            self.io.submit(IoKind::Discard, addr, u64::from(n), Buf::empty(), Purpose::TaskWrite(id))?;
            self.add_wait(id);
        }
        Ok(())
    }
}
