// SPDX-License-Identifier: GPL-2.0-only
//! A batch of searches on its way through a collection, of which a part may have to be read from the device first. Owns what was
//! found so far, so that a search over more vectors than fit into memory goes on where it stopped. Promises the answer that the
//! collection gives at the moment of the last step, as if nothing had been absent and nothing had changed meanwhile.
//!
//! Stages: what the index has not taken in is compared first, then the index is asked, then everything is compared for those
//! whom the index cannot answer. If the collection changed on the way, what is newer is compared as well, and what is gone
//! is taken out; who then has less than he asked for begins again.

use super::runtime::{Collection, Hit, SearchParams, SearchScratch, SearchStats};
use crate::dist::{Meter, Query};
use crate::env::Env;
use crate::error::{Error, Need, Step, Stop};
use crate::format::Slot;
use crate::index::{is_live, scan, scan_coded, Absent, Accept, Best, Bits, Gate, Probe, Seeker, View};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// How often a query begins again because what it found is gone. After that the answer may have less than exists.
const TRIES: u32 = 4;

/// How far a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Stage {
    /// Comparing what the index has not.
    Pending,
    /// Asking the index.
    Index,
    /// Comparing everything.
    Scan,
    /// Looking at what changed meanwhile.
    Settle,
    /// Answered.
    Done,
}

/// How far a query is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The index has not been asked.
    New,
    /// The index has answered.
    Sought,
    /// Everything has to be compared.
    Scan,
}

/// Verdicts of `accept` by slot: two bits each.
#[derive(Debug, Default)]
struct Verdicts {
    bits: Vec<u64>,
}

impl Verdicts {
    /// Room for `slots` slots.
    fn grow(&mut self, slots: u64) -> Result<(), NoMemory> {
        let n = usize::try_from(slots.div_ceil(32)).map_err(|_| NoMemory)?;
        if self.bits.len() < n {
            mem::resize(&mut self.bits, n, 0)?;
        }
        Ok(())
    }

    const fn shift(slot: u64) -> u32 {
        ((slot & 31) as u32) << 1
    }

    /// The verdict on `slot`, if there is one.
    fn get(&self, slot: u64) -> Option<bool> {
        let word = self.bits.get(usize::try_from(slot >> 5).ok()?)?;
        let v = word.wrapping_shr(Self::shift(slot)) & 3;
        if v & 1 == 0 {
            None
        } else {
            Some(v & 2 != 0)
        }
    }

    /// Remembers a verdict.
    fn set(&mut self, slot: u64, verdict: bool) {
        let word = usize::try_from(slot >> 5).ok().and_then(|i| self.bits.get_mut(i));
        if let Some(word) = word {
            *word |= (if verdict { 3u64 } else { 1 }).wrapping_shl(Self::shift(slot));
        }
    }
}

/// One query.
#[derive(Debug)]
struct One {
    inv_norm: u64,
    state: State,
    best: Best,
    stats: SearchStats,
}

/// Where a collection stood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moment {
    /// Sequence number of the newest vector.
    pub(super) newest: u64,
    /// Slots given up since it was loaded.
    pub(super) drops: u64,
    /// How often everything became pending.
    pub(super) restarts: u64,
}

/// A batch of queries with the same parameters.
#[derive(Debug)]
pub struct Seek {
    k: usize,
    ef: usize,
    radius: Option<u64>,
    exact: bool,
    /// Vectors of all queries, one after the other.
    words: Vec<u32>,
    queries: Vec<One>,
    stage: Stage,
    /// The next slot of a scan.
    at: u64,
    began: Moment,
    verdicts: Verdicts,
    tries: u32,
    /// It stopped before.
    again: bool,
    /// Pages that were asked for because they were absent.
    reads: u64,
    /// Steps forward, and how many there were when [`Seek::progressed`] was asked.
    progress: (u64, u64),
}

