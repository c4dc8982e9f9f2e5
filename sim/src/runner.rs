// SPDX-License-Identifier: GPL-2.0-only
//! Many seeds: threads, the determinism check, the summary, shrinking, canaries. It owns the replay
//! command, which names everything that a run depends on.

use crate::act::KINDS;
use crate::alloc;
use crate::canary::{self, Canary};
use crate::swarm::{Config, FAULTS};
use crate::tally::Tally;
use crate::world::{self, Outcome};
use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What replaces parts of a seed's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Number of operations; 0: as the seed says.
    pub ops: u64,
    /// Operations in flight; 0: as the seed says.
    pub width: usize,
    /// Faults that are switched off.
    pub off: Vec<usize>,
    /// Operations that are left out.
    pub skip: Vec<u64>,
}

impl Overrides {
    /// The configuration of a seed.
    pub fn config(&self, seed: u64) -> Config {
        let mut c = Config::draw(seed, self.ops);
        if self.width != 0 {
            c.width = self.width;
        }
        for f in &self.off {
            c.faults[*f] = false;
        }
        c.skip = self.skip.clone();
        c
    }

    /// The command that runs a seed this way.
    pub fn command(&self, seed: u64) -> String {
        let mut s = format!("cargo run --release -p sim -- --seed {seed}");
        if self.ops != 0 {
            let _ = write!(s, " --ops {}", self.ops);
        }
        if self.width != 0 {
            let _ = write!(s, " --width {}", self.width);
        }
        if !self.off.is_empty() {
            let names: Vec<&str> = self.off.iter().map(|f| FAULTS[*f]).collect();
            let _ = write!(s, " --off {}", names.join(","));
        }
        if !self.skip.is_empty() {
            let _ = write!(s, " --skip {}", ranges(&self.skip));
        }
        s
    }
}

/// `1,2,3,7` as `1-3,7`.
pub fn ranges(v: &[u64]) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut i = 0;
    while i < v.len() {
        let mut j = i;
        while j + 1 < v.len() && v[j + 1] == v[j] + 1 {
            j += 1;
        }
        out.push(if i == j { v[i].to_string() } else { format!("{}-{}", v[i], v[j]) });
        i = j + 1;
    }
    out.join(",")
}

/// The other way round.
pub fn parse_ranges(s: &str) -> Result<Vec<u64>, String> {
    let mut v = Vec::new();
    for part in s.split(',').filter(|p| !p.is_empty()) {
        let number = |t: &str| t.parse::<u64>().map_err(|_| format!("{t:?} is not a number"));
        match part.split_once('-') {
            Some((a, b)) => v.extend(number(a)?..=number(b)?),
            None => v.push(number(part)?),
        }
    }
    v.sort_unstable();
    v.dedup();
    Ok(v)
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Makes panics of runs part of their result instead of noise. Call it once.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        alloc::disarm();
        let mut text = info.to_string();
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            let _ = write!(text, "\n{}", std::backtrace::Backtrace::force_capture());
        }
        PANIC.with(|p| *p.borrow_mut() = text);
    }));
    alloc::name_the_seed_on_abort();
}

/// Runs a seed; a panic is a violation.
pub fn run(cfg: &Config, canary: Canary, verbose: bool) -> Outcome {
    alloc::set_seed(cfg.seed);
    let result = std::panic::catch_unwind(|| world::run(cfg, canary, verbose));
    alloc::cancel();
    result.unwrap_or_else(|_| Outcome {
        hash: String::new(),
        tally: Tally::default(),
        violation: Some(format!("panic: {}", PANIC.with(|p| p.borrow().clone()))),
    })
}

/// A seed that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What went wrong.
    pub message: String,
}

/// The result of many seeds.
#[derive(Default)]
pub struct Summary {
    /// Seeds that ran.
    pub seeds: u64,
    /// Seeds that ran twice with the same hash.
    pub twice: u64,
    /// Counts of all.
    pub tally: Tally,
    /// Seeds that failed.
    pub failures: Vec<Failure>,
    /// Seconds.
    pub seconds: f64,
    /// Threads.
    pub jobs: usize,
}

/// How to run many seeds.
pub struct Plan<'a> {
    /// Seeds in order.
    pub seeds: &'a [u64],
    /// Threads.
    pub jobs: usize,
    /// Every how many seeds the run is repeated and the hashes compared; 0: never.
    pub twice_every: u64,
    /// Replacements.
    pub overrides: &'a Overrides,
    /// What is broken.
    pub canary: Canary,
    /// Stop after so many failures.
    pub failures_max: usize,
    /// Called after each seed.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// Runs them.
