// SPDX-License-Identifier: GPL-2.0-only
//! Threads for requests that may wait long (syncs, searches), so that the threads which read requests
//! from the kernel stay free for the others. Grows when all threads are busy, shrinks when they are idle.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

/// A pool of threads.
#[derive(Clone, Default)]
pub(crate) struct Pool(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    work: Condvar,
    done: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

const THREADS_MAX: usize = 64;
const IDLE_TIME: Duration = Duration::from_secs(10);

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut s = self.state();
        loop {
            if let Some(job) = s.jobs.pop_front() {
                drop(s);
                // A panic ends this job only: its reply is sent by the destructor as EIO.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                s = self.state();
                continue;
            }
            s.idle += 1;
            let (guard, wait) = self.work.wait_timeout(s, IDLE_TIME).unwrap_or_else(PoisonError::into_inner);
            s = guard;
            s.idle -= 1;
            if wait.timed_out() && s.jobs.is_empty() {
                s.threads -= 1;
                self.done.notify_all();
                return;
            }
        }
    }
}

impl Pool {
    /// Runs `job` on some thread. Without a thread to be had it runs here and now.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut s = self.0.state();
        s.jobs.push_back(Box::new(job));
        if s.jobs.len() <= s.idle {
            self.0.work.notify_one();
            return;
        }
        if s.threads < THREADS_MAX {
            let inner = self.0.clone();
            let started = std::thread::Builder::new().name("vexfs-pool".to_string()).spawn(move || inner.run());
            if started.is_ok() {
                s.threads += 1;
            } else if s.threads == 0 {
                let job = s.jobs.pop_back();
                drop(s);
                if let Some(job) = job {
                    job();
                }
            }
        }
    }

    /// Waits until nothing is queued and no thread works, at most `time`.
    pub(crate) fn drain(&self, time: Duration) {
        let end = std::time::Instant::now() + time;
        loop {
            let s = self.0.state();
            if s.jobs.is_empty() && s.idle == s.threads || std::time::Instant::now() >= end {
                return;
            }
            drop(s);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn slow_jobs_do_not_block_others() {
        let pool = Pool::default();
        let count = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Mutex::new(()));
        let held = gate.lock().unwrap();
        for _ in 0..10 {
            let (gate, count) = (gate.clone(), count.clone());
            pool.run(move || {
                drop(gate.lock());
                count.fetch_add(1, Ordering::SeqCst);
            });
        }
        let (tell, told) = std::sync::mpsc::channel();
        pool.run(move || tell.send(7).unwrap());
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(7));
        assert_eq!(count.load(Ordering::SeqCst), 0);
        pool.run(|| panic!("a job that panics (expected in this test)"));
        drop(held);
        pool.drain(Duration::from_secs(10));
        assert_eq!(count.load(Ordering::SeqCst), 10);
    }
}