impl Seek {
    /// No queries yet. `params.query` is not looked at.
    pub fn new(c: &Collection, params: &SearchParams<'_>) -> Seek {
        Seek {
            k: params.k,
            ef: params.ef,
            radius: params.radius,
            exact: params.exact || params.radius.is_some() || params.k == 0,
            words: Vec::new(),
            queries: Vec::new(),
            stage: Stage::Pending,
            at: 0,
            began: c.moment(),
            verdicts: Verdicts::default(),
            tries: 0,
            again: false,
            reads: 0,
            progress: (0, 0),
        }
    }

    /// Adds a query. Fails with `WrongDimension`, `BadVector` or `ZeroVector` for one that cannot be.
    pub fn push(&mut self, env: &Env, c: &Collection, words: &[u32]) -> Result<(), Error> {
        let inv_norm = c.query(env, words)?.inv_norm;
        mem::extend(&mut self.words, words)?;
        let mut best = Best::new();
        best.begin(self.k, self.radius);
        let one = One { inv_norm, state: State::New, best, stats: SearchStats::default() };
        Ok(mem::push(&mut self.queries, one)?)
    }

    /// Pages that were asked for because they were not in memory.
    pub fn reads(&self) -> u64 {
        self.reads
    }

    /// Whether it came further since this was asked last.
    pub fn progressed(&mut self) -> bool {
        let now = self.progress.0;
        core::mem::replace(&mut self.progress.1, now) != now
    }

    /// Goes on until all queries are answered, or stops where something is missing, to be called again. With `accept`, `k`
    /// results come whenever so many acceptable records exist. It is asked once about each.
    pub fn run(
        &mut self,
        env: &Env,
        c: &Collection,
        absent: &Absent,
        accept: Option<&mut Accept<'_>>,
        scratch: &mut SearchScratch,
    ) -> Step<()> {
        let Some(accept) = accept else { return self.steps(env, c, absent, None, scratch) };
        let mut verdicts = core::mem::take(&mut self.verdicts);
        verdicts.grow(c.slots())?;
        let began = self.began.newest;
        let mut once = |slot: u64, head: &Slot| {
            // The slot of a newer record may have been another's.
            let old = head.seq <= began;
            match verdicts.get(slot).filter(|_| old) {
                Some(v) => Ok(v),
                None => {
                    let v = accept(slot, head)?;
                    if old {
                        verdicts.set(slot, v);
                    }
                    Ok(v)
                }
            }
        };
        let result = self.steps(env, c, absent, Some(&mut once), scratch);
        // Of those who begin again, slots may have changed hands.
        if self.began.newest == began {
            self.verdicts = verdicts;
        }
        result
    }

    fn steps(
        &mut self,
        env: &Env,
        c: &Collection,
        absent: &Absent,
        mut accept: Option<&mut Accept<'_>>,
        scratch: &mut SearchScratch,
    ) -> Step<()> {
        loop {
            let step = self.step(env, c, absent, &mut accept, scratch);
            match step {
                _ if absent.any() => {
                    self.again = true;
                    return Err(Stop::Need(Need::Vectors(c.ino)));
                }
                Ok(()) if self.stage == Stage::Done => return Ok(()),
                Ok(()) => {}
                Err(s) => {
                    self.again = true;
                    return Err(s);
                }
            }
        }
    }

