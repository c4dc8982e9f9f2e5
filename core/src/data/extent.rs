// SPDX-License-Identifier: GPL-2.0-only
//! Extent items: walking over them, cutting ranges out, putting new ones in. Each change keeps the two facts
//! that everything relies on: extents of a file do not overlap, and what leaves an extent is freed once.

use super::B;
use crate::error::{Error, Step, Stop};
use crate::format::{kind, Extent, Inode, Key, EXTENT_BLOCKS_MAX, EXTENT_UNWRITTEN, EXTENT_UNWRITTEN_MAX, FIRST_BLOCK};
use crate::mem;
use crate::op::Ino;
use crate::txn::Txn;
use alloc::vec::Vec;

/// One extent of a file, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ext {
    /// First block in the file.
    pub start: u64,
    /// Length.
    pub blocks: u64,
    /// First block on the device.
    pub addr: u64,
    /// Checkpoint generation in which it was allocated.
    pub birth: u64,
    /// Allocated, but reads as zeros.
    pub unwritten: bool,
}

impl Ext {
    /// The file block after it.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.blocks)
    }

    /// The block on the device that holds the file block `block` of it.
    pub fn addr_of(&self, block: u64) -> u64 {
        self.addr.saturating_add(block.saturating_sub(self.start))
    }

    fn most(unwritten: bool) -> u64 {
        u64::from(if unwritten { EXTENT_UNWRITTEN_MAX } else { EXTENT_BLOCKS_MAX })
    }
}

/// The checksum of block `n` of an extent, from the bytes that follow its head.
pub fn crc(crcs: &[u8], n: u64) -> Option<u32> {
    let at = usize::try_from(n).ok()?.checked_mul(4)?;
    Some(u32::from_le_bytes(crcs.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The checksums of the blocks from `from` to `to` of an extent.
fn crc_range(crcs: &[u8], from: u64, to: u64) -> &[u8] {
    let at = |n: u64| usize::try_from(n.saturating_mul(4)).unwrap_or(usize::MAX).min(crcs.len());
    crcs.get(at(from)..at(to)).unwrap_or(&[])
}

/// Parses and checks an item. What follows relies on these bounds.
fn parse<'v>(t: &Txn<'_>, start: u64, v: &'v [u8]) -> Result<(Ext, &'v [u8]), Error> {
    let x = Extent::parse(v).ok_or(Error::Corrupt)?;
    let crcs = v.get(Extent::SIZE..).unwrap_or(&[]);
    let unwritten = x.flags == EXTENT_UNWRITTEN;
    let e = Ext { start, blocks: u64::from(x.blocks), addr: x.addr, birth: x.birth, unwritten };
    let want = if unwritten { 0 } else { e.blocks.saturating_mul(4) };
    let sound = (unwritten || x.flags == 0)
        && e.blocks > 0
        && e.blocks <= Ext::most(unwritten)
        && crcs.len() as u64 == want
        && e.addr >= FIRST_BLOCK
        && e.addr.checked_add(e.blocks).is_some_and(|end| end <= t.info().blocks)
        && start.checked_add(e.blocks).is_some_and(|end| end <= super::SIZE_MAX / B);
    if sound {
        Ok((e, crcs))
    } else {
        Err(Error::Corrupt)
    }
}

fn key(ino: Ino, block: u64) -> Key {
    Key::new(ino, kind::EXTENT, block)
}

/// The last extent that starts at or before `block`.
fn last_before<'t>(t: &'t Txn<'_>, ino: Ino, block: u64) -> Step<Option<(Ext, &'t [u8])>> {
    match t.prev(&key(ino, 0), &key(ino, block))? {
        Some((k, v)) => Ok(Some(parse(t, k.offset, v)?)),
        None => Ok(None),
    }
}

/// Walks over the extents that overlap a range of file blocks, in order.
pub struct Walk {
    ino: Ino,
    pos: u64,
    end: u64,
    started: bool,
}

impl Walk {
    /// Over the blocks from `from` up to but without `end`.
    pub fn new(ino: Ino, from: u64, end: u64) -> Walk {
        Walk { ino, pos: from, end, started: false }
    }

    /// The next extent and its checksums.
    pub fn next<'t>(&mut self, t: &'t Txn<'_>) -> Step<Option<(Ext, &'t [u8])>> {
        let Some(last) = self.end.checked_sub(1).filter(|last| self.pos <= *last) else { return Ok(None) };
        if !self.started {
            self.started = true;
            if let Some((e, c)) = last_before(t, self.ino, self.pos)? {
                if e.end() > self.pos {
                    self.pos = e.end();
                    return Ok(Some((e, c)));
                }
            }
        }
        match t.next(&key(self.ino, self.pos), &key(self.ino, last))? {
            Some((k, v)) => {
                let (e, c) = parse(t, k.offset, v)?;
                self.pos = e.end();
                Ok(Some((e, c)))
            }
            None => Ok(None),
        }
    }
}

/// The extent that holds the file block `block`, if it is mapped.
pub fn find<'t>(t: &'t Txn<'_>, ino: Ino, block: u64) -> Step<Option<(Ext, &'t [u8])>> {
    Ok(last_before(t, ino, block)?.filter(|(e, _)| e.end() > block))
}

