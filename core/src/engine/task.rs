// SPDX-License-Identifier: GPL-2.0-only
//! Running operations: each is a task that runs until it needs something, is woken when that has
//! arrived, and runs again from the start of its step.

use super::content::content_ino;
use super::fetch::PATIENCE_END;
use super::{OpId, State, Volume, CHECKPOINT, RECOVER};
use crate::coll;
use crate::coll::search::Run;
use crate::data;
use crate::error::{Error, Need, Step, Stop};
use crate::format::{kind, Key};
use crate::index::Absent;
use crate::mem::{self, Buf, Map, NoMemory};
use crate::ns;
use crate::op::{Ino, Op, Reply, StatFs, Time};
use crate::txn::{Changes, Outcome, Progress, Txn};
use alloc::vec::Vec;

/// What a task waits for, if it does not wait for I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// To be run.
    Run,
    /// Its data writes are under way or done; to be committed.
    Commit,
    /// Its transaction has to be in the log.
    Logged,
    /// Its transaction has to be durable.
    Durable,
}

/// An operation under way.
#[derive(Debug)]
pub struct Task {
    pub(super) op: Option<Op>,
    pub(super) now: Time,
    pub(super) progress: Progress,
    pub(super) arrived: Map<Buf>,
    pub(super) waits: u32,
    pub(super) fail: Option<Error>,
    pub(super) retried: bool,
    pub(super) locked: Option<Ino>,
    pub(super) plan: Option<data::Plan>,
    pub(super) placed: Vec<data::Placement>,
    pub(super) stage: Stage,
    pub(super) txn: u64,
    pub(super) reply: Option<Reply>,
    pub(super) space_tries: u8,
    pub(super) tick: u64,
    /// Pages of vectors used since this tick stay, for it is not done with them.
    pub(super) pages_tick: Option<u64>,
    /// A search that has to read vectors, between its steps.
    pub(super) search: Option<mem::Box<Run>>,
    pub(super) internal: bool,
}

impl Task {
    pub(super) fn new(op: Option<Op>, now: Time, tick: u64, internal: bool) -> Task {
        Task {
            op,
            now,
            progress: Progress::default(),
            arrived: Map::new(),
            waits: 0,
            fail: None,
            retried: false,
            locked: None,
            plan: None,
            placed: Vec::new(),
            stage: Stage::Run,
            txn: 0,
            reply: None,
            space_tries: 0,
            tick,
            pages_tick: None,
            search: None,
            internal,
        }
    }

    /// Whether it changes the volume.
    pub(super) fn is_change(&self) -> bool {
        match &self.op {
            Some(op) => !op.is_read() && !matches!(op, Op::Open { .. } | Op::Release { .. }),
            None => false,
        }
    }
}

/// Carries a read out.
pub fn read(t: &Txn, op: &Op) -> Step<Reply> {
    match op {
        Op::Read { ino, offset, len } => data::read(t, *ino, *offset, *len),
        Op::Seek { ino, offset, hole } => data::seek(t, *ino, *offset, *hole),
        Op::Extents { ino, offset, len, max } => data::extents(t, *ino, *offset, *len, *max),
        Op::Query { dir, cred, frame } => coll::query(t, *dir, cred, frame),
        Op::StatFs => {
            let i = t.info();
            Ok(Reply::StatFs(StatFs {
                blocks: i.blocks,
                free: i.free,
                available: i.available,
                inodes: i.inodes,
                uuid: i.uuid,
            }))
        }
        _ => ns::read(t, op),
    }
}

/// Carries a step of a change out.
#[inline(never)] // keeps stack frames small
fn change(t: &mut Txn, op: &Op, p: &mut Progress) -> Step<Outcome> {
    let o = match op {
        Op::Request { dir, cred, frame } => coll::request(t, *dir, cred, frame, p)?,
        Op::Populate { dir } => coll::populate(t, *dir, p)?,
        _ => ns::step(t, op, p)?,
    };
    note_populates(t, op, &o)?;
    Ok(o)
}