    fn step(
        &mut self,
        env: &Env,
        c: &Collection,
        absent: &Absent,
        accept: &mut Option<&mut Accept<'_>>,
        scratch: &mut SearchScratch,
    ) -> Step<()> {
        if self.stage < Stage::Scan && c.moment().restarts != self.began.restarts {
            // What was not pending may have become so, behind the place of the scan.
            self.begin(c);
        }
        match self.stage {
            Stage::Pending => {
                if !self.exact && c.pending_slots().count() > 0 {
                    self.compare(env, c, absent, accept, c.pending_slots(), State::New)?;
                }
                if absent.any() {
                    return Ok(());
                }
                (self.stage, self.at) = (Stage::Index, 0);
            }
            Stage::Index => {
                self.ask(env, c, absent, accept, scratch)?;
                if !absent.any() {
                    (self.stage, self.at) = (Stage::Scan, 0);
                }
            }
            Stage::Scan => {
                if self.queries.iter().any(|q| q.state == State::Scan) {
                    self.compare(env, c, absent, accept, c.searchable_slots(), State::Scan)?;
                }
                if absent.any() {
                    return Ok(());
                }
                self.stage = Stage::Settle;
            }
            Stage::Settle => self.settle(env, c, absent, accept)?,
            Stage::Done => {}
        }
        Ok(())
    }

    /// From the start, for all queries.
    fn begin(&mut self, c: &Collection) {
        for q in &mut self.queries {
            q.state = State::New;
            q.best.begin(self.k, self.radius);
        }
        (self.stage, self.at, self.began) = (Stage::Pending, 0, c.moment());
    }

    /// Asks the index for all who have not asked. Goes through all of them even if something is absent, so that it is
    /// brought in together.
    #[inline(never)]
    fn ask(
        &mut self,
        env: &Env,
        c: &Collection,
        absent: &Absent,
        accept: &mut Option<&mut Accept<'_>>,
        scratch: &mut SearchScratch,
    ) -> Step<()> {
        let view = c.view(absent);
        let all = c.searchable_slots().count();
        let indexed = all.saturating_sub(c.pending_slots().count());
        let able = !self.exact && (self.k as u64) < indexed;
        let plan = c.index().plan(self.ef, self.k, indexed).filter(|_| able);
        let dim = view.store.dim();
        for (i, q) in self.queries.iter_mut().enumerate() {
            if q.state != State::New || absent.is_full() {
                continue;
            }
            let mut done = false;
            let mut stats = SearchStats::default();
            if let Some(ef) = plan {
                let start = i.saturating_mul(dim);
                let words = self.words.get(start..start.saturating_add(dim)).ok_or(Error::Invalid)?;
                let query = Query { metric: view.metric, words, inv_norm: q.inv_norm };
                let mut meter = Meter::new(env.distance);
                let filter = accept.as_mut().map(|f| &mut **f);
                let mut gate = Gate::new(filter);
                // Far results that pass a narrow filter are found sooner by measuring everything.
                let limit = if gate.is_filter() { all / 2 } else { u64::MAX };
                let probe = Probe { query: &query, ef, k: self.k, limit };
                scratch.marks.begin(view.store.len())?;
                done = c.index().nearest(&view, &probe, &mut meter, &mut gate, scratch, &mut stats.hops)?;
                stats.distances = meter.count;
                if absent.any() {
                    continue;
                }
                done = done && scratch.found.len() >= self.k;
            }
            self.progress.0 = self.progress.0.saturating_add(1);
            q.stats.distances = q.stats.distances.saturating_add(stats.distances);
            q.stats.hops = q.stats.hops.saturating_add(stats.hops);
            if !done {
                q.state = State::Scan;
                q.stats.scanned = true;
                q.best.begin(self.k, self.radius);
                continue;
            }
            for (key, slot) in scratch.found.items() {
                let Some(head) = view.store.head(*slot as usize) else { continue };
                // It may have been pending when that was compared.
                if !(self.again && q.best.has(*slot)) {
                    q.best.offer(*key, head.id, *slot)?;
                }
            }
            q.stats.pending = c.pending_slots().count();
            q.state = State::Sought;
        }
        Ok(())
    }

