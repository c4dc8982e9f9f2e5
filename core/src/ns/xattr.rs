// SPDX-License-Identifier: GPL-2.0-only
//! Extended attributes: user., trusted., security. and the two POSIX ACLs. `user.vexfs.embedding` is not
//! stored as an attribute: it is the inode's embedding in another dress.

use super::{acl, embed, inode, mode, pieces, EMBEDDING_XATTR, EMBEDDING_XATTR_DIM};
use crate::checksum::siphash;
use crate::error::{Error, Step, Stop};
use crate::format::{inode_flags, kind, Inode, Key, Xattr};
use crate::mem;
use crate::op::{Ino, Reply, XATTR_CREATE, XATTR_REPLACE};
use crate::txn::{Outcome, Txn};
use alloc::vec::Vec;

/// Longest name.
const NAME_MAX: usize = 255;
/// Longest value, and most bytes of all names of an inode together, each with a NUL (both Linux's limits).
const VALUE_LIMIT: usize = 65_536;
/// Pieces of one attribute: `sub` is collision index << 16 | piece.
const PIECE_BITS: u64 = 16;

fn key(ino: Ino, hash: u64, index: u64) -> Key {
    Key::new(ino, kind::XATTR, hash).piece(index << PIECE_BITS)
}

/// The last key that the attribute with piece 0 at `k` can have.
fn last_piece(k: Key) -> Key {
    k.piece(k.sub | 0xffff)
}

/// Parses piece 0: the name, and the length of the whole value.
fn head(v: &[u8]) -> Result<(&[u8], usize), Error> {
    let h = Xattr::parse(v).ok_or(Error::Corrupt)?;
    let n = usize::from(h.name_len);
    let len = h.value_len as usize;
    if n == 0 || n > NAME_MAX || len > VALUE_LIMIT {
        return Err(Error::Corrupt);
    }
    let name = v.get(Xattr::SIZE..).and_then(|v| v.get(..n)).ok_or(Error::Corrupt)?;
    Ok((name, len))
}

/// Where the attribute `name` of `ino` is, and how long its value is; else the first free place for it.
fn find(t: &Txn<'_>, ino: Ino, name: &[u8]) -> Step<Result<(Key, usize), Key>> {
    let hash = siphash(&t.info().hash_key, name);
    let mut free = key(ino, hash, 0);
    let to = Key::new(ino, kind::XATTR, hash).piece(u64::MAX);
    let mut from = free;
    while let Some((k, v)) = t.next(&from, &to)? {
        if k.sub & 0xffff != 0 {
            return Err(Stop::Fail(Error::Corrupt));
        }
        let (n, len) = head(v)?;
        if n == name {
            return Ok(Ok((k, len)));
        }
        if k.sub == free.sub {
            free = key(ino, hash, (k.sub >> PIECE_BITS).wrapping_add(1));
        }
        match last_piece(k).next() {
            Some(next) => from = next,
            None => break,
        }
    }
    Ok(Err(free))
}

/// The value of the stored attribute `name`, whatever its namespace.
#[inline(never)]
pub fn value(t: &Txn<'_>, ino: Ino, name: &[u8]) -> Step<Option<Vec<u8>>> {
    let Ok((k, len)) = find(t, ino, name)? else { return Ok(None) };
    let skip = Xattr::SIZE.saturating_add(name.len());
    let mut v = pieces::read(t, k, skip.saturating_add(len))?;
    mem::cut_front(&mut v, skip);
    v.truncate(len);
    Ok(Some(v))
}

/// Stores the attribute `name`, replacing an older value.
#[inline(never)]
pub fn put(t: &mut Txn<'_>, ino: Ino, name: &[u8], value: &[u8]) -> Step<()> {
    let k = match find(t, ino, name)? {
        Ok((k, _)) => {
            pieces::remove_all(t, k, last_piece(k))?;
            k
        }
        Err(k) => k,
    };
    let name_len = u16::try_from(name.len()).map_err(|_| Error::Range)?;
    let value_len = u32::try_from(value.len()).map_err(|_| Error::TooBig)?;
    let mut v = mem::filled(Xattr::SIZE, 0)?;
    Xattr { name_len, reserved: 0, value_len }.emit(&mut v).ok_or(Error::Corrupt)?;
    mem::extend(&mut v, name)?;
    mem::extend(&mut v, value)?;
    pieces::write(t, k, &v)
}

