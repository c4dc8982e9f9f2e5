// SPDX-License-Identifier: GPL-2.0-only
//! Making and removing names: Make, Symlink, Link, Unlink, Rmdir.

use super::dir::{self, Entry};
use super::inode::Brief;
use super::{acl, inode, mode, pieces, xattr, LINKS_MAX};
use crate::coll::hooks;
use crate::error::{Error, Step, Stop};
use crate::format::{inode_flags, kind, Inode, Key};
use crate::op::{Ino, Reply};
use crate::txn::{Outcome, Txn};

/// Longest target of a symbolic link.
pub const TARGET_MAX: usize = 4095;

/// What a new inode is.
pub struct New {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory gives its own.
    pub gid: u32,
    /// Device number.
    pub rdev: u64,
}

/// Checks that `name` can be made in `dir` and returns the directory.
fn free_name(t: &Txn<'_>, dir: Ino, name: &[u8]) -> Step<Brief> {
    let d = inode::live_dir(t, dir)?;
    dir::check_new(name)?;
    if dir::find(t, dir, name)?.is_some() {
        return Err(Stop::Fail(Error::Exists));
    }
    Ok(d)
}

/// Puts a name for `ino` into `dir` and counts it there.
#[inline(never)]
fn add_name(t: &mut Txn<'_>, dir: Ino, name: &[u8], ino: Ino, mode: u32) -> Step<()> {
    let cookie = dir::free_cookie(t, dir, name)?;
    dir::put(t, dir, cookie, name, ino, mode::dtype(mode))?;
    let is_dir = mode::is_dir(mode);
    edit_dir(t, dir, |d| {
        d.size = d.size.saturating_add(1);
        if is_dir {
            d.nlink = d.nlink.saturating_add(1);
        }
    })
}

/// Changes a directory whose entries have changed.
pub fn edit_dir(t: &mut Txn<'_>, dir: Ino, f: impl FnOnce(&mut Inode)) -> Step<()> {
    let now = t.now;
    inode::edit(t, dir, |d| {
        f(d);
        inode::set_mtime(d, now);
    })
}

/// The owner, group and mode of an inode made in `dir`: a set-group-id directory gives its group on,
/// and to directories the bit as well.
fn owned(t: &Txn<'_>, dir: &Brief, mode: u32, uid: u32, gid: u32) -> Inode {
    if dir.mode & mode::SETGID == 0 {
        return inode::fresh(t, mode, uid, gid);
    }
    let bit = if mode::is_dir(mode) { mode::SETGID } else { 0 };
    inode::fresh(t, mode | bit, uid, dir.gid)
}

/// Makes an inode for the directory `dir`, with one link (a directory: two), and gives its number.
#[inline(never)]
fn born(t: &mut Txn<'_>, dir: Ino, d: &Brief, new: &New, to: &mut Inode) -> Step<Ino> {
    let kind = match new.mode & mode::TYPE {
        0 => mode::REG,
        mode::LNK => return Err(Stop::Fail(Error::Invalid)),
        k if mode::is_type(k) => k,
        _ => return Err(Stop::Fail(Error::Invalid)),
    };
    let mut mode = kind | (new.mode & 0o7777);
    let acls = acl::inherit(t, dir, &mut mode)?;
    let ino = t.new_ino()?;
    *to = owned(t, d, mode, new.uid, new.gid);
    if mode::is_dir(mode) {
        to.nlink = 2;
        to.parent = dir;
    }
    if kind == mode::CHR || kind == mode::BLK {
        to.rdev = new.rdev;
    }
    inode::put(t, ino, to)?;
    if let Some(a) = acls.access {
        xattr::put(t, ino, acl::ACCESS, &a)?;
    }
    if let Some(a) = acls.default {
        xattr::put(t, ino, acl::DEFAULT, &a)?;
    }
    Ok(ino)
}

/// Carries Make out.
#[inline(never)]
pub fn make(t: &mut Txn<'_>, dir: Ino, name: &[u8], new: &New) -> Step<Outcome> {
    let d = free_name(t, dir, name)?;
    let mut i = Inode::default();
    let ino = born(t, dir, &d, new, &mut i)?;
    add_name(t, dir, name, ino, i.mode)?;
    Ok(Outcome::Done(Reply::Attr(inode::attr(ino, &i))))
}

