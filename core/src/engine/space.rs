// SPDX-License-Identifier: GPL-2.0-only
//! The allocator: which blocks are used, which are handed out but not committed, and which wait
//! for a checkpoint before they may be used again. Bitmaps of groups are loaded when first
//! touched. Promises: a block that the checkpoint on disk refers to is never handed out.

use crate::error::Error;
use crate::format::{FIRST_BLOCK, GROUP_BLOCKS, SUPER_SLOTS};
use crate::mem::{self, Map, NoMemory};
use alloc::vec::Vec;

const WORDS: usize = (GROUP_BLOCKS / 64) as usize;
/// Bytes of a group's bitmap.
pub const BITMAP_BYTES: usize = WORDS * 8;

/// Why no block was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocStop {
    /// This group's bitmap has to be loaded first.
    Load(u64),
    /// There is no free block.
    Full,
}

#[derive(Debug)]
struct Group {
    /// 1 = not to be handed out.
    bits: Vec<u64>,
    /// 1 = free on the checkpoint that is being written, but not before it is on disk.
    hold: Vec<u64>,
    /// Zero bits in `bits`.
    free: u32,
    /// Differs from its item in the tree.
    dirty: bool,
    /// The path to its item is dirty: the checkpoint that is being made may change it.
    ready: bool,
}

/// What an allocation is for; each has its own place to look for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// File and stream data.
    Data,
    /// First copies of metadata.
    Meta,
    /// Second copies of metadata, half a volume away.
    Twin,
}

/// The allocator of a volume.
#[derive(Debug)]
pub struct Space {
    blocks: u64,
    groups: Map<Group>,
    free: u64,
    freed: Vec<(u64, u32)>,
    held: Vec<(u64, u32)>,
    /// Blocks in `freed` and `held`, and dirty groups: asked for with every operation.
    waiting: u64,
    dirty: u64,
    reserved: Vec<(u64, u32)>,
    cursors: [u64; 3],
    /// Groups that are to be made ready for a checkpoint, the first one last: so that not every step of that
    /// has to look at all groups.
    unready: Vec<u64>,
}

fn fixed(block: u64) -> bool {
    block < FIRST_BLOCK || SUPER_SLOTS.iter().flatten().any(|b| *b == block)
}

/// Blocks of a volume that are always used.
pub fn fixed_blocks() -> u64 {
    FIRST_BLOCK.saturating_add(SUPER_SLOTS.iter().flatten().filter(|b| **b >= FIRST_BLOCK).count() as u64)
}

fn bit(block: u64) -> (usize, u64) {
    let b = block % GROUP_BLOCKS;
    ((b / 64) as usize, 1u64 << (b % 64))
}

impl Space {
    /// The allocator of a volume of `blocks` blocks of which `free` are free on disk.
    pub fn new(blocks: u64, free: u64) -> Space {
        let half = blocks / 2;
        Space {
            blocks,
            groups: Map::new(),
            free,
            freed: Vec::new(),
            held: Vec::new(),
            waiting: 0,
            dirty: 0,
            reserved: Vec::new(),
            cursors: [FIRST_BLOCK, FIRST_BLOCK, half],
            unready: Vec::new(),
        }
    }

    /// Blocks that may be handed out now.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Blocks that come free with the checkpoint that runs or the next one.
    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Groups whose items the next checkpoint rewrites, at most.
    pub fn touched(&self) -> u64 {
        self.dirty.saturating_add(self.freed.len() as u64)
    }

    /// Number of groups.
    pub fn group_count(&self) -> u64 {
        self.blocks.div_ceil(GROUP_BLOCKS)
    }

    /// Whether the bitmap of `group` is in memory.
    pub fn loaded(&self, group: u64) -> bool {
        self.groups.contains(group)
    }

