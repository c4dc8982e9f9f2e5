// SPDX-License-Identifier: GPL-2.0-only
//! Searches: a batch of queries over the runtime state of a collection, with the filter and the caller's
//! permissions decided during traversal, so that `k` results come back whenever so many exist that match and
//! may be seen.
//!
//! Index work that is still to be done is asked for first (`Need::CatchUp`) while nobody else inserts: the answer then
//! depends on what was inserted, not on how far a driver's background work has come. As soon as an insert comes while a
//! search waits, the collection is *busy* for a while: searches then wait for nothing, and what the index has not taken in
//! is compared one by one. Neither do they wait while an index is built anew, nor behind very large loads.

use super::matching::{Eyes, Matcher};
use super::request::{admit, same_dimension};
use super::runtime::{Hit, SearchParams, SearchStats};
use super::seek::Seek;
use super::{ahead, enter, refuse, Accept, Collection, Refusal};
use crate::dist::{self, Metric};
use crate::error::{Error, Need, Stop};
use crate::format::Slot;
use crate::mem;
use crate::ns::{self, perm};
use crate::op::{Cred, Ino};
use crate::proto::{self, wire, Request};
use crate::txn::Txn;
use alloc::vec::Vec;

/// A search waits for the index to take in up to so many records.
pub const CATCH_UP_MAX: usize = 32_768;

/// What a search works on.
struct Ready<'a> {
    runtime: &'a Collection,
    metric: Metric,
    /// Largest key, of a range search.
    radius: Option<u64>,
    /// There are records of files.
    files: bool,
}

/// Checks a search as a whole, and that it may go on. One that has `begun` does not wait for the index again.
#[inline(never)]
fn ready<'a>(t: &Txn<'a>, dir: Ino, cred: &Cred, s: &proto::Search, begun: bool) -> Result<Ready<'a>, Refusal> {
    let c = enter(t, dir, cred, perm::READ)?;
    same_dimension(&c, s.queries.dim() as usize)?;
    if s.queries.len() > wire::QUERIES_MAX as usize {
        let text = format_args!("{} queries in a request, at most {} are allowed", s.queries.len(), wire::QUERIES_MAX);
        return Err(refuse(Error::TooBig, text));
    }
    let radius = match s.radius {
        None => None,
        Some(bits) => Some(dist::bits_to_key(bits).ok_or(Error::Invalid)?),
    };
    let runtime = t.collection(dir)?;
    let pending = runtime.pending();
    let waits = !s.exact && radius.is_none() && !runtime.rebuilding() && !runtime.is_busy(t.now) && !t.waited && !begun;
    if waits && pending > 0 && pending <= CATCH_UP_MAX {
        return Err(Stop::Need(Need::CatchUp(dir)).into());
    }
    Ok(Ready { runtime, metric: super::schema::metric(&c.schema)?, radius, files: c.schema.files > 0 })
}

/// Answers a search. Where it stops it leaves what it has with the transaction, and goes on from there.
#[inline(never)]
pub(super) fn search(t: &Txn, dir: Ino, cred: &Cred, r: &Request, s: &proto::Search) -> Result<Vec<u8>, Refusal> {
    let kept = t.search.take();
    let ready = ready(t, dir, cred, s, kept.is_some())?;
    let mut run = match kept.filter(|k| k.dir == dir) {
        Some(kept) => kept,
        None => begin(t, &ready, dir, s)?,
    };
    let answer = run.go_on(t, &ready, cred, r, s);
    if let Err(Refusal::Stop(Stop::Need(need))) = &answer {
        if matches!(need, Need::Vectors(_)) {
            run.seek.count_reads(t.absent.len());
        }
        t.search.set(Some(run));
    }
    answer
}

/// The names of the results of one query: number of the result, name.
type Names = Vec<(usize, Vec<u8>)>;

/// What a query found.
struct Answer {
    hits: Vec<Hit>,
    names: Option<Names>,
    stats: SearchStats,
}

/// A batch that is being answered.
#[derive(Debug)]
pub struct Run {
    dir: Ino,
    seek: Seek,
    answers: Vec<Answer>,
    /// Bytes of the reply so far, about.
    bytes: usize,
}

impl core::fmt::Debug for Answer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Answer({} hits)", self.hits.len())
    }
}

