// SPDX-License-Identifier: GPL-2.0-only
//! What searches of the sample in `bench/data` cost, to the last distance: the figures of each index in
//! `golden.txt`. They are the same on every machine, so whatever changes an index shows as a difference there. This test
//! fails when they differ, and writes them with `VEXFS_WRITE_GOLDEN=1 cargo test -p vexfs-core --test golden`.

mod sample;

use sample::{build, data, env, prefix};
use std::collections::HashSet;
use std::fmt::Write;
use vexfs_core::coll::{SearchParams, SearchScratch};

/// Indexes by their number in the schema, with the efforts that are looked at; 0 is the default.
const KINDS: [(u32, &str, &[usize]); 5] = [
    (1, "flat", &[0]),
    (2, "hnsw", &[10, 64, 256]),
    (3, "ivf", &[0, 4, 16]),
    (4, "pq", &[0, 50, 200]),
    (5, "lsh", &[0, 200, 800]),
];

/// One line for an index and an effort: sums over all queries.
fn figures(index: u32, name: &str, efforts: &[usize]) -> Option<String> {
    let d = data()?;
    let c = build(&d.base, index);
    let info = c.info();
    let mut text = format!("{name}: layers {} links {} parts {}\n", info.layers, info.links, info.parts);
    for ef in efforts {
        let (mut scratch, mut out) = (SearchScratch::new(), Vec::new());
        let (mut hops, mut distances, mut right) = (0, 0, 0);
        for (q, truth) in d.query.iter().zip(&d.truth) {
            let req = SearchParams { query: q, k: 10, ef: *ef, radius: None, exact: false };
            let stats = c.search(&env(), &req, None, &mut scratch, &mut out).unwrap();
            hops += stats.hops;
            distances += stats.distances;
            let want: HashSet<u64> = truth[..10].iter().copied().collect();
            right += out.iter().filter(|h| want.contains(&h.id)).count();
        }
        let all = d.query.len() * 10;
        writeln!(text, "{name} effort {ef}: hops {hops} distances {distances} found {right} of {all}").unwrap();
    }
    Some(text)
}

#[test]
fn searches_cost_what_they_did() {
    if std::env::var_os("VEXFS_TEST_DATA").is_some() {
        return eprintln!("skipped: the figures are those of the sample");
    }
    let mut new = String::new();
    for (index, name, efforts) in KINDS {
        let Some(text) = figures(index, name, efforts) else { return eprintln!("skipped: no data at {}", prefix()) };
        new.push_str(&text);
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.txt");
    if std::env::var_os("VEXFS_WRITE_GOLDEN").is_some() {
        return std::fs::write(path, new).unwrap();
    }
    let old = std::fs::read_to_string(path).unwrap();
    let gone = old.lines().filter(|l| !new.lines().any(|n| n == *l)).map(|l| format!("- {l}\n"));
    let come = new.lines().filter(|l| !old.lines().any(|o| o == *l)).map(|l| format!("+ {l}\n"));
    let diff: String = gone.chain(come).collect();
    assert!(
        old == new,
        "searches do not cost what they did:\n{diff}if that is meant: VEXFS_WRITE_GOLDEN=1 cargo test -p vexfs-core --test golden"
    );
}