#[inline(never)]
fn put(t: &mut Txn<'_>, ino: Ino, e: &Ext, crcs: &[u8]) -> Step<()> {
    let blocks = u32::try_from(e.blocks).map_err(|_| Error::Invalid)?;
    let flags = if e.unwritten { EXTENT_UNWRITTEN } else { 0 };
    let mut v = mem::filled(Extent::SIZE, 0)?;
    Extent { addr: e.addr, birth: e.birth, blocks, flags, reserved: 0 }.emit(&mut v).ok_or(Error::Invalid)?;
    mem::extend(&mut v, crcs)?;
    t.put(key(ino, e.start), &v)
}

/// The outcome of [`unmap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Nothing is mapped in the range any more.
    pub done: bool,
    /// Blocks that were freed.
    pub freed: u64,
}

/// Takes the file blocks from `from` up to but without `to` out of the file and frees them, at most `budget`
/// items, which it counts down. With `keep`, the range is one that was allocated at the address `keep` and never
/// written: it leaves its extent but stays allocated, and anything else there is an error.
#[inline(never)]
pub fn unmap(t: &mut Txn<'_>, ino: Ino, from: u64, to: u64, budget: &mut usize, keep: Option<u64>) -> Step<Cut> {
    let mut cut = Cut { done: false, freed: 0 };
    let mut kept = 0u64;
    let mut walk = Walk::new(ino, from, to);
    while let Some((e, crcs)) = walk.next(t)? {
        if *budget == 0 {
            return Ok(cut);
        }
        *budget = budget.saturating_sub(1);
        let (low, high) = (e.start.max(from), e.end().min(to));
        let len = high.saturating_sub(low);
        let left = mem::to_vec(crc_range(crcs, 0, low.saturating_sub(e.start)))?;
        let right = mem::to_vec(crc_range(crcs, high.saturating_sub(e.start), e.blocks))?;
        if low > e.start {
            put(t, ino, &Ext { blocks: low.saturating_sub(e.start), ..e }, &left)?;
        } else {
            t.del(key(ino, e.start))?;
        }
        if high < e.end() {
            let rest = Ext { start: high, blocks: e.end().saturating_sub(high), addr: e.addr_of(high), ..e };
            put(t, ino, &rest, &right)?;
        }
        match keep {
            Some(addr) => {
                if !e.unwritten || e.addr_of(low) != addr.saturating_add(low.saturating_sub(from)) {
                    return Err(Stop::Fail(Error::Stale));
                }
                kept = kept.saturating_add(len);
            }
            None => {
                t.free(e.addr_of(low), u32::try_from(len).map_err(|_| Error::Corrupt)?)?;
                cut.freed = cut.freed.saturating_add(len);
            }
        }
    }
    if keep.is_some() && kept != to.saturating_sub(from) {
        return Err(Stop::Fail(Error::Stale));
    }
    cut.done = true;
    Ok(cut)
}

/// Blocks that a file gets.
pub struct Piece<'a> {
    /// First block in the file.
    pub block: u64,
    /// First block on the device.
    pub addr: u64,
    /// Length.
    pub blocks: u64,
    /// A checksum for each block; empty: unwritten.
    pub crcs: &'a [u32],
    /// They belong to this place of the file already, unwritten.
    pub in_place: bool,
}

/// Maps `p` into the file, in place of what was there.
#[inline(never)]
pub fn map(t: &mut Txn<'_>, ino: Ino, i: &mut Inode, p: &Piece<'_>) -> Step<()> {
    let unwritten = p.crcs.is_empty();
    if p.blocks == 0 || (!unwritten && p.crcs.len() as u64 != p.blocks) {
        return Err(Stop::Fail(Error::Invalid));
    }
    let end = p.block.saturating_add(p.blocks);
    let mut all = usize::MAX;
    let cut = unmap(t, ino, p.block, end, &mut all, p.in_place.then_some(p.addr))?;
    i.blocks = i.blocks.saturating_sub(cut.freed);
    if !p.in_place {
        t.allocated(p.addr, u32::try_from(p.blocks).map_err(|_| Error::Invalid)?)?;
        i.blocks = i.blocks.saturating_add(p.blocks);
    }
    let birth = t.info().generation;
    let most = Ext::most(unwritten);
    let mut e = Ext { start: p.block, blocks: 0, addr: p.addr, birth, unwritten };
    let mut crcs: Vec<u8> = Vec::new();
    // Fill up the extent before, if the blocks follow it on the device too. One of another birth stays
    // apart: a snapshot taken in between would share only the older part.
    if let Some(before) = p.block.checked_sub(1) {
        if let Some((l, c)) = last_before(t, ino, before)? {
            let follows = l.end() == p.block && l.addr.saturating_add(l.blocks) == p.addr;
            if follows && l.unwritten == unwritten && l.birth == birth {
                e = l;
                mem::extend(&mut crcs, c)?;
            }
        }
    }
    let mut done = 0;
    while done < p.blocks {
        if e.blocks >= most {
            e = Ext { start: p.block.saturating_add(done), blocks: 0, addr: p.addr.saturating_add(done), ..e };
            crcs.clear();
        }
        let n = most.saturating_sub(e.blocks).min(p.blocks.saturating_sub(done));
        let from = usize::try_from(done).map_err(|_| Error::Invalid)?;
        done = done.saturating_add(n);
        if !unwritten {
            let to = usize::try_from(done).map_err(|_| Error::Invalid)?;
            for c in p.crcs.get(from..to).unwrap_or(&[]) {
                mem::extend(&mut crcs, &c.to_le_bytes())?;
            }
        }
        e.blocks = e.blocks.saturating_add(n);
        put(t, ino, &e, &crcs)?;
    }
    Ok(())
}
