// SPDX-License-Identifier: GPL-2.0-only
//! Operations: handing them to the volume, waiting for their replies, and the steps under the lock between which I/O is
//! submitted.

use super::background::IDLE_PAUSE;
use super::Host;
use crate::bindings as c;
use crate::bio::{Finished, Plug};
use crate::env;
use crate::page::{ReadBatch, WriteBatch};
use crate::sync::{Completion, NoFs};
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ptr::null_mut;
use core::sync::atomic::Ordering;
use vexfs_core::engine::{OpId, State, Volume};
use vexfs_core::io::{Io, IoKind};
use vexfs_core::mem::{self, Map};
use vexfs_core::op::{Op, Reply};
use vexfs_core::Error;

/// Requests that are taken out of the volume in one go: a frame on a small stack.
const IO_BATCH: usize = 6;
/// Operations posted and not answered, in bytes of their data; who posts more waits.
const POSTED_MAX: usize = 32 << 20;

pub(super) struct Core {
    pub(super) volume: Option<Volume>,
    /// Inodes that the volume counts as open, and those of them that it is to be told are closed. There is room for all,
    /// so that none is forgotten for want of memory.
    pub(super) held: usize,
    pub(super) releases: Vec<u64>,
    /// The one before, while another is being opened in its place.
    pub(super) before: Option<Volume>,
    pub(super) waiters: Map<Done>,
}

/// What is to be done with a reply.
pub(crate) enum Done {
    /// A thread waits for it.
    Wait(*const Waiter),
    /// Pages were read.
    Read(mem::Box<ReadBatch>),
    /// Pages were written.
    Write(mem::Box<WriteBatch>),
    /// The periodic commit.
    Commit(u64),
    /// Nobody asks.
    Nothing,
}

/// Where one thread waits for the reply of its operation.
pub(crate) struct Waiter {
    done: Completion,
    reply: UnsafeCell<Option<Result<Reply, Error>>>,
}

/// Replies for posted operations, in a list through themselves: none of it needs memory.
pub(crate) struct Chain {
    reads: *mut ReadBatch,
    writes: *mut WriteBatch,
}

/// What a step leaves to be done outside of the lock.
struct Out {
    ios: [Option<Io>; IO_BATCH],
    chain: Chain,
    more: bool,
}

impl Host {
    /// Carries out an operation and waits for its reply.
    pub(crate) fn call(&self, op: Op) -> Result<Reply, Error> {
        if is_read(&op) {
            if let Some(reply) = self.try_call(&op) {
                return reply;
            }
        }
        self.submit_and_wait(op, false)
    }

    /// A request of the protocol, which may wait long for index work: whoever asks can be killed meanwhile. The
    /// request itself goes on.
    pub(crate) fn request(&self, op: Op) -> Result<Reply, Error> {
        if is_read(&op) {
            if let Some(reply) = self.try_call(&op) {
                return reply;
            }
        } else {
            self.changed();
        }
        self.submit_and_wait(op, true)
    }

    /// Carries out a change. `hold` names an inode that has to outlive the loss of its last name: it counts as open
    /// from before the change on, until it is released.
    pub(crate) fn change(&self, hold: Option<u64>, op: Op) -> Result<Reply, Error> {
        if let Some(ino) = hold {
            // By itself: if it fails, the name has to stay.
            self.submit_and_wait(Op::Open { ino }, false)?;
        }
        let r = self.submit_and_wait(op, false);
        if let (Err(_), Some(ino)) = (&r, hold) {
            self.release(ino);
        }
        self.changed();
        r
    }

    /// An inode that counts as open (since `change`, or since it was made without a name) is no longer in use.
    pub(crate) fn release(&self, ino: u64) {
        self.step(|core| {
            // There is room since it was counted.
            let _ = mem::push(&mut core.releases, ino);
            core.release_all();
        });
        self.changed();
    }

    /// Something changed that is to be committed.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// The reply of a read if everything is in memory; never waits for the device.
    pub(crate) fn try_call(&self, op: &Op) -> Option<Result<Reply, Error>> {
        let _nofs = NoFs::enter();
        self.wanting.fetch_add(1, Ordering::Relaxed);
        let core = self.core.read();
        self.wanting.fetch_sub(1, Ordering::Relaxed);
        core.volume.as_ref()?.try_read(env::now(), op)
    }

