// SPDX-License-Identifier: GPL-2.0-only
//! Directories: names, cookies, entries, and the way back from an inode to its names.
//!
//! A cookie is the keyed hash of the name with the low 8 bits replaced by a number that tells equal hashes
//! apart. It never changes, so a readdir position stays valid whatever happens to other entries.

use super::{inode, mode, Name, CONTROL_NAME};
use crate::checksum::siphash;
use crate::error::{Error, Step, Stop};
use crate::format::{kind, Dirent, Key, Link};
use crate::mem;
use crate::op::{DirEntry, Ino, Reply};
use crate::txn::Txn;
use alloc::vec::Vec;

/// Longest name in bytes.
pub const NAME_MAX: usize = 255;
/// Most bytes of entries in one reply.
const READDIR_MAX: usize = 1 << 20;
/// Cookies below this one are never used.
const COOKIE_MIN: u64 = 256;

/// An entry that was found.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its place in the directory.
    pub cookie: u64,
    /// Its inode.
    pub ino: Ino,
    /// Its type as in readdir(3).
    pub dtype: u8,
}

/// Checks a name that is looked up or removed.
pub fn check_name(name: &[u8]) -> Result<(), Error> {
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong);
    }
    if name.is_empty() || name == CONTROL_NAME {
        return Err(Error::NotFound);
    }
    if name == b"." || name == b".." || name.iter().any(|c| *c == b'/' || *c == 0) {
        return Err(Error::Invalid);
    }
    Ok(())
}

/// Checks a name that is to be made.
pub fn check_new(name: &[u8]) -> Result<(), Error> {
    if name == CONTROL_NAME || name == b"." || name == b".." {
        return Err(Error::Exists);
    }
    check_name(name)
}

/// The lowest cookie that `name` can have.
fn bucket(t: &Txn<'_>, name: &[u8]) -> u64 {
    let c = siphash(&t.info().hash_key, name) & 0x7fff_ffff_ffff_ff00;
    c.max(COOKIE_MIN)
}

fn parse(value: &[u8]) -> Result<(Dirent, &[u8]), Error> {
    let d = Dirent::parse(value).ok_or(Error::Corrupt)?;
    let name = value.get(Dirent::SIZE..).unwrap_or(&[]);
    if name.is_empty() || name.len() != usize::from(d.name_len) || name.len() > NAME_MAX || d.ino == 0 {
        return Err(Error::Corrupt);
    }
    Ok((d, name))
}

/// The entry `name` of `dir`.
pub fn find(t: &Txn<'_>, dir: Ino, name: &[u8]) -> Step<Option<Entry>> {
    let low = bucket(t, name);
    let to = Key::new(dir, kind::DIRENT, low | 255);
    let mut from = Key::new(dir, kind::DIRENT, low);
    while let Some((k, v)) = t.next(&from, &to)? {
        let (d, n) = parse(v)?;
        if n == name {
            return Ok(Some(Entry { cookie: k.offset, ino: d.ino, dtype: d.dtype }));
        }
        from = Key::new(dir, kind::DIRENT, k.offset.wrapping_add(1));
    }
    Ok(None)
}

/// The entry `name` of `dir`, which has to exist.
pub fn need(t: &Txn<'_>, dir: Ino, name: &[u8]) -> Step<Entry> {
    check_name(name)?;
    Ok(find(t, dir, name)?.ok_or(Error::NotFound)?)
}

/// A free cookie for the new name `name`.
pub fn free_cookie(t: &Txn<'_>, dir: Ino, name: &[u8]) -> Step<u64> {
    let low = bucket(t, name);
    let to = Key::new(dir, kind::DIRENT, low | 255);
    let mut free = low;
    while let Some((k, _)) = t.next(&Key::new(dir, kind::DIRENT, free), &to)? {
        if k.offset != free {
            break;
        }
        if free == low | 255 {
            return Err(Stop::Fail(Error::NoSpace));
        }
        free = free.wrapping_add(1);
    }
    Ok(free)
}

fn link_key(dir: Ino, cookie: u64, ino: Ino) -> Key {
    Key::new(ino, kind::LINK, dir).piece(cookie)
}

/// Puts the entry `name` -> `ino` at `cookie`, and the way back.
pub fn put(t: &mut Txn<'_>, dir: Ino, cookie: u64, name: &[u8], ino: Ino, dtype: u8) -> Step<()> {
    let name_len = u16::try_from(name.len()).map_err(|_| Error::NameTooLong)?;
    put_value(t, Key::new(dir, kind::DIRENT, cookie), name, |b| {
        Dirent { ino, dtype, reserved: 0, name_len }.emit(b).map(|()| Dirent::SIZE)
    })?;
    put_value(t, link_key(dir, cookie, ino), name, |b| Link { name_len, reserved: 0 }.emit(b).map(|()| Link::SIZE))
}

