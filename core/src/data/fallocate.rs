// SPDX-License-Identifier: GPL-2.0-only
//! Fallocate: preallocation, punching holes, zeroing ranges. Zeroing is punching and allocating anew: a block that
//! was written is not turned back into an unwritten one, because a later write into it would overwrite
//! bytes that the last checkpoint may still need.

use super::extent::{self, Walk};
use super::truncate::zeroed;
use super::write::{contents_changed, place};
use super::{incomplete, settle, Placement, Plan, B, SIZE_MAX};
use crate::error::{Error, Need, Step, Stop};
use crate::format::{Inode, BLOCK};
use crate::mem;
use crate::ns::inode;
use crate::op::{Ino, Reply, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE};
use crate::txn::{Outcome, Progress, Txn};

/// Blocks that one step allocates. If every block were a run of its own, their items would still fit a transaction.
const STEP_RESERVE: u64 = 8192;
/// Holes that one step fills.
const STEP_HOLES: usize = 256;
/// Extents that one step looks at or deletes.
const STEP_EXTENTS: usize = 200;

/// `Progress::extra`: the range has been punched, now it is allocated.
const ALLOCATING: u64 = 1;

/// A request, checked.
#[derive(Clone, Copy)]
pub struct Range {
    offset: u64,
    end: u64,
    keep_size: bool,
    /// Take away what is there.
    cut: bool,
    /// Allocate what is not there.
    fill: bool,
}

impl Range {
    /// Checks a request.
    pub fn check(mode: u32, offset: u64, len: u64) -> Result<Range, Error> {
        let keep_size = mode & FALLOC_KEEP_SIZE != 0;
        let (cut, fill) = match mode & !FALLOC_KEEP_SIZE {
            0 => (false, true),
            FALLOC_PUNCH_HOLE if keep_size => (true, false),
            FALLOC_ZERO_RANGE => (true, true),
            _ => return Err(Error::NotSupported),
        };
        if len == 0 {
            return Err(Error::Invalid);
        }
        let end = offset.checked_add(len).filter(|end| *end <= SIZE_MAX).ok_or(Error::FileTooBig)?;
        Ok(Range { offset, end, keep_size, cut, fill })
    }

    /// The blocks that lie in it as a whole.
    fn whole(&self) -> (u64, u64) {
        (self.offset.div_ceil(B), self.end / B)
    }

    /// The blocks that it touches.
    fn touched(&self) -> (u64, u64) {
        (self.offset / B, self.end.div_ceil(B))
    }

    fn cutting(&self, p: &Progress) -> bool {
        self.cut && p.extra != ALLOCATING
    }
}

/// Plans the next step.
#[inline(never)]
pub fn prepare(t: &Txn<'_>, ino: Ino, i: &Inode, r: &Range, p: &Progress) -> Step<Plan> {
    let mut plan = Plan { next: *p, ..Plan::default() };
    if r.cutting(p) {
        if p.pos == 0 {
            edges(t, ino, r, &mut plan)?;
        }
        return Ok(plan);
    }
    // Reserved space reads as zeros; where a repair lost contents there is no telling which hole was always one.
    if !r.cut && incomplete(i) {
        return Err(Stop::Fail(Error::Corrupt));
    }
    let (first, last) = r.touched();
    if p.pos == 0 {
        let missing = last.saturating_sub(first).saturating_sub(i.blocks);
        if missing > t.info().blocks {
            return Err(Stop::Fail(Error::NoSpace));
        }
        if missing > t.info().available {
            // Rather nothing than a disk filled up in vain.
            return Err(Stop::Need(Need::Space));
        }
    }
    let mut at = first.max(p.pos);
    let mut room = STEP_RESERVE;
    let mut walk = Walk::new(ino, at, last);
    let mut looks = 0;
    while at < last && room > 0 && looks < STEP_EXTENTS && plan.reserve.len() < STEP_HOLES {
        let (hole_end, next) = match walk.next(t)? {
            Some((e, _)) => (e.start.max(at), e.end().min(last)),
            None => (last, last),
        };
        let n = hole_end.saturating_sub(at).min(room);
        if n > 0 {
            let blocks = u32::try_from(n).map_err(|_| Error::Invalid)?;
            mem::push(&mut plan.reserve, (at, blocks))?;
        }
        room = room.saturating_sub(n);
        at = at.saturating_add(n);
        if at < hole_end {
            break;
        }
        at = next;
        looks = looks.wrapping_add(1);
    }
    plan.next.pos = at;
    Ok(plan)
}

/// Rewrites the blocks at the edges of the range that it covers in part.
#[inline(never)]
fn edges(t: &Txn<'_>, ino: Ino, r: &Range, plan: &mut Plan) -> Step<()> {
    let (head, tail) = (r.offset / B, r.end / B);
    let ragged = |at: u64| usize::try_from(at % B).map_err(|_| Error::Invalid);
    let (from, to) = (ragged(r.offset)?, ragged(r.end)?);
    let mut add = |block: u64, from: usize, to: usize| -> Step<()> {
        if let Some(run) = zeroed(t, ino, block, from, to)? {
            mem::push(&mut plan.runs, run)?;
        }
        Ok(())
    };
    if head == tail {
        return add(head, from, to);
    }
    if from != 0 {
        add(head, from, BLOCK)?;
    }
    if to != 0 {
        add(tail, 0, to)?;
    }
    Ok(())
}

/// Carries a planned step out.
#[inline(never)]
pub fn commit(
    t: &mut Txn<'_>,
    ino: Ino,
    i: &mut Inode,
    r: &Range,
    p: &mut Progress,
    plan: &Plan,
    placed: &[Placement],
) -> Step<Outcome> {
    place(t, ino, i, plan, placed)?;
    let done = if r.cutting(p) {
        let (first, last) = r.whole();
        let mut budget = STEP_EXTENTS;
        let cut = extent::unmap(t, ino, first, last, &mut budget, None)?;
        i.blocks = i.blocks.saturating_sub(cut.freed);
        contents_changed(t, i);
        *p = match (cut.done, r.fill) {
            (true, true) => Progress { pos: 0, extra: ALLOCATING, ..*p },
            _ => Progress { pos: 1, ..*p },
        };
        cut.done && !r.fill
    } else {
        *p = plan.next;
        let done = p.pos >= r.touched().1;
        if done && !r.keep_size && r.end > i.size {
            i.size = r.end;
            contents_changed(t, i);
        } else {
            inode::touch_contents(t, i);
        }
        done
    };
    settle(i);
    inode::put(t, ino, i)?;
    Ok(if done { Outcome::Done(Reply::Done) } else { Outcome::More })
}
