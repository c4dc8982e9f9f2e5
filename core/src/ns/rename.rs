// SPDX-License-Identifier: GPL-2.0-only
//! Rename: moving a name, over another one too, and exchanging two.

use super::dir::{self, Entry};
use super::inode::Brief;
use super::{inode, make, mode};
use crate::error::{Error, Step, Stop};
use crate::op::{Ino, Reply, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT};
use crate::txn::{Outcome, Txn};

/// One end of a rename: a place in a directory and what is there.
struct End<'a> {
    dir: Ino,
    dir_flags: u64,
    name: &'a [u8],
    entry: Entry,
    inode: Brief,
}

impl End<'_> {
    fn is_dir(&self) -> bool {
        mode::is_dir(self.inode.mode)
    }

    /// The directory and its inode flags.
    fn place(&self) -> (Ino, u64) {
        (self.dir, self.dir_flags)
    }

    /// The inode and its flags.
    fn child(&self) -> (Ino, u64) {
        (self.entry.ino, self.inode.flags)
    }
}

/// Carries Rename out.
#[inline(never)]
pub fn rename(t: &mut Txn<'_>, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: u32) -> Step<Outcome> {
    let exchange = flags & RENAME_EXCHANGE != 0;
    let no_replace = flags & RENAME_NOREPLACE != 0;
    let whiteout = flags & RENAME_WHITEOUT != 0;
    let known = RENAME_EXCHANGE | RENAME_NOREPLACE | RENAME_WHITEOUT;
    if flags & !known != 0 || (exchange && (no_replace || whiteout)) {
        return Err(Stop::Fail(Error::Invalid));
    }
    let dir_flags = inode::dir(t, from.0)?.flags;
    let new_flags = inode::live_dir(t, to.0)?.flags;
    let entry = dir::need(t, from.0, from.1)?;
    let inode = inode::brief(t, entry.ino, Error::Corrupt)?;
    let source = End { dir: from.0, dir_flags, name: from.1, entry, inode };
    if exchange {
        dir::check_name(to.1)?;
    } else {
        dir::check_new(to.1)?;
    }
    let found = dir::find(t, to.0, to.1)?;
    if no_replace && found.is_some() {
        return Err(Stop::Fail(Error::Exists));
    }
    if exchange && found.is_none() {
        return Err(Stop::Fail(Error::NotFound));
    }
    if found.is_some_and(|e| e.ino == source.entry.ino) {
        // Two names of one inode: POSIX wants both to stay.
        return Ok(Outcome::Done(Reply::Done));
    }
    let target = match found {
        Some(entry) => {
            let inode = inode::brief(t, entry.ino, Error::Corrupt)?;
            Some(End { dir: to.0, dir_flags: new_flags, name: to.1, entry, inode })
        }
        None => None,
    };
    // A directory must not come to lie in itself.
    if source.is_dir() && from.0 != to.0 && dir::is_ancestor(t, source.entry.ino, to.0)? {
        return Err(Stop::Fail(Error::Invalid));
    }
    match target {
        Some(target) if exchange => swap(t, &source, &target)?,
        target => replace(t, &source, to, new_flags, target.as_ref())?,
    }
    if whiteout {
        return make::whiteout(t, from.0, from.1);
    }
    Ok(Outcome::Done(Reply::Done))
}

/// Moves `source` to `to`, in a directory with these flags; what was there goes.
#[inline(never)]
fn replace(t: &mut Txn<'_>, source: &End<'_>, to: (Ino, &[u8]), new_flags: u64, target: Option<&End<'_>>) -> Step<()> {
    let ino = source.entry.ino;
    let cookie = match target {
        Some(old) => {
            match (source.is_dir(), old.is_dir()) {
                (true, false) => return Err(Stop::Fail(Error::NotDirectory)),
                (false, true) => return Err(Stop::Fail(Error::IsDirectory)),
                (true, true) => make::check_rmdir(t, old.entry.ino, old.inode.flags)?,
                (false, false) => {}
            }
            dir::del_link(t, to.0, &old.entry)?;
            old.entry.cookie
        }
        None => dir::free_cookie(t, to.0, to.1)?,
    };
    dir::del(t, source.dir, &source.entry)?;
    dir::put(t, to.0, cookie, to.1, ino, source.entry.dtype)?;
    let (moves_dir, drops_dir) = (source.is_dir(), target.is_some_and(|o| o.is_dir()));
    make::edit_dir(t, source.dir, |d| {
        d.size = d.size.saturating_sub(1);
        if moves_dir {
            d.nlink = d.nlink.saturating_sub(1);
        }
    })?;
    make::edit_dir(t, to.0, |d| {
        if target.is_none() {
            d.size = d.size.saturating_add(1);
        }
        if moves_dir {
            d.nlink = d.nlink.saturating_add(1);
        }
        if drops_dir {
            d.nlink = d.nlink.saturating_sub(1);
        }
    })?;
    moved(t, ino, to.0)?;
    if source.dir != to.0 {
        make::name_went(t, source.place(), source.child())?;
        make::name_came(t, (to.0, new_flags), source.child())?;
    }
    if let Some(old) = target {
        make::name_went(t, old.place(), old.child())?;
        make::lose_link(t, old.entry.ino)?;
    }
    Ok(())
}

/// Exchanges `a` and `b`.
#[inline(never)]
fn swap(t: &mut Txn<'_>, a: &End<'_>, b: &End<'_>) -> Step<()> {
    let across = a.dir != b.dir;
    if across && b.is_dir() && dir::is_ancestor(t, b.entry.ino, a.dir)? {
        return Err(Stop::Fail(Error::Invalid));
    }
    dir::del_link(t, a.dir, &a.entry)?;
    dir::del_link(t, b.dir, &b.entry)?;
    dir::put(t, a.dir, a.entry.cookie, a.name, b.entry.ino, b.entry.dtype)?;
    dir::put(t, b.dir, b.entry.cookie, b.name, a.entry.ino, a.entry.dtype)?;
    for (here, came, went) in [(a, b, a), (b, a, b)] {
        make::edit_dir(t, here.dir, |d| {
            if across && came.is_dir() {
                d.nlink = d.nlink.saturating_add(1);
            }
            if across && went.is_dir() {
                d.nlink = d.nlink.saturating_sub(1);
            }
        })?;
        moved(t, came.entry.ino, here.dir)?;
    }
    if across {
        for (here, came, went) in [(a, b, a), (b, a, b)] {
            make::name_went(t, here.place(), went.child())?;
            make::name_came(t, here.place(), came.child())?;
        }
    }
    Ok(())
}

/// Marks that `ino` has another name, in `dir`.
#[inline(never)]
fn moved(t: &mut Txn<'_>, ino: Ino, dir: Ino) -> Step<()> {
    inode::edit(t, ino, |i| {
        if mode::is_dir(i.mode) {
            i.parent = dir;
        }
    })
}