    /// Takes the bitmap of `group` in (`None`: it has no item, so it is free).
    pub fn load(&mut self, group: u64, bitmap: Option<&[u8]>) -> Result<(), Error> {
        if self.groups.contains(group) {
            return Ok(());
        }
        let mut bits = mem::filled(WORDS, 0u64)?;
        if let Some(bytes) = bitmap {
            if bytes.len() != BITMAP_BYTES {
                return Err(Error::Corrupt);
            }
            for (w, b) in bits.iter_mut().zip(bytes.chunks_exact(8)) {
                *w = u64::from_le_bytes(b.try_into().map_err(|_| Error::Corrupt)?);
            }
        }
        let first = group.checked_mul(GROUP_BLOCKS).ok_or(Error::Corrupt)?;
        for b in first..first.saturating_add(GROUP_BLOCKS) {
            if b >= self.blocks || (b <= 1025 && fixed(b)) {
                let (w, m) = bit(b);
                if let Some(x) = bits.get_mut(w) {
                    *x |= m;
                }
            }
        }
        let free = bits.iter().map(|w| w.count_zeros()).sum();
        let hold = mem::filled(WORDS, 0u64)?;
        self.groups.insert(group, Group { bits, hold, free, dirty: false, ready: false })?;
        Ok(())
    }

    fn valid(&self, addr: u64, n: u32) -> bool {
        n > 0 && addr >= FIRST_BLOCK && addr.checked_add(u64::from(n)).is_some_and(|end| end <= self.blocks)
    }

    fn each(&mut self, addr: u64, n: u32, mut f: impl FnMut(&mut Group, usize, u64)) {
        for b in addr..addr.saturating_add(u64::from(n)) {
            if let Some(g) = self.groups.get_mut(b / GROUP_BLOCKS) {
                let (w, m) = bit(b);
                f(g, w, m);
            }
        }
    }

    fn take(&mut self, addr: u64, n: u32) {
        let mut taken = 0u64;
        self.each(addr, n, |g, w, m| {
            if let Some(x) = g.bits.get_mut(w) {
                if *x & m == 0 {
                    *x |= m;
                    g.free = g.free.saturating_sub(1);
                    taken = taken.saturating_add(1);
                }
            }
        });
        self.free = self.free.saturating_sub(taken);
    }

    /// Room for `n` more entries in each list, so that what follows a commit cannot fail.
    pub fn reserve_lists(&mut self, n: usize) -> Result<(), NoMemory> {
        mem::reserve(&mut self.freed, n)?;
        mem::reserve(&mut self.reserved, n)
    }

    /// Hands out up to `want` blocks in one run. `committed`: they belong to the checkpoint that is
    /// being made; otherwise they are reserved until [`Space::commit`] or [`Space::release`].
    pub fn alloc(&mut self, zone: Zone, want: u32, committed: bool) -> Result<Result<(u64, u32), AllocStop>, NoMemory> {
        self.reserve_lists(1)?;
        let zi = zone as usize;
        let start = self.cursors.get(zi).copied().unwrap_or(0).min(self.blocks.saturating_sub(1));
        let groups = self.group_count();
        let mut group = start / GROUP_BLOCKS;
        let mut from = start % GROUP_BLOCKS;
        // One round, and the first group once more from its start.
        for _ in 0..=groups {
            let Some(g) = self.groups.get(group) else {
                return Ok(Err(AllocStop::Load(group)));
            };
            if g.free > 0 {
                if let Some((b, n)) = first_run(&g.bits, from, want) {
                    let addr = group.saturating_mul(GROUP_BLOCKS).saturating_add(b);
                    self.take(addr, n);
                    if committed {
                        self.mark_dirty(addr, n);
                    } else {
                        mem::push(&mut self.reserved, (addr, n))?;
                    }
                    if let Some(c) = self.cursors.get_mut(zi) {
                        *c = addr.saturating_add(u64::from(n));
                    }
                    return Ok(Ok((addr, n)));
                }
            }
            from = 0;
            group = group.wrapping_add(1);
            if group >= groups {
                group = 0;
            }
        }
        Ok(Err(AllocStop::Full))
    }

    /// Hands out exactly `want` blocks in one run within a group (`want` at most a group).
    pub fn alloc_exact(&mut self, zone: Zone, want: u32) -> Result<Result<u64, AllocStop>, NoMemory> {
        self.reserve_lists(1)?;
        let groups = self.group_count();
        let start = self.cursors.get(zone as usize).copied().unwrap_or(0) / GROUP_BLOCKS;
        for i in 0..groups {
            let group = start.saturating_add(i).checked_rem(groups).unwrap_or(0);
            let Some(g) = self.groups.get(group) else {
                return Ok(Err(AllocStop::Load(group)));
            };
            if g.free < want {
                continue;
            }
            let mut from = 0;
            while let Some((b, n)) = first_run(&g.bits, from, want) {
                if n >= want {
                    let addr = group.saturating_mul(GROUP_BLOCKS).saturating_add(b);
                    self.take(addr, want);
                    mem::push(&mut self.reserved, (addr, want))?;
                    return Ok(Ok(addr));
                }
                from = b.saturating_add(u64::from(n));
            }
        }
        Ok(Err(AllocStop::Full))
    }

