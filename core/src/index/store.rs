// SPDX-License-Identifier: GPL-2.0-only
//! Vectors and slot heads in memory: rows of 32-bit words in aligned chunks, so that growing never moves
//! what is there and no allocation is large. Owns bytes only; what a slot means is the collection's business.

use crate::format::Slot;
use crate::mem::{self, Buf, NoMemory};
use alloc::vec::Vec;

/// Size of a chunk of rows in bytes, unless one row is larger.
const CHUNK_BYTES: usize = 64 * 1024;
/// Elements in a chunk of a [`Table`].
const TABLE_CHUNK: usize = 1024;

/// Rows of `words` words each, zero at first. Rows of 16 words and more start at a cache line.
#[derive(Debug)]
pub struct Rows {
    chunks: Vec<Buf>,
    words: usize,
    stride: usize,
    shift: u32,
}

impl Rows {
    /// No rows yet.
    pub const fn new(words: usize) -> Rows {
        let stride = if words >= 16 { words.next_multiple_of(16) } else { words.next_multiple_of(4) };
        let mut shift = 0u32;
        while shift < 12 && stride.saturating_mul(8) << shift <= CHUNK_BYTES {
            shift = shift.wrapping_add(1);
        }
        Rows { chunks: Vec::new(), words, stride, shift }
    }

    /// Makes room for `rows` rows.
    pub fn grow(&mut self, rows: usize) -> Result<(), NoMemory> {
        for chunk in 0..rows.div_ceil(1 << self.shift) {
            self.grow_chunk(chunk)?;
        }
        Ok(())
    }

    /// Makes room for one row and those beside it, not for all before it.
    pub fn grow_at(&mut self, row: usize) -> Result<(), NoMemory> {
        self.grow_chunk(row >> self.shift)
    }

    fn grow_chunk(&mut self, chunk: usize) -> Result<(), NoMemory> {
        let bytes = (self.stride << self.shift).checked_mul(4).ok_or(NoMemory)?;
        while self.chunks.len() <= chunk {
            mem::push(&mut self.chunks, Buf::empty())?;
        }
        match self.chunks.get_mut(chunk) {
            Some(b) if b.is_empty() => *b = Buf::zeroed(bytes)?,
            _ => {}
        }
        Ok(())
    }

    fn place(&self, row: usize) -> (usize, usize) {
        (row >> self.shift, (row & (1usize << self.shift).wrapping_sub(1)).wrapping_mul(self.stride))
    }

    /// A row.
    pub fn get(&self, row: usize) -> Option<&[u32]> {
        let (chunk, at) = self.place(row);
        let b = self.chunks.get(chunk).filter(|b| !b.is_empty())?;
        // SAFETY: a buffer with memory is aligned to 4096 and holds `len` initialised bytes; any bits are a u32.
        let w = unsafe { core::slice::from_raw_parts(b.as_ptr().cast::<u32>(), b.len() / 4) };
        w.get(at..at.wrapping_add(self.words))
    }

    /// A row, to change.
    pub fn get_mut(&mut self, row: usize) -> Option<&mut [u32]> {
        let (chunk, at) = self.place(row);
        let b = self.chunks.get_mut(chunk).filter(|b| !b.is_empty())?;
        // SAFETY: as in `get`, and the borrow is exclusive.
        let w = unsafe { core::slice::from_raw_parts_mut(b.as_mut_ptr().cast::<u32>(), b.len() / 4) };
        w.get_mut(at..at.wrapping_add(self.words))
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.chunks.iter().fold(0, |n: usize, b| n.saturating_add(b.len()))
    }
}

/// A growing array in chunks.
#[derive(Debug)]
pub struct Table<T> {
    chunks: Vec<Vec<T>>,
    len: usize,
}

impl<T: Default> Default for Table<T> {
    fn default() -> Self {
        Table::new()
    }
}

impl<T: Default> Table<T> {
    /// An empty table.
    pub const fn new() -> Table<T> {
        Table { chunks: Vec::new(), len: 0 }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes room for `len` elements, so that [`Table::extend_to`] with as many cannot fail.
    pub fn reserve(&mut self, len: usize) -> Result<(), NoMemory> {
        let want = len.div_ceil(TABLE_CHUNK);
        while self.chunks.len() < want {
            let mut chunk = Vec::new();
            chunk.try_reserve_exact(TABLE_CHUNK).map_err(|_| NoMemory)?;
            mem::push(&mut self.chunks, chunk)?;
        }
        Ok(())
    }

    /// Makes the table `len` elements long with default values, if it is shorter.
    pub fn extend_to(&mut self, len: usize) -> Result<(), NoMemory> {
        self.reserve(len)?;
        while self.len < len {
            let chunk = self.chunks.get_mut(self.len / TABLE_CHUNK).ok_or(NoMemory)?;
            mem::push(chunk, T::default())?;
            self.len = self.len.wrapping_add(1);
        }
        Ok(())
    }

    /// Makes the table at most `len` elements long.
    pub fn truncate(&mut self, len: usize) {
        while self.len > len {
            let last = self.len.wrapping_sub(1);
            if let Some(chunk) = self.chunks.get_mut(last / TABLE_CHUNK) {
                chunk.pop();
            }
            self.len = last;
        }
    }

    /// An element.
    pub fn get(&self, i: usize) -> Option<&T> {
        self.chunks.get(i / TABLE_CHUNK)?.get(i % TABLE_CHUNK)
    }

    /// An element, to change.
    pub fn get_mut(&mut self, i: usize) -> Option<&mut T> {
        self.chunks.get_mut(i / TABLE_CHUNK)?.get_mut(i % TABLE_CHUNK)
    }

    /// All elements in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }

    /// Bytes of memory of the elements themselves.
    pub fn memory(&self) -> usize {
        self.chunks.len().saturating_mul(TABLE_CHUNK).saturating_mul(core::mem::size_of::<T>())
    }
}

/// The slots of a collection: heads and vectors.
#[derive(Debug)]
pub struct VectorStore {
    dim: usize,
    heads: Table<Slot>,
    rows: Rows,
}

/// Most slots: an index keeps their numbers in 32 bits.
pub const SLOTS_MAX: u64 = u32::MAX as u64 - 1;

impl VectorStore {
    /// An empty store of vectors with `dim` elements.
    pub const fn new(dim: usize) -> VectorStore {
        VectorStore { dim, heads: Table::new(), rows: Rows::new(dim) }
    }