    fn submit_and_wait(&self, op: Op, killable: bool) -> Result<Reply, Error> {
        let waiter = Waiter { done: Completion::new(), reply: UnsafeCell::new(None) };
        waiter.done.init();
        let place: *const Waiter = &waiter;
        let search = matches!(op, Op::Query { .. });
        let holds = matches!(op, Op::Open { .. } | Op::Tmpfile { .. });
        let id = self.step(|core| {
            if holds {
                core.hold()?;
            }
            core.submit(op, Done::Wait(place)).map_err(|(e, _)| {
                core.held = core.held.saturating_sub(usize::from(holds));
                e
            })
        })?;
        if search {
            // It may wait for index work.
            self.wake_tick(0);
        }
        if killable && !waiter.done.wait_killable() {
            // The reply is given under the lock: now it either was, or nobody knows of this frame any more.
            self.core.write().waiters.remove(id);
        } else if !killable {
            waiter.done.wait();
        }
        // SAFETY: written once, before the completion; nobody else looks at it now.
        let r = unsafe { (*waiter.reply.get()).take() }.unwrap_or(Err(Error::Busy));
        if holds && r.is_err() {
            self.step(|core| core.held = core.held.saturating_sub(1));
        }
        r
    }

    /// Submits an operation with `bytes` of data and goes on; `done` is carried out when it is answered, also if it
    /// cannot be submitted.
    pub(crate) fn post(&self, op: Op, bytes: usize, done: Done) {
        while bytes > 0 && self.posted.load(Ordering::Acquire) > POSTED_MAX {
            // SAFETY: process context.
            unsafe { c::vexfs_sleep_tick() };
        }
        self.posted.fetch_add(bytes, Ordering::AcqRel);
        let mut left = None;
        let mut chain = Chain { reads: null_mut(), writes: null_mut() };
        self.step(|core| {
            if let Err((e, done)) = core.submit(op, done) {
                left = Some((e, done));
            }
        });
        if let Some((e, done)) = left {
            self.deliver(&mut chain, done, Err(e));
            self.run_chain(chain);
        }
    }

