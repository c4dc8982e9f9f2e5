// SPDX-License-Identifier: GPL-2.0-only
//! Streams of a collection (slots, vectors, index): replacing a range of blocks by freshly placed ones.

use crate::error::{Error, Step};
use crate::format::{Extent, Key, Wire, EXTENT_BLOCKS_MAX};
use crate::mem;
use crate::txn::Txn;

fn crc_bytes(value: &[u8], from: u64, n: u64) -> Option<&[u8]> {
    let a = Extent::SIZE.checked_add(usize::try_from(from).ok()?.checked_mul(4)?)?;
    value.get(a..a.checked_add(usize::try_from(n).ok()?.checked_mul(4)?)?)
}

fn put_part(t: &mut Txn, key: Key, e: &Extent, skip: u64, n: u64, crcs: &[u8]) -> Step<()> {
    let len = Extent::SIZE.saturating_add(crcs.len());
    let mut v = mem::filled(len, 0u8)?;
    let part = Extent { addr: e.addr.saturating_add(skip), blocks: n as u32, ..*e };
    part.emit(&mut v).ok_or(Error::Corrupt)?;
    mem::copy(v.get_mut(Extent::SIZE..).ok_or(Error::Corrupt)?, crcs);
    t.put(key, &v)
}

/// Frees the blocks `start..end` of a stream.
pub fn punch(t: &mut Txn, ino: u64, kind: u32, start: u64, end: u64) -> Step<()> {
    let mut end = end;
    while end > start {
        let last = Key::new(ino, kind, end.saturating_sub(1));
        let Some((k, v)) = t.prev(&Key::first(ino, kind), &last)? else { return Ok(()) };
        let e = Extent::parse(v).ok_or(Error::Corrupt)?;
        let (es, n) = (k.offset, u64::from(e.blocks));
        let ee = es.checked_add(n).ok_or(Error::Corrupt)?;
        if n == 0 || n > u64::from(EXTENT_BLOCKS_MAX) || e.flags != 0 {
            return Err(Error::Corrupt.into());
        }
        if ee <= start {
            return Ok(());
        }
        let value = mem::to_vec(v)?;
        t.del(k)?;
        let (lo, hi) = (es.max(start), ee.min(end));
        t.free(e.addr.saturating_add(lo.saturating_sub(es)), hi.saturating_sub(lo) as u32)?;
        if es < start {
            let n = start.saturating_sub(es);
            put_part(t, k, &e, 0, n, crc_bytes(&value, 0, n).ok_or(Error::Corrupt)?)?;
        }
        if ee > end {
            let (skip, n) = (end.saturating_sub(es), ee.saturating_sub(end));
            put_part(t, Key::new(ino, kind, end), &e, skip, n, crc_bytes(&value, skip, n).ok_or(Error::Corrupt)?)?;
        }
        end = es;
    }
    Ok(())
}

/// Puts an extent of freshly written blocks with their checksums.
pub fn place(t: &mut Txn, ino: u64, kind: u32, block: u64, addr: u64, crcs: &[u32]) -> Step<()> {
    let mut v = mem::filled(Extent::SIZE.saturating_add(crcs.len().saturating_mul(4)), 0u8)?;
    let birth = t.info().generation;
    let e = Extent { addr, birth, blocks: crcs.len() as u32, flags: 0, reserved: 0 };
    e.emit(&mut v).ok_or(Error::Corrupt)?;
    for (i, c) in crcs.iter().enumerate() {
        let at = Extent::SIZE.saturating_add(i.saturating_mul(4));
        c.put(&mut v, at).ok_or(Error::TooBig)?;
    }
    t.put(Key::new(ino, kind, block), &v)?;
    t.allocated(addr, crcs.len() as u32)
}
