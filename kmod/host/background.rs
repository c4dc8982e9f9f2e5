// SPDX-License-Identifier: GPL-2.0-only
//! What goes on by itself: time, index work, the periodic commit, and memory that is given back when it is short.

use super::calls::Done;
use super::{host_of, Host};
use crate::bindings as c;
use crate::env;
use core::sync::atomic::Ordering;
use vexfs_core::op::{Op, Time};
use vexfs_core::Error;

/// The background worker looks for work at most this often while it finds none, in milliseconds.
pub(super) const IDLE_PAUSE: u32 = 10;
/// With the mount option `discard` free runs of at least so many bytes are discarded.
const DISCARD_MIN: u64 = 1 << 20;
/// It works for so long in one go.
const WORK_TIME: u32 = 20;
/// It lets others at the lock for at most so long.
const GIVE_WAY: u32 = 20;

impl Host {
    pub(super) fn wake_tick(&self, ms: u32) {
        if !self.stopped.load(Ordering::Acquire) {
            // SAFETY: the queue lives until `stop`, which disables the work before it destroys the queue.
            unsafe {
                c::vexfs_mod_delayed(self.slow_queue.load(Ordering::Acquire), self.tick.get(), c::vexfs_msecs(ms))
            }
        }
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
            self.tell();
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

    /// Has the mount do what `errors=` says when a write failed for which nobody waits.
    fn tell(&self) {
        let fs = self.mount.load(Ordering::Acquire);
        if self.is_aborted() && !fs.is_null() {
            // SAFETY: the mount stops this work before it goes.
            unsafe { (*fs).failed(Error::Aborted) };
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
                let every = u64::from(self.discard.load(Ordering::Relaxed));
                if every != 0 && t >= due {
                    if due != 0 {
                        self.post(Op::Discard { offset: 0, len: u64::MAX, min: DISCARD_MIN }, 0, Done::Nothing);
                    }
                    self.discard_at.store(t.saturating_add(every), Ordering::Relaxed);
                }
            }
            let soon = 1000;
            wait = Some(wait.map_or(soon, |w| w.min(soon)));
        }
        wait
    }
}

/// How many blocks' worth of tree nodes and vectors memory could be got from.
pub(super) unsafe extern "C" fn count_nodes(s: *mut c::shrinker, _sc: *mut c::shrink_control) -> kernel::ffi::c_ulong {
    // SAFETY: a shrinker of a host in service.
    let host = unsafe { &*(*s).private_data.cast::<Host>() };
    host.nodes.load(Ordering::Relaxed) as kernel::ffi::c_ulong
}

/// Drops some of them.
pub(super) unsafe extern "C" fn drop_nodes(s: *mut c::shrinker, sc: *mut c::shrink_control) -> kernel::ffi::c_ulong {
    // SAFETY: as above; the kernel says how many and in which context.
    unsafe {
        let host = &*(*s).private_data.cast::<Host>();
        if !c::vexfs_may_fs(sc) {
            return c::vexfs_shrink_stop();
        }
        match host.core.try_write() {
            Some(mut core) => {
                let want = (*sc).nr_to_scan as usize;
                let Some(v) = core.volume.as_mut() else { return 0 };
                let gone = v.shrink(want);
                host.nodes.store(v.cached(), Ordering::Relaxed);
                gone as kernel::ffi::c_ulong
            }
            None => {
                // Who has the lock does it when he is done with what he has it for.
                host.shrink_debt.fetch_max((*sc).nr_to_scan as usize, Ordering::Relaxed);
                c::vexfs_shrink_stop()
            }
        }
    }
}

pub(super) unsafe extern "C" fn tick_work(work: *mut c::work_struct) {
    // SAFETY: the first member of the delayed work `tick` of a host, which is not stopped before this work has ended.
    let host = unsafe {
        let offset = core::mem::offset_of!(Host, tick) + core::mem::offset_of!(c::delayed_work, work);
        host_of(work.cast(), offset)
    };
    host.background();
}
