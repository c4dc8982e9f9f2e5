// SPDX-License-Identifier: GPL-2.0-only
//! A set of small numbers as bits, with counts per group of 4096, so that the first, the next and the
//! `nth` member are found fast. Growing may fail; nothing else does.

use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

const GROUP: usize = 64;

/// A set of numbers below a length that [`Bits::grow`] sets.
#[derive(Debug, Default)]
pub struct Bits {
    words: Vec<u64>,
    counts: Vec<u32>,
    ones: u64,
}

fn split(i: u64) -> (usize, u64) {
    (usize::try_from(i >> 6).unwrap_or(usize::MAX), 1u64 << (i & 63))
}

impl Bits {
    /// The empty set of length 0.
    pub const fn new() -> Bits {
        Bits { words: Vec::new(), counts: Vec::new(), ones: 0 }
    }

    /// Makes room for numbers below `len`.
    pub fn grow(&mut self, len: u64) -> Result<(), NoMemory> {
        let words = usize::try_from(len.div_ceil(64)).map_err(|_| NoMemory)?;
        if words > self.words.len() {
            // Counts first: a word without a count would be a hole in `next`.
            mem::resize(&mut self.counts, words.div_ceil(GROUP), 0)?;
            mem::resize(&mut self.words, words, 0)?;
        }
        Ok(())
    }

    /// Adds `i`; false if it was a member, or is beyond the length.
    pub fn set(&mut self, i: u64) -> bool {
        let (at, bit) = split(i);
        match (self.words.get_mut(at), self.counts.get_mut(at / GROUP)) {
            (Some(w), Some(c)) if *w & bit == 0 => {
                *w |= bit;
                *c = c.wrapping_add(1);
                self.ones = self.ones.wrapping_add(1);
                true
            }
            _ => false,
        }
    }

    /// Takes `i` out; false if it was no member.
    pub fn clear(&mut self, i: u64) -> bool {
        let (at, bit) = split(i);
        match (self.words.get_mut(at), self.counts.get_mut(at / GROUP)) {
            (Some(w), Some(c)) if *w & bit != 0 => {
                *w &= !bit;
                *c = c.wrapping_sub(1);
                self.ones = self.ones.wrapping_sub(1);
                true
            }
            _ => false,
        }
    }

    /// Takes all out; the length stays.
    pub fn reset(&mut self) {
        self.words.fill(0);
        self.counts.fill(0);
        self.ones = 0;
    }

    /// Whether `i` is a member.
    pub fn get(&self, i: u64) -> bool {
        let (at, bit) = split(i);
        self.words.get(at).is_some_and(|w| w & bit != 0)
    }

    /// The members from 64·`at` on below 64·(`at` + 1), as bits.
    pub fn word(&self, at: usize) -> u64 {
        self.words.get(at).copied().unwrap_or(0)
    }

    /// Number of members.
    pub fn count(&self) -> u64 {
        self.ones
    }

    /// The smallest member that is at least `from`.
    pub fn next(&self, from: u64) -> Option<u64> {
        let (mut at, bit) = split(from);
        let first = self.words.get(at)? & !bit.wrapping_sub(1);
        if first != 0 {
            return Some(member(at, first));
        }
        loop {
            at = at.wrapping_add(1);
            while at % GROUP == 0 && *self.counts.get(at / GROUP)? == 0 {
                at = at.wrapping_add(GROUP);
            }
            let w = *self.words.get(at)?;
            if w != 0 {
                return Some(member(at, w));
            }
        }
    }

    /// The member with `n` smaller ones.
    pub fn nth(&self, mut n: u64) -> Option<u64> {
        let mut group = 0usize;
        loop {
            let c = u64::from(*self.counts.get(group)?);
            if n < c {
                break;
            }
            n = n.wrapping_sub(c);
            group = group.wrapping_add(1);
        }
        let mut at = group.wrapping_mul(GROUP);
        loop {
            let mut w = *self.words.get(at)?;
            let c = u64::from(w.count_ones());
            if n < c {
                while n > 0 {
                    w &= w.wrapping_sub(1);
                    n = n.wrapping_sub(1);
                }
                return Some(member(at, w));
            }
            n = n.wrapping_sub(c);
            at = at.wrapping_add(1);
        }
    }

    /// All members that are at least `from`, in order.
    pub fn iter(&self, from: u64) -> Iter<'_> {
        Iter { bits: self, next: Some(from) }
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.words.capacity().saturating_mul(8).saturating_add(self.counts.capacity().saturating_mul(4))
    }
}

fn member(at: usize, word: u64) -> u64 {
    ((at as u64) << 6) | u64::from(word.trailing_zeros())
}

/// Members in order.
#[derive(Debug)]
pub struct Iter<'a> {
    bits: &'a Bits,
    next: Option<u64>,
}

impl Iterator for Iter<'_> {
    type Item = u64;
    fn next(&mut self) -> Option<u64> {
        let found = self.bits.next(self.next?);
        self.next = found.and_then(|i| i.checked_add(1));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn behaves_like_a_set() {
        let mut x = 5u64;
        let mut rnd = move || {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            x >> 33
        };
        let mut len = 100;
        let (mut bits, mut model) = (Bits::new(), BTreeSet::new());
        bits.grow(len).unwrap();
        for round in 0..60_000 {
            if round % 3000 == 0 {
                len = (len + rnd() % 3000).max(len);
                bits.grow(len).unwrap();
            }
            let spread = if round % 2 == 0 { len } else { len.min(50) };
            let i = rnd() % spread;
            if rnd() % 100 < 45 {
                assert_eq!(bits.set(i), model.insert(i));
            } else {
                assert_eq!(bits.clear(i), model.remove(&i));
            }
            assert_eq!(bits.get(i), model.contains(&i));
            assert_eq!(bits.count(), model.len() as u64);
            let from = rnd() % len;
            assert_eq!(bits.next(from), model.range(from..).next().copied());
            if round % 50 == 0 {
                let n = rnd() % (model.len() as u64 + 2);
                assert_eq!(bits.nth(n), model.iter().nth(n as usize).copied());
                assert!(bits.iter(from).eq(model.range(from..).copied()));
            }
        }
        assert!(!bits.set(u64::MAX) && !bits.get(u64::MAX) && bits.next(u64::MAX).is_none());
        bits.reset();
        assert_eq!((bits.count(), bits.next(0), bits.nth(0)), (0, None, None));
    }
}