/// How a read that failed is answered: protocol frames by a frame.
pub fn failed_read(op: &Op, e: Error, done: u64) -> Result<Reply, Error> {
    match op {
        Op::Query { frame, .. } | Op::Request { frame, .. } => match coll::error_frame(frame, e, done) {
            Ok(f) => Ok(Reply::Bytes(f)),
            Err(NoMemory) => Err(e),
        },
        _ => Err(e),
    }
}

/// Keeps the POPULATE items in step: they make a crash resume the taking-in of children.
fn note_populates(t: &mut Txn, op: &Op, outcome: &Outcome) -> Step<()> {
    let mut i = 0;
    while let Some(dir) = t.changes().populates.get(i).copied() {
        t.put(Key::new(0, kind::POPULATE, dir), &[0; 8])?;
        i = i.saturating_add(1);
    }
    if let (Op::Populate { dir }, Outcome::Done(_) | Outcome::DoneDurable(_)) = (op, outcome) {
        t.del(Key::new(0, kind::POPULATE, *dir))?;
    }
    Ok(())
}

impl Volume {
    /// Makes a task of an operation.
    #[inline(never)]
    pub(super) fn new_task(&mut self, op: Op, internal: bool) -> Result<u64, Error> {
        let change = !op.is_read() && !matches!(op, Op::Open { .. } | Op::Release { .. });
        if !internal {
            match self.state {
                State::Failed(e) => return Err(e),
                State::Closed => return Err(Error::Aborted),
                State::Aborted if change => return Err(Error::Aborted),
                _ => {}
            }
            if self.closing && change {
                return Err(Error::Aborted);
            }
            if self.read_only && change && !matches!(op, Op::Close | Op::Sync) {
                return Err(Error::ReadOnly);
            }
        }
        let id = self.next_task;
        // Replies and wake-ups must not fail later: room for one of each per task.
        let tasks = self.tasks.len().saturating_add(1);
        self.tasks.reserve(1)?;
        self.runnable.reserve(tasks.saturating_mul(2))?;
        self.early.reserve(1)?;
        self.replies.reserve(tasks)?;
        mem::reserve(&mut self.waiting, tasks)?;
        mem::reserve(&mut self.space_wait, tasks)?;
        let tick = self.view.tree.tick();
        self.tasks.insert(id, mem::Box::try_new(Task::new(Some(op), self.now, tick, internal))?)?;
        self.next_task = id.wrapping_add(1);
        if self.state == State::Opening && !internal {
            self.early.push(id)?;
        } else {
            self.runnable.push(id)?;
        }
        Ok(id)
    }

    pub(super) fn wake(&mut self, id: u64) {
        if self.runnable.push(id).is_err() {
            self.retry = true;
        }
    }

    /// Runs a task that nothing holds up.
    pub(super) fn run(&mut self, id: u64) {
        if id == CHECKPOINT {
            return self.run_checkpoint();
        }
        if id == RECOVER {
            return self.run_recovery();
        }
        if self.loading.contains(id) {
            return self.run_load(id);
        }
        if self.paging.contains(id) {
            return self.run_paging(id);
        }
        let Some(task) = self.tasks.get(id) else { return };
        if task.waits > 0 {
            return;
        }
        if let Some(e) = task.fail {
            return self.finish(id, Err(e));
        }
        self.stats.reruns = self.stats.reruns.wrapping_add(1);
        match task.stage {
            Stage::Run => self.run_step(id),
            Stage::Commit => self.run_content_commit(id),
            Stage::Logged | Stage::Durable => self.check_waiting(id),
        }
    }

    #[inline(never)]
    pub(super) fn run_step(&mut self, id: u64) {
        self.refresh_info();
        let Some(task) = self.tasks.get(id) else { return };
        let Some(op) = &task.op else { return };
        if op.is_read() {
            return match self.read_step(id) {
                Ok(reply) => self.finish(id, Ok(reply)),
                Err(s) => self.stopped(id, s),
            };
        }
        match op {
            Op::Open { ino } => {
                let ino = *ino;
                let r = self.open_inode(ino);
                self.finish(id, r);
            }
            Op::Release { ino } => {
                let ino = *ino;
                self.close_inode(ino);
                self.finish(id, Ok(Reply::Done));
            }
            Op::Sync => {
                if self.read_only {
                    return self.finish(id, Ok(Reply::Done));
                }
                self.wait_for(id, self.log.txn, Stage::Durable, Reply::Done);
            }
            Op::Checkpoint => self.run_checkpoint_op(id),
            Op::Close => self.run_close(id),
            Op::Discard { .. } => self.run_discard(id),
            _ => match content_ino(op) {
                Some(ino) => self.run_content(id, ino),
                None => self.run_change(id),
            },
        }
    }

