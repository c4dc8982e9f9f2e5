// SPDX-License-Identifier: GPL-2.0-only
//! A few values put aside to be used again, shared between threads without a lock. Owns what is put aside; promises that each
//! is taken by one thread only.

use super::Box;
use crate::sync::atomic::{AtomicPtr, Ordering};
use core::ptr::{null_mut, NonNull};

/// Values that are put aside at once, at most.
const PLACES: usize = 4;

/// Values put aside.
pub struct Spare<T> {
    places: [AtomicPtr<T>; PLACES],
}

impl<T> Spare<T> {
    /// Nothing yet.
    pub fn new() -> Spare<T> {
        Spare { places: core::array::from_fn(|_| AtomicPtr::new(null_mut())) }
    }

    /// Takes a value, if there is one.
    pub fn take(&self) -> Option<Box<T>> {
        self.places.iter().find_map(|p| {
            // Acquire: what its last user wrote comes with it.
            let taken = p.swap(null_mut(), Ordering::Acquire);
            // SAFETY: it came from `into_raw` in `put`, and the swap made it ours alone.
            NonNull::new(taken).map(|t| unsafe { Box::from_raw(t) })
        })
    }

    /// Puts a value aside; drops it if there are enough.
    pub fn put(&self, value: Box<T>) {
        let raw = Box::into_raw(value);
        for p in &self.places {
            // Release: see `take`.
            if p.compare_exchange(null_mut(), raw.as_ptr(), Ordering::Release, Ordering::Relaxed).is_ok() {
                return;
            }
        }
        // SAFETY: just made a pointer of, and no place took it.
        drop(unsafe { Box::from_raw(raw) });
    }
}

impl<T> Default for Spare<T> {
    fn default() -> Spare<T> {
        Spare::new()
    }
}

impl<T> Drop for Spare<T> {
    fn drop(&mut self) {
        while self.take().is_some() {}
    }
}

impl<T> core::fmt::Debug for Spare<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Spare")
    }
}

// SAFETY: a value is only ever with one thread; it goes from one to another, which `Send` allows.
unsafe impl<T: Send> Sync for Spare<T> {}
// SAFETY: it owns the values, as a `Box` does.
unsafe impl<T: Send> Send for Spare<T> {}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    /// Two threads take, change and put back what one put aside: loom fails if two have it at once, or if one does not
    /// see what the other wrote.
    #[test]
    fn each_is_with_one_thread() {
        loom::model(|| {
            let spare = Arc::new(Spare::new());
            spare.put(Box::try_new(UnsafeCell::new(0u32)).unwrap());
            let threads: std::vec::Vec<_> = (0..2)
                .map(|_| {
                    let spare = Arc::clone(&spare);
                    thread::spawn(move || {
                        let taken = spare.take();
                        let uses = u32::from(taken.is_some());
                        if let Some(x) = taken {
                            // SAFETY: that it is ours alone is what loom looks at.
                            x.with_mut(|n| unsafe { *n += 1 });
                            spare.put(x);
                        }
                        uses
                    })
                })
                .collect();
            let uses: u32 = threads.into_iter().map(|t| t.join().unwrap()).sum();
            let left = spare.take().unwrap();
            // SAFETY: as above.
            assert_eq!(left.with(|n| unsafe { *n }), uses);
            assert!(uses > 0 && spare.take().is_none());
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::vec::Vec;

    #[test]
    fn each_is_with_one_thread() {
        let dropped = Arc::new(());
        let spare = Arc::new(Spare::new());
        assert!(spare.take().is_none());
        for _ in 0..PLACES + 3 {
            spare.put(Box::try_new((0u64, Arc::clone(&dropped))).unwrap());
        }
        assert_eq!(Arc::strong_count(&dropped), 1 + PLACES);
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let spare = Arc::clone(&spare);
                std::thread::spawn(move || {
                    let mut uses = 0;
                    for _ in 0..20_000 {
                        if let Some(mut x) = spare.take() {
                            // Not atomic: two at once would lose some.
                            x.0 += 1;
                            uses += 1;
                            spare.put(x);
                        }
                    }
                    uses
                })
            })
            .collect();
        let uses: u64 = threads.into_iter().map(|t| t.join().unwrap()).sum();
        let counted: u64 = core::iter::from_fn(|| spare.take()).map(|x| x.0).sum();
        assert!(uses > 0);
        assert_eq!(counted, uses);
        drop(spare);
        assert_eq!(Arc::strong_count(&dropped), 1);
    }
}
