// SPDX-License-Identifier: GPL-2.0-only
//! Inodes: reading, putting, times, and the end of an inode that has lost its last name.

use super::{mode, pieces};
use crate::error::{Error, Step, Stop};
use crate::format::{kind, Inode, Key, Orphan};
use crate::mem;
use crate::op::{Attr, Ino, Time};
use crate::txn::Txn;

/// Items that the operation that removes the last name may delete by itself; a bigger inode is left to a trim.
const DIRECT_ITEMS: usize = 64;

/// Reads the inode `ino` into `i`; false if there is none. Inodes are large for the kernel's stack: this and
/// what is built on it stay functions of their own, so that callers do not collect copies in their frames.
#[inline(never)]
pub fn load(t: &Txn<'_>, ino: Ino, i: &mut Inode) -> Step<bool> {
    match t.get(&Key::first(ino, kind::INODE))? {
        None => Ok(false),
        Some(b) if b.len() == Inode::SIZE => {
            *i = Inode::parse(b).ok_or(Error::Corrupt)?;
            Ok(true)
        }
        Some(_) => Err(Stop::Fail(Error::Corrupt)),
    }
}

/// The inode `ino`; [`Error::NotFound`] if there is none.
#[inline(never)]
pub fn get(t: &Txn<'_>, ino: Ino) -> Step<Inode> {
    let mut i = Inode::default();
    if load(t, ino, &mut i)? {
        Ok(i)
    } else {
        Err(Stop::Fail(Error::NotFound))
    }
}

/// What operations on names have to know of an inode.
#[derive(Clone, Copy, Debug)]
pub struct Brief {
    /// Type and permission bits.
    pub mode: u32,
    /// Group.
    pub gid: u32,
    /// Hard links.
    pub nlink: u32,
    /// [`crate::format::inode_flags`].
    pub flags: u64,
    /// Parent of a directory.
    pub parent: Ino,
}

/// What matters of the inode `ino`; `missing` if there is none.
#[inline(never)]
pub fn brief(t: &Txn<'_>, ino: Ino, missing: Error) -> Step<Brief> {
    let mut i = Inode::default();
    if !load(t, ino, &mut i)? {
        return Err(Stop::Fail(missing));
    }
    Ok(Brief { mode: i.mode, gid: i.gid, nlink: i.nlink, flags: i.flags, parent: i.parent })
}

/// The directory `ino`.
pub fn dir(t: &Txn<'_>, ino: Ino) -> Step<Brief> {
    let i = brief(t, ino, Error::NotFound)?;
    if mode::is_dir(i.mode) {
        Ok(i)
    } else {
        Err(Stop::Fail(Error::NotDirectory))
    }
}

/// The directory `ino`, to make an entry in: one that was removed and is only open takes none.
pub fn live_dir(t: &Txn<'_>, ino: Ino) -> Step<Brief> {
    let i = dir(t, ino)?;
    if i.nlink == 0 {
        return Err(Stop::Fail(Error::NotFound));
    }
    Ok(i)
}

/// Puts the inode `ino` as it is.
#[inline(never)]
pub fn put(t: &mut Txn<'_>, ino: Ino, i: &Inode) -> Step<()> {
    let mut b = [0u8; Inode::SIZE];
    i.emit(&mut b).ok_or(Error::Corrupt)?;
    t.put(Key::first(ino, kind::INODE), &b)
}

/// Changes the inode `ino` with `f` and marks the change.
pub fn edit(t: &mut Txn<'_>, ino: Ino, f: impl FnOnce(&mut Inode)) -> Step<()> {
    let mut i = Inode::default();
    if !load(t, ino, &mut i)? {
        return Err(Stop::Fail(Error::Corrupt));
    }
    f(&mut i);
    touch(t, &mut i);
    put(t, ino, &i)
}

/// The attributes of the inode `ino`; `missing` if there is none.
#[inline(never)]
pub fn attr_of(t: &Txn<'_>, ino: Ino, missing: Error) -> Step<Attr> {
    let mut i = Inode::default();
    if !load(t, ino, &mut i)? {
        return Err(Stop::Fail(missing));
    }
    Ok(attr(ino, &i))
}

/// Marks a change of the inode itself: ctime is now, `change` counts on.
pub fn touch(t: &Txn<'_>, i: &mut Inode) {
    set_ctime(i, t.now);
    i.change = i.change.wrapping_add(1);
}

