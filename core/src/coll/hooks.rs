// SPDX-License-Identifier: GPL-2.0-only
//! What the namespace tells collections, in the transaction that changes a name or an embedding, so
//! that a file and its vector change together or not at all.
//!
//! Each function is called *after* the items that it speaks of (DIRENT, LINK, EMBEDDING, INODE) have
//! been changed in the same transaction. Calling one where nothing is to be done is harmless: a directory
//! that is no collection, an inode without an embedding.

use super::record::{self, file_id, Vector};
use super::schema::{self, Coll};
use crate::dist::{Metric, Norm};
use crate::error::{Error, Step};
use crate::format::{inode_flags, kind, Key};
use crate::ns;
use crate::op::Ino;
use crate::txn::{Txn, TXN_BYTES_MAX};

/// The schema of `dir` if it is a collection. Asks the inode first: it is at hand in every operation on names.
#[inline(never)]
fn collection(t: &Txn, dir: Ino) -> Step<Option<Coll>> {
    if ns::inode(t, dir)?.flags & inode_flags::COLLECTION == 0 {
        return Ok(None);
    }
    let c = schema::load(t, dir)?;
    if c.is_none() {
        return Err(Error::Corrupt.into());
    }
    Ok(c)
}

/// Puts or replaces the record of file `ino` in `c`: with a slot if the collection can search for such a
/// vector, else unindexed. The caller stores `c`.
#[inline(never)]
pub(super) fn put_file(t: &mut Txn, c: &mut Coll, ino: Ino, words: &[u32], norm: Norm) -> Step<()> {
    let metric = schema::metric(&c.schema)?;
    let cosine = metric == Metric::Cosine;
    let fits = words.len() == c.schema.dim as usize && !(cosine && norm.zero);
    let inv_norm = if cosine { norm.inverse } else { 0 };
    let vector = if fits { Some(Vector { words, inv_norm }) } else { None };
    // One change of a file may concern many collections (hard links); it still has to be one transaction.
    let more = if fits { words.len().saturating_mul(4) } else { 0 };
    if t.size().saturating_add(more) > TXN_BYTES_MAX {
        return Err(Error::TooManyLinks.into());
    }
    record::put(t, c, file_id(ino), vector, &[])
}

/// `ino` has a (further) name in `dir`. If `dir` is a collection and `ino` a file with an embedding, its
/// record is put there unless it is there already.
pub fn linked(t: &mut Txn, dir: Ino, ino: Ino) -> Step<()> {
    if ns::inode(t, ino)?.flags & inode_flags::EMBEDDED == 0 {
        return Ok(());
    }
    let Some(mut c) = collection(t, dir)? else { return Ok(()) };
    if record::head(t, dir, file_id(ino))?.is_some() {
        return Ok(());
    }
    let words = ns::embedding(t, ino)?.ok_or(Error::Corrupt)?;
    let norm = t.env().distance.check(&words).map_err(|_| Error::Corrupt)?;
    put_file(t, &mut c, ino, &words, norm)?;
    schema::store(t, &c)
}

/// Removes the record of `ino` in `dir`, if there is one.
fn forget(t: &mut Txn, dir: Ino, ino: Ino) -> Step<()> {
    let Some(mut c) = collection(t, dir)? else { return Ok(()) };
    let Some(old) = record::head(t, dir, file_id(ino))? else { return Ok(()) };
    record::remove(t, &mut c, file_id(ino), &old)?;
    schema::store(t, &c)
}

/// The last name of `ino` in `dir` is gone: so is its record.
pub fn unlinked(t: &mut Txn, dir: Ino, ino: Ino) -> Step<()> {
    forget(t, dir, ino)
}

/// The first directory from `from` on in which `ino` has a name.
fn parent_from(t: &Txn, ino: Ino, from: Ino) -> Step<Option<Ino>> {
    let hit = t.next(&Key::new(ino, kind::LINK, from), &Key::last(ino, kind::LINK))?;
    Ok(hit.map(|(k, _)| k.offset))
}

/// The embedding of `ino` was set or replaced by `words` (f32 bits): puts or replaces its record in every
/// collection that links it. Fails with [`Error::BadVector`] if the values are not acceptable anywhere
/// (NaN, infinity, norm out of range); another dimension, or a zero vector under cosine, is kept unindexed.
/// Fails with [`Error::TooManyLinks`] if the copies for all collections exceed a transaction.
pub fn embedding_set(t: &mut Txn, ino: Ino, words: &[u32]) -> Step<()> {
    let norm = t.env().distance.check(words)?;
    let mut from = 0;
    while let Some(dir) = parent_from(t, ino, from)? {
        if let Some(mut c) = collection(t, dir)? {
            put_file(t, &mut c, ino, words, norm)?;
            schema::store(t, &c)?;
        }
        from = dir.checked_add(1).ok_or(Error::Corrupt)?;
    }
    Ok(())
}

/// The embedding of `ino` was removed: so are its records.
pub fn embedding_removed(t: &mut Txn, ino: Ino) -> Step<()> {
    let mut from = 0;
    while let Some(dir) = parent_from(t, ino, from)? {
        forget(t, dir, ino)?;
        from = dir.checked_add(1).ok_or(Error::Corrupt)?;
    }
    Ok(())
}

/// The directory `dir` is about to go (rmdir, or replaced by rename). Call it for every directory with
/// `inode_flags::COLLECTION`, before its inode is removed. Fails with [`Error::NotEmpty`] while it holds bulk
/// records: they are not listed as names, and removing an empty-looking directory must not destroy them.
pub fn dir_removed(t: &mut Txn, dir: Ino) -> Step<()> {
    let Some(c) = collection(t, dir)? else { return Ok(()) };
    if c.schema.records != 0 {
        return Err(Error::NotEmpty.into());
    }
    schema::unmake(t, dir)
}
