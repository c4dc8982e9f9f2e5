// SPDX-License-Identifier: GPL-2.0-only
//! Distance kernels side by side with those of the crates `numkong` and `simsimd`, and with what memory gives: bytes of
//! stored vectors per second, from sets that fit each cache and from one that fits none. All in turn, round by round.

use crate::peer::clock;
use numkong::{Dot, Euclidean};
use serde_json::{json, Value};
use simsimd::SpatialSimilarity;
use std::hint::black_box;
use vexfs_core::dist::{code_words, Batch, Distance, Metric, Native, Query, Rough, BATCH};

/// How many seconds a kernel runs in a round.
const LEAST: f64 = 0.04;
/// Sets, and how many bytes of vectors each has.
const SETS: [(&str, usize); 4] =
    [("16 KiB", 16 << 10), ("256 KiB", 256 << 10), ("8 MiB", 8 << 20), ("256 MiB", 256 << 20)];
const DIMS: [usize; 3] = [128, 384, 1536];

/// The vectors of a set in the forms that kernels take.
struct Set {
    dim: usize,
    query: Vec<f32>,
    rows: Vec<f32>,
    coded_query: Vec<u32>,
    coded: Vec<u32>,
    bytes_query: Vec<i8>,
    bytes: Vec<i8>,
}

impl Set {
    /// About `bytes` of f32, and as many of codes.
    fn new(dim: usize, bytes: usize) -> Set {
        // Repeatable, and of a size that codes represent well.
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let rows = (bytes / (4 * dim)).max(1);
        let coded_rows = (bytes / dim).max(1);
        let words = code_words(dim);
        let query: Vec<f32> = (0..dim).map(|_| next()).collect();
        let encode = |v: &[f32], to: &mut [u32]| {
            let bits: Vec<u32> = v.iter().map(|x| x.to_bits()).collect();
            Native::best().encode(&Query { metric: Metric::L2, words: &bits, inv_norm: 0 }, to);
        };
        let mut coded_query = vec![0; words];
        encode(&query, &mut coded_query);
        // A few vectors' codes over and over: making them takes longer than measuring.
        let some: Vec<u32> = (0..64)
            .flat_map(|_| {
                let v: Vec<f32> = (0..dim).map(|_| next()).collect();
                let mut to = vec![0; words];
                encode(&v, &mut to);
                to
            })
            .collect();
        let coded = some.iter().copied().cycle().take(coded_rows * words).collect();
        Set {
            dim,
            rows: (0..rows * dim).map(|_| next()).collect(),
            coded_query,
            coded,
            bytes_query: query.iter().map(|x| (x * 127.0) as i8).collect(),
            bytes: (0..coded_rows * dim).map(|i| (i.wrapping_mul(37) % 251) as i8).collect(),
            query,
        }
    }

    /// Hands rows of `len` words to `f`, [`BATCH`] at a time.
    fn batches<'a>(rows: &'a [u32], len: usize, mut f: impl FnMut(&Batch<'a>)) {
        for part in rows.chunks(len * BATCH) {
            let mut batch = Batch::new(len);
            for row in part.chunks_exact(len) {
                batch.push(row, 1f64.to_bits());
            }
            f(&batch);
        }
    }
}

/// Words as the bits of floats.
fn bits(v: &[f32]) -> &[u32] {
    // SAFETY: same size, same alignment, and any bits are a u32.
    unsafe { std::slice::from_raw_parts(v.as_ptr().cast(), v.len()) }
}

/// Sums all words, as fast as they come.
fn read(words: &[u32]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        unsafe fn wide(words: &[u32]) -> u64 {
            plain(words)
        }
        // SAFETY: the processor has it.
        return unsafe { wide(words) };
    }
    plain(words)
}

#[inline(always)]
fn plain(words: &[u32]) -> u64 {
    let mut sums = [0u32; 64];
    let parts = words.chunks_exact(64);
    let rest: u32 = parts.remainder().iter().fold(0, |a, x| a ^ x);
    for part in parts {
        for (s, x) in sums.iter_mut().zip(part) {
            *s ^= x;
        }
    }
    u64::from(sums.iter().fold(rest, |a, x| a ^ x))
}

type Kernel<'a> = (&'static str, &'static str, usize, Box<dyn FnMut() + 'a>);

