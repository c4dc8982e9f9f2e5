// SPDX-License-Identifier: GPL-2.0-only
//! Searches: a batch of queries over the runtime state of a collection, with the filter and the caller's
//! permissions decided during traversal, so that `k` results come back whenever so many exist that match and
//! may be seen.
//!
//! Ordinary index work that is still to be done is asked for first (`Need::CatchUp`): the answer then depends
//! on what was inserted, not on how far a driver's background work has come. It ends in any case
//! (`Txn::waited`): inserts that go on without a pause do not hold a search up for ever. While an index is built anew,
//! and behind very large loads, the search does not wait: what is not in the index is compared one by one.

use super::matching::{Eyes, Matcher, Verdicts};
use super::request::{admit, same_dimension};
use super::runtime::{Hit, SearchParams, SearchScratch, SearchStats};
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
pub const CATCH_UP_MAX: usize = 65_536;

/// What a search works on.
struct Ready<'a> {
    runtime: &'a Collection,
    metric: Metric,
    /// Largest key, of a range search.
    radius: Option<u64>,
    /// There are records of files.
    files: bool,
}

/// Checks a search as a whole, and that it may go on.
#[inline(never)]
fn ready<'a>(t: &Txn<'a>, dir: Ino, cred: &Cred, s: &proto::Search) -> Result<Ready<'a>, Refusal> {
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
    let waits = !s.exact && radius.is_none() && !runtime.rebuilding() && !t.waited;
    if waits && pending > 0 && pending <= CATCH_UP_MAX {
        return Err(Stop::Need(Need::CatchUp(dir)).into());
    }
    Ok(Ready { runtime, metric: super::schema::metric(&c.schema)?, radius, files: c.schema.files > 0 })
}

/// Answers a search.
#[inline(never)]
pub(super) fn search(t: &Txn, dir: Ino, cred: &Cred, r: &Request, s: &proto::Search) -> Result<Vec<u8>, Refusal> {
    let mut matcher = Matcher::new(s.filter)?;
    let ready = ready(t, dir, cred, s)?;
    let queries = s.queries.len();
    let eyes = Eyes::new(t, dir, cred)?;
    let judged = !matcher.is_open() || (!eyes.all() && ready.files);
    let mut verdicts = Verdicts::new(if judged && queries > 1 { ready.runtime.slots() } else { 0 })?;
    let mut accept = |slot: u64, head: &Slot| {
        if let Some(v) = verdicts.get(slot) {
            return Ok(v);
        }
        let v = eyes.see(t, head.id).map_err(ahead)? && matcher.matches(t, dir, head.id).map_err(ahead)?;
        verdicts.set(slot, v);
        Ok(v)
    };
    let mut run = Run::new()?;
    for i in 0..queries {
        run.load(t, ready.metric, s, i)?;
        mem::push(&mut run.answers, Answer::default())?;
    }
    // Where something was missing last time, so that what went well before is not done again each time.
    let first = usize::try_from(t.resume.get()).unwrap_or(0).min(queries);
    for i in (first..queries).chain(0..first) {
        run.load(t, ready.metric, s, i)?;
        let accept: Option<&mut Accept> = if judged { Some(&mut accept) } else { None };
        if let Err(e) = run.answer(t, &ready, s, i, accept) {
            t.resume.set(i as u64);
            return Err(e);
        }
    }
    run.reply(r)
}

/// What a query found.
#[derive(Default)]
struct Answer {
    hits: Vec<Hit>,
    /// Names of files, with the number of their hit.
    names: Vec<(usize, Vec<u8>)>,
    stats: SearchStats,
}

/// A batch that is being answered.
struct Run {
    scratch: mem::Box<SearchScratch>,
    words: Vec<u32>,
    answers: Vec<Answer>,
    /// Bytes of the reply so far, about.
    bytes: usize,
}

impl Run {
    #[inline(never)] // keeps stack frames small
    fn new() -> Result<Run, Refusal> {
        let scratch = mem::Box::try_new(SearchScratch::new())?;
        Ok(Run { scratch, words: Vec::new(), answers: Vec::new(), bytes: 0 })
    }

    /// Takes query `i` up.
    #[inline(never)]
    fn load(&mut self, t: &Txn, metric: Metric, s: &proto::Search, i: usize) -> Result<(), Refusal> {
        self.words.clear();
        s.queries.get(i).ok_or(Error::Invalid)?.append_to(&mut self.words)?;
        admit(t, metric, "query", i, &self.words)?;
        Ok(())
    }

    /// Answers it.
    #[inline(never)]
    fn answer(
        &mut self,
        t: &Txn,
        r: &Ready,
        s: &proto::Search,
        i: usize,
        accept: Option<&mut Accept>,
    ) -> Result<(), Refusal> {
        // Each kind has a number of its own; those of other kinds say nothing.
        let ef = match r.runtime.schema.index {
            wire::index::IVF => s.nprobe,
            wire::index::PQ | wire::index::LSH => s.rerank,
            _ => s.ef,
        };
        let params = SearchParams { query: &self.words, k: s.k, ef, radius: r.radius, exact: s.exact };
        let a = self.answers.get_mut(i).ok_or(Error::Invalid)?;
        a.stats = r.runtime.search(t.env(), &params, accept, &mut self.scratch, &mut a.hits)?;
        self.bytes = self.bytes.saturating_add(a.hits.len().saturating_mul(wire::Hit::SIZE));
        for (n, hit) in a.hits.iter().enumerate() {
            if let (true, Some(ino)) = (s.paths, super::record::file_of(hit.id)) {
                for name in ns::names(t, ino, Some(r.runtime.ino), ns::LINKS_MAX as usize)? {
                    self.bytes = self.bytes.saturating_add(name.name.len());
                    mem::push(&mut a.names, (n, name.name))?;
                }
            }
        }
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
        for a in &self.answers {
            let mut names = a.names.iter().peekable();
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
