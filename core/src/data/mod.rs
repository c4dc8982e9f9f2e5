// SPDX-License-Identifier: GPL-2.0-only
//! File contents. Owns the EXTENT items of inodes and TRIM items of files; promises that extents never
//! overlap, that every block is owned once, that bytes after the end of file read as zeros when the file
//! grows, and that what is read is what was written or an error.
//!
//! A change of contents (Write, Fallocate, SetAttr with a size) is a loop of [`prepare`], the engine's placing and
//! writing of the blocks, and [`commit`], until the outcome is not `More`. The engine lets one such operation (or
//! [`trim`]) at a time work on an inode, and counts the inode as open (`Txn::opens`) meanwhile, so that its blocks
//! are not freed under a write that is under way.

mod extent;
mod fallocate;
mod read;
mod truncate;
mod write;

#[cfg(test)]
mod tests;

pub(crate) use truncate::{drop_trim, free_from};

use crate::error::{Error, Step, Stop};
use crate::format::{inode_flags, Inode, BLOCK};
use crate::mem::Buf;
use crate::ns::{inode, mode};
use crate::op::{Ino, Op, Reply};
use crate::txn::{Outcome, Progress, Txn};
use alloc::vec::Vec;

/// Bytes of a block.
const B: u64 = BLOCK as u64;

/// Largest size of a file in bytes.
pub const SIZE_MAX: u64 = 1 << 62;
/// Most bytes of one read; longer ones come back short.
pub const READ_MAX: usize = 16 << 20;
/// Most blocks of data that one step writes.
pub const STEP_BLOCKS: u64 = 256;

/// Blocks to write.
#[derive(Debug)]
pub struct Run {
    /// First block in the file.
    pub file_block: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// Their bytes; the engine takes them when it writes.
    pub buf: Buf,
    /// Not 0: write them there. These blocks belong to the file already (allocated, never written); they
    /// need no allocation, so that a preallocated range can be written on a full disk. 0: allocate.
    pub place: u64,
}

/// What a step of a change of contents asks the engine to do before its [`commit`]. May be empty.
#[derive(Debug, Default)]
pub struct Plan {
    /// Blocks to write.
    pub runs: Vec<Run>,
    /// Space to allocate without writing: first file block, blocks.
    pub reserve: Vec<(u64, u32)>,
    /// Where the operation stands after this step.
    pub next: Progress,
    /// A truncate of before is still being carried out: this step goes on with that.
    pub trim: bool,
}

/// Where the engine put a piece of a plan. A run or a reservation may be spread over several.
#[derive(Debug, Default)]
pub struct Placement {
    /// First block in the file.
    pub file_block: u64,
    /// First block on the device.
    pub addr: u64,
    /// Number of blocks.
    pub blocks: u32,
    /// CRC-32C of each block; empty if it is reserved space.
    pub crcs: Vec<u32>,
}

/// The regular file `ino`.
#[inline(never)]
fn regular(t: &Txn<'_>, ino: Ino) -> Step<Inode> {
    let mut i = Inode::default();
    if !inode::load(t, ino, &mut i)? {
        return Err(Stop::Fail(Error::NotFound));
    }
    if mode::is_reg(i.mode) {
        Ok(i)
    } else if mode::is_dir(i.mode) {
        Err(Stop::Fail(Error::IsDirectory))
    } else {
        Err(Stop::Fail(Error::Invalid))
    }
}

/// Whether a repair lost contents of this file: then a hole may be one of those, and is an error.
fn incomplete(i: &Inode) -> bool {
    i.flags & inode_flags::INCOMPLETE != 0
}

/// When all that was missing is written again or cut off, the file is whole. Not while a trim is pending, whose blocks
/// still count. The checker expects the same.
fn settle(i: &mut Inode) {
    if whole(i) {
        i.flags &= !inode_flags::INCOMPLETE;
    }
}

/// Whether a file has so many blocks that nothing of it can be missing.
pub(crate) fn whole(i: &Inode) -> bool {
    i.blocks >= i.size.div_ceil(B)
}

