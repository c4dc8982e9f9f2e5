// SPDX-License-Identifier: GPL-2.0-only
//! The embedding of a file: EMBEDDING items and what the inode says about them.

use super::{inode, mode, pieces, EMBEDDING_XATTR_DIM};
use crate::coll::hooks;
use crate::error::{Error, Step, Stop};
use crate::format::{inode_flags, kind, Embedding, Key};
use crate::mem;
use crate::op::Ino;
use crate::txn::Txn;
use alloc::vec::Vec;

/// Largest dimension.
const DIM_MAX: u32 = 65_536;
/// [`Embedding::element`]: f32.
const F32: u32 = 1;

/// The elements of `ino`'s embedding as they are stored: little-endian f32.
#[inline(never)]
pub fn bytes(t: &Txn<'_>, ino: Ino) -> Step<Option<Vec<u8>>> {
    let key = Key::first(ino, kind::EMBEDDING);
    let Some(b) = t.get(&key)? else { return Ok(None) };
    let h = Embedding::parse(b).ok_or(Error::Corrupt)?;
    if h.dim == 0 || h.dim > DIM_MAX || h.element != F32 {
        return Err(Stop::Fail(Error::Corrupt));
    }
    let len = (h.dim as usize).saturating_mul(4);
    let mut v = pieces::read(t, key, len.saturating_add(Embedding::SIZE))?;
    mem::cut_front(&mut v, Embedding::SIZE);
    v.truncate(len);
    Ok(Some(v))
}

fn to_words(bytes: &[u8]) -> Step<Vec<u32>> {
    let mut w = Vec::new();
    mem::reserve(&mut w, bytes.len() / 4)?;
    for b in bytes.chunks_exact(4) {
        mem::push(&mut w, u32::from_le_bytes(b.try_into().unwrap_or([0; 4])))?;
    }
    Ok(w)
}

/// The embedding of `ino` as f32 bits.
pub fn get(t: &Txn<'_>, ino: Ino) -> Step<Option<Vec<u32>>> {
    match bytes(t, ino)? {
        Some(b) => Ok(Some(to_words(&b)?)),
        None => Ok(None),
    }
}

/// The elements that a value of the extended attribute holds.
pub fn words(value: &[u8]) -> Step<Vec<u32>> {
    if value.is_empty() || value.len() % 4 != 0 {
        return Err(Stop::Fail(Error::Invalid));
    }
    if value.len() / 4 > EMBEDDING_XATTR_DIM as usize {
        return Err(Stop::Fail(Error::Range));
    }
    to_words(value)
}

fn clear(t: &mut Txn<'_>, ino: Ino) -> Step<()> {
    let (from, to) = (Key::first(ino, kind::EMBEDDING), Key::last(ino, kind::EMBEDDING));
    pieces::remove_all(t, from, to)
}

/// Puts the embedding of the regular file `ino`: items, flags, ctime, and through [`hooks`] its records.
#[inline(never)]
pub fn set(t: &mut Txn<'_>, ino: Ino, words: &[u32]) -> Step<()> {
    let mut i = inode::get(t, ino)?;
    if !mode::is_reg(i.mode) {
        return Err(Stop::Fail(Error::NotSupported));
    }
    let dim = u32::try_from(words.len()).unwrap_or(u32::MAX);
    if dim == 0 || dim > DIM_MAX {
        return Err(Stop::Fail(Error::WrongDimension));
    }
    clear(t, ino)?;
    let mut v = mem::filled(Embedding::SIZE, 0)?;
    mem::reserve(&mut v, words.len().saturating_mul(4))?;
    Embedding { dim, element: F32, reserved: 0 }.emit(&mut v).ok_or(Error::Corrupt)?;
    for w in words {
        mem::extend(&mut v, &w.to_le_bytes())?;
    }
    pieces::write(t, Key::first(ino, kind::EMBEDDING), &v)?;
    i.flags = (i.flags | inode_flags::EMBEDDED) & !inode_flags::STALE;
    i.embed_dim = dim;
    inode::touch(t, &mut i);
    inode::put(t, ino, &i)?;
    hooks::embedding_set(t, ino, words)
}

/// Takes the embedding of `ino` away, records included.
#[inline(never)]
pub fn remove(t: &mut Txn<'_>, ino: Ino) -> Step<()> {
    let mut i = inode::get(t, ino)?;
    if i.flags & inode_flags::EMBEDDED == 0 {
        return Err(Stop::Fail(Error::NoAttribute));
    }
    clear(t, ino)?;
    i.flags &= !(inode_flags::EMBEDDED | inode_flags::STALE);
    i.embed_dim = 0;
    inode::touch(t, &mut i);
    inode::put(t, ino, &i)?;
    hooks::embedding_removed(t, ino)
}
