// SPDX-License-Identifier: GPL-2.0-only
//! Collections of the sample in `bench/data`, or of another set with `VEXFS_TEST_DATA=PREFIX`. Shared by the tests of
//! recall and cost.

#![allow(dead_code)] // each test uses a part

use std::path::PathBuf;
use vexfs_core::coll::Collection;
use vexfs_core::dist::{self, Metric};
use vexfs_core::env::Env;
use vexfs_core::format::{Schema, Slot, SLOT_LIVE};
use vexfs_core::index::Absent;

pub fn env() -> Env {
    Env { crc32c: vexfs_core::checksum::crc32c, distance: dist::native(), cache_bytes: 0, log_bytes: 0 }
}

pub struct Data {
    pub base: Vec<Vec<u32>>,
    pub query: Vec<Vec<u32>>,
    pub truth: Vec<Vec<u64>>,
}

fn npy(path: &str) -> Option<Vec<Vec<u32>>> {
    let b = std::fs::read(path).ok()?;
    let head = 10 + u16::from_le_bytes([b[8], b[9]]) as usize;
    let text = String::from_utf8_lossy(&b[10..head]).into_owned();
    assert!(text.contains("<f4") && text.contains("False"), "{text}");
    let shape: Vec<usize> = text.split(['(', ')']).nth(1)?.split(',').filter_map(|s| s.trim().parse().ok()).collect();
    let words: Vec<u32> = b[head..].chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(words.len(), shape[0] * shape[1]);
    Some(words.chunks(shape[1]).map(<[u32]>::to_vec).collect())
}

fn ivecs(path: &str) -> Option<Vec<Vec<u64>>> {
    let b = std::fs::read(path).ok()?;
    let w: Vec<u32> = b.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
    let n = w[0] as usize;
    Some(w.chunks(n + 1).map(|r| r[1..].iter().map(|x| u64::from(*x)).collect()).collect())
}

pub fn prefix() -> String {
    std::env::var("VEXFS_TEST_DATA").unwrap_or_else(|_| {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../bench/data/sample").to_string_lossy().into_owned()
    })
}

pub fn data() -> Option<Data> {
    let p = prefix();
    Some(Data {
        base: npy(&format!("{p}.base.npy"))?,
        query: npy(&format!("{p}.query.npy"))?,
        truth: ivecs(&format!("{p}.gt100.ivecs"))?,
    })
}

pub fn build(base: &[Vec<u32>], index: u32) -> Collection {
    build_with(base, index, Metric::Cosine)
}

pub fn build_with(base: &[Vec<u32>], index: u32, metric: Metric) -> Collection {
    build_bits(base, index, metric, 0)
}

/// `bits`: of a code; 0 for the default.
pub fn build_bits(base: &[Vec<u32>], index: u32, metric: Metric, bits: u32) -> Collection {
    let mut c = empty(base[0].len(), index, metric, bits);
    for (i, v) in base.iter().enumerate() {
        put(&mut c, metric, i as u64, i as u64 + 1, v);
    }
    settle(&mut c);
    c
}

/// A collection without records.
pub fn empty(dim: usize, index: u32, metric: Metric, bits: u32) -> Collection {
    let schema = Schema {
        dim: dim as u32,
        metric: metric as u32,
        element: 1,
        index,
        m: if index == 2 { 16 } else { 0 },
        ef_construction: if index == 2 { 200 } else { 0 },
        bits,
        seed: 42,
        ..Schema::default()
    };
    Collection::new(1, schema).unwrap()
}

/// Stores a record in the first free slot.
pub fn put(c: &mut Collection, metric: Metric, id: u64, seq: u64, v: &[u32]) {
    let inv_norm = dist::admit(env().distance, metric, v).unwrap();
    let slot = c.free_slot(0);
    c.put(slot, Slot { id, seq, inv_norm, flags: SLOT_LIVE, crc: 0 }, v).unwrap();
}

/// Does all work on the index that there is.
pub fn settle(c: &mut Collection) {
    while c.work(&env(), &Absent::new(0), 1000).unwrap() {}
}
