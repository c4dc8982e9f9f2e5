// SPDX-License-Identifier: GPL-2.0-only
//! The namespace: inodes, names, attributes, permissions. Owns the items INODE, SYMLINK, XATTR,
//! EMBEDDING, LINK, DIRENT and ORPHAN; promises that every name has its way back (LINK), that link and entry
//! counts are exact, and that a change of names is one transaction.
//!
//! Replies: `Reply::Attr` for Lookup, GetAttr, ByHandle, Make, Symlink, Tmpfile, Link, SetAttr and a Rename that
//! leaves a whiteout; `Reply::Bytes` for ReadLink, GetXattr and ListXattr (names, each followed by NUL);
//! `Reply::Entries` for ReadDir; `Reply::Ino` for Parent; else `Reply::Done`.

mod acl;
mod dir;
mod embed;
pub(crate) mod inode;
mod make;
pub mod mode;
pub mod perm;
mod pieces;
mod rename;
pub(crate) mod setattr;
mod xattr;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use crate::error::{Error, Step, Stop};
use crate::format::Inode;
use crate::op::{Attr, Ino, Op, Reply};
use crate::txn::{Outcome, Progress, Txn};
use alloc::vec::Vec;

/// Name of the control file: it belongs to the driver, no entry may have it.
pub const CONTROL_NAME: &[u8] = b".vexfs";
/// The extended attribute that shows a file's embedding.
pub const EMBEDDING_XATTR: &[u8] = b"user.vexfs.embedding";
/// Largest dimension that goes through [`EMBEDDING_XATTR`] (Linux allows 65536 bytes).
pub const EMBEDDING_XATTR_DIM: u32 = 16_384;
/// Most hard links of a file.
pub const LINKS_MAX: u32 = 65_000;

/// One name of an inode.
#[derive(Debug)]
pub struct Name {
    /// The directory.
    pub dir: Ino,
    /// The name in it.
    pub name: Vec<u8>,
}

/// Answers the reads of names and attributes: all read operations but Read, Seek, Extents, StatFs and Query.
pub fn read(t: &Txn<'_>, op: &Op) -> Step<Reply> {
    match op {
        Op::Lookup { dir, name } => {
            inode::dir(t, *dir)?;
            let e = dir::need(t, *dir, name)?;
            Ok(Reply::Attr(inode::attr_of(t, e.ino, Error::Corrupt)?))
        }
        Op::GetAttr { ino } => Ok(Reply::Attr(inode::attr_of(t, *ino, Error::NotFound)?)),
        Op::ByHandle { ino, generation } => {
            let a = inode::attr_of(t, *ino, Error::Stale)?;
            if a.generation != *generation || (a.nlink == 0 && t.opens(*ino) == 0) {
                return Err(Stop::Fail(Error::Stale));
            }
            Ok(Reply::Attr(a))
        }
        Op::ReadLink { ino } => make::readlink(t, *ino),
        Op::ReadDir { dir, cookie, max, attrs } => dir::read(t, *dir, *cookie, *max, *attrs),
        Op::Parent { dir } => Ok(Reply::Ino(inode::dir(t, *dir)?.parent)),
        Op::GetXattr { ino, name } => xattr::get(t, *ino, name),
        Op::ListXattr { ino } => xattr::list(t, *ino),
        _ => Err(Stop::Fail(Error::Invalid)),
    }
}

