// SPDX-License-Identifier: GPL-2.0-only
//! The global allocator of the simulator: the system's, which fails on purpose while the core runs.
//! It owns the countdown to the next failure of each thread; code of the simulator itself
//! never sees a failure, because it only counts between [`armed`]'s begin and end.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::null_mut;

thread_local! {
    static ARMED: Cell<bool> = const { Cell::new(false) };
    static COUNTDOWN: Cell<u64> = const { Cell::new(u64::MAX) };
    static BURST: Cell<u64> = const { Cell::new(0) };
    static FAILED: Cell<u64> = const { Cell::new(0) };
    static SEED: Cell<u64> = const { Cell::new(0) };
    static COUNTED: Cell<u64> = const { Cell::new(0) };
}

/// The allocator.
pub struct Failing;

fn fails() -> bool {
    if !ARMED.with(Cell::get) {
        return false;
    }
    COUNTED.with(|c| c.set(c.get() + 1));
    let left = COUNTDOWN.with(Cell::get);
    if left == u64::MAX {
        return false;
    }
    if left > 0 {
        COUNTDOWN.with(|c| c.set(left - 1));
        return false;
    }
    let burst = BURST.with(Cell::get);
    if burst == 0 {
        COUNTDOWN.with(|c| c.set(u64::MAX));
        return false;
    }
    BURST.with(|b| b.set(burst - 1));
    FAILED.with(|f| f.set(f.get() + 1));
    true
}

// SAFETY: every call goes to the system's allocator unchanged, or returns null, which the contract allows.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if fails() {
            return null_mut();
        }
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if fails() {
            return null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above; all memory came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if new_size > layout.size() && fails() {
            return null_mut();
        }
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static GLOBAL: Failing = Failing;

/// Ends the counting when it goes out of scope, also by a panic.
pub struct Armed(());

impl Drop for Armed {
    fn drop(&mut self) {
        ARMED.with(|a| a.set(false));
    }
}

/// Ends the counting at once: for the panic hook, whose own allocations must not fail.
pub fn disarm() {
    ARMED.with(|a| a.set(false));
}

/// Which seed this thread runs.
pub fn set_seed(seed: u64) {
    SEED.with(|s| s.set(seed));
}

extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn write(fd: i32, bytes: *const u8, len: usize) -> isize;
}

extern "C" fn on_abort(_: i32) {
    // Only what is allowed in a signal handler: digits by hand, one write.
    let mut text = *b"sim: aborted (an infallible allocation failed?); replay: cargo run --release -p sim -- --seed 00000000000000000000\n";
    let mut n = SEED.with(Cell::get);
    let mut at = text.len() - 2;
    while n > 0 {
        text[at] = b'0' + (n % 10) as u8;
        n /= 10;
        at -= 1;
    }
    // SAFETY: the bytes of a local array.
    unsafe { write(2, text.as_ptr(), text.len()) };
}

/// An infallible allocation that fails aborts the process, which no panic handler sees: say which seed it was.
pub fn name_the_seed_on_abort() {
    const SIGABRT: i32 = 6;
    // SAFETY: the handler only formats a number and writes it.
    unsafe { signal(SIGABRT, on_abort) };
}

/// From now on allocations of this thread count.
pub fn armed() -> Armed {
    ARMED.with(|a| a.set(true));
    Armed(())
}

/// The allocation after `after` more ones fails, and `burst - 1` after it.
pub fn schedule(after: u64, burst: u64) {
    COUNTDOWN.with(|c| c.set(after));
    BURST.with(|b| b.set(burst));
}

/// No further failure.
pub fn cancel() {
    COUNTDOWN.with(|c| c.set(u64::MAX));
    BURST.with(|b| b.set(0));
}

/// Whether a failure is still to come.
pub fn pending() -> bool {
    COUNTDOWN.with(Cell::get) != u64::MAX
}

/// How many allocations of this thread have failed on purpose.
pub fn failed() -> u64 {
    FAILED.with(Cell::get)
}

/// How many allocations of this thread the core has asked for.
pub fn counted() -> u64 {
    COUNTED.with(Cell::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fails_on_schedule_only_while_armed() {
        let reserve = || Vec::<u8>::new().try_reserve(100).is_ok();
        schedule(1, 2);
        assert!(reserve());
        let before = failed();
        {
            let _armed = armed();
            assert_eq!([reserve(), reserve(), reserve(), reserve()], [true, false, false, true]);
        }
        assert_eq!(failed() - before, 2);
        assert!(!pending());
        assert!(reserve());
    }
}