    fn mark_dirty(&mut self, addr: u64, n: u32) {
        let last = addr.saturating_add(u64::from(n.saturating_sub(1))) / GROUP_BLOCKS;
        for g in addr / GROUP_BLOCKS..=last {
            if let Some(g) = self.groups.get_mut(g) {
                self.dirty = self.dirty.saturating_add(u64::from(!g.dirty));
                g.dirty = true;
            }
        }
    }

    fn unreserve(&mut self, addr: u64, n: u32) -> Result<(), NoMemory> {
        let end = addr.saturating_add(u64::from(n));
        mem::reserve(&mut self.reserved, 1)?;
        let mut i = 0;
        while let Some((a, len)) = self.reserved.get(i).copied() {
            let e = a.saturating_add(u64::from(len));
            if a < end && addr < e {
                mem::swap_remove(&mut self.reserved, i);
                if a < addr {
                    mem::push(&mut self.reserved, (a, addr.saturating_sub(a) as u32))?;
                }
                if e > end {
                    mem::push(&mut self.reserved, (end, e.saturating_sub(end) as u32))?;
                }
            } else {
                i = i.saturating_add(1);
            }
        }
        Ok(())
    }

    /// A reserved run belongs to something now.
    pub fn commit(&mut self, addr: u64, n: u32) {
        // Cannot fail: a slot is reserved by `reserve_lists`, and at most one entry is added.
        let _ = self.unreserve(addr, n);
        self.mark_dirty(addr, n);
    }

    /// A reserved run was not used.
    pub fn release(&mut self, addr: u64, n: u32) {
        let _ = self.unreserve(addr, n);
        self.each(addr, n, |g, w, m| {
            if let Some(x) = g.bits.get_mut(w) {
                *x &= !m;
                g.free = g.free.saturating_add(1);
            }
        });
        self.free = self.free.saturating_add(u64::from(n));
    }

    /// Whether the block is handed out and not committed.
    pub fn is_reserved(&self, block: u64) -> bool {
        self.reserved.iter().any(|(a, n)| block >= *a && block < a.saturating_add(u64::from(*n)))
    }

    /// Hands a freed run out again at once: what must never be done, for a canary.
    pub fn free_at_once(&mut self, addr: u64, n: u32) {
        self.release(addr, n);
        self.mark_dirty(addr, n);
        for c in &mut self.cursors {
            *c = addr;
        }
    }

    /// Recovery: a run that the log says was allocated. The group is loaded.
    pub fn replay_alloc(&mut self, addr: u64, n: u32) -> Result<(), Error> {
        if !self.valid(addr, n) {
            return Err(Error::Corrupt);
        }
        self.take(addr, n);
        self.mark_dirty(addr, n);
        Ok(())
    }

    /// Whether a run lies in the volume.
    pub fn check(&self, addr: u64, n: u32) -> Result<(), Error> {
        if self.valid(addr, n) {
            Ok(())
        } else {
            Err(Error::Corrupt)
        }
    }

    /// A run is given up; it waits for the next checkpoint. Room was made by [`Space::reserve_lists`].
    pub fn free_run(&mut self, addr: u64, n: u32) {
        if self.valid(addr, n) {
            let _ = mem::push(&mut self.freed, (addr, n));
            self.waiting = self.waiting.saturating_add(u64::from(n));
        }
    }

    /// A checkpoint is being made: what was freed up to now is free on it.
    pub fn freeze(&mut self) -> Result<(), NoMemory> {
        let n = self.freed.len();
        mem::reserve(&mut self.held, n)?;
        let freed = core::mem::take(&mut self.freed);
        for (a, n) in &freed {
            self.each(*a, *n, |g, w, m| {
                if let Some(x) = g.hold.get_mut(w) {
                    *x |= m;
                }
            });
            self.mark_dirty(*a, *n);
            mem::push(&mut self.held, (*a, *n))?;
        }
        Ok(())
    }

