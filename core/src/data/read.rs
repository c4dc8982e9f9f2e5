// SPDX-License-Identifier: GPL-2.0-only
//! Reading: bytes, the next data or hole, the list of extents. Every block that is read is held against the
//! checksum in its extent.

use super::extent::{self, Ext, Walk};
use super::{incomplete, regular, B, READ_MAX};
use crate::error::{Error, Step, Stop};
use crate::format::BLOCK;
use crate::mem;
use crate::op::{ExtentInfo, Ino, Reply};
use crate::txn::Txn;
use alloc::vec::Vec;

/// Most extents of one reply.
const EXTENTS_MAX: usize = 16_384;

/// The blocks of `e` from `from` to `to`, as they are on the device.
fn raw<'t>(t: &'t Txn<'_>, e: &Ext, from: u64, to: u64) -> Step<&'t [u8]> {
    let n = u32::try_from(to.saturating_sub(from)).map_err(|_| Error::Corrupt)?;
    t.data(e.addr_of(from), n)
}

/// Holds a block against its checksum.
fn verify(t: &Txn<'_>, block: &[u8], crc: Option<u32>) -> Result<(), Error> {
    if crc == Some((t.env().crc32c)(0, block)) {
        Ok(())
    } else {
        Err(Error::Corrupt)
    }
}

/// The bytes of the file block `block`, if it is mapped and written.
#[inline(never)]
pub fn block<'t>(t: &'t Txn<'_>, ino: Ino, block: u64) -> Step<Option<&'t [u8]>> {
    match extent::find(t, ino, block)? {
        Some((e, crcs)) if !e.unwritten => {
            let bytes = raw(t, &e, block, block.saturating_add(1))?;
            verify(t, bytes, extent::crc(crcs, block.saturating_sub(e.start)))?;
            Ok(Some(bytes))
        }
        None if incomplete(&regular(t, ino)?) => Err(Stop::Fail(Error::Corrupt)),
        _ => Ok(None),
    }
}

/// Reads `len` bytes from `offset` on; short at the end of file and beyond [`READ_MAX`].
#[inline(never)]
pub fn read(t: &Txn<'_>, ino: Ino, offset: u64, len: usize) -> Step<Reply> {
    let i = regular(t, ino)?;
    let end = offset.saturating_add(len.min(READ_MAX) as u64).min(i.size);
    if offset >= end {
        return Ok(Reply::Bytes(Vec::new()));
    }
    let (first, last) = (offset / B, end.div_ceil(B));
    // Everything has to be there before the first byte is copied: a run that stops is thrown away.
    let mut walk = Walk::new(ino, first, last);
    let (mut at, mut gap) = (first, false);
    while let Some((e, _)) = walk.next(t)? {
        if !e.unwritten {
            raw(t, &e, e.start.max(first), e.end().min(last))?;
        }
        gap |= e.start > at;
        at = e.end();
    }
    if incomplete(&i) && (gap || at < last) {
        return Err(Stop::Fail(Error::Corrupt));
    }
    let len = usize::try_from(end.saturating_sub(offset)).map_err(|_| Error::Invalid)?;
    let mut out = mem::filled(len, 0u8)?;
    let mut walk = Walk::new(ino, first, last);
    while let Some((e, crcs)) = walk.next(t)? {
        if e.unwritten {
            continue;
        }
        let from = e.start.max(first);
        let bytes = raw(t, &e, from, e.end().min(last))?;
        for (n, b) in (from..).zip(bytes.chunks_exact(BLOCK)) {
            verify(t, b, extent::crc(crcs, n.saturating_sub(e.start)))?;
            copy(&mut out, offset, b, n.saturating_mul(B));
        }
    }
    Ok(Reply::Bytes(out))
}

/// Copies where `src`, which is at `src_at` in the file, overlaps `dst`, which is at `dst_at`.
pub fn copy(dst: &mut [u8], dst_at: u64, src: &[u8], src_at: u64) {
    let from = dst_at.max(src_at);
    let skip = |at: u64| usize::try_from(from.saturating_sub(at)).unwrap_or(usize::MAX);
    let (Some(d), Some(s)) = (dst.get_mut(skip(dst_at)..), src.get(skip(src_at)..)) else { return };
    for (d, s) in d.iter_mut().zip(s) {
        *d = *s;
    }
}

/// Answers Seek: the next data or hole at or after `offset`. Unwritten space is a hole; so is the end of file.
#[inline(never)]
pub fn seek(t: &Txn<'_>, ino: Ino, offset: u64, hole: bool) -> Step<Reply> {
    let i = regular(t, ino)?;
    if offset >= i.size {
        return Err(Stop::Fail(Error::NoSuchOffset));
    }
    if incomplete(&i) {
        // Whoever copies by data and holes is to meet the error.
        return Ok(Reply::Offset(if hole { i.size } else { offset }));
    }
    let mut at = offset;
    let mut walk = Walk::new(ino, offset / B, i.size.div_ceil(B));
    while let Some((e, _)) = walk.next(t)? {
        if e.unwritten {
            continue;
        }
        let start = e.start.saturating_mul(B);
        if !hole {
            return Ok(Reply::Offset(offset.max(start)));
        }
        if start > at {
            break;
        }
        at = e.end().saturating_mul(B);
    }
    if hole {
        Ok(Reply::Offset(at.min(i.size)))
    } else {
        Err(Stop::Fail(Error::NoSuchOffset))
    }
}

/// Answers Extents: those that overlap the range, joined where they follow each other on the device too.
#[inline(never)]
pub fn extents(t: &Txn<'_>, ino: Ino, offset: u64, len: u64, max: usize) -> Step<Reply> {
    regular(t, ino)?;
    // What waits to be trimmed no longer belongs to the file.
    let end = super::truncate::pending(t, ino)?.unwrap_or(u64::MAX);
    let end = offset.saturating_add(len).div_ceil(B).min(end);
    let mut v: Vec<ExtentInfo> = Vec::new();
    let mut walk = Walk::new(ino, offset / B, end);
    while let Some((e, _)) = walk.next(t)? {
        let info = ExtentInfo {
            logical: e.start.saturating_mul(B),
            physical: e.addr.saturating_mul(B),
            len: e.blocks.saturating_mul(B),
            unwritten: e.unwritten,
        };
        if let Some(l) = v.last_mut() {
            let follows = l.logical.saturating_add(l.len) == info.logical
                && l.physical.saturating_add(l.len) == info.physical
                && l.unwritten == info.unwritten;
            if follows {
                l.len = l.len.saturating_add(info.len);
                continue;
            }
        }
        if v.len() >= max.min(EXTENTS_MAX) {
            break;
        }
        mem::push(&mut v, info)?;
    }
    Ok(Reply::Extents(v))
}
