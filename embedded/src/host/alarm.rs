// SPDX-License-Identifier: GPL-2.0-only
//! When the background thread wakes up. Promises that whoever has work for it and says so is heard, and that a stream of
//! operations does not cost a wake-up each.

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{locked, Condvar, Mutex, MutexGuard};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// The alarm of one thread.
#[derive(Debug)]
pub(super) struct Alarm {
    /// Time of the next wake-up in nanoseconds since 1970.
    wake_at: AtomicU64,
    /// Something happened since the thread looked last.
    nudged: AtomicBool,
    /// The thread sleeps until it is nudged.
    parked: AtomicBool,
    stopped: AtomicBool,
    timer: Mutex<()>,
    cv: Condvar,
}

impl Alarm {
    pub(super) fn new() -> Alarm {
        Alarm {
            wake_at: AtomicU64::new(0),
            nudged: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            timer: Mutex::new(()),
            cv: Condvar::new(),
        }
    }

    /// Tells the thread that something may have changed for it, and that it is to wake up at `at` at the latest.
    pub(super) fn nudge(&self, at: Option<u64>) {
        let sooner = at.is_some_and(|t| self.wake_at.fetch_min(t, Ordering::SeqCst) > t);
        let first = !self.nudged.swap(true, Ordering::SeqCst);
        if sooner || first && self.parked.load(Ordering::SeqCst) {
            self.ring();
        }
    }

    fn ring(&self) {
        // Whoever is about to sleep holds the lock until it does.
        drop(locked(&self.timer));
        self.cv.notify_one();
    }

    /// The thread looks for work now: what happened before is seen.
    pub(super) fn look(&self) {
        self.nudged.swap(false, Ordering::SeqCst);
    }

    /// Sleeps until `at` (`u64::MAX`: for ever) or a nudge, but for `pause` at least if `at` is not sooner. `clock` gives
    /// nanoseconds since 1970.
    pub(super) fn sleep(&self, at: u64, pause: Duration, clock: impl Fn() -> u64) {
        self.wake_at.store(at, Ordering::SeqCst);
        let pause_end = Instant::now() + pause;
        let mut guard = locked(&self.timer);
        while !self.stopped() {
            let left = self.wake_at.load(Ordering::SeqCst).saturating_sub(clock());
            if left == 0 {
                break;
            }
            let left = Duration::from_nanos(left).min(Duration::from_secs(60));
            let pause = pause_end.saturating_duration_since(Instant::now());
            if !pause.is_zero() {
                guard = self.wait(guard, left.min(pause));
                continue;
            }
            self.parked.store(true, Ordering::SeqCst);
            // A change of `nudged` and not a look at it: if it comes before the one in `nudge`, that one sees `parked`.
            let nudged = self.nudged.fetch_or(false, Ordering::SeqCst);
            if !nudged {
                guard = self.wait(guard, left);
            }
            self.parked.store(false, Ordering::SeqCst);
            if nudged {
                break;
            }
        }
        drop(guard);
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, ()>, time: Duration) -> MutexGuard<'a, ()> {
        self.cv.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Wakes the thread for good.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// Whether [`Alarm::stop`] was called.
    pub(super) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::atomic::AtomicUsize;
    use crate::sync::{model, thread, Arc};

    /// The thread that sleeps takes all work that others announce. Under loom time does not pass: a nudge that is lost is a
    /// deadlock.
    #[test]
    fn no_nudge_is_lost() {
        model(3, || {
            let alarm = Arc::new(Alarm::new());
            let work = Arc::new(AtomicUsize::new(0));
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let (alarm, work) = (alarm.clone(), work.clone());
                    thread::spawn(move || {
                        work.fetch_add(1, Ordering::AcqRel);
                        alarm.nudge(None);
                    })
                })
                .collect();
            let mut done = 0;
            while done < 2 {
                alarm.look();
                let some = work.swap(0, Ordering::AcqRel);
                done += some;
                if some == 0 {
                    alarm.sleep(u64::MAX, Duration::ZERO, || 0);
                }
            }
            for o in others {
                o.join().unwrap();
            }
        });
    }

    #[test]
    fn the_end_wakes() {
        model(3, || {
            let alarm = Arc::new(Alarm::new());
            let sleeper = alarm.clone();
            let other = thread::spawn(move || {
                while !sleeper.stopped() {
                    sleeper.look();
                    sleeper.sleep(u64::MAX, Duration::ZERO, || 0);
                }
            });
            alarm.stop();
            other.join().unwrap();
        });
    }
}