    /// The checkpoint is on disk: what it freed may be handed out.
    pub fn thaw(&mut self) {
        let held = core::mem::take(&mut self.held);
        for (a, n) in held {
            self.waiting = self.waiting.saturating_sub(u64::from(n));
            let mut back = 0u64;
            self.each(a, n, |g, w, m| {
                let held = g.hold.get(w).is_some_and(|h| h & m != 0);
                if held {
                    if let Some(h) = g.hold.get_mut(w) {
                        *h &= !m;
                    }
                    if let Some(x) = g.bits.get_mut(w) {
                        if *x & m != 0 {
                            *x &= !m;
                            g.free = g.free.saturating_add(1);
                            back = back.saturating_add(1);
                        }
                    }
                }
            });
            self.free = self.free.saturating_add(back);
        }
    }

    /// All groups whose item in the tree is out of date, ascending.
    pub fn dirty_groups(&self, out: &mut Vec<u64>) -> Result<(), NoMemory> {
        for (n, g) in self.groups.iter() {
            if g.dirty {
                mem::push(out, n)?;
            }
        }
        out.sort_unstable();
        Ok(())
    }

    /// The bitmap of `group` as the checkpoint that is being made shall have it, and the number of ones.
    pub fn image(&mut self, group: u64, out: &mut [u8]) -> u32 {
        let first = group.saturating_mul(GROUP_BLOCKS);
        let Some(g) = self.groups.get_mut(group) else { return 0 };
        self.dirty = self.dirty.saturating_sub(u64::from(g.dirty));
        g.dirty = false;
        let mut ones = 0u32;
        for (i, b) in out.chunks_exact_mut(8).enumerate() {
            let mut w = g.bits.get(i).copied().unwrap_or(0) & !g.hold.get(i).copied().unwrap_or(0);
            let base = first.saturating_add((i as u64).saturating_mul(64));
            for (a, n) in &self.reserved {
                let end = a.saturating_add(u64::from(*n));
                if *a < base.saturating_add(64) && end > base {
                    let lo = a.saturating_sub(base);
                    let hi = end.saturating_sub(base).min(64);
                    for k in lo..hi {
                        w &= !(1u64 << (k & 63));
                    }
                }
            }
            ones = ones.saturating_add(w.count_ones());
            b.copy_from_slice(&w.to_le_bytes());
        }
        ones
    }

    /// Free blocks as the checkpoint that is being made shall count them.
    pub fn free_on_disk(&self) -> u64 {
        let sum = |v: &[(u64, u32)]| v.iter().fold(0u64, |s, (_, n)| s.saturating_add(u64::from(*n)));
        self.free.saturating_add(sum(&self.held)).saturating_add(sum(&self.reserved))
    }

    /// The next group that has to be made ready for a checkpoint that hands out `want` blocks: the dirty
    /// ones, those with freed runs, and then any with room. `Ok(None)`: all is ready. A group that is not in memory has to be
    /// loaded first ([`AllocStop::Load`]).
    pub fn next_unready(&mut self, want: u64) -> Result<Result<Option<u64>, AllocStop>, NoMemory> {
        if let Some(next) = self.queued_unready() {
            return Ok(next);
        }
        self.queue_unready()?;
        if let Some(next) = self.queued_unready() {
            return Ok(next);
        }
        let ready = self.groups.iter().filter(|(_, g)| g.ready);
        let have = ready.fold(0u64, |sum, (_, g)| sum.saturating_add(u64::from(g.free)));
        Ok(if have >= want { Ok(None) } else { self.unready_with_room() })
    }

    /// The first of the queued groups that is not ready yet.
    fn queued_unready(&mut self) -> Option<Result<Option<u64>, AllocStop>> {
        while let Some(g) = self.unready.last().copied() {
            match self.groups.get(g) {
                None => return Some(Err(AllocStop::Load(g))),
                Some(x) if !x.ready => return Some(Ok(Some(g))),
                Some(_) => self.unready.pop(),
            };
        }
        None
    }

    /// Queues the groups that are dirty or have freed runs, and are not ready.
    fn queue_unready(&mut self) -> Result<(), NoMemory> {
        for (a, n) in &self.freed {
            let last = a.saturating_add(u64::from(n.saturating_sub(1))) / GROUP_BLOCKS;
            for g in a / GROUP_BLOCKS..=last {
                if self.groups.get(g).is_none_or(|x| !x.ready) {
                    mem::push(&mut self.unready, g)?;
                }
            }
        }
        for (n, _) in self.groups.iter().filter(|(_, g)| g.dirty && !g.ready) {
            mem::push(&mut self.unready, n)?;
        }
        mem::sort_by(&mut self.unready, |a, b| a > b);
        self.unready.dedup();
        Ok(())
    }