    /// A change that places no data.
    pub(super) fn run_change(&mut self, id: u64) {
        let mut p = self.tasks.get(id).map(|t| t.progress).unwrap_or_default();
        let mut c = Changes::default();
        let r = self.change_step(id, &mut p, &mut c);
        self.step_done(id, r, p, &c);
    }

    /// Commits what a step changed and goes on, or sees to what it needs.
    #[inline(never)]
    pub(super) fn step_done(&mut self, id: u64, r: Step<Outcome>, p: Progress, c: &Changes) {
        match r.and_then(|o| self.commit(id, c).map(|()| o)) {
            Ok(o) => {
                if let Some(t) = self.tasks.get_mut(id) {
                    t.placed.clear();
                    t.plan = None;
                }
                self.stepped(id, o, p);
            }
            Err(s) => {
                if matches!(s, Stop::Fail(_)) {
                    self.unplace(id);
                }
                self.stopped(id, s);
            }
        }
    }

    #[inline(never)]
    pub(super) fn change_step(&self, id: u64, p: &mut Progress, out: &mut Changes) -> Step<Outcome> {
        let Some(task) = self.tasks.get(id) else { return Err(Stop::Fail(Error::Invalid)) };
        let Some(op) = &task.op else { return Err(Stop::Fail(Error::Invalid)) };
        let own;
        let opens = match op {
            // What may be given a name again is what the driver holds open, not what is being trimmed.
            Op::Link { ino, .. } => {
                own = self.driver_opens(*ino)?;
                &own
            }
            _ => &self.opens,
        };
        let mut t = Txn::new(&*self.view, &task.arrived, opens, task.now);
        let o = change(&mut t, op, p)?;
        *out = t.finish();
        Ok(o)
    }

    #[inline(never)]
    fn read_step(&mut self, id: u64) -> Step<Reply> {
        let kept = self.tasks.get_mut(id).and_then(|t| t.search.take());
        let Some(task) = self.tasks.get(id) else { return Err(Stop::Fail(Error::Invalid)) };
        let Some(op) = &task.op else { return Err(Stop::Fail(Error::Invalid)) };
        let mut t = Txn::new(&*self.view, &task.arrived, &self.opens, task.now);
        t.waited = task.progress.extra == PATIENCE_END;
        t.absent = Absent::within(self.view.tree.time(), self.view.env.cache_bytes);
        t.search.set(kept);
        let result = read(&t, op);
        let (kept, absent) = (t.search.take(), t.absent.take());
        if let Some(t) = self.tasks.get_mut(id) {
            t.search = kept;
            if matches!(result, Err(Stop::Need(Need::Vectors(_)))) {
                self.wanted = absent;
                if t.search.as_mut().is_some_and(|s| s.progressed()) {
                    t.pages_tick = None;
                }
            }
        }
        result
    }

