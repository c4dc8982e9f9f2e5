// SPDX-License-Identifier: GPL-2.0-only
//! I/O that waits for a helper thread. Promises that each request goes to one thread, and that helpers wake up for it and
//! for the end.

use crate::sync::{locked, Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::PoisonError;

/// Requests in the order of their arrival.
#[derive(Debug)]
pub(super) struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    cv: Condvar,
}

#[derive(Debug)]
struct Waiting<T> {
    items: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    /// Nothing waits.
    pub(super) fn new() -> Queue<T> {
        Queue { waiting: Mutex::new(Waiting { items: VecDeque::new(), closed: false }), cv: Condvar::new() }
    }

    /// Adds all of `items`.
    pub(super) fn push(&self, items: &mut Vec<T>) {
        let many = match items.len() {
            0 => return,
            n => n > 1,
        };
        locked(&self.waiting).items.extend(items.drain(..));
        if many {
            self.cv.notify_all();
        } else {
            self.cv.notify_one();
        }
    }

    /// Waits for one and takes it, and `more` behind it as long as `goes_along` says so. Empty: the queue is closed.
    pub(super) fn take(&self, more: usize, goes_along: impl Fn(&T) -> bool) -> Vec<T> {
        let mut waiting = locked(&self.waiting);
        while !waiting.closed {
            if let Some(first) = waiting.items.pop_front() {
                let mut taken = vec![first];
                while taken.len() <= more && taken.iter().chain(waiting.items.front()).all(&goes_along) {
                    match waiting.items.pop_front() {
                        Some(next) => taken.push(next),
                        None => break,
                    }
                }
                return taken;
            }
            waiting = self.cv.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        Vec::new()
    }

    /// Sends everybody home; what still waits is dropped.
    pub(super) fn close(&self) {
        locked(&self.waiting).closed = true;
        self.cv.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{model, thread, Arc};

    #[test]
    fn each_goes_to_one_helper_and_all_go_home() {
        model(2, || {
            let queue = Arc::new(Queue::new());
            let helpers: Vec<_> = (0..2)
                .map(|_| {
                    let queue = queue.clone();
                    thread::spawn(move || {
                        let mut seen = Vec::new();
                        loop {
                            match queue.take(1, |x| x % 2 == 0) {
                                some if some.is_empty() => return seen,
                                some => seen.extend(some),
                            }
                        }
                    })
                })
                .collect();
            queue.push(&mut vec![1, 2]);
            queue.push(&mut vec![4]);
            // Closed when all is taken: what waits then would be dropped.
            while !locked(&queue.waiting).items.is_empty() {
                thread::yield_now();
            }
            queue.close();
            let mut seen: Vec<i32> = helpers.into_iter().flat_map(|h| h.join().unwrap()).collect();
            seen.sort_unstable();
            assert_eq!(seen, [1, 2, 4]);
        });
    }

    #[test]
    fn takes_along_what_belongs_together() {
        model(0, || {
            let queue = Queue::new();
            queue.push(&mut vec![2, 4, 6, 1, 3]);
            assert_eq!(queue.take(1, |x| x % 2 == 0), [2, 4]);
            assert_eq!(queue.take(7, |x| x % 2 == 0), [6]);
            assert_eq!(queue.take(7, |x| x % 2 == 0), [1]);
            queue.close();
            assert!(queue.take(7, |_| true).is_empty());
        });
    }
}
