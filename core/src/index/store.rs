// SPDX-License-Identifier: GPL-2.0-only
//! Vectors and slot heads in memory: rows of 32-bit words in aligned chunks, so that growing never moves
//! what is there and no allocation is large. Owns bytes only; what a slot means is the collection's business.
//!
//! Heads are always there. Vectors come and go in *pages*, a chunk of rows each: what is on the device may be dropped and
//! is then *absent* until somebody brings it back. Work that meets absent pages notes them in an [`Absent`] and is done
//! again when they are there.

use crate::format::Slot;
use crate::mem::{self, Aligned, NoMemory};
use crate::sync::atomic::{AtomicU64, Ordering};
use alloc::vec::Vec;
use core::cell::Cell;

/// Size of a chunk of rows in bytes, unless one row is larger.
const CHUNK_BYTES: usize = 64 * 1024;
/// Size of a page of vectors in bytes, unless one vector is larger: what is read for the sake of one vector.
const PAGE_BYTES: usize = 16 * 1024;
/// Bytes of absent pages that are noted at once, about.
const ABSENT_BYTES: usize = 8 << 20;
/// Elements in a chunk of a [`Table`].
const TABLE_CHUNK: usize = 1024;

/// Rows of `words` words each, zero at first. Rows of 16 words and more start at a cache line.
#[derive(Debug)]
pub struct Rows {
    chunks: Vec<Chunk>,
    words: usize,
    stride: usize,
    shift: u32,
}

/// Memory of some rows: aligned to a cache line.
type Chunk = Aligned<64>;

impl Rows {
    /// No rows yet.
    pub const fn new(words: usize) -> Rows {
        Rows::in_chunks(words, CHUNK_BYTES)
    }