    /// A step is committed (or had nothing to commit): goes on or waits for the log.
    pub(super) fn stepped(&mut self, id: u64, outcome: Outcome, p: Progress) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        task.progress = p;
        task.pages_tick = None;
        task.arrived.clear();
        task.stage = Stage::Run;
        task.retried = false;
        task.space_tries = 0;
        let txn = task.txn;
        match outcome {
            Outcome::More => self.wake(id),
            Outcome::Done(r) if self.may_answer_early() => self.finish(id, Ok(r)),
            Outcome::Done(r) => self.wait_for(id, txn, Stage::Logged, r),
            Outcome::DoneDurable(r) => self.wait_for(id, txn.max(self.log.txn), Stage::Durable, r),
        }
    }

    /// Lets a task wait until transaction `txn` is logged or durable.
    pub(super) fn wait_for(&mut self, id: u64, txn: u64, stage: Stage, reply: Reply) {
        if let Some(t) = self.tasks.get_mut(id) {
            t.txn = txn;
            t.stage = stage;
            t.reply = Some(reply);
            // Room was made in `new_task`.
            let _ = mem::push(&mut self.waiting, id);
        }
        self.check_waiting(id);
    }

    pub(super) fn check_waiting(&mut self, id: u64) {
        let Some(t) = self.tasks.get_mut(id) else { return };
        let durable = t.txn <= self.log.durable_txn;
        let there = match t.stage {
            Stage::Logged => durable || t.txn <= self.log.written_txn,
            Stage::Durable => durable || (self.canary.forget_failed_flush && self.state == State::Aborted),
            _ => false,
        };
        if there {
            let reply = t.reply.take().unwrap_or(Reply::Done);
            self.waiting.retain(|x| *x != id);
            self.finish(id, Ok(reply));
        }
    }

    /// The log moved on: who waited for it?
    pub(super) fn check_all_waiting(&mut self) {
        let mut i = 0;
        while let Some(id) = self.waiting.get(i).copied() {
            self.check_waiting(id);
            if self.waiting.get(i) == Some(&id) {
                i = i.saturating_add(1);
            }
        }
    }

    /// Whether somebody waits for transactions up to `written` to become durable.
    pub(super) fn wants_flush(&self) -> bool {
        self.waiting
            .iter()
            .filter_map(|id| self.tasks.get(*id))
            .any(|t| t.stage == Stage::Durable && t.txn > self.log.durable_txn && t.txn <= self.log.written_txn)
    }

    /// A step stopped: fetches what it needs, or ends the task.
    #[inline(never)]
    pub(super) fn stopped(&mut self, id: u64, s: Stop) {
        match s {
            Stop::Need(n) => {
                if let Err(e) = self.fetch(id, n) {
                    self.task_failed(id, e);
                }
            }
            Stop::Fail(Error::Corrupt) => {
                // The block may have been given away and used again while it was read: once more, afresh.
                match self.tasks.get_mut(id) {
                    Some(t) if !t.retried && !t.arrived.is_empty() => {
                        t.retried = true;
                        t.arrived.clear();
                        self.wake(id);
                    }
                    _ => self.task_failed(id, Error::Corrupt),
                }
            }
            Stop::Fail(e) => self.task_failed(id, e),
        }
    }

    /// A task cannot go on.
    pub(super) fn task_failed(&mut self, id: u64, e: Error) {
        if id == CHECKPOINT {
            self.checkpoint_failed(e);
        } else if id == RECOVER {
            self.recovery_failed(e);
        } else if self.loading.contains(id) {
            self.load_failed(id, e);
        } else if self.paging.contains(id) {
            self.paging_done(id, Some(e));
        } else {
            self.finish(id, Err(e));
        }
    }

    /// Ends a task.
    #[inline(never)]
    pub(super) fn finish(&mut self, id: u64, result: Result<Reply, Error>) {
        self.unplace(id);
        let Some(task) = self.tasks.remove(id) else { return };
        self.waiting.retain(|x| *x != id);
        if let Some(ino) = task.locked {
            self.unlock(ino);
        }
        if let (Some(Op::Trim { ino }), Err(e)) = (&task.op, &result) {
            self.trim_failed(*ino, *e);
        }
        if matches!(task.op, Some(Op::Discard { .. })) {
            self.wake_space();
        }
        let result = match (result, &task.op) {
            (Err(e), Some(op @ Op::Request { .. })) | (Err(e), Some(op @ Op::Query { .. })) => {
                failed_read(op, e, task.progress.done)
            }
            // What earlier steps of a write did stands: a short count, as write(2) has it.
            (Err(e), Some(Op::Write { .. })) if task.progress.done > 0 && e != Error::Aborted => {
                Ok(Reply::Written(task.progress.done as usize))
            }
            (r, _) => r,
        };
        if !task.internal {
            // Room was made in `new_task`.
            let _ = self.replies.push((OpId(id), result));
        }
        if self.closing {
            self.wake_close();
        }
    }
}
