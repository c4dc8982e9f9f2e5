// SPDX-License-Identifier: GPL-2.0-only
//! Fallible memory: what `alloc` lacks when its infallible calls do not exist.
//!
//! The kernel build compiles `alloc` with `no_global_oom_handling`, so `Vec::push`, `clone`,
//! `collect`, `vec![]`, `format!` and `BTreeMap` are gone. Everything here returns [`NoMemory`]
//! instead of aborting. Owns: vector helpers, the fallible box, the aligned block buffer, the hash map and the queue.

mod boxed;
mod buf;
mod map;
mod queue;
mod sort;
mod spare;

pub use boxed::Box;
pub use buf::{Aligned, Buf};
pub use map::Map;
pub use queue::Queue;
pub use sort::{select, sink, sort_by, swap};
pub use spare::Spare;

use alloc::vec::Vec;

/// An allocation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

/// Appends `x`.
pub fn push<T>(v: &mut Vec<T>, x: T) -> Result<(), NoMemory> {
    v.try_reserve(1).map_err(|_| NoMemory)?;
    if let Some(slot) = v.spare_capacity_mut().first_mut() {
        slot.write(x);
        let len = v.len().wrapping_add(1);
        // SAFETY: one slot past the old length was just initialised, within the capacity.
        unsafe { v.set_len(len) };
        Ok(())
    } else {
        Err(NoMemory)
    }
}

/// Inserts `x` at `at` (at the end if `at` is past it), moving what follows.
pub fn insert<T>(v: &mut Vec<T>, at: usize, x: T) -> Result<(), NoMemory> {
    reserve(v, 1)?;
    let mut x = x;
    for place in v.iter_mut().skip(at) {
        core::mem::swap(place, &mut x);
    }
    push(v, x)
}

/// Takes the element at `at` out and puts the last one in its place; `None` if there is none.
pub fn swap_remove<T>(v: &mut Vec<T>, at: usize) -> Option<T> {
    if at >= v.len() {
        return None;
    }
    let last = v.pop()?;
    match v.get_mut(at) {
        Some(place) => Some(core::mem::replace(place, last)),
        None => Some(last),
    }
}

/// Drops the first `n` elements (all if there are fewer).
pub fn cut_front<T>(v: &mut Vec<T>, n: usize) {
    let n = n.min(v.len());
    v.drain(..n);
}

/// Copies as much of `from` as fits.
pub fn copy<T: Copy>(to: &mut [T], from: &[T]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t = *f;
    }
}

/// Appends a copy of `s`.
pub fn extend<T: Copy>(v: &mut Vec<T>, s: &[T]) -> Result<(), NoMemory> {
    v.try_reserve(s.len()).map_err(|_| NoMemory)?;
    for (slot, x) in v.spare_capacity_mut().iter_mut().zip(s) {
        slot.write(*x);
    }
    let len = v.len().wrapping_add(s.len());
    // SAFETY: `s.len()` slots past the old length were just initialised, within the capacity.
    unsafe { v.set_len(len) };
    Ok(())
}

/// A vector with a copy of `s`.
pub fn to_vec<T: Copy>(s: &[T]) -> Result<Vec<T>, NoMemory> {
    let mut v = Vec::new();
    v.try_reserve_exact(s.len()).map_err(|_| NoMemory)?;
    extend(&mut v, s)?;
    Ok(v)
}

/// Makes `v` `len` elements long, with copies of `x` where it grows.
pub fn resize<T: Copy>(v: &mut Vec<T>, len: usize, x: T) -> Result<(), NoMemory> {
    if len <= v.len() {
        v.truncate(len);
        return Ok(());
    }
    let more = len.wrapping_sub(v.len());
    v.try_reserve(more).map_err(|_| NoMemory)?;
    for slot in v.spare_capacity_mut().iter_mut().take(more) {
        slot.write(x);
    }
    // SAFETY: the slots up to `len` were just initialised, within the capacity.
    unsafe { v.set_len(len) };
    Ok(())
}

/// A vector of `len` copies of `x`.
pub fn filled<T: Copy>(len: usize, x: T) -> Result<Vec<T>, NoMemory> {
    let mut v = Vec::new();
    resize(&mut v, len, x)?;
    Ok(v)
}

/// Asks the processor to bring the words into its cache, up to 1 KiB of them.
#[inline]
pub fn prefetch(words: &[u32]) {
    #[cfg(target_arch = "x86_64")]
    for line in words.chunks(16).take(16) {
        // SAFETY: a prefetch changes nothing and never faults. It is not a floating-point instruction.
        unsafe {
            core::arch::asm!("prefetcht0 [{}]", in(reg) line.as_ptr(), options(nostack, preserves_flags, readonly));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = words;
}

/// Room for `n` more elements, so that the next `n` pushes cannot fail.
pub fn reserve<T>(v: &mut Vec<T>, n: usize) -> Result<(), NoMemory> {
    v.try_reserve(n).map_err(|_| NoMemory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_vector_does_it_but_without_a_panic() {
        for len in 0..5usize {
            for at in 0..7 {
                let old: Vec<usize> = (0..len).collect();
                let (mut v, mut want) = (old.clone(), old.clone());
                insert(&mut v, at, 99).unwrap();
                want.insert(at.min(len), 99);
                assert_eq!(v, want);

                let (mut v, mut want) = (old.clone(), old.clone());
                assert_eq!(swap_remove(&mut v, at), (at < len).then(|| want.swap_remove(at)));
                assert_eq!(v, want);

                let mut v = old.clone();
                cut_front(&mut v, at);
                assert_eq!(v, old[at.min(len)..]);

                let mut v = old.clone();
                copy(&mut v, &[7; 7][..at]);
                assert!(v.iter().enumerate().all(|(i, x)| *x == if i < at { 7 } else { i }));
            }
        }
    }
}