    const fn in_chunks(words: usize, bytes: usize) -> Rows {
        let stride = if words >= 16 { words.next_multiple_of(16) } else { words.next_multiple_of(4) };
        let mut shift = 0u32;
        while shift < 12 && stride.saturating_mul(8) << shift <= bytes {
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

    fn chunk_bytes(&self) -> usize {
        (self.stride << self.shift).saturating_mul(4)
    }

    fn has(&self, chunk: usize) -> bool {
        self.chunks.get(chunk).is_some_and(|b| !b.is_empty())
    }

    fn grow_chunk(&mut self, chunk: usize) -> Result<(), NoMemory> {
        if !self.has(chunk) {
            let fresh = Chunk::zeroed(self.chunk_bytes())?;
            self.put_chunk(chunk, fresh)?;
        }
        Ok(())
    }

    fn put_chunk(&mut self, chunk: usize, memory: Chunk) -> Result<(), NoMemory> {
        while self.chunks.len() <= chunk {
            mem::push(&mut self.chunks, Chunk::empty())?;
        }
        if let Some(b) = self.chunks.get_mut(chunk) {
            *b = memory;
        }
        Ok(())
    }

    fn drop_chunk(&mut self, chunk: usize) {
        if let Some(b) = self.chunks.get_mut(chunk) {
            *b = Chunk::empty();
        }
    }

    fn place(&self, row: usize) -> (usize, usize) {
        (row >> self.shift, (row & (1usize << self.shift).wrapping_sub(1)).wrapping_mul(self.stride))
    }

    /// A row.
    pub fn get(&self, row: usize) -> Option<&[u32]> {
        let (chunk, at) = self.place(row);
        let b = self.chunks.get(chunk).filter(|b| !b.is_empty())?;
        // SAFETY: a chunk with memory is aligned to 64 and holds `len` initialised bytes; any bits are a u32.
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

/// Pages that were met and are not in memory. Also says which use of pages this is, so that what is used together is not
/// dropped one for the other.
pub struct Absent {
    pages: Cell<Vec<u32>>,
    noted: Cell<usize>,
    full: Cell<bool>,
    tick: u64,
    /// Bytes of pages to note, about.
    bytes: usize,
}

impl core::fmt::Debug for Absent {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Absent({} pages)", self.noted.get())
    }
}

impl Absent {
    /// None yet. `tick`: pages are stamped with it as they are used.
    pub const fn new(tick: u64) -> Absent {
        Absent::within(tick, usize::MAX)
    }

    /// The same for who has a cache of `cache` bytes: only a part of it is asked for at once.
    pub const fn within(tick: u64, cache: usize) -> Absent {
        let bytes = if cache / 4 < ABSENT_BYTES { cache / 4 } else { ABSENT_BYTES };
        Absent { pages: Cell::new(Vec::new()), noted: Cell::new(0), full: Cell::new(false), tick, bytes }
    }

    /// Whether there was any: what was made without it is worth nothing.
    pub fn any(&self) -> bool {
        self.noted.get() > 0
    }

    /// Whether there were so many that the work may as well stop.
    pub fn is_full(&self) -> bool {
        self.full.get()
    }

    /// Fails if there was any, before something is changed for good. The error stands for "do it again": whoever handed the
    /// [`Absent`] out asks [`Absent::any`] first.
    pub fn none(&self) -> Result<(), NoMemory> {
        if self.any() {
            Err(NoMemory)
        } else {
            Ok(())
        }
    }

    fn note(&self, page: u32, most: usize) {
        let mut pages = self.pages.take();
        self.noted.set(self.noted.get().saturating_add(1));
        // Without memory for the list it stays as it is; an empty one means that there is none.
        if pages.last() != Some(&page) && !self.full.get() && mem::push(&mut pages, page).is_ok() {
            self.full.set(pages.len() >= most);
        }
        self.pages.set(pages);
    }

    /// Number of pages noted, about.
    pub fn len(&self) -> usize {
        let pages = self.pages.take();
        let n = pages.len();
        self.pages.set(pages);
        n
    }

    /// Whether no page was noted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pages noted, in order, none twice. Forgets them.
    pub fn take(&self) -> Vec<u32> {
        self.noted.set(0);
        self.full.set(false);
        let mut pages = self.pages.take();
        pages.sort_unstable();
        pages.dedup();
        pages
    }
}

/// Use of a page.
#[derive(Debug, Default)]
struct Stamp {
    /// Tick of the last use. Written by parallel readers; nothing else depends on it, hence relaxed.
    used: AtomicU64,
    /// `used` when the hand of [`VectorStore::evict`] passed last.
    seen: u64,
}

/// The slots of a collection: heads and vectors.
#[derive(Debug)]
pub struct VectorStore {
    dim: usize,
    heads: Table<Slot>,
    rows: Rows,
    stamps: Vec<Stamp>,
    /// Pages in memory.
    resident: usize,
    /// Vectors of slots below are on the device, if they are not newer in memory.
    stored: usize,
    hand: usize,
}

/// Most slots: an index keeps their numbers in 32 bits.
pub const SLOTS_MAX: u64 = u32::MAX as u64 - 1;

impl VectorStore {
    /// An empty store of vectors with `dim` elements.
    pub const fn new(dim: usize) -> VectorStore {
        VectorStore {
            dim,
            heads: Table::new(),
            rows: Rows::in_chunks(dim, PAGE_BYTES),
            stamps: Vec::new(),
            resident: 0,
            stored: 0,
            hand: 0,
        }
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

    /// Makes room for slots from the end of the table up to `slots`, without changing the length.
    pub fn reserve(&mut self, slots: usize) -> Result<(), NoMemory> {
        if slots as u64 > SLOTS_MAX {
            return Err(NoMemory);
        }
        self.heads.reserve(slots)?;
        let Some(last) = slots.checked_sub(1) else { return Ok(()) };
        for page in self.page(self.heads.len()).min(self.page(last))..=self.page(last) {
            self.fresh_page(page)?;
        }
        Ok(())
    }

    /// Makes the table `slots` slots long, if it is shorter. Cannot fail after as much was reserved.
    pub fn extend_to(&mut self, slots: usize) -> Result<(), NoMemory> {
        if slots > self.heads.len() {
            self.reserve(slots)?;
        }
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

    /// Room for the vector of one slot. Not for one that is absent: that has to be brought in.
    pub fn vector_room(&mut self, slot: usize) -> Result<(), NoMemory> {
        self.fresh_page(self.page(slot))
    }

    // --- pages ---

    /// The page of a slot.
    pub fn page(&self, slot: usize) -> usize {
        slot >> self.rows.shift
    }

    /// Slots of a page, those behind the end of the table included.
    pub fn page_slots(&self, page: usize) -> core::ops::Range<usize> {
        let first = page << self.rows.shift;
        first..first.saturating_add(1 << self.rows.shift)
    }

    /// Bytes of memory of a page.
    pub fn page_bytes(&self) -> usize {
        self.rows.chunk_bytes()
    }

    /// Whether vectors of the page are on the device and not in memory.
    pub fn is_absent(&self, page: usize) -> bool {
        !self.rows.has(page) && page << self.rows.shift < self.stored
    }

    /// Most absent pages that are noted at once.
    fn absent_most(&self, absent: &Absent) -> usize {
        absent.bytes.checked_div(self.page_bytes()).unwrap_or(0).clamp(16, 1024)
    }

    /// Notes the page of a slot as absent, and further ones behind it that are, `bytes` of them in all.
    pub fn note_absent(&self, absent: &Absent, slot: usize, bytes: usize) {
        let first = self.page(slot);
        let n = bytes.checked_div(self.page_bytes()).unwrap_or(0).clamp(1, self.absent_most(absent));
        for page in first..first.saturating_add(n) {
            if page == first || self.is_absent(page) {
                absent.note(page as u32, self.absent_most(absent));
            }
        }
    }

    /// All slots are on the device now, as they are in memory.
    pub fn all_stored(&mut self) {
        self.stored = self.heads.len();
    }

    fn fresh_page(&mut self, page: usize) -> Result<(), NoMemory> {
        if self.is_absent(page) {
            return Ok(());
        }
        self.admit_page(page, 0)
    }

    /// Makes a page that is not there, with zeros in it, used at `tick`: who brings an absent one in fills it at once.
    pub fn admit_page(&mut self, page: usize, tick: u64) -> Result<(), NoMemory> {
        if self.rows.has(page) {
            return Ok(());
        }
        while self.stamps.len() <= page {
            mem::push(&mut self.stamps, Stamp::default())?;
        }
        self.rows.grow_chunk(page)?;
        self.resident = self.resident.saturating_add(1);
        if let Some(s) = self.stamps.get(page) {
            s.used.store(tick, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Bytes of the pages in memory.
    pub fn resident_bytes(&self) -> usize {
        self.resident.saturating_mul(self.page_bytes())
    }

    /// Drops pages until `bytes` are gone, the least recently used ones first as far as a second chance can tell, except
    /// those of which nothing is stored, that `keep` keeps, or that were used at `protect` or after. Gives the bytes dropped.
    pub fn evict(&mut self, bytes: usize, protect: u64, keep: &dyn Fn(core::ops::Range<usize>) -> bool) -> usize {
        let mut gone = 0usize;
        // Two rounds: the first may do no more than look.
        let mut steps = self.stamps.len().saturating_mul(2);
        while gone < bytes && steps > 0 {
            steps = steps.wrapping_sub(1);
            let page = self.hand;
            self.hand = if page.wrapping_add(1) < self.stamps.len() { page.wrapping_add(1) } else { 0 };
            let slots = self.page_slots(page);
            if slots.start >= self.stored || !self.rows.has(page) || keep(slots) {
                continue;
            }
            let Some(s) = self.stamps.get_mut(page) else { continue };
            let used = s.used.load(Ordering::Relaxed);
            if used >= protect {
                continue;
            }
            if s.seen != used {
                s.seen = used;
                continue;
            }
            self.rows.drop_chunk(page);
            self.resident = self.resident.saturating_sub(1);
            gone = gone.saturating_add(self.page_bytes());
        }
        gone
    }

    /// Elements of a slot for a use of it; notes it if they are absent.
    pub fn vector_for(&self, absent: &Absent, slot: usize) -> Option<&[u32]> {
        let page = self.page(slot);
        let Some(words) = self.rows.get(slot) else {
            if self.is_absent(page) {
                absent.note(page as u32, self.absent_most(absent));
            }
            return None;
        };
        if let Some(s) = self.stamps.get(page) {
            // Stores only a new value, so that readers do not fight for the cache line.
            if s.used.load(Ordering::Relaxed) != absent.tick {
                s.used.store(absent.tick, Ordering::Relaxed);
            }
        }
        Some(words)
    }

    // --- slots ---

    /// Makes the table at most `slots` slots long.
    pub fn truncate(&mut self, slots: usize) {
        self.heads.truncate(slots);
        self.stored = self.stored.min(slots);
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

    /// Elements of a slot that are in memory, whatever its head says.
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
            rows.grow_chunk(100_000 >> rows.shift).unwrap();
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
