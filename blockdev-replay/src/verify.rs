// SPDX-License-Identifier: GPL-2.0-only
//! Recovery and check of VexFS on a disk whose power was cut: the checker finds nothing on the disk as it is, the volume
//! opens, which replays its log, and the checker finds nothing after that. Recovery itself may be cut as well.

use crate::cut::Cut;
use crate::disk::{Durable, Request, Trial};
use crate::log::Log;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vexfs_core::check::{Check, Figures, Mode, Options};
use vexfs_core::format::{Super, BLOCK, SUPER_MAGIC, SUPER_SLOTS, VOLUME_MIN};
use vexfs_core::io::{Io, IoError, IoKind};
use vexfs_embedded::testing::Random;
use vexfs_embedded::{Device, Host, HostOptions};

/// Cache of a volume that is only recovered and checked.
const CACHE: usize = 32 << 20;

fn options() -> HostOptions {
    HostOptions { cache_bytes: CACHE, helpers: 1, ..HostOptions::default() }
}

fn carry_out(device: &dyn Device, io: &mut Io) -> io::Result<()> {
    let offset = io.block.saturating_mul(BLOCK as u64);
    match io.kind {
        IoKind::Read => device.read_at(offset, &mut io.buf),
        IoKind::Write => device.write_at(offset, &io.buf),
        IoKind::WriteDurable => device.write_durable_at(offset, &io.buf),
        IoKind::Flush => device.flush(),
        IoKind::Discard => Ok(()),
    }
}

/// Runs the checker; says what it found.
pub fn check(device: &dyn Device) -> Result<Figures, String> {
    let env = vexfs_embedded::env(&options());
    let mut check = Check::new(env, device.len() / BLOCK as u64, Options { mode: Mode::Look, metadata_only: false });
    let figures = check
        .run(&mut |io| carry_out(device, io).map_err(|_| IoError))
        .map_err(|e| format!("it cannot be checked: {e}"))?;
    if figures.errors > 0 {
        let found: Vec<String> =
            check.findings().iter().filter(|f| f.is_error()).take(5).map(|f| f.to_string()).collect();
        return Err(format!("the check finds {} errors: {}", figures.errors, found.join("; ")));
    }
    Ok(figures)
}

/// Opens the volume, which recovers it, and closes it.
pub fn recover(trial: &Arc<Trial>) -> Result<(), String> {
    let host =
        Host::open(Box::new(trial.clone()), "the disk", &options()).map_err(|e| format!("it does not open: {e}"))?;
    host.close().map_err(|e| format!("it does not close: {e}"))
}

/// Checks, recovers, checks again; then cuts recovery `cuts` times, too.
pub fn verify(trial: Trial, cuts: u64, seed: u64) -> Result<Figures, String> {
    check(&trial).map_err(|e| format!("before recovery: {e}"))?;
    let trial = Arc::new(trial);
    recover(&trial).map_err(|e| format!("in recovery: {e}"))?;
    let figures = check(&trial).map_err(|e| format!("after recovery: {e}"))?;
    let trace = trial.trace();
    let mut random = Random::new(seed);
    for _ in 0..cuts {
        if trace.is_empty() {
            break;
        }
        let at = 1 + random.below(trace.len() as u64) as usize;
        let part = &trace[..at];
        let durable = part.iter().rposition(|r| matches!(r, Request::Flush)).unwrap_or(0);
        let percent = [0, 50, 100][random.below(3) as usize];
        // Decided for a write as a whole, or for each of its sectors.
        let mut of = (usize::MAX, true, false);
        let again = Arc::new(trial.again(part, |n, _| {
            if n < durable || matches!(part[n], Request::WriteDurable(..)) {
                return true;
            }
            if of.0 != n {
                of = (n, random.below(100) < percent, random.below(8) == 0);
            }
            if of.2 {
                random.below(2) == 0
            } else {
                of.1
            }
        }));
        let place = format!("after a second power cut, {at} requests into recovery");
        check(&again).map_err(|e| format!("{place}: {e}"))?;
        recover(&again).map_err(|e| format!("{place}: {e}"))?;
        check(&again).map_err(|e| format!("{place}, recovered: {e}"))?;
    }
    Ok(figures)
}

/// What to try.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Places of the log to cut at.
    pub places: Vec<usize>,
    /// Random cuts at each.
    pub random: u64,
    /// Exhaustive cuts at each, of at most so many writes; 0: none.
    pub exhaustive: usize,
    /// Power cuts during each recovery.
    pub recovery: u64,
    /// Seed of all that is random.
    pub seed: u64,
    /// Threads.
    pub jobs: usize,
}

/// A state that did not pass.
#[derive(Clone, Debug)]
pub struct Bad {
    /// The cut, as text that gives it again.
    pub cut: String,
    /// What was wrong.
    pub why: String,
}

/// What a run of a plan showed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// States that were recovered and checked.
    pub states: usize,
    /// Writes that arrived, were torn, were lost, over all states.
    pub writes: (usize, usize, usize),
    /// States that did not pass.
    pub bad: Vec<Bad>,
}