/// Takes the stored attribute `name` away. False if there is none.
fn del(t: &mut Txn<'_>, ino: Ino, name: &[u8]) -> Step<bool> {
    let Ok((k, _)) = find(t, ino, name)? else { return Ok(false) };
    pieces::remove_all(t, k, last_piece(k))?;
    Ok(true)
}

/// Calls `f` with every stored name.
fn each(t: &Txn<'_>, ino: Ino, mut f: impl FnMut(&[u8]) -> Step<()>) -> Step<()> {
    let (mut from, to) = (Key::first(ino, kind::XATTR), Key::last(ino, kind::XATTR));
    while let Some((k, v)) = t.next(&from, &to)? {
        f(head(v)?.0)?;
        match last_piece(k).next() {
            Some(next) => from = next,
            None => break,
        }
    }
    Ok(())
}

/// Checks the name of an attribute, and whether an inode of this kind may have it.
fn check(i: &Inode, name: &[u8]) -> Result<(), Error> {
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(Error::Range);
    }
    if name.contains(&0) {
        return Err(Error::Invalid);
    }
    if name == acl::ACCESS || name == acl::DEFAULT {
        return if mode::is_lnk(i.mode) { Err(Error::NotSupported) } else { Ok(()) };
    }
    let has = |prefix: &[u8]| name.starts_with(prefix) && name.len() > prefix.len();
    if has(b"user.") {
        // As in Linux: elsewhere the mode bits do not say who may use them.
        return if mode::is_reg(i.mode) || mode::is_dir(i.mode) { Ok(()) } else { Err(Error::NotPermitted) };
    }
    if has(b"trusted.") || has(b"security.") {
        return Ok(());
    }
    Err(Error::NotSupported)
}

/// Whether [`EMBEDDING_XATTR`] shows the embedding of this inode.
fn shows_embedding(i: &Inode) -> bool {
    i.flags & inode_flags::EMBEDDED != 0 && i.embed_dim <= EMBEDDING_XATTR_DIM
}

/// Answers GetXattr.
#[inline(never)]
pub fn get(t: &Txn<'_>, ino: Ino, name: &[u8]) -> Step<Reply> {
    let i = inode::get(t, ino)?;
    match check(&i, name) {
        // Reading asks less: what cannot be there is not there.
        Err(Error::NotPermitted) => return Err(Stop::Fail(Error::NoAttribute)),
        other => other?,
    }
    if name == EMBEDDING_XATTR {
        if i.flags & inode_flags::EMBEDDED != 0 && i.embed_dim > EMBEDDING_XATTR_DIM {
            return Err(Stop::Fail(Error::Range));
        }
        return Ok(Reply::Bytes(embed::bytes(t, ino)?.ok_or(Error::NoAttribute)?));
    }
    Ok(Reply::Bytes(value(t, ino, name)?.ok_or(Error::NoAttribute)?))
}

/// Answers ListXattr: the names, each followed by NUL.
#[inline(never)]
pub fn list(t: &Txn<'_>, ino: Ino) -> Step<Reply> {
    let i = inode::get(t, ino)?;
    let mut out = Vec::new();
    each(t, ino, |name| {
        if out.len().saturating_add(name.len()) >= VALUE_LIMIT.saturating_mul(2) {
            return Err(Stop::Fail(Error::Corrupt));
        }
        mem::extend(&mut out, name)?;
        Ok(mem::push(&mut out, 0)?)
    })?;
    if shows_embedding(&i) {
        mem::extend(&mut out, EMBEDDING_XATTR)?;
        mem::push(&mut out, 0)?;
    }
    Ok(Reply::Bytes(out))
}

