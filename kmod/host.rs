// SPDX-License-Identifier: GPL-2.0-only
//! Drives a volume: the sibling of `embedded/src/host.rs`. The volume is behind a reader-writer semaphore that is held
//! for work in memory only. Reads that find everything in memory run side by side under its shared side. For
//! the rest the caller submits an operation, submits the I/O that comes out of it as bios, and waits. A
//! worker takes what the device has finished back into the volume; another one keeps time and does background work
//! in bounded steps. Operations may also be posted: what is to be done with their reply then runs on whichever
//! thread gets it.

use crate::bindings as c;
use crate::bio::{Bios, Finished, Plug};
use crate::env;
use crate::page::{ReadBatch, WriteBatch};
use crate::sync::{Completion, NoFs, Opaque, RwSem};
use crate::vfs::{EBUSY, EINTR};
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use vexfs_core::engine::{OpId, Options, State, Stats, Volume};
use vexfs_core::io::{Io, IoKind};
use vexfs_core::mem::{self, Map};
use vexfs_core::op::{Op, Reply, Time};
use vexfs_core::Error;

/// How to run a volume.
#[derive(Clone, Copy)]
pub(crate) struct HostOptions {
    /// Never write, not even to recover.
    pub(crate) read_only: bool,
    /// Bytes that the cache of tree nodes may take.
    pub(crate) cache_bytes: usize,
    /// Bytes of log after which a checkpoint is started.
    pub(crate) log_bytes: u64,
    /// Changes are durable at the latest after so many seconds.
    pub(crate) commit_seconds: u32,
    /// Discard free space from time to time.
    pub(crate) discard: bool,
}

/// Requests that are taken out of the volume in one go: a frame on a small stack.
const IO_BATCH: usize = 6;
/// Operations posted and not answered, in bytes of their data; who posts more waits.
const POSTED_MAX: usize = 32 << 20;
/// The background worker looks for work at most this often while it finds none, in milliseconds.
const IDLE_PAUSE: u32 = 10;
/// With the mount option `discard`, after changes, free runs of at least so many bytes are discarded this often.
const DISCARD_SECONDS: u64 = 300;
const DISCARD_MIN: u64 = 1 << 20;
/// It works for so long in one go.
const WORK_TIME: u32 = 20;

/// More blocks than what one step of the volume can take.
const STEP_TAKES: u64 = 1 << 16;

/// Opening waits so long for something to happen, in milliseconds.
const PATIENCE: u32 = 60_000;

/// It lets others at the lock for at most so long.
const GIVE_WAY: u32 = 20;

/// A volume in service.
pub(crate) struct Host {
    core: RwSem<Core>,
    bios: mem::Box<Bios>,
    /// For finished requests, at high priority: somebody waits for them.
    queue: AtomicPtr<c::workqueue_struct>,
    /// For background work.
    slow_queue: AtomicPtr<c::workqueue_struct>,
    finished_work: Opaque<c::work_struct>,
    tick: Opaque<c::delayed_work>,
    nudged: AtomicBool,
    /// While the file system is frozen background work writes nothing.
    frozen: AtomicBool,
    /// Work items are initialised: there is something to stop.
    ready: AtomicBool,
    stopped: AtomicBool,
    /// Threads that wait for the lock; background work gives way to them.
    wanting: AtomicUsize,
    /// Counts changes; the committer compares it with what it saw last.
    changes: AtomicU64,
    committed: AtomicU64,
    committing: AtomicBool,
    commit_at: AtomicU64,
    commit_seconds: AtomicU32,
    /// Whether free space is discarded from time to time, and when next.
    discard: AtomicBool,
    discard_at: AtomicU64,
    posted: AtomicUsize,
    /// Requests that the volume has given out and not got back; exact under the exclusive side of the lock.
    outstanding: AtomicUsize,
    /// Those of them that are no reads.
    changing: AtomicUsize,
    /// Blocks that ordinary operations may still take, as of the last step.
    available: AtomicU64,
    /// Blocks that cached data will take.
    reserved: AtomicU64,
    /// The volume is at work and may be taking blocks: `available` says what was before.
    stepping: AtomicBool,
    /// Tree nodes in memory, as of the last step.
    nodes: AtomicUsize,
    shrinker: AtomicPtr<c::shrinker>,
    aborted: AtomicBool,
    /// The volume was opened without the right to write.
    read_only: AtomicBool,
    options: HostOptions,
}