    /// The next group with room that is not ready, for each kind of allocation near its place.
    fn unready_with_room(&self) -> Result<Option<u64>, AllocStop> {
        let groups = self.group_count();
        for zone in [1usize, 2, 0] {
            let start = self.cursors.get(zone).copied().unwrap_or(0) / GROUP_BLOCKS;
            for i in 0..groups {
                let g = start.saturating_add(i).checked_rem(groups).unwrap_or(0);
                match self.groups.get(g) {
                    None => return Err(AllocStop::Load(g)),
                    Some(x) if !x.ready && x.free > 0 => return Ok(Some(g)),
                    Some(x) if x.ready && x.free > 0 && zone != 0 => break,
                    Some(_) => {}
                }
            }
        }
        Err(AllocStop::Full)
    }

    /// The path to the item of `group` is dirty now.
    pub fn set_ready(&mut self, group: u64) {
        if let Some(g) = self.groups.get_mut(group) {
            g.ready = true;
        }
    }

    /// The checkpoint is sealed: no path is dirty any more.
    pub fn clear_ready(&mut self) {
        self.unready.clear();
        for (_, g) in self.groups.iter_mut() {
            g.ready = false;
        }
    }

    /// Like [`Space::alloc`] with `committed`, but looks only in groups that are loaded.
    pub fn alloc_loaded(&mut self, zone: Zone, want: u32) -> Option<(u64, u32)> {
        let zi = zone as usize;
        let start = self.cursors.get(zi).copied().unwrap_or(0).min(self.blocks.saturating_sub(1));
        let first = start / GROUP_BLOCKS;
        let near =
            self.groups.get(first).filter(|g| g.ready).and_then(|g| first_run(&g.bits, start % GROUP_BLOCKS, want));
        if let Some((b, n)) = near {
            return Some(self.grant(zi, first, b, n));
        }
        // The loaded group nearest after the cursor that has room, cyclically.
        let groups = self.group_count();
        let mut best: Option<(u64, u64)> = None;
        for (n, g) in self.groups.iter() {
            if g.free == 0 || !g.ready {
                continue;
            }
            let distance =
                if n >= first { n.saturating_sub(first) } else { n.saturating_add(groups).saturating_sub(first) };
            if best.is_none_or(|(d, _)| distance < d) {
                // In the cursor's own group only what lies behind the cursor counts as near.
                if n == first && first_run(&g.bits, start % GROUP_BLOCKS, 1).is_none() {
                    if best.is_none() {
                        best = Some((groups, n));
                    }
                    continue;
                }
                best = Some((distance, n));
            }
        }
        let (distance, group) = best?;
        let from = if distance == 0 { start % GROUP_BLOCKS } else { 0 };
        let (b, n) = first_run(&self.groups.get(group)?.bits, from, want)?;
        Some(self.grant(zi, group, b, n))
    }

    fn grant(&mut self, zone: usize, group: u64, b: u64, n: u32) -> (u64, u32) {
        let addr = group.saturating_mul(GROUP_BLOCKS).saturating_add(b);
        self.take(addr, n);
        self.mark_dirty(addr, n);
        if let Some(c) = self.cursors.get_mut(zone) {
            *c = addr.saturating_add(u64::from(n));
        }
        (addr, n)
    }

    /// Free runs of a loaded group, for discard: reserves and returns the first run of at least
    /// `min` blocks at or after `from` (a block address in the group), at most `max` blocks of it.
    pub fn reserve_free(&mut self, group: u64, from: u64, min: u32, max: u32) -> Result<Option<(u64, u32)>, NoMemory> {
        self.reserve_lists(1)?;
        let Some(g) = self.groups.get(group) else { return Ok(None) };
        let base = group.saturating_mul(GROUP_BLOCKS);
        let mut at = from.saturating_sub(base);
        while let Some((b, n)) = first_run(&g.bits, at, GROUP_BLOCKS as u32) {
            if n >= min {
                let n = n.min(max);
                let addr = base.saturating_add(b);
                self.take(addr, n);
                mem::push(&mut self.reserved, (addr, n))?;
                return Ok(Some((addr, n)));
            }
            at = b.saturating_add(u64::from(n));
        }
        Ok(None)
    }
}