/// Marks a change of what the inode holds: mtime and all of [`touch`].
pub fn touch_contents(t: &Txn<'_>, i: &mut Inode) {
    set_mtime(i, t.now);
    touch(t, i);
}

/// Sets atime.
pub fn set_atime(i: &mut Inode, t: Time) {
    (i.atime, i.atime_ns) = (t.sec, t.nsec);
}

/// Sets mtime.
pub fn set_mtime(i: &mut Inode, t: Time) {
    (i.mtime, i.mtime_ns) = (t.sec, t.nsec);
}

/// Sets ctime.
pub fn set_ctime(i: &mut Inode, t: Time) {
    (i.ctime, i.ctime_ns) = (t.sec, t.nsec);
}

/// Sets btime.
pub fn set_btime(i: &mut Inode, t: Time) {
    (i.btime, i.btime_ns) = (t.sec, t.nsec);
}

/// An inode that is made now.
#[inline(never)]
pub fn fresh(t: &Txn<'_>, mode: u32, uid: u32, gid: u32) -> Inode {
    let mut i = Inode { mode, uid, gid, nlink: 1, change: 1, generation: t.info().generation, ..Inode::default() };
    set_atime(&mut i, t.now);
    set_mtime(&mut i, t.now);
    set_ctime(&mut i, t.now);
    set_btime(&mut i, t.now);
    i
}

/// The attributes that stat(2) shows.
pub fn attr(ino: Ino, i: &Inode) -> Attr {
    Attr {
        ino,
        mode: i.mode,
        nlink: i.nlink,
        uid: i.uid,
        gid: i.gid,
        rdev: i.rdev,
        size: i.size,
        blocks: i.blocks,
        atime: Time { sec: i.atime, nsec: i.atime_ns },
        mtime: Time { sec: i.mtime, nsec: i.mtime_ns },
        ctime: Time { sec: i.ctime, nsec: i.ctime_ns },
        btime: Time { sec: i.btime, nsec: i.btime_ns },
        generation: i.generation,
        flags: i.flags,
    }
}

/// Key of the ORPHAN item of `ino`.
pub fn orphan_key(ino: Ino) -> Key {
    Key::new(0, kind::ORPHAN, ino)
}

/// Marks `ino` as an inode without a name.
pub fn put_orphan(t: &mut Txn<'_>, ino: Ino) -> Step<()> {
    let mut b = [0u8; Orphan::SIZE];
    Orphan::default().emit(&mut b).ok_or(Error::Corrupt)?;
    t.put(orphan_key(ino), &b)
}

/// `ino` has lost its last name: it becomes an orphan, and goes as soon as nobody has it open.
pub fn bury(t: &mut Txn<'_>, ino: Ino) -> Step<()> {
    put_orphan(t, ino)?;
    reap(t, ino)
}

/// If the orphan `ino` is not open: lets it go, here if it is small, else by a trim.
pub fn reap(t: &mut Txn<'_>, ino: Ino) -> Step<()> {
    if t.opens(ino) == 0 && !end(t, ino, DIRECT_ITEMS)? {
        mem::push(&mut t.changes_mut().trims, ino)?;
    }
    Ok(())
}

/// Removes what belongs to the orphan `ino`, at most `budget` items, and when nothing else is left the inode
/// itself. True when it is gone.
#[inline(never)]
pub fn end(t: &mut Txn<'_>, ino: Ino, mut budget: usize) -> Step<bool> {
    let mut i = Inode::default();
    if !load(t, ino, &mut i)? {
        t.del(orphan_key(ino))?;
        return Ok(true);
    }
    let (done, freed) = crate::data::free_from(t, ino, 0, &mut budget)?;
    if !done {
        i.blocks = i.blocks.saturating_sub(freed);
        put(t, ino, &i)?;
        return Ok(false);
    }
    if mode::is_reg(i.mode) {
        crate::data::drop_trim(t, ino)?;
    }
    for k in [kind::SYMLINK, kind::XATTR, kind::EMBEDDING] {
        if !pieces::remove(t, Key::first(ino, k), Key::last(ino, k), &mut budget)? {
            i.blocks = 0;
            put(t, ino, &i)?;
            return Ok(false);
        }
    }
    t.del(Key::first(ino, kind::INODE))?;
    t.del(orphan_key(ino))?;
    t.end_ino();
    Ok(true)
}