/// Each kernel: what it computes, whose it is, the bytes that a pass looks at, a pass.
fn kernels<'a>(s: &'a Set, k: &'a Native) -> Vec<Kernel<'a>> {
    let dim = s.dim;
    let (f32_bytes, i8_bytes) = (s.rows.len() * 4, s.bytes.len());
    let words = bits(&s.rows);
    let one = 1f64.to_bits();
    let mut all: Vec<Kernel<'a>> = Vec::new();
    for (metric, rough_name, exact_name) in
        [(Metric::Ip, "dot, f32", "dot, f32, summed in f64"), (Metric::L2, "l2, f32", "l2, f32, summed in f64")]
    {
        let query = Query { metric, words: bits(&s.query), inv_norm: one };
        let mut keys = [0u32; BATCH];
        let rough = move || Set::batches(words, dim, |b| k.rough(&Rough::from(&query), b, black_box(&mut keys)));
        all.push((rough_name, "VexFS, rough kernel", f32_bytes, Box::new(rough)));
        let mut keys = [0u64; BATCH];
        let exact = move || Set::batches(words, dim, |b| k.many(&query, b, black_box(&mut keys)));
        all.push((exact_name, "VexFS, canonical kernel", f32_bytes, Box::new(exact)));
    }
    let len = code_words(dim);
    for (metric, name) in [(Metric::Ip, "dot, i8"), (Metric::L2, "l2, i8")] {
        let query = Rough { metric, words: &s.coded_query, inv_norm: one, coded: true };
        let mut keys = [0u32; BATCH];
        let codes = move || Set::batches(&s.coded, len, |b| k.rough(&query, b, black_box(&mut keys)));
        all.push((name, "VexFS, codes", i8_bytes, Box::new(codes)));
    }
    macro_rules! pairs {
        ($name:expr, $whose:expr, $bytes:expr, $rows:expr, $query:expr, $f:expr) => {
            all.push((
                $name,
                $whose,
                $bytes,
                Box::new(move || {
                    for row in $rows.chunks_exact(dim) {
                        black_box($f(&$query, row));
                    }
                }),
            ));
        };
    }
    // simsimd sums f32 in f32, numkong in f64: each stands beside our kernel that does the same.
    pairs!("dot, f32", "simsimd", f32_bytes, s.rows, s.query, <f32 as SpatialSimilarity>::dot);
    pairs!("l2, f32", "simsimd", f32_bytes, s.rows, s.query, <f32 as SpatialSimilarity>::l2sq);
    pairs!("dot, i8", "simsimd", i8_bytes, s.bytes, s.bytes_query, <i8 as SpatialSimilarity>::dot);
    pairs!("l2, i8", "simsimd", i8_bytes, s.bytes, s.bytes_query, <i8 as SpatialSimilarity>::l2sq);
    pairs!("dot, f32, summed in f64", "numkong", f32_bytes, s.rows, s.query, <f32 as Dot>::dot);
    pairs!("l2, f32, summed in f64", "numkong", f32_bytes, s.rows, s.query, <f32 as Euclidean>::sqeuclidean);
    pairs!("dot, i8", "numkong", i8_bytes, s.bytes, s.bytes_query, <i8 as Dot>::dot);
    pairs!("l2, i8", "numkong", i8_bytes, s.bytes, s.bytes_query, <i8 as Euclidean>::sqeuclidean);
    let memory = move || {
        black_box(read(words));
    };
    all.push(("reading", "memory", f32_bytes, Box::new(memory)));
    all
}

/// Bytes per second of each kernel from each set, a sample a round.
pub fn measure(rounds: usize) -> Value {
    let k = Native::best();
    let mut out = Vec::new();
    for (name, bytes) in SETS {
        for dim in DIMS {
            let set = Set::new(dim, bytes);
            let mut all = kernels(&set, &k);
            let mut samples = vec![Vec::new(); all.len()];
            for _ in 0..rounds {
                for ((_, _, bytes, run), samples) in all.iter_mut().zip(&mut samples) {
                    run();
                    // Processor time, as others may use the machine too.
                    let now = || clock(libc::CLOCK_THREAD_CPUTIME_ID);
                    let (start, mut passes) = (now(), 0usize);
                    // Looking at the clock is a system call; small sets are passed often between two looks.
                    let often = (1 << 20) / *bytes + 1;
                    while now() - start < LEAST {
                        (0..often).for_each(|_| run());
                        passes += often;
                    }
                    samples.push((passes * *bytes) as f64 / (now() - start));
                }
            }
            for ((what, whose, ..), samples) in all.iter().zip(samples) {
                out.push(json!({"set": name, "dim": dim, "what": what, "whose": whose, "bytes_per_second": samples}));
            }
        }
    }
    json!({"path": k.name(), "kernels": out})
}
