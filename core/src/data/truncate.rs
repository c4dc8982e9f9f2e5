// SPDX-License-Identifier: GPL-2.0-only
//! Changes of the size, and the freeing in steps of what a big one leaves behind.

use super::extent;
use super::write::{contents_changed, place};
use super::{read, settle, Placement, Plan, Run, B, SIZE_MAX};
use crate::error::{Error, Step, Stop};
use crate::format::{kind, Inode, Key, Trim, BLOCK, TRIM_COLLECTION};
use crate::mem::{self, Buf};
use crate::ns::{inode, is_orphan, setattr};
use crate::op::{Ino, Reply, SetAttr};
use crate::txn::{Outcome, Progress, Txn};

/// Extents that a truncate frees itself; more are left to a trim.
const DIRECT_EXTENTS: usize = 64;
/// Items that one step of a trim deletes.
const STEP_ITEMS: usize = 200;

fn trim_key(ino: Ino) -> Key {
    Key::new(0, kind::TRIM, ino)
}

/// The first file block that waits to be trimmed, if a trim of file data is pending.
pub fn pending(t: &Txn<'_>, ino: Ino) -> Step<Option<u64>> {
    match t.get(&trim_key(ino))? {
        None => Ok(None),
        Some(v) => {
            let from = Trim::parse(v).ok_or(Error::Corrupt)?.from;
            Ok(Some(from).filter(|f| *f != TRIM_COLLECTION))
        }
    }
}

/// Frees the extents from the file block `from` on, at most `budget` items. Whether all is freed, and how many blocks.
pub fn free_from(t: &mut Txn<'_>, ino: Ino, from: u64, budget: &mut usize) -> Step<(bool, u64)> {
    let cut = extent::unmap(t, ino, from, u64::MAX, budget, None)?;
    Ok((cut.done, cut.freed))
}

/// Takes the TRIM item away.
pub fn drop_trim(t: &mut Txn<'_>, ino: Ino) -> Step<()> {
    if pending(t, ino)?.is_some() {
        t.del(trim_key(ino))?;
    }
    Ok(())
}

/// The block `block` with zeros from `from` up to but without `to`; nothing if it reads so already.
#[inline(never)]
pub fn zeroed(t: &Txn<'_>, ino: Ino, block: u64, from: usize, to: usize) -> Step<Option<Run>> {
    let Some(old) = read::block(t, ino, block)? else { return Ok(None) };
    if old.get(from..to).unwrap_or(&[]).iter().all(|b| *b == 0) {
        return Ok(None);
    }
    let mut buf = Buf::padded(old)?;
    for b in buf.get_mut(from..to).unwrap_or(&mut []) {
        *b = 0;
    }
    Ok(Some(Run { file_block: block, blocks: 1, buf, place: 0 }))
}

/// Plans a change of the size: what the last block held beyond the new end has to go, so that a file that
/// grows later shows zeros.
#[inline(never)]
pub fn prepare(t: &Txn<'_>, ino: Ino, i: &Inode, size: u64) -> Step<Plan> {
    let mut plan = Plan::default();
    if size > SIZE_MAX {
        return Err(Stop::Fail(Error::FileTooBig));
    }
    let ragged = usize::try_from(size % B).map_err(|_| Error::Invalid)?;
    if size < i.size && ragged != 0 {
        if let Some(run) = zeroed(t, ino, size / B, ragged, BLOCK)? {
            mem::push(&mut plan.runs, run)?;
        }
    }
    Ok(plan)
}

/// Carries a planned SetAttr with the size `size` out.
#[inline(never)]
pub fn commit(
    t: &mut Txn<'_>,
    ino: Ino,
    i: &mut Inode,
    set: &SetAttr,
    size: u64,
    plan: &Plan,
    placed: &[Placement],
) -> Step<Outcome> {
    place(t, ino, i, plan, placed)?;
    let mut trimmed = true;
    if size < i.size {
        let from = size.div_ceil(B);
        let mut budget = DIRECT_EXTENTS;
        let (done, freed) = free_from(t, ino, from, &mut budget)?;
        i.blocks = i.blocks.saturating_sub(freed);
        trimmed = done;
        if !done {
            let mut v = [0u8; Trim::SIZE];
            Trim { from }.emit(&mut v).ok_or(Error::Corrupt)?;
            t.put(trim_key(ino), &v)?;
            mem::push(&mut t.changes_mut().trims, ino)?;
        }
    }
    if size != i.size {
        contents_changed(t, i);
    } else {
        // As ext4 and XFS do for ftruncate: the times change though the size does not.
        inode::touch_contents(t, i);
    }
    i.size = size;
    if trimmed {
        settle(i);
    }
    setattr::apply(t, ino, i, set)?;
    inode::put(t, ino, i)?;
    Ok(Outcome::Done(Reply::Attr(inode::attr(ino, i))))
}

/// One step of freeing what waits behind the end of a file. True when nothing is left.
#[inline(never)]
pub fn step(t: &mut Txn<'_>, ino: Ino, from: u64) -> Step<bool> {
    let mut i = inode::get(t, ino)?;
    let mut budget = STEP_ITEMS;
    let (done, freed) = free_from(t, ino, from, &mut budget)?;
    if freed > 0 {
        i.blocks = i.blocks.saturating_sub(freed);
        inode::put(t, ino, &i)?;
    }
    if done {
        t.del(trim_key(ino))?;
    }
    Ok(done)
}

/// One step of freeing what a truncate or the death of an inode left behind.
#[inline(never)]
pub fn trim(t: &mut Txn<'_>, ino: Ino, p: &mut Progress) -> Step<Outcome> {
    if let Some(v) = t.get(&trim_key(ino))? {
        if Trim::parse(v).ok_or(Error::Corrupt)?.from == TRIM_COLLECTION {
            return match crate::coll::trim(t, ino, p)? {
                // The directory itself may have to go as well: look again.
                Some(Outcome::Done(_) | Outcome::DoneDurable(_)) if is_orphan(t, ino)? => Ok(Outcome::More),
                Some(outcome) => Ok(outcome),
                None => Err(Stop::Fail(Error::Corrupt)),
            };
        }
    }
    let done = if is_orphan(t, ino)? && t.opens(ino) == 0 {
        inode::end(t, ino, STEP_ITEMS)?
    } else {
        match pending(t, ino)? {
            Some(from) => step(t, ino, from)?,
            None => true,
        }
    };
    Ok(if done { Outcome::Done(Reply::Done) } else { Outcome::More })
}
