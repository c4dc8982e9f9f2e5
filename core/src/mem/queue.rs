// SPDX-License-Identifier: GPL-2.0-only
//! A first-in first-out queue with fallible growth.

use super::{push, NoMemory};
use alloc::vec::Vec;

/// A ring-less queue: two stacks. `push` and `pop` are O(1) amortised.
#[derive(Debug)]
pub struct Queue<T> {
    back: Vec<T>,
    front: Vec<T>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue::new()
    }
}

impl<T> Queue<T> {
    /// An empty queue.
    pub const fn new() -> Self {
        Queue { back: Vec::new(), front: Vec::new() }
    }

    /// Appends `x`. Memory for the later `pop` is reserved here, so that `pop` cannot fail.
    pub fn push(&mut self, x: T) -> Result<(), NoMemory> {
        let want = self.back.len().saturating_add(1);
        self.front.try_reserve(want).map_err(|_| NoMemory)?;
        push(&mut self.back, x)
    }

    /// Puts `x` before everything else.
    pub fn push_front(&mut self, x: T) -> Result<(), NoMemory> {
        let want = self.back.len().saturating_add(1);
        self.front.try_reserve(want).map_err(|_| NoMemory)?;
        push(&mut self.front, x)
    }

    /// Room for `n` more elements, so that as many pushes cannot fail.
    pub fn reserve(&mut self, n: usize) -> Result<(), NoMemory> {
        self.back.try_reserve(n).map_err(|_| NoMemory)?;
        let want = self.back.len().saturating_add(n);
        self.front.try_reserve(want).map_err(|_| NoMemory)
    }

    /// Takes the oldest element.
    pub fn pop(&mut self) -> Option<T> {
        if self.front.is_empty() {
            while let Some(x) = self.back.pop() {
                // Reserved in `push`: `front` has room for all of `back`.
                if push(&mut self.front, x).is_err() {
                    return None;
                }
            }
        }
        self.front.pop()
    }

    /// The oldest element, without taking it.
    pub fn peek(&self) -> Option<&T> {
        self.front.last().or_else(|| self.back.first())
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.back.len().saturating_add(self.front.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All elements, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.front.iter().rev().chain(self.back.iter())
    }
}
