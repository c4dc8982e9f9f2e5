// SPDX-License-Identifier: GPL-2.0-only
//! Which records a caller may see and which ones match a filter: the decision that searches ask for during
//! traversal, pages of a list for each record, and deletes by filter.

use super::record::{self, file_of};
use super::Refusal;
use crate::error::{Error, Step};
use crate::filter::{Encoded, Filter, Source, Value};
use crate::format::{kind, Key, Record, FILE_ID_BASE};
use crate::ns::{self, perm};
use crate::op::{Cred, Ino};
use crate::txn::Txn;
use alloc::vec::Vec;

/// A file's user xattrs as attributes.
struct Xattrs<'t, 'b> {
    t: &'t Txn<'b>,
    ino: Ino,
    value: Vec<u8>,
}

impl Source for Xattrs<'_, '_> {
    fn attr(&mut self, name: &[u8]) -> Step<Option<Value<'_>>> {
        match ns::user_xattr(self.t, self.ino, name)? {
            None => Ok(None),
            Some(value) => {
                self.value = value;
                Ok(Some(Value::Text(&self.value)))
            }
        }
    }
}

/// Evaluates a filter on records.
pub(super) struct Matcher {
    filter: Option<Filter>,
    blob: Vec<u8>,
}

impl Matcher {
    /// `None`: everything matches.
    #[inline(never)]
    pub(super) fn new(filter: Option<&[u8]>) -> Result<Matcher, Refusal> {
        let filter = match filter {
            None => None,
            Some(text) => Some(Filter::parse(text).map_err(crate::proto::Failure::from)?),
        };
        Ok(Matcher { filter, blob: Vec::new() })
    }

    /// Whether everything matches.
    pub(super) const fn is_open(&self) -> bool {
        self.filter.is_none()
    }

    /// Whether record `id` of `dir` matches.
    #[inline(never)]
    pub(super) fn matches(&mut self, t: &Txn, dir: Ino, id: u64) -> Step<bool> {
        let Some(filter) = &self.filter else { return Ok(true) };
        match file_of(id) {
            Some(ino) => filter.eval(&mut Xattrs { t, ino, value: Vec::new() }),
            None => {
                record::attrs(t, dir, id, &mut self.blob)?;
                filter.eval(&mut Encoded(&self.blob))
            }
        }
    }

    /// The first bulk record from `id` on, and whether it matches.
    #[inline(never)]
    pub(super) fn next_bulk(&mut self, t: &Txn, dir: Ino, id: u64) -> Step<Option<(u64, Record, bool)>> {
        let Some((id, r)) = next_record(t, dir, id)? else { return Ok(None) };
        if id >= FILE_ID_BASE {
            return Ok(None);
        }
        Ok(Some((id, r, self.matches(t, dir, id)?)))
    }
}

/// The first record from `id` on.
#[inline(never)]
pub(super) fn next_record(t: &Txn, dir: Ino, id: u64) -> Step<Option<(u64, Record)>> {
    let hit = t.next(&Key::new(dir, kind::RECORD, id), &Key::last(dir, kind::RECORD))?;
    let Some((key, value)) = hit else { return Ok(None) };
    if key.sub != 0 {
        return Err(Error::Corrupt.into());
    }
    let (r, _) = record::parse(key.offset, value).map_err(|_| Error::Corrupt)?;
    Ok(Some((key.offset, r)))
}

/// What a caller may see in a directory: bulk records all, files if he could open them for reading.
#[derive(Clone, Copy)]
pub(super) struct Eyes<'c> {
    cred: &'c Cred,
    /// He may reach the files of the directory.
    reach: bool,
}

impl<'c> Eyes<'c> {
    pub(super) fn new(t: &Txn, dir: Ino, cred: &'c Cred) -> Step<Eyes<'c>> {
        Ok(Eyes { cred, reach: cred.uid == 0 || perm::may(t, dir, cred, perm::EXEC)? })
    }

    /// Whether nothing is hidden.
    pub(super) const fn all(&self) -> bool {
        self.cred.uid == 0
    }

    /// Whether the record `id` may be shown.
    #[inline(never)]
    pub(super) fn see(&self, t: &Txn, id: u64) -> Step<bool> {
        match file_of(id) {
            Some(ino) if !self.all() => Ok(self.reach && perm::may(t, ino, self.cred, perm::READ)?),
            _ => Ok(true),
        }
    }
}
