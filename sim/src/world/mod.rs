// SPDX-License-Identifier: GPL-2.0-only
//! One run: a volume, its disk, time, operations in flight, faults and crashes, all from one seed. It drives
//! the engine as any driver does and asks the oracle about everything that comes back.

mod crashes;
mod replies;

use crate::act::{collide, Act, Lock, VecAct, KINDS};
use crate::alloc;
use crate::canary::Canary;
use crate::disk::{Disk, FlushPoint};
use crate::frames;
use crate::gen;
use crate::model::{Body, Known, State, When};
use crate::oracle::{self, Ask, Entry, History, Res};
use crate::rng::Rng;
use crate::swarm::{Config, Fault, Order, FAULTS};
use crate::tally::Tally;
use crate::trace::Trace;
use std::collections::BTreeSet;
use vexfs_core::engine::{OpId, Options, State as VolState, Volume};
use vexfs_core::env::Env;
use vexfs_core::error::Error;
use vexfs_core::io::{Io, IoError, IoKind};
use vexfs_core::op::{Op, Reply, Time, ROOT};

/// A request that is under way.
struct Flight {
    io: Io,
    /// The write on the disk.
    seq: Option<u64>,
    /// What a flush covers.
    point: Option<FlushPoint>,
    /// A canary: say that it is done and do nothing.
    lie: bool,
}

/// An operation that is in flight.
struct Pending {
    id: OpId,
    act: Act,
    locks: Vec<Lock>,
    /// Changes acknowledged when it was submitted.
    at: usize,
    when: When,
    /// The volume had failed before.
    after_abort: bool,
}

/// How a volume ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// Power was cut: what is durable must be there.
    Power,
    /// The process was killed: what was acknowledged must be there.
    Kill,
}

/// A run.
pub struct World {
    cfg: Config,
    canary: Canary,
    disk: Disk,
    vol: Option<Volume>,
    now: i128,
    rng: Rng,
    io: Vec<Flight>,
    ops: Vec<Pending>,
    /// The state after everything that was acknowledged.
    head: State,
    history: History,
    trace: Trace,
    tally: Tally,
    /// No fault may strike now.
    quiet: bool,
    opening: bool,
    aborted: bool,
    /// After a failed flush the disk dropped writes that had completed: the kill was as bad as a power cut.
    dropped: bool,
    strikes: [u64; FAULTS.len()],
    /// Blocks whose reads have failed since the volume was opened.
    failed_reads: BTreeSet<u64>,
    /// Reads failed while the volume was opened.
    troubled: bool,
    /// The simulator has damaged blocks of this disk.
    damaged: bool,
    /// Kinds of the operations that were in flight at the last crash.
    interrupted: Vec<usize>,
    /// For each fault: operations still to count as done right after it.
    recent: [u64; FAULTS.len()],
    /// I/O events since something happened on which a crash would be most telling.
    hot: u64,
    verbose: bool,
}

/// What a run gave.
pub struct Outcome {
    /// Hash over everything that happened.
    pub hash: String,
    /// Counts.
    pub tally: Tally,
    /// What went wrong.
    pub violation: Option<String>,
}

const NS: i128 = 1_000_000_000;

fn time(ns: i128) -> Time {
    Time { sec: ns.div_euclid(NS) as i64, nsec: ns.rem_euclid(NS) as u32 }
}

/// Runs a seed.
pub fn run(cfg: &Config, canary: Canary, verbose: bool) -> Outcome {
    alloc::cancel();
    let mut w = World::new(cfg.clone(), canary, verbose);
    let violation = w.live().err();
    alloc::cancel();
    w.count_stats();
    Outcome { hash: w.trace.hex(), tally: w.tally, violation }
}