/// Carries SetXattr out.
#[inline(never)]
pub fn set(t: &mut Txn<'_>, ino: Ino, name: &[u8], value: &[u8], flags: u32) -> Step<Outcome> {
    if flags & !(XATTR_CREATE | XATTR_REPLACE) != 0 {
        return Err(Stop::Fail(Error::Invalid));
    }
    let mut i = inode::get(t, ino)?;
    check(&i, name)?;
    if value.len() > VALUE_LIMIT {
        return Err(Stop::Fail(Error::TooBig));
    }
    let there =
        if name == EMBEDDING_XATTR { i.flags & inode_flags::EMBEDDED != 0 } else { find(t, ino, name)?.is_ok() };
    if there && flags & XATTR_CREATE != 0 {
        return Err(Stop::Fail(Error::Exists));
    }
    if !there && flags & XATTR_REPLACE != 0 {
        return Err(Stop::Fail(Error::NoAttribute));
    }
    if name == EMBEDDING_XATTR {
        let words = embed::words(value)?;
        super::set_embedding(t, ino, &words)?;
        return Ok(Outcome::Done(Reply::Done));
    }
    let is_acl = name == acl::ACCESS || name == acl::DEFAULT;
    if is_acl {
        set_acl(t, ino, &mut i, name, value)?;
    } else {
        if !there {
            check_room(t, ino, name)?;
        }
        put(t, ino, name, value)?;
    }
    inode::touch(t, &mut i);
    inode::put(t, ino, &i)?;
    Ok(Outcome::Done(Reply::Done))
}

/// Whether one more name fits the list that listxattr(2) can give.
#[inline(never)]
fn check_room(t: &Txn<'_>, ino: Ino, name: &[u8]) -> Step<()> {
    let mut sum = name.len().saturating_add(EMBEDDING_XATTR.len()).saturating_add(2);
    each(t, ino, |n| {
        sum = sum.saturating_add(n.len()).saturating_add(1);
        Ok(())
    })?;
    if sum > VALUE_LIMIT {
        return Err(Stop::Fail(Error::NoSpace));
    }
    Ok(())
}

/// Sets an ACL; the access ACL also sets the mode, and is not stored if the mode says it all.
#[inline(never)]
fn set_acl(t: &mut Txn<'_>, ino: Ino, i: &mut Inode, name: &[u8], value: &[u8]) -> Step<()> {
    acl::check(value)?;
    if name == acl::DEFAULT {
        if !mode::is_dir(i.mode) {
            // Linux: an empty one may be set anywhere, a real one is refused.
            return if acl::is_empty(value) { Ok(()) } else { Err(Stop::Fail(Error::AccessDenied)) };
        }
        if acl::is_empty(value) {
            del(t, ino, name)?;
            return Ok(());
        }
        return put(t, ino, name, value);
    }
    if acl::is_empty(value) {
        del(t, ino, name)?;
        return Ok(());
    }
    let (bits, more) = acl::mode_of(value);
    i.mode = (i.mode & !0o777) | bits;
    if more {
        put(t, ino, name, value)
    } else {
        del(t, ino, name)?;
        Ok(())
    }
}

/// Carries RemoveXattr out.
#[inline(never)]
pub fn remove(t: &mut Txn<'_>, ino: Ino, name: &[u8]) -> Step<Outcome> {
    let mut i = inode::get(t, ino)?;
    check(&i, name)?;
    if name == EMBEDDING_XATTR {
        super::remove_embedding(t, ino)?;
        return Ok(Outcome::Done(Reply::Done));
    }
    if !del(t, ino, name)? {
        // As in Linux, taking an ACL away that is not there succeeds.
        let acl = name == acl::ACCESS || name == acl::DEFAULT;
        return if acl { Ok(Outcome::Done(Reply::Done)) } else { Err(Stop::Fail(Error::NoAttribute)) };
    }
    inode::touch(t, &mut i);
    inode::put(t, ino, &i)?;
    Ok(Outcome::Done(Reply::Done))
}