/// Reads `len` bytes from `offset` on; short at the end of file and beyond [`READ_MAX`].
pub fn read(t: &Txn<'_>, ino: Ino, offset: u64, len: usize) -> Step<Reply> {
    read::read(t, ino, offset, len)
}

/// Answers Seek: the next data or hole at or after `offset`. Unwritten space is a hole; so is the end of file.
pub fn seek(t: &Txn<'_>, ino: Ino, offset: u64, hole: bool) -> Step<Reply> {
    read::seek(t, ino, offset, hole)
}

/// Answers Extents: those that overlap the range, joined where they follow each other on the device too.
pub fn extents(t: &Txn<'_>, ino: Ino, offset: u64, len: u64, max: usize) -> Step<Reply> {
    read::extents(t, ino, offset, len, max)
}

/// Plans the next step of Write, Fallocate or SetAttr with a size. Changes nothing.
pub fn prepare(t: &Txn<'_>, op: &Op, p: &Progress) -> Step<Plan> {
    match op {
        Op::Write { ino, offset, data, times, .. } => {
            if times.is_some_and(|w| w.mtime.nsec >= 1_000_000_000 || w.ctime.nsec >= 1_000_000_000) {
                return Err(Stop::Fail(Error::Invalid));
            }
            let i = regular(t, *ino)?;
            if truncate::pending(t, *ino)?.is_some() {
                return Ok(trim_first(p));
            }
            write::prepare(t, *ino, &i, *offset, data, p)
        }
        Op::Fallocate { ino, mode, offset, len } => {
            let range = fallocate::Range::check(*mode, *offset, *len)?;
            let i = regular(t, *ino)?;
            if truncate::pending(t, *ino)?.is_some() {
                return Ok(trim_first(p));
            }
            fallocate::prepare(t, *ino, &i, &range, p)
        }
        Op::SetAttr { ino, set } => {
            let size = set.size.ok_or(Error::Invalid)?;
            let i = regular(t, *ino)?;
            if truncate::pending(t, *ino)?.is_some() {
                return Ok(trim_first(p));
            }
            truncate::prepare(t, *ino, &i, size)
        }
        _ => Err(Stop::Fail(Error::Invalid)),
    }
}

/// An earlier truncate is not finished: what it has to free must be gone before the file may change.
fn trim_first(p: &Progress) -> Plan {
    Plan { next: *p, trim: true, ..Plan::default() }
}

/// Carries out the step that `plan` planned, when its blocks are written at `placed`. If a later step of a Write
/// fails, `Progress::done` bytes of it stand: the engine answers a short count if that is not 0.
pub fn commit(t: &mut Txn<'_>, op: &Op, p: &mut Progress, plan: &Plan, placed: &[Placement]) -> Step<Outcome> {
    let (Op::Write { ino, .. } | Op::Fallocate { ino, .. } | Op::SetAttr { ino, .. }) = op else {
        return Err(Stop::Fail(Error::Invalid));
    };
    let ino = *ino;
    let mut i = regular(t, ino)?;
    if plan.trim {
        if let Some(from) = truncate::pending(t, ino)? {
            truncate::step(t, ino, from)?;
        }
        return Ok(Outcome::More);
    }
    match op {
        Op::Write { offset, data, kill_suid, times, .. } => {
            let w = write::Request { offset: *offset, data, kill_suid: *kill_suid, times: *times };
            write::commit(t, ino, &mut i, &w, p, plan, placed)
        }
        Op::Fallocate { mode, offset, len, .. } => {
            let range = fallocate::Range::check(*mode, *offset, *len)?;
            fallocate::commit(t, ino, &mut i, &range, p, plan, placed)
        }
        Op::SetAttr { set, .. } => {
            let size = set.size.ok_or(Error::Invalid)?;
            truncate::commit(t, ino, &mut i, set, size, plan, placed)
        }
        _ => Err(Stop::Fail(Error::Invalid)),
    }
}

/// One step of freeing what a truncate (TRIM item) or the death of an inode (ORPHAN item, not open) left behind,
/// a dropped collection's remains included. Nothing to do is `Done`.
pub fn trim(t: &mut Txn<'_>, ino: Ino, p: &mut Progress) -> Step<Outcome> {
    truncate::trim(t, ino, p)
}
