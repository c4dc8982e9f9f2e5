// SPDX-License-Identifier: GPL-2.0-only
//! Where one thread waits for the reply of its operation. Owns the reply until it is taken; promises that a thread that
//! sleeps is woken by the answer.

use crate::sync::{locked, Condvar, Mutex};
use std::sync::PoisonError;
use std::time::Duration;

/// Room for one reply, used again for the next.
#[derive(Debug)]
pub(super) struct Waiter<T> {
    slot: Mutex<Slot<T>>,
    cv: Condvar,
}

#[derive(Debug)]
struct Slot<T> {
    reply: Option<T>,
    /// The thread sleeps: most replies come while it works, and waking it would cost a system call.
    asleep: bool,
}

impl<T> Default for Waiter<T> {
    fn default() -> Waiter<T> {
        Waiter { slot: Mutex::new(Slot { reply: None, asleep: false }), cv: Condvar::new() }
    }
}

impl<T> Waiter<T> {
    /// Gives the reply.
    pub(super) fn answer(&self, reply: T) {
        let mut slot = locked(&self.slot);
        slot.reply = Some(reply);
        if slot.asleep {
            self.cv.notify_one();
        }
    }

    /// Takes the reply, if it is there.
    pub(super) fn take(&self) -> Option<T> {
        locked(&self.slot).reply.take()
    }

    /// Sleeps until the reply is there, or `time` has passed, or for no reason.
    pub(super) fn sleep(&self, time: Duration) {
        let mut slot = locked(&self.slot);
        if slot.reply.is_none() {
            slot.asleep = true;
            slot = self.cv.wait_timeout(slot, time).unwrap_or_else(PoisonError::into_inner).0;
            slot.asleep = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{model, thread, Arc};

    #[test]
    fn an_answer_wakes_whoever_sleeps() {
        // Under loom time does not pass: a wake-up that is lost is a deadlock.
        model(3, || {
            let waiter = Arc::new(Waiter::default());
            let answers = waiter.clone();
            let other = thread::spawn(move || answers.answer(7));
            let reply = loop {
                match waiter.take() {
                    Some(reply) => break reply,
                    None => waiter.sleep(Duration::from_secs(60)),
                }
            };
            assert_eq!(reply, 7);
            other.join().unwrap();
            assert!(waiter.take().is_none());
        });
    }
}