    /// Elements of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Length of the slot table.
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// Whether there is no slot.
    pub fn is_empty(&self) -> bool {
        self.heads.len() == 0
    }

    /// Makes room for `slots` slots without changing the length.
    pub fn reserve(&mut self, slots: usize) -> Result<(), NoMemory> {
        if slots as u64 > SLOTS_MAX {
            return Err(NoMemory);
        }
        self.heads.reserve(slots)?;
        self.rows.grow(slots)
    }

    /// Makes the table `slots` slots long, if it is shorter. Cannot fail after as much was reserved.
    pub fn extend_to(&mut self, slots: usize) -> Result<(), NoMemory> {
        self.reserve(slots)?;
        self.heads.extend_to(slots)
    }

    /// Makes the table `slots` slots long without room for vectors, which [`VectorStore::vector_room`] makes: a damaged
    /// slot table shall not take more memory than there are vectors.
    pub fn extend_heads(&mut self, slots: usize) -> Result<(), NoMemory> {
        if slots as u64 > SLOTS_MAX {
            return Err(NoMemory);
        }
        self.heads.extend_to(slots)
    }

    /// Room for the vector of one slot.
    pub fn vector_room(&mut self, slot: usize) -> Result<(), NoMemory> {
        self.rows.grow_at(slot)
    }

    /// Makes the table at most `slots` slots long.
    pub fn truncate(&mut self, slots: usize) {
        self.heads.truncate(slots);
    }

    /// Head of a slot.
    pub fn head(&self, slot: usize) -> Option<&Slot> {
        self.heads.get(slot)
    }

    /// Head of a slot, to change.
    pub fn head_mut(&mut self, slot: usize) -> Option<&mut Slot> {
        self.heads.get_mut(slot)
    }

    /// All heads in order.
    pub fn heads(&self) -> impl Iterator<Item = &Slot> {
        self.heads.iter()
    }

    /// Elements of a slot, whatever its head says.
    pub fn vector(&self, slot: usize) -> Option<&[u32]> {
        self.rows.get(slot)
    }

    /// Elements of a slot, to change.
    pub fn vector_mut(&mut self, slot: usize) -> Option<&mut [u32]> {
        self.rows.get_mut(slot)
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.heads.memory().saturating_add(self.rows.memory())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_place() {
        for words in [1usize, 3, 4, 15, 16, 33, 384, 1000, 65536] {
            let mut rows = Rows::new(words);
            let n = if words > 1000 { 5 } else { 3000 };
            assert!(rows.get(0).is_none());
            rows.grow(1).unwrap();
            assert!(rows.get(0).unwrap().iter().all(|w| *w == 0));
            let chunk = rows.memory();
            assert!(chunk <= CHUNK_BYTES || chunk == words * 4, "{words}: {chunk}");
            rows.grow(n).unwrap();
            for i in 0..n {
                rows.get_mut(i).unwrap().fill(i as u32 + 1);
            }
            for i in 0..n {
                let r = rows.get(i).unwrap();
                assert_eq!(r.len(), words);
                assert!(r.iter().all(|w| *w == i as u32 + 1));
                assert!(words < 16 || r.as_ptr() as usize % 64 == 0);
            }
            let all = rows.memory();
            rows.grow_at(100_000).unwrap();
            assert_eq!(rows.memory(), all + chunk);
            assert!(rows.get(50_000).is_none() && rows.get(100_000).unwrap().iter().all(|w| *w == 0));
            assert_eq!(rows.get(0).unwrap()[0], 1);
        }
    }

    #[test]
    fn table_grows_in_place() {
        let mut t: Table<u64> = Table::new();
        t.extend_to(1).unwrap();
        let p = t.get(0).unwrap() as *const u64;
        t.extend_to(5000).unwrap();
        *t.get_mut(4999).unwrap() = 7;
        assert_eq!(p, t.get(0).unwrap() as *const u64);
        assert_eq!((t.len(), t.iter().count(), t.iter().sum::<u64>()), (5000, 5000, 7));
        assert!(t.get(5000).is_none());
        t.extend_to(10).unwrap();
        assert_eq!(t.len(), 5000);
        t.truncate(1500);
        assert!(t.len() == 1500 && t.get(1500).is_none() && t.get(1499) == Some(&0));
        t.extend_to(4000).unwrap();
        assert_eq!((t.iter().count(), t.get(3999)), (4000, Some(&0)));
    }
}