    /// Compares `slots` for all queries in `state`.
    #[inline(never)]
    fn compare(
        &mut self,
        env: &Env,
        c: &Collection,
        absent: &Absent,
        accept: &mut Option<&mut Accept<'_>>,
        slots: &Bits,
        state: State,
    ) -> Step<()> {
        let view = c.view(absent);
        let from = self.at;
        let mut slots = slots.iter(from).map(|s| s as u32);
        let mut seekers = seekers(&mut self.queries, &self.words, &view, |s| s == state)?;
        if let Some(codes) = c.index().codes().filter(|_| state == State::Scan) {
            let all = c.searchable_slots();
            let at = &mut self.at;
            let done = scan_coded(&view, codes, &mut seekers, all, env.distance, accept, at, self.again);
            self.progress.0 = self.progress.0.saturating_add(u64::from(self.at > from));
            return done.map(|_| ());
        }
        // What it did before may have gone by other batches: codes come and go meanwhile.
        let repeats = if self.again { usize::MAX } else { 0 };
        let done = scan(&view, &mut seekers, &mut slots, env.distance, accept, &mut self.at, repeats);
        self.progress.0 = self.progress.0.saturating_add(u64::from(self.at > from));
        done.map(|_| ())
    }

    /// Brings what was found up to this moment.
    #[inline(never)]
    fn settle(&mut self, env: &Env, c: &Collection, absent: &Absent, accept: &mut Option<&mut Accept<'_>>) -> Step<()> {
        let now = c.moment();
        let view = c.view(absent);
        if now.newest != self.began.newest {
            let newer = |s: &u64| view.store.head(*s as usize).is_some_and(|h| h.seq > self.began.newest);
            let mut slots = c.searchable_slots().iter(0).filter(newer).map(|s| s as u32);
            let mut seekers = seekers(&mut self.queries, &self.words, &view, |_| true)?;
            let whole = scan(&view, &mut seekers, &mut slots, env.distance, accept, &mut 0, usize::MAX)?;
            if !whole {
                return Ok(());
            }
        }
        let mut short = false;
        if now.drops != self.began.drops || now.newest != self.began.newest {
            for q in &mut self.queries {
                let full = q.best.len() >= self.k;
                let stays = |slot: u32, id: u64| {
                    view.store.head(slot as usize).is_some_and(|h| is_live(h) && h.id == id) && c.is_searchable(slot)
                };
                short |= q.best.retain(stays) && full;
            }
        }
        if short && self.tries < TRIES {
            self.tries = self.tries.saturating_add(1);
            self.begin(c);
        } else {
            self.stage = Stage::Done;
        }
        Ok(())
    }

    /// Results of query `i`, nearest first, ties by lower id, into `out` (emptied first), and what they cost. Once for each.
    pub fn hits(&mut self, i: usize, out: &mut Vec<Hit>) -> Result<SearchStats, NoMemory> {
        out.clear();
        let Some(q) = self.queries.get_mut(i) else { return Ok(SearchStats::default()) };
        let best = q.best.sorted();
        mem::reserve(out, best.len())?;
        for (key, id, slot) in best {
            mem::push(out, Hit { id: *id, slot: u64::from(*slot), key: *key })?;
        }
        Ok(q.stats)
    }

    /// Counts what is being read for it.
    pub fn count_reads(&mut self, pages: usize) {
        self.reads = self.reads.saturating_add(pages as u64);
    }
}

/// The queries whose state `wanted` wants, for a scan.
fn seekers<'a>(
    queries: &'a mut [One],
    words: &'a [u32],
    view: &View<'_>,
    wanted: impl Fn(State) -> bool,
) -> Result<Vec<Seeker<'a>>, NoMemory> {
    let mut out = Vec::new();
    mem::reserve(&mut out, queries.len())?;
    for (q, words) in queries.iter_mut().zip(words.chunks(view.store.dim().max(1))) {
        if wanted(q.state) {
            let query = Query { metric: view.metric, words, inv_norm: q.inv_norm };
            mem::push(&mut out, Seeker { query, best: &mut q.best, distances: &mut q.stats.distances })?;
        }
    }
    Ok(out)
}