// SAFETY: raw pointers in it are to structures of the kernel that are made for use by several threads.
unsafe impl Send for Host {}
// SAFETY: as above; everything else is atomic or behind the lock.
unsafe impl Sync for Host {}

struct Core {
    volume: Option<Volume>,
    /// Inodes that the volume counts as open, and those of them that it is to be told are closed. There is room for all,
    /// so that none is forgotten for want of memory.
    held: usize,
    releases: Vec<u64>,
    /// The one before, while another is being opened in its place.
    before: Option<Volume>,
    waiters: Map<Done>,
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

/// A moment to come.
struct Deadline(kernel::ffi::c_ulong);

impl Deadline {
    fn after(ms: u32) -> Deadline {
        // SAFETY: reads the clock of the kernel.
        Deadline(unsafe { c::vexfs_jiffies().wrapping_add(c::vexfs_msecs(ms)) })
    }

    fn is_over(&self) -> bool {
        // SAFETY: as above.
        unsafe { c::vexfs_jiffies() }.wrapping_sub(self.0) as isize >= 0
    }
}

/// Waits a little; `killable`: an error if the process is to end.
fn pause(killable: bool) -> Result<(), i32> {
    // SAFETY: process context.
    unsafe { c::vexfs_sleep_tick() };
    // SAFETY: the current task.
    if killable && unsafe { c::vexfs_fatal_signal() } {
        return Err(EINTR);
    }
    Ok(())
}

impl Host {
    /// A host without a volume. A function of its own, because it is built on the stack.
    #[inline(never)]
    fn blank(bdev: *mut c::block_device, options: &HostOptions) -> Result<mem::Box<Host>, i32> {
        mem::Box::try_new(Host {
            core: RwSem::new(Core { volume: None, held: 0, releases: Vec::new(), before: None, waiters: Map::new() }),
            bios: Bios::new(bdev)?,
            queue: AtomicPtr::new(null_mut()),
            slow_queue: AtomicPtr::new(null_mut()),
            finished_work: Opaque::zeroed(),
            tick: Opaque::zeroed(),
            nudged: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            wanting: AtomicUsize::new(0),
            changes: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            committing: AtomicBool::new(false),
            commit_at: AtomicU64::new(0),
            commit_seconds: AtomicU32::new(options.commit_seconds),
            discard: AtomicBool::new(options.discard),
            discard_at: AtomicU64::new(0),
            posted: AtomicUsize::new(0),
            outstanding: AtomicUsize::new(0),
            changing: AtomicUsize::new(0),
            available: AtomicU64::new(u64::MAX),
            reserved: AtomicU64::new(0),
            stepping: AtomicBool::new(false),
            nodes: AtomicUsize::new(0),
            shrinker: AtomicPtr::new(null_mut()),
            aborted: AtomicBool::new(false),
            read_only: AtomicBool::new(options.read_only),
            options: *options,
        })
        .map_err(|_| 12)
    }

    /// Opens the volume on a device and waits until it is in service.
    #[inline(never)]
    pub(crate) fn open(
        bdev: *mut c::block_device,
        name: *const kernel::ffi::c_char,
        options: &HostOptions,
    ) -> Result<mem::Box<Host>, i32> {
        let host = Host::blank(bdev, options)?;
        host.core.init();
        host.bios.init()?;
        // SAFETY: a C string; the queues are destroyed in `stop`.
        let (queue, slow) = unsafe { (c::vexfs_workqueue(name, true), c::vexfs_workqueue(name, false)) };
        host.queue.store(queue, Ordering::Release);
        host.slow_queue.store(slow, Ordering::Release);
        // SAFETY: work items where they stay, with functions that find the host around them.
        unsafe {
            c::vexfs_init_work(host.finished_work.get(), Some(finished_work));
            c::vexfs_init_delayed_work(host.tick.get(), Some(tick_work));
        }
        host.ready.store(true, Ordering::Release);
        if queue.is_null() || slow.is_null() {
            return Err(12);
        }
        host.start()?;
        // SAFETY: functions that find the host through the pointer given here, until `stop` takes the shrinker away.
        unsafe {
            let s = c::vexfs_shrinker(name);
            if s.is_null() {
                return Err(12);
            }
            (*s).count_objects = Some(count_nodes);
            (*s).scan_objects = Some(drop_nodes);
            (*s).private_data = core::ptr::from_ref::<Host>(&host).cast_mut().cast();
            host.shrinker.store(s, Ordering::Release);
            c::shrinker_register(s);
        }
        Ok(host)
    }