/// Carries Tmpfile out: an orphan from the start, so that a crash leaves nothing of it.
#[inline(never)]
pub fn tmpfile(t: &mut Txn<'_>, dir: Ino, new: &New) -> Step<Outcome> {
    let d = inode::live_dir(t, dir)?;
    if !matches!(new.mode & mode::TYPE, 0 | mode::REG) {
        return Err(Stop::Fail(Error::Invalid));
    }
    let mut i = Inode::default();
    let ino = born(t, dir, &d, new, &mut i)?;
    i.nlink = 0;
    inode::put(t, ino, &i)?;
    inode::put_orphan(t, ino)?;
    t.changes_mut().opened = ino;
    Ok(Outcome::Done(Reply::Attr(inode::attr(ino, &i))))
}

/// Puts a whiteout into `dir`; gives its attributes.
#[inline(never)]
pub fn whiteout(t: &mut Txn<'_>, dir: Ino, name: &[u8]) -> Step<Outcome> {
    let d = inode::get(t, dir)?;
    let ino = t.new_ino()?;
    let i = inode::fresh(t, mode::CHR, d.uid, d.gid);
    inode::put(t, ino, &i)?;
    add_name(t, dir, name, ino, mode::CHR)?;
    Ok(Outcome::Done(Reply::Attr(inode::attr(ino, &i))))
}

/// Makes the root directory.
pub fn root(t: &mut Txn<'_>, uid: u32, gid: u32, mode: u32) -> Step<()> {
    let mut i = inode::fresh(t, mode::DIR | (mode & 0o7777), uid, gid);
    i.nlink = 2;
    i.parent = crate::op::ROOT;
    inode::put(t, crate::op::ROOT, &i)
}

/// Carries Symlink out.
#[inline(never)]
pub fn symlink(t: &mut Txn<'_>, dir: Ino, name: &[u8], target: &[u8], uid: u32, gid: u32) -> Step<Outcome> {
    let d = free_name(t, dir, name)?;
    if target.is_empty() {
        return Err(Stop::Fail(Error::NotFound));
    }
    if target.len() > TARGET_MAX {
        return Err(Stop::Fail(Error::NameTooLong));
    }
    if target.contains(&0) {
        return Err(Stop::Fail(Error::Invalid));
    }
    let ino = t.new_ino()?;
    let mut i = owned(t, &d, mode::LNK | 0o777, uid, gid);
    i.size = target.len() as u64;
    inode::put(t, ino, &i)?;
    pieces::write(t, Key::first(ino, kind::SYMLINK), target)?;
    add_name(t, dir, name, ino, i.mode)?;
    Ok(Outcome::Done(Reply::Attr(inode::attr(ino, &i))))
}

/// Answers ReadLink.
#[inline(never)]
pub fn readlink(t: &Txn<'_>, ino: Ino) -> Step<Reply> {
    let i = inode::get(t, ino)?;
    if !mode::is_lnk(i.mode) {
        return Err(Stop::Fail(Error::Invalid));
    }
    let len = usize::try_from(i.size).ok().filter(|n| *n <= TARGET_MAX).ok_or(Error::Corrupt)?;
    Ok(Reply::Bytes(pieces::read(t, Key::first(ino, kind::SYMLINK), len)?))
}

/// Carries Link out.
#[inline(never)]
pub fn link(t: &mut Txn<'_>, ino: Ino, dir: Ino, name: &[u8]) -> Step<Outcome> {
    let i = inode::brief(t, ino, Error::NotFound)?;
    let d = free_name(t, dir, name)?;
    if mode::is_dir(i.mode) {
        return Err(Stop::Fail(Error::NotPermitted));
    }
    if i.nlink == 0 {
        if t.opens(ino) == 0 {
            return Err(Stop::Fail(Error::NotFound));
        }
        t.del(inode::orphan_key(ino))?;
    }
    if i.nlink >= LINKS_MAX {
        return Err(Stop::Fail(Error::TooManyLinks));
    }
    add_name(t, dir, name, ino, i.mode)?;
    inode::edit(t, ino, |i| i.nlink = i.nlink.saturating_add(1))?;
    name_came(t, (dir, d.flags), (ino, i.flags))?;
    Ok(Outcome::Done(Reply::Attr(inode::attr_of(t, ino, Error::Corrupt)?)))
}