/// Carries out Make, Symlink, Tmpfile, Link, Unlink, Rmdir, Rename, SetAttr (without a size), SetXattr, RemoveXattr and
/// Release (to be called when the last open ended: an inode without names goes). Each takes one step.
pub fn step(t: &mut Txn<'_>, op: &Op, _p: &mut Progress) -> Step<Outcome> {
    match op {
        Op::Make { dir, name, mode, uid, gid, rdev } => {
            make::make(t, *dir, name, &make::New { mode: *mode, uid: *uid, gid: *gid, rdev: *rdev })
        }
        Op::Symlink { dir, name, target, uid, gid } => make::symlink(t, *dir, name, target, *uid, *gid),
        Op::Tmpfile { dir, mode, uid, gid } => {
            make::tmpfile(t, *dir, &make::New { mode: *mode, uid: *uid, gid: *gid, rdev: 0 })
        }
        Op::Link { ino, dir, name } => make::link(t, *ino, *dir, name),
        Op::Unlink { dir, name } => make::unlink(t, *dir, name),
        Op::Rmdir { dir, name } => make::rmdir(t, *dir, name),
        Op::Rename { dir, name, new_dir, new_name, flags } => {
            rename::rename(t, (*dir, name), (*new_dir, new_name), *flags)
        }
        Op::SetAttr { ino, set } => setattr::set(t, *ino, set),
        Op::SetXattr { ino, name, value, flags } => xattr::set(t, *ino, name, value, *flags),
        Op::RemoveXattr { ino, name } => xattr::remove(t, *ino, name),
        Op::Release { ino } => {
            if is_orphan(t, *ino)? {
                inode::reap(t, *ino)?;
            }
            Ok(Outcome::Done(Reply::Done))
        }
        _ => Err(Stop::Fail(Error::Invalid)),
    }
}

/// Makes the root directory, for mkfs. Takes no number from the counter: mkfs starts it behind [`crate::op::ROOT`].
pub fn mkroot(t: &mut Txn<'_>, uid: u32, gid: u32, mode: u32) -> Step<()> {
    make::root(t, uid, gid, mode)
}

/// The inode `ino`; [`Error::NotFound`] if there is none.
pub fn inode(t: &Txn<'_>, ino: Ino) -> Step<Inode> {
    inode::get(t, ino)
}

/// Puts the inode `ino` as it is.
pub fn put_inode(t: &mut Txn<'_>, ino: Ino, inode: &Inode) -> Step<()> {
    inode::put(t, ino, inode)
}

/// Marks a change of the inode itself: ctime is now, `change` counts on.
pub fn touch(t: &Txn<'_>, inode: &mut Inode) {
    inode::touch(t, inode);
}

/// The attributes that stat(2) shows.
pub fn attr(ino: Ino, inode: &Inode) -> Attr {
    inode::attr(ino, inode)
}

/// Whether `ino` has lost its last name and is kept only because it is open, or goes right now.
pub fn is_orphan(t: &Txn<'_>, ino: Ino) -> Step<bool> {
    Ok(t.get(&inode::orphan_key(ino))?.is_some())
}

/// The embedding of `ino` as f32 bits.
pub fn embedding(t: &Txn<'_>, ino: Ino) -> Step<Option<Vec<u32>>> {
    embed::get(t, ino)
}

/// Puts the embedding of the regular file `ino`: EMBEDDING items, flags, ctime, and through `coll::hooks` its records.
pub fn set_embedding(t: &mut Txn<'_>, ino: Ino, words: &[u32]) -> Step<()> {
    embed::set(t, ino, words)
}

/// Takes the embedding of `ino` away, records included; [`Error::NoAttribute`] if there is none.
pub fn remove_embedding(t: &mut Txn<'_>, ino: Ino) -> Step<()> {
    embed::remove(t, ino)
}

/// The value of the extended attribute `user.NAME` of `ino` (`name` without the prefix); filters read it.
pub fn user_xattr(t: &Txn<'_>, ino: Ino, name: &[u8]) -> Step<Option<Vec<u8>>> {
    let mut full = crate::mem::to_vec(b"user.".as_slice())?;
    crate::mem::extend(&mut full, name)?;
    xattr::value(t, ino, &full)
}

/// The names of `ino` (in the directory `dir` only, if given), at most `max`.
pub fn names(t: &Txn<'_>, ino: Ino, dir: Option<Ino>, max: usize) -> Step<Vec<Name>> {
    dir::names(t, ino, dir, max)
}

/// Whether `ino` has a name in `dir`.
pub fn is_linked(t: &Txn<'_>, dir: Ino, ino: Ino) -> Step<bool> {
    dir::is_linked(t, dir, ino)
}