    fn start(&self) -> Result<(), i32> {
        self.renew(&mut self.core.write())?;
        self.wait_until_ready(true)
    }

    /// Puts a volume that is being opened into its place.
    #[inline(never)]
    fn renew(&self, core: &mut Core) -> Result<(), i32> {
        let _nofs = NoFs::enter();
        let env = env::env(self.options.cache_bytes, self.options.log_bytes);
        let options = Options { read_only: self.read_only(), write_behind: true };
        // Step by step: each copy of a volume on its way takes room on the stack.
        core.before = None;
        core::mem::swap(&mut core.volume, &mut core.before);
        match Volume::open(env, self.bios.blocks(), options, env::now()) {
            Ok(v) => core.volume = Some(v),
            Err(e) => {
                // It has asked for nothing: what was there goes on.
                core::mem::swap(&mut core.volume, &mut core.before);
                return Err(errno(e));
            }
        }
        core.before = None;
        Ok(())
    }

    /// The exclusive side of the lock at a moment at which nothing is under way, so that no reply and no buffer comes back to
    /// another volume than the one that it belongs to.
    fn idle(&self, killable: bool) -> Result<crate::sync::Write<'_, Core>, i32> {
        let end = Deadline::after(PATIENCE);
        loop {
            let core = self.core.write();
            if core.waiters.is_empty() && self.outstanding.load(Ordering::Relaxed) == 0 {
                return Ok(core);
            }
            drop(core);
            if end.is_over() {
                return Err(EBUSY);
            }
            pause(killable)?;
        }
    }

    /// Gives a volume that was opened for reading only the right to write: it is opened once more and recovers, as at
    /// a mount. Operations that come meanwhile wait. If that fails it is as before.
    pub(crate) fn become_writable(&self) -> Result<(), i32> {
        {
            let mut core = self.idle(true)?;
            self.read_only.store(false, Ordering::Release);
            self.renew(&mut core).inspect_err(|_| self.read_only.store(true, Ordering::Release))?;
        }
        // From here on nobody is to be interrupted: what is half open would go on and write.
        self.wait_until_ready(false).inspect_err(|_| {
            self.read_only.store(true, Ordering::Release);
            // Reads go on if that works; if not, they fail.
            let again = self.idle(false).and_then(|mut core| self.renew(&mut core));
            let _ = again.and_then(|()| self.wait_until_ready(false));
        })
    }

    fn wait_until_ready(&self, killable: bool) -> Result<(), i32> {
        self.step(|_| ());
        let mut end = Deadline::after(PATIENCE);
        loop {
            match self.state() {
                State::Ready => return Ok(()),
                State::Opening => {}
                State::Failed(e) => return Err(errno(e)),
                State::Aborted | State::Closed => return Err(5),
            }
            self.wake_tick(0);
            pause(killable)?;
            if self.bios.inflight() > 0 {
                end = Deadline::after(PATIENCE);
            } else if end.is_over() {
                // Nothing is under way and nothing more is asked for: it would wait for ever.
                return Err(5);
            }
        }
    }

    pub(crate) fn bios(&self) -> &Bios {
        &self.bios
    }

    fn queue(&self) -> *mut c::workqueue_struct {
        self.queue.load(Ordering::Acquire)
    }

    /// Has the worker look at finished requests. Called in any context.
    pub(crate) fn wake_worker(&self) {
        // SAFETY: the queue lives until no request is under way.
        unsafe { c::vexfs_queue_work(self.queue(), self.finished_work.get()) }
    }

