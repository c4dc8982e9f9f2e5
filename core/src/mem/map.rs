// SPDX-License-Identifier: GPL-2.0-only
//! A hash map from `u64` with fallible growth: open addressing, linear probing, backward-shift
//! deletion (no tombstones). Keys are mixed with a fixed odd multiplier; they are ids and block
//! addresses that the core itself hands out, not a caller's choice.

use super::{push, NoMemory};
use alloc::vec::Vec;

/// Map from `u64` to `V`.
#[derive(Debug)]
pub struct Map<V> {
    slots: Vec<Option<(u64, V)>>,
    len: usize,
}

impl<V> Default for Map<V> {
    fn default() -> Self {
        Map::new()
    }
}

impl<V> Map<V> {
    /// An empty map without memory.
    pub const fn new() -> Self {
        Map { slots: Vec::new(), len: 0 }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn home(&self, key: u64) -> usize {
        let h = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let h = h ^ (h >> 32);
        (h as usize) & self.slots.len().wrapping_sub(1)
    }

    fn find(&self, key: u64) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let mask = self.slots.len().wrapping_sub(1);
        let mut i = self.home(key);
        loop {
            match self.slots.get(i)? {
                Some((k, _)) if *k == key => return Some(i),
                Some(_) => i = i.wrapping_add(1) & mask,
                None => return None,
            }
        }
    }

    /// The value of `key`.
    pub fn get(&self, key: u64) -> Option<&V> {
        let i = self.find(key)?;
        self.slots.get(i)?.as_ref().map(|(_, v)| v)
    }

    /// The value of `key`, to change.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut V> {
        let i = self.find(key)?;
        self.slots.get_mut(i)?.as_mut().map(|(_, v)| v)
    }

    /// Whether `key` has a value.
    pub fn contains(&self, key: u64) -> bool {
        self.find(key).is_some()
    }

    /// Room for `more` further keys, so that as many inserts cannot fail.
    pub fn reserve(&mut self, more: usize) -> Result<(), NoMemory> {
        let want = self.len.checked_add(more).ok_or(NoMemory)?;
        // At most 3/4 full, so that probes stay short and a free slot always ends them.
        let need = (want.checked_mul(4).ok_or(NoMemory)? / 3).wrapping_add(1);
        if need <= self.slots.len() {
            return Ok(());
        }
        let size = need.checked_next_power_of_two().ok_or(NoMemory)?.max(8);
        let mut fresh = Vec::new();
        fresh.try_reserve_exact(size).map_err(|_| NoMemory)?;
        for _ in 0..size {
            push(&mut fresh, None)?;
        }
        let old = core::mem::replace(&mut self.slots, fresh);
        self.len = 0;
        for (k, v) in old.into_iter().flatten() {
            self.place(k, v);
        }
        Ok(())
    }

    fn place(&mut self, key: u64, value: V) -> Option<V> {
        let mask = self.slots.len().wrapping_sub(1);
        let mut i = self.home(key);
        loop {
            match self.slots.get_mut(i) {
                Some(slot @ None) => {
                    *slot = Some((key, value));
                    self.len = self.len.wrapping_add(1);
                    return None;
                }
                Some(Some((k, v))) if *k == key => return Some(core::mem::replace(v, value)),
                Some(_) => i = i.wrapping_add(1) & mask,
                None => return None,
            }
        }
    }

    /// Sets the value of `key` and returns the old one.
    pub fn insert(&mut self, key: u64, value: V) -> Result<Option<V>, NoMemory> {
        self.reserve(1)?;
        Ok(self.place(key, value))
    }

    /// Takes the value of `key` out.
    pub fn remove(&mut self, key: u64) -> Option<V> {
        let mut hole = self.find(key)?;
        let mask = self.slots.len().wrapping_sub(1);
        let (_, value) = self.slots.get_mut(hole)?.take()?;
        self.len = self.len.wrapping_sub(1);
        let mut i = hole;
        loop {
            i = i.wrapping_add(1) & mask;
            let home = match self.slots.get(i) {
                Some(Some((k, _))) => self.home(*k),
                _ => break,
            };
            // Move back unless the entry's home lies cyclically in (hole, i].
            if i.wrapping_sub(home) & mask >= i.wrapping_sub(hole) & mask {
                super::swap(&mut self.slots, hole, i);
                hole = i;
            }
        }
        Some(value)
    }

    /// All entries, in no useful order (the same for the same history).
    pub fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        self.slots.iter().flatten().map(|(k, v)| (*k, v))
    }

    /// All entries, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut V)> {
        self.slots.iter_mut().flatten().map(|(k, v)| (*k, v))
    }

    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        for s in &mut self.slots {
            *s = None;
        }
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_like_std() {
        let mut m = Map::new();
        let mut s = std::collections::HashMap::new();
        let mut x = 1u64;
        for _ in 0..200_000 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let k = (x >> 33) % 500;
            if x & 1 == 0 {
                assert_eq!(m.insert(k, x).unwrap(), s.insert(k, x));
            } else {
                assert_eq!(m.remove(k), s.remove(&k));
            }
            assert_eq!(m.len(), s.len());
        }
        for k in 0..500 {
            assert_eq!(m.get(k), s.get(&k));
        }
    }
}