impl World {
    fn new(cfg: Config, canary: Canary, verbose: bool) -> World {
        World {
            disk: Disk::new(cfg.blocks),
            canary,
            vol: None,
            now: 1_700_000_000 * NS + i128::from(cfg.seed % 1000),
            rng: Rng::new(cfg.seed, 2),
            io: Vec::new(),
            ops: Vec::new(),
            head: State::default(),
            history: History::default(),
            trace: Trace::default(),
            tally: Tally::default(),
            quiet: true,
            opening: false,
            aborted: false,
            dropped: false,
            failed_reads: BTreeSet::new(),
            troubled: false,
            damaged: false,
            strikes: [0; FAULTS.len()],
            interrupted: Vec::new(),
            recent: [0; FAULTS.len()],
            hot: 0,
            verbose,
            cfg,
        }
    }

    fn say(&self, f: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("[{}] {}", self.tally.io, f());
        }
    }

    fn env(&self) -> Env {
        Env {
            crc32c: self.canary.crc(),
            distance: &vexfs_core::dist::SCALAR,
            cache_bytes: self.cfg.cache_bytes,
            log_bytes: self.cfg.log_bytes,
        }
    }

    /// The whole run.
    fn live(&mut self) -> Res<()> {
        self.say(|| format!("{:?}", self.cfg));
        self.format()?;
        self.open(None)?;
        self.quiet = true;
        let (seen, _) = oracle::observe(self)?;
        if seen.nodes.len() != 1 {
            return Err(format!("a fresh volume has {} inodes", seen.nodes.len()));
        }
        self.head = seen;
        self.history = History { base: self.head.clone(), ..History::default() };
        self.quiet = false;
        let mut next = 0;
        let mut waited = 0u64;
        loop {
            while self.cfg.skip.binary_search(&next).is_ok() {
                next += 1;
            }
            if next >= self.cfg.ops && self.ops.is_empty() {
                break;
            }
            let mut moved = false;
            if next < self.cfg.ops && self.ops.len() < self.cfg.width && self.submit(next)? {
                next += 1;
                moved = true;
            }
            let turns = self.rng.range(1, 2 * self.cfg.laziness);
            for _ in 0..turns {
                moved |= self.turn()?;
            }
            waited = if moved { 0 } else { waited + 1 };
            if waited > 2000 {
                return Err(self.stuck());
            }
            self.events()?;
        }
        if self.tally.crashes == 0 {
            self.crash(End::Power, false)?;
        }
        self.close()
    }

    fn stuck(&self) -> String {
        let ops: Vec<String> = self.ops.iter().map(|p| p.act.line()).collect();
        format!("operations hang, with nothing under way on the disk: {ops:?}; {:?}", self.vol)
    }

    /// Calls the core, with failing allocations if the seed has them.
    fn core<T>(&mut self, f: impl FnOnce(&mut Volume) -> T) -> Option<T> {
        let oom = self.cfg.has(Fault::NoMemory) && !self.quiet;
        if oom && !alloc::pending() {
            let after = self.rng.below(2 * self.cfg.oom_every);
            let burst = *self.rng.pick(&[1, 1, 1, 3, 20]);
            alloc::schedule(after, burst);
        }
        let vol = self.vol.as_mut()?;
        let before = alloc::failed();
        let out = {
            let _armed = oom.then(alloc::armed);
            f(vol)
        };
        if alloc::failed() != before {
            self.strike(Fault::NoMemory);
        }
        Some(out)
    }

    fn strike(&mut self, f: Fault) {
        self.strikes[f as usize] += 1;
        self.tally.strikes[f as usize] += 1;
        let kinds: Vec<usize> = self.ops.iter().map(|p| p.act.kind()).collect();
        self.cover(f, &kinds);
        if matches!(f, Fault::ReadError | Fault::Misread) {
            self.recent[f as usize] = 6;
        }
        self.trace.word(0x1000 + f as u64);
    }

    fn cover(&mut self, f: Fault, kinds: &[usize]) {
        for k in kinds {
            *self.tally.cover.entry((*k, f as usize)).or_default() += 1;
        }
    }

    fn count_stats(&mut self) {
        if let Some(v) = &self.vol {
            let s = v.stats();
            self.tally.reruns += s.reruns;
            self.tally.paging.0 += s.vector_reads;
            self.tally.paging.1 += s.vector_bytes_dropped;
            self.tally.groups += s.replayed_groups;
            self.tally.checkpoints += s.checkpoints;
        }
    }

    fn format(&mut self) -> Res<()> {
        let mut rng = Rng::new(self.cfg.seed, 3);
        let writes = crate::format::make(&self.cfg, &mut rng, self.env(), time(self.now))?;
        for (block, bytes) in writes {
            self.disk.write_through(block, &bytes);
        }
        Ok(())
    }

    // ---- the disk ----

    /// Takes the requests of the core over.
    fn take_io(&mut self) -> Res<bool> {
        let mut any = false;
        while let Some(Some(io)) = self.core(Volume::poll_io) {
            any = true;
            self.tally.io += 1;
            self.trace.word(io.kind as u64 + 1);
            self.trace.word(io.block);
            self.trace.word(io.count);
            let writes = matches!(io.kind, IoKind::Write | IoKind::WriteDurable);
            if io.kind != IoKind::Flush && !self.disk.holds(io.block, io.count) {
                return Err(format!("{:?} of {} blocks at {} is not on the device", io.kind, io.count, io.block));
            }
            if (writes || io.kind == IoKind::Read) && io.buf.len() as u64 != io.count * 4096 {
                return Err(format!("{:?} of {} blocks with {} bytes", io.kind, io.count, io.buf.len()));
            }
            if writes {
                let crc = vexfs_core::checksum::crc32c(0, &io.buf);
                self.trace.word(u64::from(crc));
            }
            if io.kind == IoKind::WriteDurable {
                self.hot = 12;
            } else if io.kind == IoKind::Flush {
                self.hot = self.hot.max(6);
            }
            let lie = self.canary.swallows(&io, &self.disk);
            let seq = writes.then(|| self.disk.write_start(io.block, &io.buf));
            let point = (io.kind == IoKind::Flush).then(|| self.disk.flush_start());
            self.io.push(Flight { io, seq, point, lie });
        }
        Ok(any)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.rng.chance(1, n)
    }

    /// One request completes.
    fn complete(&mut self) -> Res<bool> {
        if self.io.is_empty() {
            return Ok(false);
        }
        let n = self.io.len();
        let i = match self.cfg.order {
            _ if self.quiet => 0,
            Order::First => 0,
            Order::Last => n - 1,
            Order::Random => self.rng.below(n as u64) as usize,
            Order::FlushesLate => {
                self.io.iter().position(|f| !matches!(f.io.kind, IoKind::Flush | IoKind::WriteDurable)).unwrap_or(n - 1)
            }
        };
        let mut f = self.io.remove(i);
        let faulty = !self.quiet;
        let every = self.cfg.error_every;
        let mut result = Ok(());
        match f.io.kind {
            IoKind::Read => {
                self.disk.read(f.io.block, &mut f.io.buf);
                // What fails is transient: the same request works when it is repeated.
                let bad = faulty && self.one_in(every) && self.failed_reads.insert(f.io.block);
                if bad && self.cfg.has(Fault::ReadError) {
                    self.strike(Fault::ReadError);
                    result = Err(IoError);
                } else if bad && !self.opening && self.cfg.has(Fault::Misread) {
                    self.strike(Fault::Misread);
                    self.misread(&mut f);
                }
            }
            IoKind::Write | IoKind::WriteDurable => {
                let seq = f.seq.unwrap_or(0);
                if faulty && self.cfg.has(Fault::WriteError) && self.one_in(4 * every) {
                    self.strike(Fault::WriteError);
                    let mut rng = Rng::new(self.rng.u64(), 7);
                    self.disk.write_failed(seq, &mut rng);
                    result = if self.canary == Canary::WriteErrorForgotten { Ok(()) } else { Err(IoError) };
                } else if f.io.kind == IoKind::WriteDurable && !f.lie {
                    self.disk.write_durable(seq);
                } else {
                    self.disk.write_done(seq);
                }
            }
            IoKind::Flush => {
                let point = f.point.unwrap_or_else(|| self.disk.flush_start());
                if faulty && self.cfg.has(Fault::FlushError) && self.one_in(every) {
                    self.strike(Fault::FlushError);
                    let mut rng = Rng::new(self.rng.u64(), 8);
                    self.disk.flush_failed(point, &mut rng);
                    result = if self.canary == Canary::FlushErrorForgotten { Ok(()) } else { Err(IoError) };
                } else if !f.lie {
                    self.disk.flush_done(point);
                }
            }
            IoKind::Discard => {}
        }
        self.hot = self.hot.saturating_sub(1);
        self.trace.word(0x100 + f.io.kind as u64);
        self.trace.word(f.io.block);
        self.trace.word(u64::from(result.is_err()));
        let now = time(self.now);
        self.core(|v| v.complete(now, f.io.id, result, f.io.buf));
        Ok(true)
    }

    /// A read gives something else than what is there: another block, a block of before, flipped bits.
    fn misread(&mut self, f: &mut Flight) {
        match self.rng.below(3) {
            0 => {
                let other = self.rng.below(self.disk.blocks() - f.io.count + 1);
                self.disk.read(other, &mut f.io.buf);
            }
            1 => f.io.buf.fill(0),
            _ => {
                let bit = self.rng.below(f.io.buf.len() as u64 * 8);
                f.io.buf[(bit / 8) as usize] ^= 1 << (bit % 8);
            }
        }
    }

    // ---- operations ----

    fn state(&self) -> VolState {
        self.vol.as_ref().map_or(VolState::Closed, Volume::state)
    }

    /// Draws and submits operation `index`. False: it has to wait for others.
    fn submit(&mut self, index: u64) -> Res<bool> {
        let mut r = Rng::new(self.cfg.seed, 1000 + index);
        for _ in 0..12 {
            let Some(act) = gen::draw(&self.head, &self.cfg, &mut r) else { continue };
            let locks = act.locks(&self.head);
            if self.ops.iter().any(|p| collide(&p.locks, &locks)) {
                continue;
            }
            // What a failed operation left undecided shows at the next crash; until then it is not built on.
            if self.history.maybe.iter().any(|e| collide(&e.act.locks(&self.head), &locks)) {
                continue;
            }
            self.say(|| format!("submit {index}: {}", act.line()));
            *self.tally.ops.entry(act.kind()).or_default() += 1;
            for f in [Fault::NoSpace, Fault::ReadError, Fault::Misread] {
                if self.recent[f as usize] > 0 {
                    self.recent[f as usize] -= 1;
                    self.cover(f, &[act.kind()]);
                }
            }
            if self.head.any_rotten() {
                self.cover(Fault::BitRot, &[act.kind()]);
            }
            self.issue(act, locks)?;
            return Ok(true);
        }
        // With nothing in flight nothing will change: leave this one out.
        Ok(self.ops.is_empty())
    }

    fn issue(&mut self, act: Act, locks: Vec<Lock>) -> Res<()> {
        let now = time(self.now);
        let at = When { lo: self.now, hi: self.now };
        let when = self.ops.iter().fold(at, |w, p| w.hull(p.when));
        let p = Pending { id: OpId(0), act, locks, at: self.history.len(), when, after_abort: self.aborted };
        let op = p.act.op();
        if p.act.reads() && self.rng.chance(1, 2) {
            let op = &op;
            if let Some(Some(r)) = self.core(|v| v.try_read(now, op)) {
                return self.reply(p, r);
            }
        }
        match self.core(|v| v.submit(now, op)) {
            Some(Ok(id)) => {
                self.ops.push(Pending { id, ..p });
                self.take_io()?;
            }
            Some(Err(e)) => self.reply(p, Err(e))?,
            None => {}
        }
        self.watch()
    }

    /// A volume may fail only if a write, a flush or memory failed.
    fn watch(&mut self) -> Res<()> {
        if self.aborted || self.opening || self.state() != VolState::Aborted {
            return Ok(());
        }
        let s = |f: Fault| self.strikes[f as usize];
        // A checkpoint that cannot read what it has to change gives up too.
        let reads = s(Fault::ReadError) + s(Fault::Misread);
        if s(Fault::WriteError) + s(Fault::FlushError) + s(Fault::NoMemory) + reads == 0 {
            return Err("the volume failed, and no request to the disk had".into());
        }
        self.aborted = true;
        self.tally.aborts += 1;
        self.say(|| "the volume has aborted".into());
        Ok(())
    }

    // ---- time and work ----

    /// One thing happens. False: nothing could.
    fn turn(&mut self) -> Res<bool> {
        let mut moved = false;
        if !self.io.is_empty() && (self.quiet || self.rng.chance(1, self.cfg.laziness)) {
            moved |= self.complete()?;
            self.watch()?;
        }
        moved |= self.take_io()?;
        if self.quiet || !self.cfg.lazy_replies || self.rng.chance(1, 4) {
            moved |= self.take_replies()?;
        }
        if self.rng.chance(1, self.cfg.work_every) {
            moved |= self.core(Volume::work).unwrap_or(false);
            moved |= self.take_io()?;
        }
        if self.rng.chance(1, 8) {
            let jump = self.cfg.has(Fault::ClockJump) && !self.quiet && self.rng.chance(1, 30);
            let step = if jump {
                self.strike(Fault::ClockJump);
                i128::from(self.rng.below(200_000_000)) * NS - 100_000_000 * NS
            } else {
                i128::from(self.rng.below(2_000_000))
            };
            self.advance(step);
        }
        if !moved && self.io.is_empty() {
            // Nothing is left but to let time pass.
            if let Some(at) = self.vol.as_ref().and_then(Volume::poll_timeout) {
                let at = When::at(at).lo;
                if at > self.now {
                    self.advance(at - self.now);
                }
            }
        }
        let due = self.vol.as_ref().and_then(Volume::poll_timeout).is_some_and(|t| When::at(t).lo <= self.now);
        if due {
            let now = time(self.now);
            self.core(|v| v.handle_timeout(now));
            moved |= self.take_io()?;
        }
        Ok(moved)
    }

    fn advance(&mut self, by: i128) {
        self.now += by;
        let now = When { lo: self.now, hi: self.now };
        for p in &mut self.ops {
            p.when = p.when.hull(now);
        }
    }

    /// Lets everything in flight end.
    fn drain(&mut self) -> Res<()> {
        let mut idle = 0;
        while !self.ops.is_empty() || !self.io.is_empty() {
            let moved = self.turn()?;
            self.take_replies()?;
            idle = if moved { 0 } else { idle + 1 };
            if idle > 2000 {
                return Err(self.stuck());
            }
        }
        Ok(())
    }
}

