// SPDX-License-Identifier: GPL-2.0-only
//! What a seed decides about a run before it begins (swarm testing): the volume, the kinds of operations
//! and their weights, how the disk orders its work, and which faults can happen. Runs that leave features
//! out reach states that a run with everything would blur.

use crate::act::KINDS;
use crate::rng::Rng;

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Fault {
    PowerCut,
    Lost,
    Reordered,
    Torn,
    Kill,
    CrashInRecovery,
    ReadError,
    WriteError,
    FlushError,
    NoSpace,
    NoMemory,
    BitRot,
    Misread,
    ClockJump,
}

/// Names of the faults, in the order of [`Fault`].
pub const FAULTS: [&str; 14] = [
    "power-cut",
    "lost",
    "reordered",
    "torn",
    "kill",
    "crash-in-recovery",
    "read-error",
    "write-error",
    "flush-error",
    "enospc",
    "enomem",
    "bit-rot",
    "misread",
    "clock-jump",
];

/// In which order the disk completes what is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As submitted.
    First,
    /// The newest first.
    Last,
    /// Any.
    Random,
    /// Flushes and durable writes last of all.
    FlushesLate,
}

/// Everything that is decided before a run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The seed.
    pub seed: u64,
    /// Operations to submit.
    pub ops: u64,
    /// Most operations in flight.
    pub width: usize,
    /// Size of the volume in blocks.
    pub blocks: u64,
    /// Metadata copies.
    pub copies: u32,
    /// `Env::cache_bytes`.
    pub cache_bytes: usize,
    /// `Env::log_bytes`.
    pub log_bytes: u64,
    /// Weight of each kind of operation.
    pub weights: Vec<u64>,
    /// Which faults can happen.
    pub faults: [bool; FAULTS.len()],
    /// One allocation in about so many fails, with [`Fault::NoMemory`].
    pub oom_every: u64,
    /// One I/O in so many fails, with the error faults.
    pub error_every: u64,
    /// Steps between crashes, about.
    pub crash_every: u64,
    /// Order of completions.
    pub order: Order,
    /// One in so many chances is taken to hand in a completion (others wait).
    pub laziness: u64,
    /// Replies are fetched late.
    pub lazy_replies: bool,
    /// Background work is done eagerly (1) or rarely.
    pub work_every: u64,
    /// `Options::write_behind`: what was acknowledged and not made durable is lost with the process.
    pub write_behind: bool,
    /// Most inodes.
    pub inodes: usize,
    /// Files are filled with large preallocations.
    pub big: bool,
    /// Indices of operations to leave out (shrinking).
    pub skip: Vec<u64>,
}

impl Config {
    /// Draws the configuration of a seed. `ops` 0: the default number.
    pub fn draw(seed: u64, ops: u64) -> Config {
        let mut r = Rng::new(seed, 1);
        let mut weights = Vec::new();
        for kind in KINDS {
            let base = match kind {
                "write" => 14,
                "create" | "v-insert" => 10,
                "read" | "v-search" => 8,
                "sync" => 5,
                "unlink" | "rename" | "mkdir" | "v-delete" | "v-embed" | "v-insert-durable" | "truncate" => 5,
                "link" | "setxattr" | "v-create" | "fallocate" | "setattr" => 3,
                "checkpoint" | "discard" | "v-drop" | "v-reindex" | "rmdir" => 1,
                _ => 2,
            };
            // Swarm: every kind is left out in a fifth of the runs, or done a lot.
            let w = match r.below(10) {
                0 | 1 => 0,
                2 => base * 40,
                _ => base * 10,
            };
            weights.push(w);
        }
        let index = |k: &str| KINDS.iter().position(|x| *x == k).unwrap_or(0);
        for needed in ["create", "mkdir", "sync"] {
            let i = index(needed);
            weights[i] = weights[i].max(20);
        }
        // Some runs without vectors, some with little else.
        match r.below(4) {
            0 => KINDS.iter().enumerate().filter(|(_, k)| k.starts_with("v-")).for_each(|(i, _)| weights[i] = 0),
            1 => {
                KINDS.iter().enumerate().filter(|(_, k)| !k.starts_with("v-")).for_each(|(i, _)| weights[i] /= 4);
                weights[index("mkdir")] = 20;
                weights[index("v-create")] = weights[index("v-create")].max(40);
            }
            _ => {}
        }
        let mut faults = [false; FAULTS.len()];
        for (i, f) in faults.iter_mut().enumerate() {
            let rare = [Fault::WriteError, Fault::FlushError, Fault::ReadError, Fault::NoMemory, Fault::BitRot];
            let rare = rare.iter().any(|x| *x as usize == i) || i == Fault::Misread as usize;
            *f = if rare { r.chance(1, 4) } else { r.chance(2, 3) };
        }
        // A run without any crash is none.
        if !faults[Fault::PowerCut as usize] && !faults[Fault::Kill as usize] {
            faults[Fault::PowerCut as usize] = true;
        }
        let big = faults[Fault::NoSpace as usize] && r.chance(1, 2);
        faults[Fault::NoSpace as usize] = big;
        Config {
            seed,
            ops: if ops == 0 { r.range(200, 320) } else { ops },
            width: *r.pick(&[1, 2, 4, 8]),
            blocks: if big { r.range(4096, 6000) } else { r.range(4096, 16384) },
            copies: if r.chance(3, 4) { 2 } else { 1 },
            cache_bytes: *r.pick(&[16 << 10, 64 << 10, 1 << 20, 16 << 20]),
            log_bytes: *r.pick(&[16 << 10, 64 << 10, 256 << 10, 1 << 20]),
            weights,
            faults,
            oom_every: *r.pick(&[100, 1000, 10_000]),
            error_every: *r.pick(&[10, 50, 200]),
            crash_every: *r.pick(&[150, 400, 1000]),
            order: *r.pick(&[Order::First, Order::Last, Order::Random, Order::Random, Order::FlushesLate]),
            laziness: *r.pick(&[1, 2, 4]),
            lazy_replies: r.chance(1, 2),
            work_every: *r.pick(&[1, 4, 32]),
            // From a stream of its own: the rest of a seed stays what it was.
            write_behind: Rng::new(seed, 4).chance(1, 4),
            inodes: *r.pick(&[12, 30, 80]),
            big,
            skip: Vec::new(),
        }
    }

    /// Whether a fault can happen.
    pub fn has(&self, f: Fault) -> bool {
        self.faults[f as usize]
    }
}