#[inline(never)]
fn put_value(t: &mut Txn<'_>, key: Key, name: &[u8], head: impl Fn(&mut [u8]) -> Option<usize>) -> Step<()> {
    let mut b = [0u8; Dirent::SIZE + NAME_MAX];
    let start = head(&mut b).ok_or(Error::Corrupt)?;
    let end = start.saturating_add(name.len());
    b.get_mut(start..end).ok_or(Error::NameTooLong)?.copy_from_slice(name);
    t.put(key, b.get(..end).unwrap_or(&[]))
}

/// Takes the entry at `cookie` away, and the way back.
pub fn del(t: &mut Txn<'_>, dir: Ino, e: &Entry) -> Step<()> {
    t.del(Key::new(dir, kind::DIRENT, e.cookie))?;
    t.del(link_key(dir, e.cookie, e.ino))
}

/// Takes the way back from `e.ino` to the entry away, but not the entry: another inode gets it.
pub fn del_link(t: &mut Txn<'_>, dir: Ino, e: &Entry) -> Step<()> {
    t.del(link_key(dir, e.cookie, e.ino))
}

/// Whether `dir` has no entry.
pub fn is_empty(t: &Txn<'_>, dir: Ino) -> Step<bool> {
    Ok(t.next(&Key::first(dir, kind::DIRENT), &Key::last(dir, kind::DIRENT))?.is_none())
}

/// Whether `ino` has a name in `dir`.
pub fn is_linked(t: &Txn<'_>, dir: Ino, ino: Ino) -> Step<bool> {
    Ok(t.next(&link_key(dir, 0, ino), &link_key(dir, u64::MAX, ino))?.is_some())
}

/// The names of `ino` (in the directory `dir` only, if given), at most `max`.
pub fn names(t: &Txn<'_>, ino: Ino, dir: Option<Ino>, max: usize) -> Step<Vec<Name>> {
    let (mut from, to) = match dir {
        Some(d) => (link_key(d, 0, ino), link_key(d, u64::MAX, ino)),
        None => (Key::first(ino, kind::LINK), Key::last(ino, kind::LINK)),
    };
    let mut v = Vec::new();
    while v.len() < max {
        let Some((k, b)) = t.next(&from, &to)? else { break };
        let head = Link::parse(b).ok_or(Error::Corrupt)?;
        let name = b.get(Link::SIZE..).unwrap_or(&[]);
        if name.len() != usize::from(head.name_len) || name.len() > NAME_MAX {
            return Err(Stop::Fail(Error::Corrupt));
        }
        mem::push(&mut v, Name { dir: k.offset, name: mem::to_vec(name)? })?;
        match k.next() {
            Some(n) => from = n,
            None => break,
        }
    }
    Ok(v)
}

/// Answers ReadDir.
#[inline(never)]
pub fn read(t: &Txn<'_>, dir: Ino, cookie: u64, max: usize, attrs: bool) -> Step<Reply> {
    inode::dir(t, dir)?;
    let mut v: Vec<DirEntry> = Vec::new();
    let mut room = max.min(READDIR_MAX);
    let mut at = cookie;
    let to = Key::last(dir, kind::DIRENT);
    while let Some(n) = at.checked_add(1) {
        let Some((k, b)) = t.next(&Key::new(dir, kind::DIRENT, n), &to)? else { break };
        let (d, name) = parse(b)?;
        // The weight of an entry in the kernel's own format: a head of 24 bytes and the name.
        let weight = name.len().saturating_add(24);
        if weight > room && !v.is_empty() {
            break;
        }
        room = room.saturating_sub(weight);
        let name = mem::to_vec(name)?;
        let attr = if attrs { Some(inode::attr_of(t, d.ino, Error::Corrupt)?) } else { None };
        mem::push(&mut v, DirEntry { ino: d.ino, dtype: d.dtype, cookie: k.offset, name, attr })?;
        at = k.offset;
    }
    Ok(Reply::Entries(v))
}

/// Whether the directory `ino` is `dir` or one of its ancestors.
pub fn is_ancestor(t: &Txn<'_>, ino: Ino, dir: Ino) -> Step<bool> {
    let mut at = dir;
    // A path has at most this many directories unless the parents run in a circle, which is damage.
    for _ in 0..1_000_000 {
        if at == ino {
            return Ok(true);
        }
        let i = inode::brief(t, at, Error::Corrupt)?;
        if !mode::is_dir(i.mode) {
            return Err(Stop::Fail(Error::Corrupt));
        }
        // The root is its own parent.
        if i.parent == at {
            return Ok(false);
        }
        at = i.parent;
    }
    Err(Stop::Fail(Error::Corrupt))
}