/// Tells the collection `dir` that a file with an embedding has a name there.
/// Both come with their inode flags.
pub fn name_came(t: &mut Txn<'_>, dir: (Ino, u64), child: (Ino, u64)) -> Step<()> {
    if dir.1 & inode_flags::COLLECTION != 0 && child.1 & inode_flags::EMBEDDED != 0 {
        hooks::linked(t, dir.0, child.0)?;
    }
    Ok(())
}

/// Tells the collection `dir` that a file with an embedding lost a name there, if that was its last one.
/// Both come with their inode flags.
pub fn name_went(t: &mut Txn<'_>, dir: (Ino, u64), child: (Ino, u64)) -> Step<()> {
    let concerns = dir.1 & inode_flags::COLLECTION != 0 && child.1 & inode_flags::EMBEDDED != 0;
    if concerns && !dir::is_linked(t, dir.0, child.0)? {
        hooks::unlinked(t, dir.0, child.0)?;
    }
    Ok(())
}

/// Lets `ino` lose one link; a directory loses all. Without links it is buried.
#[inline(never)]
pub fn lose_link(t: &mut Txn<'_>, ino: Ino) -> Step<()> {
    let mut left = 0;
    inode::edit(t, ino, |i| {
        i.nlink = if mode::is_dir(i.mode) { 0 } else { i.nlink.saturating_sub(1) };
        left = i.nlink;
    })?;
    if left == 0 {
        inode::bury(t, ino)?;
    }
    Ok(())
}

/// Checks that the directory `ino` may go, and tells its collection.
pub fn check_rmdir(t: &mut Txn<'_>, ino: Ino, flags: u64) -> Step<()> {
    if !dir::is_empty(t, ino)? {
        return Err(Stop::Fail(Error::NotEmpty));
    }
    if flags & inode_flags::COLLECTION != 0 {
        hooks::dir_removed(t, ino)?;
    }
    Ok(())
}

/// Carries Unlink out.
#[inline(never)]
pub fn unlink(t: &mut Txn<'_>, dir: Ino, name: &[u8]) -> Step<Outcome> {
    let d = inode::dir(t, dir)?;
    let e = dir::need(t, dir, name)?;
    let i = inode::brief(t, e.ino, Error::Corrupt)?;
    if mode::is_dir(i.mode) {
        return Err(Stop::Fail(Error::IsDirectory));
    }
    drop_name(t, dir, &e, false)?;
    name_went(t, (dir, d.flags), (e.ino, i.flags))?;
    lose_link(t, e.ino)?;
    Ok(Outcome::Done(Reply::Done))
}

/// Carries Rmdir out.
#[inline(never)]
pub fn rmdir(t: &mut Txn<'_>, dir: Ino, name: &[u8]) -> Step<Outcome> {
    inode::dir(t, dir)?;
    let e = dir::need(t, dir, name)?;
    let i = inode::brief(t, e.ino, Error::Corrupt)?;
    if !mode::is_dir(i.mode) {
        return Err(Stop::Fail(Error::NotDirectory));
    }
    check_rmdir(t, e.ino, i.flags)?;
    drop_name(t, dir, &e, true)?;
    lose_link(t, e.ino)?;
    Ok(Outcome::Done(Reply::Done))
}

#[inline(never)]
fn drop_name(t: &mut Txn<'_>, dir: Ino, e: &Entry, is_dir: bool) -> Step<()> {
    dir::del(t, dir, e)?;
    edit_dir(t, dir, |d| {
        d.size = d.size.saturating_sub(1);
        if is_dir {
            d.nlink = d.nlink.saturating_sub(1);
        }
    })
}