pub fn many(plan: &Plan) -> Summary {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Summary { jobs: plan.jobs, ..Summary::default() });
    let start = Instant::now();
    let running: Vec<Mutex<Option<(u64, Instant)>>> = (0..plan.jobs).map(|_| Mutex::new(None)).collect();
    let ended = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while ended.load(Ordering::Relaxed) < plan.jobs as u64 {
                std::thread::sleep(Duration::from_millis(50));
                for slot in &running {
                    let Some((seed, since)) = *lock(slot) else { continue };
                    if since.elapsed() > SEED_TIME_MAX {
                        eprintln!("sim: seed {seed} does not end; replay: {}", plan.overrides.command(seed));
                        std::process::exit(1);
                    }
                }
            }
        });
        for slot in &running {
            scope.spawn(|| {
                run_seeds(plan, slot, &next, &stop, &total);
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    let mut s = total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    s.seconds = start.elapsed().as_secs_f64();
    s.failures.sort_by_key(|f| f.seed);
    s
}

/// A seed that takes longer hangs inside the core.
const SEED_TIME_MAX: Duration = Duration::from_secs(120);

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What a thread does: one seed after the other.
fn run_seeds(
    plan: &Plan,
    slot: &Mutex<Option<(u64, Instant)>>,
    next: &AtomicU64,
    stop: &AtomicBool,
    total: &Mutex<Summary>,
) {
    loop {
        let i = next.fetch_add(1, Ordering::Relaxed);
        let Some(seed) = plan.seeds.get(i as usize) else { break };
        *lock(slot) = Some((*seed, Instant::now()));
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let cfg = plan.overrides.config(*seed);
        let mut out = run(&cfg, plan.canary, false);
        let twice = plan.twice_every != 0 && i % plan.twice_every == 0;
        if twice && out.violation.is_none() {
            let again = run(&cfg, plan.canary, false);
            if again.hash != out.hash {
                out.violation = Some(format!(
                    "two runs of this seed differ (hashes {} and {}): something outside the seed has a say",
                    out.hash, again.hash
                ));
            }
        }
        let mut t = lock(total);
        t.seeds += 1;
        t.twice += u64::from(twice);
        t.tally.add(&out.tally);
        if let Some(message) = out.violation {
            let line = message.lines().next().unwrap_or_default();
            eprintln!("sim: seed {seed} failed: {line}");
            t.failures.push(Failure { seed: *seed, message });
            if t.failures.len() >= plan.failures_max {
                stop.store(true, Ordering::Relaxed);
            }
        }
        (plan.progress)(t.failures.len() as u64);
    }
    *lock(slot) = None;
}

/// Operations and faults that never met.
pub fn gaps(t: &Tally) -> Vec<(usize, usize)> {
    let all = (0..KINDS.len()).flat_map(|k| (0..FAULTS.len()).map(move |f| (k, f)));
    all.filter(|x| !t.cover.contains_key(x)).collect()
}

/// The summary as text.
pub fn report(s: &Summary) -> String {
    let t = &s.tally;
    let mut out = String::new();
    let _ = writeln!(out, "\noperations in flight when a fault struck (bit-rot: on such a volume; enospc, read-error, misread: or right after):\n");
    let _ = write!(out, "{:18}{:>9}", "", "all");
    for f in FAULTS {
        let short: String = f.chars().take(9).collect();
        let _ = write!(out, "{short:>10}");
    }
    out.push('\n');
    for (k, name) in KINDS.iter().enumerate() {
        let _ = write!(out, "{name:18}{:>9}", t.ops.get(&k).copied().unwrap_or(0));
        for f in 0..FAULTS.len() {
            let _ = write!(out, "{:>10}", t.cover.get(&(k, f)).copied().unwrap_or(0));
        }
        out.push('\n');
    }
    let _ = write!(out, "{:18}{:>9}", "faults", "");
    for n in t.strikes {
        let _ = write!(out, "{n:>10}");
    }
    let ops: u64 = t.ops.values().sum();
    let rate = |n: u64| if s.seconds > 0.0 { n as f64 / s.seconds / s.jobs.max(1) as f64 } else { 0.0 };
    let _ = writeln!(out, "\n");
    let _ = writeln!(
        out,
        "{} seeds in {:.1} s on {} threads; {} of them run twice, the same hash each time",
        s.seeds, s.seconds, s.jobs, s.twice
    );
    let _ = writeln!(
        out,
        "{ops} operations, {} disk requests, {} checkpoints, {} reruns of operations",
        t.io, t.checkpoints, t.reruns
    );
    let _ = writeln!(
        out,
        "{} crashes, {} crash states recovered and compared ({:.1} per second and core), {} log groups replayed, {} volumes failed on purpose",
        t.crashes,
        t.states,
        rate(t.states),
        t.groups,
        t.aborts
    );
    let (reads, dropped) = t.paging;
    let _ = writeln!(out, "{reads} reads of vectors, {} KiB of vectors dropped for want of memory", dropped >> 10);
    if t.recall.1 > 0 {
        let recall = t.recall.0 as f64 / t.recall.1 as f64;
        let _ = writeln!(out, "approximate searches: recall {recall:.4} over {} possible results", t.recall.1);
    }
    let errors: Vec<String> = t.errors.iter().map(|(e, n)| format!("{e}: {n}")).collect();
    let _ = writeln!(out, "replies with an error, by number: {}", errors.join(", "));
    out
}

/// Makes a failing run small: fewer operations, fewer faults, less in flight.
pub fn shrink(seed: u64, start: &Overrides, canary: Canary, tries: u64, say: &dyn Fn(&str)) -> (Overrides, String) {
    let mut left = tries;
    let mut fails = |o: &Overrides| -> Option<String> {
        if left == 0 {
            return None;
        }
        left -= 1;
        run(&o.config(seed), canary, false).violation
    };
    let mut best = start.clone();
    let Some(mut message) = fails(&best) else { return (best, "it does not fail".into()) };
    best.ops = best.config(seed).ops;
    // Fewer operations.
    let (mut lo, mut hi) = (0, best.ops);
    while lo + 1 < hi {
        let mid = lo.midpoint(hi);
        let o = Overrides { ops: mid, ..best.clone() };
        match fails(&o) {
            Some(m) => (best, message, hi) = (o, m, mid),
            None => lo = mid,
        }
    }
    say(&format!("{} operations are enough", best.ops));
    for f in 0..FAULTS.len() {
        let mut o = best.clone();
        if best.config(seed).faults[f] {
            o.off.push(f);
            if let Some(m) = fails(&o) {
                (best, message) = (o, m);
            }
        }
    }
    for width in [1, 2, 4] {
        let o = Overrides { width, ..best.clone() };
        if width < best.config(seed).width {
            if let Some(m) = fails(&o) {
                (best, message) = (o, m);
                break;
            }
        }
    }
    say("leaving operations out");
    let mut chunk = best.ops / 2;
    while chunk > 0 {
        let mut from = 0;
        while from < best.ops {
            let mut o = best.clone();
            o.skip.extend(from..(from + chunk).min(best.ops));
            o.skip.sort_unstable();
            o.skip.dedup();
            if o.skip.len() > best.skip.len() {
                if let Some(m) = fails(&o) {
                    (best, message) = (o, m);
                }
            }
            from += chunk;
        }
        chunk /= 2;
    }
    (best, message)
}

/// Runs every canary until it is caught. Gives back name, seeds needed and what was seen; an `Err` says which sang on.
pub fn canaries(jobs: usize, seeds_max: u64, say: &dyn Fn(&str)) -> Result<(), String> {
    let mut missed = Vec::new();
    for (canary, name) in canary::ALL {
        let seeds: Vec<u64> = (0..seeds_max).collect();
        let plan = Plan {
            seeds: &seeds,
            jobs,
            twice_every: 0,
            overrides: &Overrides::default(),
            canary,
            failures_max: 1,
            progress: &|_| {},
        };
        let s = many(&plan);
        match s.failures.first() {
            Some(f) => {
                let line = f.message.lines().next().unwrap_or_default();
                say(&format!("{name}: caught by seed {} after {} seeds: {line}", f.seed, s.seeds));
            }
            None => {
                say(&format!("{name}: NOT caught by {} seeds", s.seeds));
                missed.push(name);
            }
        }
    }
    if missed.is_empty() {
        Ok(())
    } else {
        Err(format!("not caught: {}", missed.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_round_trip() {
        for v in [vec![], vec![3], vec![1, 2, 3, 7], vec![0, 2, 4, 5]] {
            assert_eq!(parse_ranges(&ranges(&v)), Ok(v));
        }
        assert!(parse_ranges("1-x").is_err());
    }

    #[test]
    fn the_command_names_every_override() {
        let o = Overrides { ops: 9, width: 2, off: vec![0, 4], skip: vec![1, 2] };
        assert_eq!(
            o.command(5),
            "cargo run --release -p sim -- --seed 5 --ops 9 --width 2 --off power-cut,kill --skip 1-2"
        );
    }

    #[test]
    fn seeds_decide_everything() {
        let o = Overrides::default();
        assert_eq!(format!("{:?}", o.config(7)), format!("{:?}", o.config(7)));
        assert_ne!(format!("{:?}", o.config(7).weights), format!("{:?}", o.config(8).weights));
        assert!((0..500).all(|s| o.config(s).ops >= 200));
    }
}