/// A log and the disk below it.
#[derive(Clone)]
pub struct Disk {
    /// The log.
    pub log: Arc<Log>,
    /// What the disk held before.
    pub base: Option<Arc<File>>,
    /// Its size in bytes.
    pub len: u64,
    /// Entries that belong to no power cut: mkfs, usually.
    pub start: usize,
    /// Whether flushes make durable.
    pub flushes: bool,
}

impl Disk {
    /// A disk whose size is `len`, or that of the volume on it at the end of the log, or that of what was written.
    pub fn new(log: Arc<Log>, base: Option<Arc<File>>, len: Option<u64>) -> io::Result<Disk> {
        let base_len = match &base {
            Some(f) => f.metadata()?.len(),
            None => 0,
        };
        let mut disk =
            Disk { len: len.unwrap_or_else(|| log.extent().max(base_len)), log, base, start: 0, flushes: true };
        if len.is_none() {
            if let Some(bytes) = disk.volume_len() {
                disk.len = disk.len.max(bytes);
            }
        }
        disk.len -= disk.len % BLOCK as u64;
        Ok(disk)
    }

    /// Size of the volume that is on the disk at the end of the log.
    fn volume_len(&self) -> Option<u64> {
        let mut durable = Durable::new(0, true);
        durable.advance(&self.log, self.log.entries.len());
        let trial = self.trial(&durable, &Cut::all(&durable.volatile(&self.log), self.log.entries.len()));
        let mut block = vec![0; BLOCK];
        SUPER_SLOTS
            .iter()
            .filter_map(|[b, _]| {
                trial.read_at(b * BLOCK as u64, &mut block).ok()?;
                let s = Super::parse(&block)?;
                (s.magic == SUPER_MAGIC && s.blocks >= VOLUME_MIN).then(|| s.blocks.checked_mul(BLOCK as u64))?
            })
            .max()
    }

    /// The disk after a cut.
    pub fn trial(&self, durable: &Durable, cut: &Cut) -> Trial {
        Trial::new(self.log.clone(), self.base.clone(), self.len, durable.state(&self.log, cut))
    }

    /// What is durable after `at` entries.
    pub fn durable(&self, at: usize) -> Durable {
        let mut durable = Durable::new(self.start, self.flushes);
        durable.advance(&self.log, at);
        durable
    }

    /// The first place of the log from which on a volume is on the disk that opens and is clean: mkfs is not atomic.
    pub fn volume_begins(&self) -> Option<usize> {
        let mut durable = Durable::new(0, true);
        for at in 0..=self.log.entries.len() {
            if at != 0 && !self.log.entries[at - 1].is_flush() {
                continue;
            }
            durable.advance(&self.log, at);
            let trial = self.trial(&durable, &Cut::none(&durable.volatile(&self.log), at));
            if check(&trial).is_ok() && recover(&Arc::new(trial)).is_ok() {
                return Some(at);
            }
        }
        None
    }

    /// Carries out a plan; `tick` is called for each place that is done.
    pub fn run(&self, plan: &Plan, tick: impl Fn(usize) + Sync) -> Outcome {
        let outcome = Mutex::new(Outcome::default());
        let mut places = plan.places.clone();
        places.sort_unstable();
        places.dedup();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..plan.jobs.max(1) {
                scope.spawn(|| {
                    let mut durable = Durable::new(self.start, self.flushes);
                    while let Some(at) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
                        durable.advance(&self.log, *at);
                        let part = self.place(plan, &durable, *at);
                        let mut all = outcome.lock().unwrap_or_else(PoisonError::into_inner);
                        all.states += part.states;
                        all.writes.0 += part.writes.0;
                        all.writes.1 += part.writes.1;
                        all.writes.2 += part.writes.2;
                        all.bad.extend(part.bad);
                        drop(all);
                        tick(*at);
                    }
                });
            }
        });
        let mut outcome = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcome.bad.sort_by(|a, b| a.cut.cmp(&b.cut));
        outcome
    }

    /// All cuts of a plan at one place.
    fn place(&self, plan: &Plan, durable: &Durable, at: usize) -> Outcome {
        let volatile = durable.volatile(&self.log);
        let mut cuts = Vec::new();
        if plan.exhaustive > 0 {
            cuts = Cut::exhaustive(&self.log, &volatile, at, plan.exhaustive);
        }
        for n in 0..plan.random {
            cuts.push(Cut::random(&self.log, &volatile, at, plan.seed.wrapping_add(n)));
        }
        if cuts.is_empty() {
            cuts.push(Cut::all(&volatile, at));
        }
        let mut outcome = Outcome::default();
        for cut in cuts {
            let (whole, torn, lost) = cut.counts();
            outcome.states += 1;
            outcome.writes.0 += whole;
            outcome.writes.1 += torn;
            outcome.writes.2 += lost;
            if let Err(why) = verify(self.trial(durable, &cut), plan.recovery, plan.seed ^ at as u64) {
                outcome.bad.push(Bad { cut: cut.to_string(), why });
            }
        }
        outcome
    }
}
