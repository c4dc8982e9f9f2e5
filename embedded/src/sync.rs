// SPDX-License-Identifier: GPL-2.0-only
//! The one door to what threads share: locks, condition variables, atomics, threads. With `--cfg loom` it gives loom's
//! instead, which runs a test through every order that the threads could take. [`model`] is how such a test begins; in an
//! ordinary build it runs the same test many times with real threads.

#[cfg(loom)]
pub(crate) use loom::sync::{atomic, Arc, Condvar, LockResult, Mutex, MutexGuard, RwLock, RwLockWriteGuard};
#[cfg(loom)]
pub(crate) use loom::{thread, thread_local};
#[cfg(not(loom))]
pub(crate) use std::sync::{atomic, Arc, Condvar, LockResult, Mutex, MutexGuard, RwLock, RwLockWriteGuard};
#[cfg(not(loom))]
pub(crate) use std::{thread, thread_local};

/// Locks what is never left half changed.
pub(crate) fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Whether a thread panicked while it held the exclusive side.
#[cfg(not(loom))]
pub(crate) fn is_poisoned<T>(lock: &RwLock<T>) -> bool {
    lock.is_poisoned()
}

/// A panic ends a run of loom at once.
#[cfg(loom)]
pub(crate) fn is_poisoned<T>(_: &RwLock<T>) -> bool {
    false
}

/// Runs `test` in every order of its threads with at most `preemptions` switches that no thread asked for.
#[cfg(all(test, loom))]
pub(crate) fn model(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    let orders = std::sync::Arc::new(AtomicUsize::new(0));
    let count = orders.clone();
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        test();
    });
    println!("{} orders", orders.load(Ordering::Relaxed));
}

/// Runs `test` many times.
#[cfg(all(test, not(loom)))]
pub(crate) fn model(_: usize, test: impl Fn() + Send + Sync + 'static) {
    for _ in 0..200 {
        test();
    }
}
