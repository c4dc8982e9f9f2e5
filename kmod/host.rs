// SPDX-License-Identifier: GPL-2.0-only
//! Drives a volume: the sibling of `embedded/src/host.rs`. The volume is behind a reader-writer semaphore that is held
//! for work in memory only. Reads that find everything in memory run side by side under its shared side. For
//! the rest the caller submits an operation, submits the I/O that comes out of it as bios, and waits. A
//! worker takes what the device has finished back into the volume; another one keeps time and does background work
//! in bounded steps. Operations may also be posted: what is to be done with their reply then runs on whichever
//! thread gets it.

mod background;
mod calls;

use crate::bindings as c;
use crate::bio::Bios;
use crate::env;
use crate::sb::Fs;
use crate::sync::{NoFs, Opaque, RwSem};
use crate::vfs::{EBUSY, EINTR};
use alloc::vec::Vec;
use background::{count_nodes, drop_nodes, tick_work};
use calls::Core;
pub(crate) use calls::Done;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use vexfs_core::engine::{Options, State, Stats, Volume};
use vexfs_core::mem::{self, Map};
use vexfs_core::op::Op;
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
    /// Discard free space every so many seconds, if there were changes; 0: never.
    pub(crate) discard: u32,
}

/// More blocks than what one step of the volume can take.
const STEP_TAKES: u64 = 1 << 16;
/// Opening waits so long for something to happen, in milliseconds.
const PATIENCE: u32 = 60_000;

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
    /// After how many seconds with changes free space is discarded (0: never), and when next.
    discard: AtomicU32,
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
    /// Blocks' worth of memory to give back that the kernel asked for while the volume was in use.
    shrink_debt: AtomicUsize,
    shrinker: AtomicPtr<c::shrinker>,
    aborted: AtomicBool,
    /// The mount, once there is one: it is told when background work finds that nothing can be written.
    mount: AtomicPtr<Fs>,
    /// The volume was opened without the right to write.
    read_only: AtomicBool,
    options: HostOptions,
}

// SAFETY: raw pointers in it are to structures of the kernel that are made for use by several threads.
unsafe impl Send for Host {}
// SAFETY: as above; everything else is atomic or behind the lock.
unsafe impl Sync for Host {}

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
            discard: AtomicU32::new(options.discard),
            discard_at: AtomicU64::new(0),
            posted: AtomicUsize::new(0),
            outstanding: AtomicUsize::new(0),
            changing: AtomicUsize::new(0),
            available: AtomicU64::new(u64::MAX),
            reserved: AtomicU64::new(0),
            stepping: AtomicBool::new(false),
            nodes: AtomicUsize::new(0),
            shrink_debt: AtomicUsize::new(0),
            shrinker: AtomicPtr::new(null_mut()),
            aborted: AtomicBool::new(false),
            mount: AtomicPtr::new(null_mut()),
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
        let options = Options { read_only: self.read_only(), write_behind: true, ..Options::default() };
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

    /// Names the mount that this belongs to.
    pub(crate) fn belongs_to(&self, fs: *mut Fs) {
        self.mount.store(fs, Ordering::Release);
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
    pub(crate) fn set(&self, cache_bytes: u64, seconds: u32, discard: u32) {
        self.step(|core| {
            if let Some(v) = core.volume.as_mut() {
                v.set_cache_bytes(cache_bytes as usize);
            }
        });
        self.commit_seconds.store(seconds, Ordering::Relaxed);
        if self.discard.swap(discard, Ordering::Relaxed) != discard {
            self.discard_at.store(0, Ordering::Relaxed);
        }
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

/// The error number, positive.
pub(crate) fn errno(e: Error) -> i32 {
    e.errno()
}

/// The host around a member of it.
unsafe fn host_of<'a>(member: *mut u8, offset: usize) -> &'a Host {
    // SAFETY: the caller passes the address of a member of a host and its offset.
    unsafe { &*member.sub(offset).cast::<Host>() }
}

unsafe extern "C" fn finished_work(work: *mut c::work_struct) {
    // SAFETY: `finished_work` of a host that is not stopped before this work has ended.
    let host = unsafe { host_of(work.cast(), core::mem::offset_of!(Host, finished_work)) };
    host.take_finished();
}