impl Ask for World {
    fn ask(&mut self, op: Op) -> Res<Result<Reply, Error>> {
        let now = time(self.now);
        if let Some(Some(r)) = self.core(|v| v.try_read(now, &op)) {
            self.trace_reply(&r);
            return Ok(r);
        }
        let id = match self.core(|v| v.submit(now, op)) {
            Some(Ok(id)) => id,
            Some(Err(e)) => return Ok(Err(e)),
            None => return Err("the volume is gone".into()),
        };
        self.take_io()?;
        let mut idle = 0;
        loop {
            if let Some(Some((got, r))) = self.core(Volume::poll_reply) {
                if got == id {
                    self.trace_reply(&r);
                    return Ok(r);
                }
                return Err(format!("a reply to an operation that is not in flight: {got:?}"));
            }
            let mut moved = self.complete()?;
            moved |= self.take_io()?;
            if !moved {
                moved |= self.core(Volume::work).unwrap_or(false);
                moved |= self.take_io()?;
            }
            if !moved && self.io.is_empty() {
                if let Some(at) = self.vol.as_ref().and_then(Volume::poll_timeout) {
                    self.advance((When::at(at).lo - self.now).max(0));
                    let now = time(self.now);
                    self.core(|v| v.handle_timeout(now));
                    self.take_io()?;
                }
            }
            idle = if moved { 0 } else { idle + 1 };
            if idle > 2000 {
                return Err("an operation hangs, with nothing under way on the disk and no timeout".into());
            }
        }
    }
}

/// Number of kinds of operations.
pub fn kinds() -> usize {
    KINDS.len()
}

/// The root directory, for tests.
pub const TOP: u64 = ROOT;