/// The first run of zero bits at or after bit `from`, cut at `want`.
fn first_run(bits: &[u64], from: u64, want: u32) -> Option<(u64, u32)> {
    let mut at = from;
    let free = |b: u64| bits.get((b / 64) as usize).is_some_and(|w| w & (1 << (b % 64)) == 0);
    while at < GROUP_BLOCKS {
        let w = bits.get((at / 64) as usize).copied()?;
        let rest = w | ((1u64 << (at % 64)).wrapping_sub(1));
        if rest == u64::MAX {
            at = (at / 64).wrapping_add(1).wrapping_mul(64);
            continue;
        }
        at = (at / 64).wrapping_mul(64).wrapping_add(u64::from(rest.trailing_ones()));
        let mut n = 0u32;
        while n < want && at.wrapping_add(u64::from(n)) < GROUP_BLOCKS && free(at.wrapping_add(u64::from(n))) {
            n = n.wrapping_add(1);
        }
        return (n > 0).then_some((at, n));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// A checkpoint behind the allocation of a terabyte touches tens of thousands of groups: each is named once, dirty
    /// ones and those of freed runs.
    #[test]
    fn each_group_is_made_ready_once() {
        let groups = 60_000u64;
        let blocks = groups * GROUP_BLOCKS;
        let mut s = Space::new(blocks, blocks - fixed_blocks());
        for g in 0..groups / 2 {
            s.load(g, None).unwrap();
            s.replay_alloc(g * GROUP_BLOCKS + 2000, 5).unwrap();
        }
        // A freed run over groups that are not in memory yet.
        s.reserve_lists(1).unwrap();
        s.free_run((groups - 300) * GROUP_BLOCKS, 300 * GROUP_BLOCKS as u32);
        let mut named = BTreeSet::new();
        loop {
            match s.next_unready(100).unwrap() {
                Ok(Some(g)) => {
                    assert!(named.insert(g), "group {g} twice");
                    s.set_ready(g);
                }
                Ok(None) => break,
                Err(AllocStop::Load(g)) => s.load(g, Some(&[0xff; BITMAP_BYTES])).unwrap(),
                Err(AllocStop::Full) => panic!("there is room"),
            }
        }
        let want: BTreeSet<u64> = (0..groups / 2).chain(groups - 300..groups).collect();
        assert!(named == want, "{} of {}", named.len(), want.len());
    }

    #[test]
    fn hands_out_each_block_once_and_only_after_the_checkpoint() {
        let blocks = 3 * GROUP_BLOCKS - 77;
        let mut s = Space::new(blocks, blocks - fixed_blocks());
        for g in 0..3 {
            s.load(g, None).unwrap();
        }
        let mut used = BTreeSet::new();
        let mut freed: Vec<u64> = Vec::new();
        let mut held: BTreeSet<u64> = BTreeSet::new();
        let mut x = 7u64;
        for round in 0..20_000 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            match (x >> 33) % 10 {
                0..=5 => {
                    if let Ok((a, n)) = s.alloc(Zone::Data, 1 + (x >> 40) as u32 % 9, false).unwrap() {
                        for b in a..a + u64::from(n) {
                            assert!(!fixed(b) && b < blocks && !held.contains(&b) && !freed.contains(&b));
                            assert!(used.insert(b), "round {round}: block {b} twice");
                        }
                        if x & 1 == 0 {
                            s.release(a, n);
                            for b in a..a + u64::from(n) {
                                used.remove(&b);
                            }
                        } else {
                            s.commit(a, n);
                        }
                    }
                }
                6..=8 => {
                    if let Some(b) = used.iter().nth((x >> 40) as usize % used.len().max(1)).copied() {
                        used.remove(&b);
                        freed.push(b);
                        s.reserve_lists(1).unwrap();
                        s.free_run(b, 1);
                    }
                }
                _ => {
                    if held.is_empty() {
                        s.freeze().unwrap();
                        held = freed.drain(..).collect();
                    } else {
                        s.thaw();
                        held.clear();
                    }
                }
            }
            assert_eq!(s.free(), blocks - fixed_blocks() - used.len() as u64 - freed.len() as u64 - held.len() as u64);
        }
        s.freeze().unwrap();
        let mut img = [0u8; BITMAP_BYTES];
        let ones: u32 = (0..3).map(|g| s.image(g, &mut img)).sum();
        assert_eq!(u64::from(ones), used.len() as u64 + fixed_blocks() + 77);
    }
}