    /// A posted operation with so many bytes was answered.
    pub(crate) fn unpost(&self, bytes: usize) {
        self.posted.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Runs `f` under the exclusive side of the lock, then hands out replies and submits I/O.
    pub(super) fn step<T>(&self, f: impl FnOnce(&mut Core) -> T) -> T {
        self.wanting.fetch_add(1, Ordering::Relaxed);
        self.locked_step(|core| {
            self.wanting.fetch_sub(1, Ordering::Relaxed);
            f(core)
        })
    }

    #[inline(never)]
    pub(super) fn locked_step<T>(&self, f: impl FnOnce(&mut Core) -> T) -> T {
        let _nofs = NoFs::enter();
        let mut out = Out {
            ios: [const { None }; IO_BATCH],
            chain: Chain { reads: null_mut(), writes: null_mut() },
            more: false,
        };
        let r = {
            let mut core = self.core.write();
            self.keep(&mut core);
            let r = f(&mut core);
            let debt = self.shrink_debt.swap(0, Ordering::Relaxed);
            if let (true, Some(v)) = (debt > 0, core.volume.as_mut()) {
                v.shrink(debt);
            }
            self.collect(&mut core, &mut out);
            r
        };
        self.finish(out);
        r
    }

    #[inline(never)]
    fn finish(&self, mut out: Out) {
        let mut plug = Plug::new();
        loop {
            if out.ios.iter().any(Option::is_some) {
                plug.start();
                for io in out.ios.iter_mut().filter_map(Option::take) {
                    self.bios.submit(self, io);
                }
                plug.finish();
            }
            let chain = core::mem::replace(&mut out.chain, Chain { reads: null_mut(), writes: null_mut() });
            self.run_chain(chain);
            if !out.more {
                break;
            }
            let mut core = self.core.write();
            self.keep(&mut core);
            self.collect(&mut core, &mut out);
        }
        if !self.nudged.swap(true, Ordering::AcqRel) {
            self.wake_tick(IDLE_PAUSE);
        }
    }

    /// Tells the volume what it must leave for cached data. Whoever sets more aside from here on to the end of the step
    /// sees that one is under way.
    fn keep(&self, core: &mut Core) {
        self.stepping.store(true, Ordering::SeqCst);
        if let Some(v) = core.volume.as_mut() {
            v.set_kept(self.reserved.load(Ordering::SeqCst));
        }
    }

    /// Takes requests and replies out of the volume.
    #[inline(never)]
    fn collect(&self, core: &mut Core, out: &mut Out) {
        out.more = false;
        let Some(volume) = core.volume.as_mut() else { return };
        for place in &mut out.ios {
            *place = volume.poll_io();
            let Some(io) = place else { break };
            self.outstanding.fetch_add(1, Ordering::Relaxed);
            if io.kind != IoKind::Read {
                self.changing.fetch_add(1, Ordering::Relaxed);
            }
        }
        out.more = out.ios.last().is_some_and(Option::is_some);
        while let Some((OpId(id), reply)) = volume.poll_reply() {
            if let Some(done) = core.waiters.remove(id) {
                self.deliver(&mut out.chain, done, reply);
            }
        }
        self.available.store(volume.space_left(), Ordering::SeqCst);
        self.stepping.store(false, Ordering::SeqCst);
        self.nodes.store(volume.cached(), Ordering::Relaxed);
        if volume.state() == State::Aborted {
            self.aborted.store(true, Ordering::Release);
        }
    }

    fn deliver(&self, chain: &mut Chain, done: Done, reply: Result<Reply, Error>) {
        match done {
            Done::Wait(w) => {
                // SAFETY: the thread waits until the completion below, so its frame is there.
                unsafe {
                    *(*w).reply.get() = Some(reply);
                    (*w).done.complete();
                }
            }
            Done::Read(b) => ReadBatch::chain(b, reply, &mut chain.reads),
            Done::Write(b) => WriteBatch::chain(b, reply, &mut chain.writes),
            Done::Commit(changes) => {
                if reply.is_ok() {
                    self.committed.store(changes, Ordering::Relaxed);
                }
                self.committing.store(false, Ordering::Release);
            }
            Done::Nothing => {}
        }
    }

    fn run_chain(&self, chain: Chain) {
        ReadBatch::run(self, chain.reads);
        WriteBatch::run(self, chain.writes);
    }

    /// Takes finished requests back into the volume.
    pub(super) fn take_finished(&self) {
        let mut list: Finished<'_> = self.bios.take();
        while !list.is_empty() {
            self.step(|core| {
                let now = env::now();
                // A few at a time, so that others get the lock.
                for _ in 0..8 {
                    let Some((id, kind, result, buf)) = list.next() else { break };
                    self.outstanding.fetch_sub(1, Ordering::Relaxed);
                    if kind != IoKind::Read {
                        self.changing.fetch_sub(1, Ordering::Relaxed);
                    }
                    if let Some(v) = core.volume.as_mut() {
                        v.complete(now, id, result, buf);
                    }
                }
            });
            env::resched();
        }
    }
}

impl Core {
    /// Makes room to note that one more inode is closed.
    fn hold(&mut self) -> Result<(), Error> {
        let want = self.held.saturating_add(1);
        let more = want.saturating_sub(self.releases.len());
        mem::reserve(&mut self.releases, more)?;
        self.held = want;
        Ok(())
    }

    /// Tells the volume which inodes are closed. What there is no memory for stays noted; the tick tries again.
    pub(super) fn release_all(&mut self) {
        while let Some(ino) = self.releases.pop() {
            if let Err((Error::NoMemory, _)) = self.submit(Op::Release { ino }, Done::Nothing) {
                let _ = mem::push(&mut self.releases, ino);
                break;
            }
            self.held = self.held.saturating_sub(1);
        }
    }

    /// Submits an operation; whatever is to be done with its reply comes back if that fails.
    fn submit(&mut self, op: Op, done: Done) -> Result<u64, (Error, Done)> {
        let Some(volume) = self.volume.as_mut() else { return Err((Error::Aborted, done)) };
        // First the room, so that the reply finds its way.
        if self.waiters.reserve(1).is_err() {
            return Err((Error::NoMemory, done));
        }
        match volume.submit(env::now(), op) {
            Ok(OpId(id)) => {
                let _ = self.waiters.insert(id, done);
                Ok(id)
            }
            Err(e) => Err((e, done)),
        }
    }
}

/// Whether `Volume::try_read` may know the answer.
fn is_read(op: &Op) -> bool {
    matches!(
        op,
        Op::Lookup { .. }
            | Op::GetAttr { .. }
            | Op::ByHandle { .. }
            | Op::ReadLink { .. }
            | Op::ReadDir { .. }
            | Op::Parent { .. }
            | Op::Seek { .. }
            | Op::Extents { .. }
            | Op::GetXattr { .. }
            | Op::ListXattr { .. }
            | Op::StatFs
            | Op::Query { .. }
    )
}