    fn wake_tick(&self, ms: u32) {
        if !self.stopped.load(Ordering::Acquire) {
            // SAFETY: the queue lives until `stop`, which disables the work before it destroys the queue.
            unsafe {
                c::vexfs_mod_delayed(self.slow_queue.load(Ordering::Acquire), self.tick.get(), c::vexfs_msecs(ms))
            }
        }
    }

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
    fn step<T>(&self, f: impl FnOnce(&mut Core) -> T) -> T {
        self.wanting.fetch_add(1, Ordering::Relaxed);
        self.locked_step(|core| {
            self.wanting.fetch_sub(1, Ordering::Relaxed);
            f(core)
        })
    }

    /// Waits until nobody else wants the lock, but not for ever: background work has to go on under a stream of
    /// operations too.
    fn give_way(&self) {
        // SAFETY: reads the clock of the kernel.
        let end = unsafe { c::vexfs_jiffies().wrapping_add(c::vexfs_msecs(GIVE_WAY)) };
        // SAFETY: as above, and process context.
        while self.wanting.load(Ordering::Relaxed) > 0 && unsafe { c::vexfs_jiffies() }.wrapping_sub(end) as isize <= 0
        {
            // SAFETY: process context.
            unsafe { c::vexfs_short_sleep() };
        }
    }

