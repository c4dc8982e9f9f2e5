// SPDX-License-Identifier: GPL-2.0-only
//! A binary max-heap with fallible growth.

use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// The largest element on top. For a min-heap of keys, store their complement.
#[derive(Debug)]
pub struct Heap<T> {
    items: Vec<T>,
}

impl<T> Default for Heap<T> {
    fn default() -> Self {
        Heap::new()
    }
}

impl<T> Heap<T> {
    /// An empty heap without memory.
    pub const fn new() -> Heap<T> {
        Heap { items: Vec::new() }
    }
}

impl<T: Ord + Copy> Heap<T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Forgets the elements, keeps the memory.
    pub fn clear(&mut self) {
        self.items.clear();
    }

    /// The largest element.
    pub fn peek(&self) -> Option<&T> {
        self.items.first()
    }

    /// The elements, in no useful order.
    pub fn items(&self) -> &[T] {
        &self.items
    }

    /// Adds `x`.
    pub fn push(&mut self, x: T) -> Result<(), NoMemory> {
        let mut at = self.items.len();
        mem::push(&mut self.items, x)?;
        while at > 0 {
            let up = at.wrapping_sub(1) / 2;
            match (self.items.get(at), self.items.get(up)) {
                (Some(a), Some(b)) if a > b => mem::swap(&mut self.items, up, at),
                _ => break,
            }
            at = up;
        }
        Ok(())
    }

    /// Takes the largest element.
    pub fn pop(&mut self) -> Option<T> {
        let last = self.items.pop()?;
        match self.items.first_mut() {
            Some(top) => {
                let out = core::mem::replace(top, last);
                self.sink();
                Some(out)
            }
            None => Some(last),
        }
    }

    /// Puts `x` in the place of the largest element.
    pub fn replace_top(&mut self, x: T) {
        if let Some(top) = self.items.first_mut() {
            *top = x;
            self.sink();
        }
    }

    fn sink(&mut self) {
        mem::sink(&mut self.items, 0, &mut |a, b| a < b);
    }

    /// Keeps the elements for which `stays` is true.
    pub fn retain(&mut self, stays: impl Fn(&T) -> bool) {
        self.items.retain(stays);
        for at in (0..self.items.len() / 2).rev() {
            mem::sink(&mut self.items, at, &mut |a, b| a < b);
        }
    }

    /// Sorts the elements, smallest first, and gives them; the heap is then only good for [`Heap::clear`].
    pub fn sorted(&mut self) -> &[T] {
        mem::sort_by(&mut self.items, |a, b| a < b);
        &self.items
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.items.capacity().saturating_mul(core::mem::size_of::<T>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_like_std() {
        let (mut h, mut s) = (Heap::new(), std::collections::BinaryHeap::new());
        let mut x = 1u64;
        for _ in 0..100_000 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let v = (x >> 33) % 1000;
            match x % 16 {
                0..=7 => {
                    h.push(v).unwrap();
                    s.push(v);
                }
                8..=13 => assert_eq!(h.pop(), s.pop()),
                _ => {
                    h.replace_top(v);
                    if s.pop().is_some() {
                        s.push(v);
                    }
                }
            }
            assert_eq!(h.peek(), s.peek());
            assert_eq!(h.len(), s.len());
        }
        assert!(h.sorted().iter().copied().eq(s.into_sorted_vec()));
    }
}
