// SPDX-License-Identifier: GPL-2.0-only
//! Write: whole-block images are built from the data and the old bytes at ragged edges, and mapped when they
//! are on the device.

use super::extent::{self, Piece, Walk};
use super::{read, settle, Placement, Plan, Run, B, SIZE_MAX, STEP_BLOCKS};
use crate::error::{Error, Step, Stop};
use crate::format::{inode_flags, Inode};
use crate::mem::{self, Buf};
use crate::ns::{inode, setattr};
use crate::op::{Ino, Reply, WriteTimes};
use crate::txn::{Outcome, Progress, Txn};

/// How many bytes of `data` fit the file.
fn total(offset: u64, data: &[u8]) -> u64 {
    SIZE_MAX.saturating_sub(offset).min(data.len() as u64)
}

/// Plans the next step of a write.
#[inline(never)]
pub fn prepare(t: &Txn<'_>, ino: Ino, i: &Inode, offset: u64, data: &[u8], p: &Progress) -> Step<Plan> {
    let mut plan = Plan { next: *p, ..Plan::default() };
    if data.is_empty() {
        return Ok(plan);
    }
    if offset >= SIZE_MAX {
        return Err(Stop::Fail(Error::FileTooBig));
    }
    let goal = offset.saturating_add(total(offset, data));
    let from = offset.saturating_add(p.done);
    let first = from / B;
    let end = first.saturating_add(STEP_BLOCKS).saturating_mul(B).min(goal);
    let last = end.div_ceil(B);
    plan.next.done = end.saturating_sub(offset);
    let step = Step1 { ino, size: i.size, offset, data, from, end };
    let mut at = first;
    let mut walk = Walk::new(ino, first, last);
    while let Some((e, _)) = walk.next(t)? {
        if !e.unwritten {
            continue;
        }
        let (low, high) = (e.start.max(first), e.end().min(last));
        step.run(t, &mut plan, at, low, 0)?;
        step.run(t, &mut plan, low, high, e.addr_of(low))?;
        at = high;
    }
    step.run(t, &mut plan, at, last, 0)?;
    Ok(plan)
}

/// What one step writes: the bytes of the file from `from` up to but without `end`.
struct Step1<'a> {
    ino: Ino,
    size: u64,
    offset: u64,
    data: &'a [u8],
    from: u64,
    end: u64,
}

impl Step1<'_> {
    /// Adds the images of the file blocks from `low` up to but without `high` to the plan.
    fn run(&self, t: &Txn<'_>, plan: &mut Plan, low: u64, high: u64, place: u64) -> Step<()> {
        if low >= high {
            return Ok(());
        }
        let start = low.saturating_mul(B);
        let stop = high.saturating_mul(B);
        let len = usize::try_from(stop.saturating_sub(start)).map_err(|_| Error::Invalid)?;
        let mut buf = Buf::zeroed(len)?;
        // Old bytes are needed where the first or last block is covered in part and has bytes of the file in the rest.
        if start < self.from && start < self.size {
            self.old(t, &mut buf, start, low)?;
        }
        let tail = high.saturating_sub(1);
        if stop > self.end && self.size > self.end && (tail != low || start >= self.from) {
            self.old(t, &mut buf, start, tail)?;
        }
        let skip = usize::try_from(self.from.saturating_sub(self.offset)).map_err(|_| Error::Invalid)?;
        let till = usize::try_from(self.end.saturating_sub(self.offset)).map_err(|_| Error::Invalid)?;
        read::copy(&mut buf, start, self.data.get(skip..till).unwrap_or(&[]), self.from);
        Ok(mem::push(&mut plan.runs, Run { file_block: low, blocks: high.saturating_sub(low), buf, place })?)
    }

    fn old(&self, t: &Txn<'_>, buf: &mut Buf, start: u64, block: u64) -> Step<()> {
        if let Some(bytes) = read::block(t, self.ino, block)? {
            read::copy(buf, start, bytes, block.saturating_mul(B));
        }
        Ok(())
    }
}

/// Maps what the engine has placed.
#[inline(never)]
pub fn place(t: &mut Txn<'_>, ino: Ino, i: &mut Inode, plan: &Plan, placed: &[Placement]) -> Step<()> {
    for p in placed {
        // In place: the engine wrote where the plan said, into space that the file has already.
        let in_place = plan.runs.iter().any(|r| {
            let n = p.file_block.wrapping_sub(r.file_block);
            r.place != 0 && n < r.blocks && r.place.saturating_add(n) == p.addr
        });
        let piece = Piece {
            block: p.file_block,
            addr: p.addr,
            blocks: u64::from(p.blocks),
            crcs: &p.crcs,
            in_place: in_place && !p.crcs.is_empty(),
        };
        extent::map(t, ino, i, &piece)?;
    }
    Ok(())
}

/// Marks that the contents changed: times, and an embedding no longer fits.
pub fn contents_changed(t: &Txn<'_>, i: &mut Inode) {
    inode::touch_contents(t, i);
    if i.flags & inode_flags::EMBEDDED != 0 {
        i.flags |= inode_flags::STALE;
    }
}

/// A write as the driver asked for it.
pub struct Request<'a> {
    /// Where.
    pub offset: u64,
    /// What.
    pub data: &'a [u8],
    /// Clear the set-id bits.
    pub kill_suid: bool,
    /// When it happened, if not now.
    pub times: Option<WriteTimes>,
}

/// Carries a planned step of a write out.
#[inline(never)]
pub fn commit(
    t: &mut Txn<'_>,
    ino: Ino,
    i: &mut Inode,
    w: &Request<'_>,
    p: &mut Progress,
    plan: &Plan,
    placed: &[Placement],
) -> Step<Outcome> {
    let goal = total(w.offset, w.data);
    if goal > 0 {
        place(t, ino, i, plan, placed)?;
        i.size = i.size.max(w.offset.saturating_add(plan.next.done));
        settle(i);
        contents_changed(t, i);
        if let Some(at) = w.times {
            inode::set_mtime(i, at.mtime);
            inode::set_ctime(i, at.ctime);
        }
        if w.kill_suid {
            i.mode = setattr::killed(i.mode);
        }
        inode::put(t, ino, i)?;
    }
    *p = plan.next;
    if p.done >= goal {
        Ok(Outcome::Done(Reply::Written(usize::try_from(p.done).unwrap_or(usize::MAX))))
    } else {
        Ok(Outcome::More)
    }
}