    #[inline(never)]
    fn locked_step<T>(&self, f: impl FnOnce(&mut Core) -> T) -> T {
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
        self.nodes.store(volume.stats().cached_nodes as usize, Ordering::Relaxed);
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
    fn take_finished(&self) {
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

    /// What the background worker does: time, index work, the periodic commit.
    fn background(&self) {
        if self.stopped.load(Ordering::Acquire) {
            return;
        }
        self.nudged.store(false, Ordering::Release);
        // SAFETY: reads the clock of the kernel.
        let end = unsafe { c::vexfs_jiffies().wrapping_add(c::vexfs_msecs(WORK_TIME)) };
        loop {
            self.give_way();
            let (more, timeout) = self.locked_step(|core| {
                let Some(v) = core.volume.as_mut() else { return (false, None) };
                let now = env::now();
                // Frozen, only what happens in memory goes on, because searches may wait for it.
                if !self.frozen.load(Ordering::Acquire) && v.poll_timeout().is_some_and(|t| t <= now) {
                    v.handle_timeout(now);
                }
                let r = (v.work(), v.poll_timeout());
                if !self.frozen.load(Ordering::Acquire) {
                    core.release_all();
                }
                r
            });
            env::resched();
            if !more {
                let wait = self.commit(timeout);
                if let Some(ms) = wait {
                    self.wake_tick_unless_nudged(ms);
                }
                return;
            }
            // SAFETY: as above.
            if unsafe { c::vexfs_jiffies() }.wrapping_sub(end) as isize >= 0 {
                self.wake_tick(0);
                return;
            }
        }
    }

    fn wake_tick_unless_nudged(&self, ms: u32) {
        if !self.nudged.load(Ordering::Acquire) {
            self.wake_tick(ms);
        } else {
            self.wake_tick(ms.min(IDLE_PAUSE));
        }
    }

    /// Starts the periodic commit if it is due; in how many milliseconds to look again.
    fn commit(&self, timeout: Option<Time>) -> Option<u32> {
        let now = env::now();
        let millis = |t: Time| {
            let s = t.sec.saturating_sub(now.sec).clamp(0, 3600) as u32;
            s.saturating_mul(1000).saturating_add(IDLE_PAUSE)
        };
        let mut wait = timeout.map(millis);
        let changes = self.changes.load(Ordering::Relaxed);
        let stands = self.aborted.load(Ordering::Acquire) || self.frozen.load(Ordering::Acquire);
        let writable = !self.read_only() && !stands;
        if changes != self.committed.load(Ordering::Relaxed) && writable {
            let at = self.commit_at.load(Ordering::Relaxed);
            let seconds = u64::from(self.commit_seconds.load(Ordering::Relaxed)).max(1);
            let t = now.sec.max(0) as u64;
            if at == 0 || at > t.saturating_add(seconds) {
                self.commit_at.store(t.saturating_add(seconds), Ordering::Relaxed);
            } else if t >= at && !self.committing.swap(true, Ordering::AcqRel) {
                self.commit_at.store(0, Ordering::Relaxed);
                self.post(Op::Sync, 0, Done::Commit(changes));
                let due = self.discard_at.load(Ordering::Relaxed);
                if self.discard.load(Ordering::Relaxed) && t >= due {
                    if due != 0 {
                        self.post(Op::Discard { offset: 0, len: u64::MAX, min: DISCARD_MIN }, 0, Done::Nothing);
                    }
                    self.discard_at.store(t.saturating_add(DISCARD_SECONDS), Ordering::Relaxed);
                }
            }
            let soon = 1000;
            wait = Some(wait.map_or(soon, |w| w.min(soon)));
        }
        wait
    }

    /// Where the volume stands.
    pub(crate) fn state(&self) -> State {
        self.core.read().volume.as_ref().map_or(State::Closed, Volume::state)
    }

    /// Counters of the volume.
    pub(crate) fn stats(&self) -> Stats {
        self.core.read().volume.as_ref().map(Volume::stats).unwrap_or_default()
    }

    /// A write or flush failed: changes fail until the volume is mounted again.
    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    /// Opened for reading only: not even the log was carried over.
    pub(crate) fn read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    /// Takes changed options over.
    pub(crate) fn set(&self, cache_bytes: u64, seconds: u32, discard: bool) {
        self.step(|core| {
            if let Some(v) = core.volume.as_mut() {
                v.set_cache_bytes(cache_bytes as usize);
            }
        });
        self.commit_seconds.store(seconds, Ordering::Relaxed);
        self.discard.store(discard, Ordering::Relaxed);
    }

    /// Sets `blocks` aside for data that is only in the page cache. False: there is not so much.
    pub(crate) fn reserve(&self, blocks: u64) -> bool {
        let now = self.reserved.fetch_add(blocks, Ordering::SeqCst).saturating_add(blocks);
        if now.saturating_add(STEP_TAKES) <= self.available.load(Ordering::SeqCst) {
            return true;
        }
        // Space is short: a step that began before must not take the same blocks. After it they are in its reckoning.
        let _step = self.stepping.load(Ordering::SeqCst).then(|| self.core.read());
        if now <= self.available.load(Ordering::SeqCst) {
            return true;
        }
        self.unreserve(blocks);
        false
    }

    /// Sets them aside without asking.
    pub(crate) fn reserve_anyway(&self, blocks: u64) {
        self.reserved.fetch_add(blocks, Ordering::AcqRel);
    }

    pub(crate) fn unreserve(&self, blocks: u64) {
        self.reserved.fetch_sub(blocks, Ordering::AcqRel);
    }

    /// Blocks that may still be taken or set aside, those that are set aside included.
    pub(crate) fn available(&self) -> u64 {
        self.available.load(Ordering::Relaxed)
    }

    pub(crate) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Stops background work that writes (freeze), and waits until what it began is done; reads go on meanwhile.
    pub(crate) fn freeze(&self) -> Result<(), i32> {
        self.frozen.store(true, Ordering::Release);
        self.set_quiet(true);
        // SAFETY: initialised; waits for the work if it runs.
        unsafe { c::cancel_delayed_work_sync(self.tick.get()) };
        while self.changing.load(Ordering::Relaxed) > 0 {
            // SAFETY: process context.
            unsafe { c::vexfs_sleep_tick() };
            // SAFETY: the current task.
            if unsafe { c::vexfs_fatal_signal() } {
                self.thaw();
                return Err(EINTR);
            }
        }
        self.nudged.store(false, Ordering::Release);
        self.wake_tick(0);
        Ok(())
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.set_quiet(false);
        self.frozen.store(false, Ordering::Release);
        self.nudged.store(false, Ordering::Release);
        self.wake_tick(0);
    }

    /// Whether reads leave bad copies as they are: the volume is not to be written to for now.
    pub(crate) fn set_quiet(&self, quiet: bool) {
        self.step(|core| {
            if let Some(v) = core.volume.as_mut() {
                v.set_quiet(quiet);
            }
        });
    }

    /// Changes fail from now on, as after a failed write.
    pub(crate) fn abort(&self) {
        self.step(|core| {
            if let Some(v) = core.volume.as_mut() {
                v.give_up();
            }
        });
    }

    /// Clean unmount, then the end of all work. Operations may not come any more.
    pub(crate) fn close(&self) -> Result<(), Error> {
        let r = if self.read_only() || self.is_aborted() { Ok(()) } else { self.call(Op::Close).map(|_| ()) };
        self.stop();
        r
    }

    fn stop(&self) {
        self.ready.store(false, Ordering::Release);
        let shrinker = self.shrinker.swap(null_mut(), Ordering::AcqRel);
        if !shrinker.is_null() {
            // SAFETY: made in `open`; waits until nobody uses it.
            unsafe { c::shrinker_free(shrinker) };
        }
        self.stopped.store(true, Ordering::Release);
        // Disabled, not only cancelled: what still takes finished requests back may have found `stopped` unset and
        // be about to arm the timer.
        // SAFETY: initialised in `open`; waits until the work does not run.
        unsafe { c::disable_delayed_work_sync(self.tick.get()) };
        loop {
            while self.bios.inflight() > 0 {
                // SAFETY: process context.
                unsafe { c::vexfs_sleep_tick() };
            }
            // SAFETY: as above.
            unsafe { c::flush_work(self.finished_work.get()) };
            if self.bios.inflight() == 0 {
                break;
            }
        }
        // What is left in the volume has nobody who waits for it.
        self.core.write().volume = None;
        for q in [&self.queue, &self.slow_queue] {
            let queue = q.swap(null_mut(), Ordering::AcqRel);
            if !queue.is_null() {
                // SAFETY: made in `open`; no work is queued any more.
                unsafe { c::destroy_workqueue(queue) };
            }
        }
        self.bios.exit();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.ready.swap(false, Ordering::AcqRel) {
            self.stop();
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
    fn release_all(&mut self) {
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

/// The error number, positive.
pub(crate) fn errno(e: Error) -> i32 {
    e.errno()
}

/// The host around a member of it.
unsafe fn host_of<'a>(member: *mut u8, offset: usize) -> &'a Host {
    // SAFETY: the caller passes the address of a member of a host and its offset.
    unsafe { &*member.sub(offset).cast::<Host>() }
}

/// How many tree nodes memory could be got from.
unsafe extern "C" fn count_nodes(s: *mut c::shrinker, _sc: *mut c::shrink_control) -> kernel::ffi::c_ulong {
    // SAFETY: a shrinker of a host in service.
    let host = unsafe { &*(*s).private_data.cast::<Host>() };
    host.nodes.load(Ordering::Relaxed) as kernel::ffi::c_ulong
}

/// Drops some of them.
unsafe extern "C" fn drop_nodes(s: *mut c::shrinker, sc: *mut c::shrink_control) -> kernel::ffi::c_ulong {
    // SAFETY: as above; the kernel says how many and in which context.
    unsafe {
        let host = &*(*s).private_data.cast::<Host>();
        if !c::vexfs_may_fs(sc) {
            return c::vexfs_shrink_stop();
        }
        match host.core.try_write() {
            Some(mut core) => {
                let want = (*sc).nr_to_scan as usize;
                core.volume.as_mut().map_or(0, |v| v.shrink(want)) as kernel::ffi::c_ulong
            }
            None => c::vexfs_shrink_stop(),
        }
    }
}

unsafe extern "C" fn finished_work(work: *mut c::work_struct) {
    // SAFETY: `finished_work` of a host that is not stopped before this work has ended.
    let host = unsafe { host_of(work.cast(), core::mem::offset_of!(Host, finished_work)) };
    host.take_finished();
}

unsafe extern "C" fn tick_work(work: *mut c::work_struct) {
    // SAFETY: the first member of the delayed work `tick` of a host, which is not stopped before this work has ended.
    let host = unsafe {
        let offset = core::mem::offset_of!(Host, tick) + core::mem::offset_of!(c::delayed_work, work);
        host_of(work.cast(), offset)
    };
    host.background();
}
