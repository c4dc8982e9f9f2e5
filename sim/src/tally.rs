// SPDX-License-Identifier: GPL-2.0-only
//! What runs are counted by. It owns the counters of a run and their sum over runs.

use crate::swarm::FAULTS;
use std::collections::BTreeMap;

/// What runs are counted by.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Operations of each kind that were in flight when a fault of each kind struck.
    pub cover: BTreeMap<(usize, usize), u64>,
    /// Operations by kind.
    pub ops: BTreeMap<usize, u64>,
    /// Replies that were errors, by error number.
    pub errors: BTreeMap<i32, u64>,
    /// How often each fault struck.
    pub strikes: [u64; FAULTS.len()],
    /// Crashes from which the run went on.
    pub crashes: u64,
    /// Disk images after a crash that were recovered and compared.
    pub states: u64,
    /// Volumes that aborted.
    pub aborts: u64,
    /// Log groups replayed by recoveries.
    pub groups: u64,
    /// Operations that the engine ran again because something was missing.
    pub reruns: u64,
    /// Reads of vectors, and bytes of vectors dropped for want of memory.
    pub paging: (u64, u64),
    /// Checkpoints written.
    pub checkpoints: u64,
    /// Found and possible results of approximate searches.
    pub recall: (u64, u64),
    /// I/O requests.
    pub io: u64,
}

impl Tally {
    /// Adds another's counts.
    pub fn add(&mut self, o: &Tally) {
        for (k, n) in &o.cover {
            *self.cover.entry(*k).or_default() += n;
        }
        for (k, n) in &o.ops {
            *self.ops.entry(*k).or_default() += n;
        }
        for (k, n) in &o.errors {
            *self.errors.entry(*k).or_default() += n;
        }
        for (a, b) in self.strikes.iter_mut().zip(o.strikes) {
            *a += b;
        }
        self.crashes += o.crashes;
        self.states += o.states;
        self.aborts += o.aborts;
        self.groups += o.groups;
        self.reruns += o.reruns;
        self.paging.0 += o.paging.0;
        self.paging.1 += o.paging.1;
        self.checkpoints += o.checkpoints;
        self.recall.0 += o.recall.0;
        self.recall.1 += o.recall.1;
        self.io += o.io;
    }
}
