// SPDX-License-Identifier: GPL-2.0-only
//! A hundred seeds, some of them twice, and two worlds that are broken on purpose: the quick part of what
//! `cargo run --release -p sim -- --seeds A..B` does at length.

use sim::canary::Canary;
use sim::runner::{self, Overrides, Plan};

fn plan<'a>(seeds: &'a [u64], overrides: &'a Overrides, canary: Canary) -> Plan<'a> {
    Plan { seeds, jobs: 2, twice_every: 5, overrides, canary, failures_max: 1, progress: &|_| {} }
}

#[test]
fn a_hundred_seeds() {
    let seeds: Vec<u64> = (0..100).collect();
    let o = Overrides::default();
    let s = runner::many(&plan(&seeds, &o, Canary::None));
    if let Some(f) = s.failures.first() {
        panic!("seed {}: {}\nreplay: {}", f.seed, f.message, o.command(f.seed));
    }
    assert_eq!((s.seeds, s.twice), (100, 20));
    assert!(s.tally.crashes >= 100, "every run crashes at least once");
    assert!(s.tally.states > s.tally.crashes);
    assert!(s.tally.ops.values().sum::<u64>() >= 20_000);
}

#[test]
fn broken_worlds_are_noticed() {
    let seeds: Vec<u64> = (0..200).collect();
    let o = Overrides::default();
    for canary in [Canary::FlushAfterLog, Canary::DeletedVectorFound] {
        let s = runner::many(&plan(&seeds, &o, canary));
        assert!(!s.failures.is_empty(), "{canary:?} was not noticed");
    }
}
