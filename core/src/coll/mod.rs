// SPDX-License-Identifier: GPL-2.0-only
//! Collections: directories with a vector schema, their records and requests. Owns the COLLECTION and
//! RECORD items and the list of collections of the volume; promises that a record, its vector, the
//! schema's counters and the name or embedding that it belongs to change in one transaction.

pub mod hooks;
mod matching;
pub mod populate;
mod query;
pub mod record;
mod request;
pub mod runtime;
pub mod schema;
pub mod search;
pub mod seek;
mod serving;

#[cfg(test)]
mod tests;

pub use populate::{populate, recount, trim, Counts};
pub use runtime::{Accept, Collection, CollectionInfo, Hit, SearchParams, SearchScratch, SearchStats};

use crate::error::{Error, Need, Step, Stop};
use crate::mem::{self, NoMemory};
use crate::ns::{self, perm};
use crate::op::{Cred, Ino, Op, Reply};
use crate::proto::{self, Failure, FileRef};
use crate::txn::{Outcome, Progress, Txn};
use alloc::vec::Vec;

/// Why a request does not go on: something is missing or broken, or it is refused with words of its own.
#[derive(Debug)]
enum Refusal {
    /// Something is missing, or the volume failed.
    Stop(Stop),
    /// The caller is told.
    Failure(Failure),
}

impl From<Stop> for Refusal {
    fn from(s: Stop) -> Refusal {
        Refusal::Stop(s)
    }
}

impl From<Failure> for Refusal {
    fn from(f: Failure) -> Refusal {
        Refusal::Failure(f)
    }
}

impl From<Error> for Refusal {
    fn from(e: Error) -> Refusal {
        Refusal::Stop(Stop::Fail(e))
    }
}

impl From<NoMemory> for Refusal {
    fn from(_: NoMemory) -> Refusal {
        Refusal::Stop(Stop::Fail(Error::NoMemory))
    }
}

#[inline(never)]
fn refuse(e: Error, text: core::fmt::Arguments<'_>) -> Refusal {
    Refusal::Failure(Failure::new(e, text))
}

/// Where many records are looked up one by one, a missing node is read with those to its right: each time
/// that something is missing the operation starts again.
fn ahead(s: Stop) -> Stop {
    const AHEAD: u16 = 32;
    match s {
        Stop::Need(Need::Node { parent, index, count }) => {
            Stop::Need(Need::Node { parent, index, count: count.max(AHEAD) })
        }
        s => s,
    }
}

/// Whether `dir` is a directory that `cred` may use so: read it to search, write it to change.
#[inline(never)]
fn access(t: &Txn, dir: Ino, cred: &Cred, mask: u32) -> Result<(), Refusal> {
    if !ns::mode::is_dir(ns::inode(t, dir)?.mode) {
        return Err(Error::NotDirectory.into());
    }
    if perm::may(t, dir, cred, mask)? {
        return Ok(());
    }
    Err(if mask & perm::WRITE != 0 {
        refuse(Error::AccessDenied, format_args!("changing a collection needs write permission on its directory"))
    } else {
        refuse(Error::AccessDenied, format_args!("searching a collection needs read permission on its directory"))
    })
}

/// The schema of the collection `dir`, for a caller who may use it so.
#[inline(never)]
fn enter(t: &Txn, dir: Ino, cred: &Cred, mask: u32) -> Result<schema::Coll, Refusal> {
    access(t, dir, cred, mask)?;
    Ok(schema::require(t, dir)?)
}

/// Whether `cred` may see the file `ino` of `dir`.
#[inline(never)]
fn visible(t: &Txn, dir: Ino, cred: &Cred, ino: Ino) -> Step<bool> {
    matching::Eyes::new(t, dir, cred)?.see(t, record::file_id(ino))
}

/// The file that a request names.
#[inline(never)]
fn resolve(t: &Txn, dir: Ino, cred: &Cred, file: &FileRef) -> Result<Ino, Refusal> {
    if !perm::may(t, dir, cred, perm::EXEC)? {
        return Err(refuse(Error::AccessDenied, format_args!("no permission to use names in this directory")));
    }
    match file {
        FileRef::Ino(ino) if ns::is_linked(t, dir, *ino)? => Ok(*ino),
        FileRef::Ino(ino) => Err(refuse(Error::NotFound, format_args!("no file with inode {ino} in this directory"))),
        FileRef::Name(name) => match ns::read(t, &Op::Lookup { dir, name: mem::to_vec(name)? })? {
            Reply::Attr(a) => Ok(a.ino),
            _ => Err(Error::Invalid.into()),
        },
    }
}

/// Answers a read-only request frame sent to `dir` by `cred`. What the caller did wrong becomes an error
/// reply frame with a message; `Stop::Fail` is left for errors without words of their own, the volume's
/// troubles among them ([`error_frame`]).
pub fn query(t: &Txn, dir: Ino, cred: &Cred, frame: &[u8]) -> Step<Reply> {
    let result = match proto::decode(frame) {
        Ok(r) => query::run(t, dir, cred, &r),
        Err(f) => Err(f.into()),
    };
    match result {
        Ok(reply) => Ok(Reply::Bytes(reply)),
        Err(Refusal::Stop(s)) => Err(s),
        Err(Refusal::Failure(f)) => Ok(Reply::Bytes(proto::reply_failure(frame, &f)?)),
    }
}

/// Carries a changing request frame out, in steps of at most one transaction each. What a finished step
/// changed stays, also if a later one fails; the reply says how many records were done.
pub fn request(t: &mut Txn, dir: Ino, cred: &Cred, frame: &[u8], p: &mut Progress) -> Step<Outcome> {
    request::step(t, dir, cred, frame, p)
}

/// The reply frame that tells the sender of `frame` about `error`; `done`: how many records of the request the
/// steps before did ([`Progress::done`]).
pub fn error_frame(frame: &[u8], error: Error, done: u64) -> Result<Vec<u8>, NoMemory> {
    proto::reply_failure(frame, &Failure { done, ..Failure::from(error) })
}