/// Takes the queries up.
#[inline(never)]
fn begin(t: &Txn, ready: &Ready, dir: Ino, s: &proto::Search) -> Result<mem::Box<Run>, Refusal> {
    let c = ready.runtime;
    // Each kind has a number of its own; those of other kinds say nothing.
    let ef = match c.schema.index {
        wire::index::IVF => s.nprobe,
        wire::index::PQ | wire::index::LSH => s.rerank,
        _ => s.ef,
    };
    let params = SearchParams { query: &[], k: s.k, ef, radius: ready.radius, exact: s.exact };
    let mut run = mem::Box::try_new(Run { dir, seek: Seek::new(c, &params), answers: Vec::new(), bytes: 0 })?;
    let mut words = Vec::new();
    for i in 0..s.queries.len() {
        words.clear();
        s.queries.get(i).ok_or(Error::Invalid)?.append_to(&mut words)?;
        admit(t, ready.metric, "query", i, &words)?;
        run.seek.push(t.env(), c, &words)?;
    }
    Ok(run)
}

impl Run {
    /// Whether it came further since this was asked last: then it needs nothing any more that was brought in before.
    pub fn progressed(&mut self) -> bool {
        self.seek.progressed()
    }

    #[inline(never)]
    fn go_on(
        &mut self,
        t: &Txn,
        ready: &Ready,
        cred: &Cred,
        r: &Request,
        s: &proto::Search,
    ) -> Result<Vec<u8>, Refusal> {
        if self.answers.is_empty() {
            self.find(t, ready, cred, s)?;
        }
        for i in 0..self.answers.len() {
            self.name(t, ready, s, i)?;
        }
        self.reply(r)
    }

    /// Finds the records.
    #[inline(never)]
    fn find(&mut self, t: &Txn, ready: &Ready, cred: &Cred, s: &proto::Search) -> Result<(), Refusal> {
        let dir = self.dir;
        let mut matcher = Matcher::new(s.filter)?;
        let eyes = Eyes::new(t, dir, cred)?;
        let judged = !matcher.is_open() || (!eyes.all() && ready.files);
        let mut accept = |_: u64, head: &Slot| {
            Ok(eyes.see(t, head.id).map_err(ahead)? && matcher.matches(t, dir, head.id).map_err(ahead)?)
        };
        let accept: Option<&mut Accept> = if judged { Some(&mut accept) } else { None };
        let mut scratch = ready.runtime.borrow_scratch()?;
        let found = self.seek.run(t.env(), ready.runtime, &t.absent, accept, &mut scratch);
        ready.runtime.give_back(scratch);
        found?;
        for i in 0..s.queries.len() {
            let mut hits = Vec::new();
            let stats = self.seek.hits(i, &mut hits)?;
            self.bytes = self.bytes.saturating_add(hits.len().saturating_mul(wire::Hit::SIZE));
            mem::push(&mut self.answers, Answer { hits, names: None, stats })?;
        }
        self.limit()
    }

    /// Names the files among the results of query `i`.
    #[inline(never)]
    fn name(&mut self, t: &Txn, ready: &Ready, s: &proto::Search, i: usize) -> Result<(), Refusal> {
        let Some(a) = self.answers.get_mut(i).filter(|a| s.paths && a.names.is_none()) else { return Ok(()) };
        let mut names = Names::new();
        let mut bytes = 0usize;
        for (n, hit) in a.hits.iter().enumerate() {
            let Some(ino) = super::record::file_of(hit.id) else { continue };
            // It may be gone since it was found.
            if ready.runtime.slot_of(hit.id) != Some(hit.slot) {
                continue;
            }
            for name in ns::names(t, ino, Some(self.dir), ns::LINKS_MAX as usize)? {
                bytes = bytes.saturating_add(name.name.len());
                mem::push(&mut names, (n, name.name))?;
            }
        }
        a.names = Some(names);
        self.bytes = self.bytes.saturating_add(bytes);
        self.limit()
    }

    fn limit(&self) -> Result<(), Refusal> {
        if self.bytes > wire::FRAME_MAX {
            return Err(refuse(
                Error::TooBig,
                format_args!("the results are larger than a reply: ask for less at once"),
            ));
        }
        Ok(())
    }

    /// The reply with all answers.
    #[inline(never)]
    fn reply(&self, r: &Request) -> Result<Vec<u8>, Refusal> {
        let mut reply = proto::SearchReply::new(&r.head)?;
        reply.reads(self.seek.reads());
        for a in &self.answers {
            let mut names = a.names.iter().flatten().peekable();
            for (n, hit) in a.hits.iter().enumerate() {
                reply.hit(hit.id, dist::key_to_bits(hit.key))?;
                while let Some((_, name)) = names.next_if(|x| x.0 == n) {
                    reply.path(name)?;
                }
            }
            reply.end_query(a.stats.distances, a.stats.hops)?;
        }
        Ok(reply.finish()?)
    }
}
