// SPDX-License-Identifier: GPL-2.0-only
//! What the core needs of the processor and the clock: CRC-32C, distance kernels in FPU sections, time.
//! The paths are chosen once, when the module is loaded.

use crate::bindings as c;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};
use vexfs_core::cluster::Clustering;
use vexfs_core::dist::{
    Batch, Distance, Metric, Native, Norm, Pairs, Panels, Query, Rough, Sieve, Stays, BATCH, SCALAR,
};
use vexfs_core::env::Env;
use vexfs_core::op::Time;
use vexfs_core::Error;

extern "C" {
    fn vexfs_allocated() -> usize;
}

/// Bytes that the module has allocated.
pub(crate) fn allocated() -> usize {
    // SAFETY: reads a counter.
    unsafe { vexfs_allocated() }
}

static CRC_INSTRUCTION: AtomicBool = AtomicBool::new(false);
static VECTORS: AtomicBool = AtomicBool::new(false);

/// The kernels of this processor; asked for once, because the question costs much in a virtual machine.
struct Fast(core::cell::UnsafeCell<Option<Native>>);
// SAFETY: written in `init` only, before anything reads it.
unsafe impl Sync for Fast {}
static FAST: Fast = Fast(core::cell::UnsafeCell::new(None));

/// Looks at the processor.
pub(crate) fn init() {
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 processor has cpuid with leaf 1.
    let leaf = unsafe { core::arch::x86_64::__cpuid(1) };
    CRC_INSTRUCTION.store(leaf.ecx & (1 << 20) != 0, Ordering::Relaxed);
    // SAFETY: a question to the kernel without conditions.
    if unsafe { c::vexfs_may_avx2() } {
        let best = Native::best();
        // SAFETY: the module is being loaded: nobody else is there.
        unsafe { *FAST.0.get() = Some(best) };
        VECTORS.store(true, Ordering::Release);
    }
}

/// Name of the distance kernels in use.
pub(crate) fn kernels_name() -> &'static str {
    native().name()
}

fn native() -> &'static Native {
    if VECTORS.load(Ordering::Acquire) {
        // SAFETY: written before VECTORS was set, and never again.
        if let Some(n) = unsafe { &*FAST.0.get() } {
            return n;
        }
    }
    &SCALAR
}

/// The leaf in sections in which the FPU is the kernel's. They are as long as one batch: preemption is off meanwhile.
struct Fpu;

impl Distance for Fpu {
    fn many(&self, query: &Query<'_>, batch: &Batch<'_>, keys: &mut [u64; BATCH]) {
        section(|n| n.many(query, batch, keys));
    }

    fn rough(&self, query: &Rough<'_>, batch: &Batch<'_>, keys: &mut [u32; BATCH]) {
        section(|n| n.rough(query, batch, keys));
    }

    fn bounds(&self, query: &Query<'_>, batch: &Batch<'_>, keys: &mut [u64; BATCH]) {
        section(|n| n.bounds(query, batch, keys));
    }

    fn encode(&self, query: &Query<'_>, codes: &mut [u32]) -> bool {
        section(|n| n.encode(query, codes))
    }

    fn panel_put(&self, query: &Query<'_>, panel: &mut [u8], lane: usize) {
        section(|n| n.panel_put(query, panel, lane));
    }

    fn sieve<'a>(&self, query: &Query<'_>, codes: &'a mut [u8]) -> Option<Sieve<'a>> {
        section(|n| n.sieve(query, codes))
    }

    fn sift(&self, metric: Metric, panels: &Panels<'_>, sieves: &mut [Sieve<'_>], stays: &mut [Stays]) {
        section(|n| n.sift(metric, panels, sieves, stays));
    }

    fn apart(&self, pairs: &Pairs, near: u64, far: u32, times: u32) -> bool {
        section(|n| n.apart(pairs, near, far, times))
    }

    fn check(&self, words: &[u32]) -> Result<Norm, Error> {
        section(|n| n.check(words))
    }
}

/// Runs a short piece of the leaf in an FPU section.
fn section<R>(f: impl FnOnce(&'static Native) -> R) -> R {
    let native = native();
    // SAFETY: process context; what runs until the end neither sleeps nor faults: pure arithmetic over kernel memory.
    unsafe { c::vexfs_fpu_begin() };
    let r = aligned(native, f);
    // SAFETY: ends the section above.
    unsafe { c::vexfs_fpu_end() };
    resched();
    r
}

/// More than the stack has by itself, so that the compiler aligns it.
#[repr(align(32))]
struct Line(#[allow(dead_code)] [u64; 4]);

/// Calls `f` with a stack as the leaf counts on: the kernel keeps it at multiples of 8, the leaf moves vectors of 16 bytes to
/// places on it that it takes for aligned.
#[inline(never)]
fn aligned<R>(native: &'static Native, f: impl FnOnce(&'static Native) -> R) -> R {
    let line = Line([0; 4]);
    core::hint::black_box(&line);
    f(native)
}

impl Clustering for Fpu {
    fn project(&self, x: &[u32], scale: u64, panels: &[u32], bias: &[u32], keys: &mut [u32]) {
        section(|n| n.project(x, scale, panels, bias, keys));
    }

    fn accumulate(&self, x: &[u32], scale: u64, sums: &mut [u32]) {
        section(|n| n.accumulate(x, scale, sums));
    }

    fn centroid(&self, sums: &[u32], count: u32, panel: &mut [u32], column: usize) -> u32 {
        section(|n| n.centroid(sums, count, panel, column))
    }

    fn spread(&self, least: &[u32], most: &[u32]) -> u32 {
        section(|n| n.spread(least, most))
    }

    fn entries(&self, keys: &[u32], least: u32, unit: u32, out: &mut [u16]) {
        section(|n| n.entries(keys, least, unit, out));
    }

    fn lookup(&self, tables: &[u16], len: usize, codes: &[u8], out: &mut [u32]) {
        section(|n| n.lookup(tables, len, codes, out));
    }

    fn fast_scan(&self, tables: &[u8], len: usize, codes: &[u8], limit: u32, out: &mut [u32], masks: &mut [u64]) {
        section(|n| n.fast_scan(tables, len, codes, limit, out, masks));
    }

    fn normal(&self, seed: u64, out: &mut [u32]) {
        section(|n| n.normal(seed, out));
    }
}

static FPU: Fpu = Fpu;

/// Lets others have the processor if they are due.
pub(crate) fn resched() {
    // SAFETY: process context, no spinlock is held anywhere in the module where this is called.
    unsafe { c::vexfs_cond_resched() };
}

/// The environment of a volume.
pub(crate) fn env(cache_bytes: usize, log_bytes: u64) -> Env {
    let crc32c = if CRC_INSTRUCTION.load(Ordering::Relaxed) { crc_fast } else { vexfs_core::checksum::crc32c };
    Env { crc32c, distance: &FPU, cache_bytes, log_bytes }
}

/// The time. The coarse clock, as the VFS uses it for inodes, so that times of both never run backwards.
pub(crate) fn now() -> Time {
    let mut t = c::timespec64::default();
    // SAFETY: a place for the result.
    unsafe { c::ktime_get_coarse_real_ts64(&mut t) };
    Time { sec: t.tv_sec, nsec: t.tv_nsec as u32 }
}

/// Bytes of one of the three streams that run side by side: a third of what is left of a block.
const STRIDE: usize = 1360;

/// `SHIFT[i][b]`: what the byte `b` at position `i` of a checksum becomes after [`STRIDE`] zero bytes.
static SHIFT: [[u32; 256]; 4] = shift_table();

const fn shift_table() -> [[u32; 256]; 4] {
    // The checksum is linear: the table of single bits gives all others.
    let mut bits = [0u32; 32];
    let mut i = 0;
    while i < 32 {
        let mut c = 1u32 << i;
        let mut n = 0;
        while n < STRIDE * 8 {
            c = if c & 1 != 0 { (c >> 1) ^ 0x82f6_3b78 } else { c >> 1 };
            n += 1;
        }
        bits[i] = c;
        i += 1;
    }
    let mut t = [[0u32; 256]; 4];
    let mut k = 0;
    while k < 4 {
        let mut b = 0;
        while b < 256 {
            let mut j = 0;
            while j < 8 {
                if b >> j & 1 != 0 {
                    t[k][b] ^= bits[k * 8 + j];
                }
                j += 1;
            }
            b += 1;
        }
        k += 1;
    }
    t
}

fn shift(c: u32) -> u32 {
    let [a, b, d, e] = c.to_le_bytes();
    SHIFT[0][a as usize] ^ SHIFT[1][b as usize] ^ SHIFT[2][d as usize] ^ SHIFT[3][e as usize]
}

#[inline(always)]
fn word(c: u64, w: u64) -> u64 {
    let mut c = c;
    // SAFETY: SSE 4.2 was found; the instruction works on general registers and needs no FPU section.
    unsafe { asm!("crc32 {0}, {1}", inout(reg) c, in(reg) w, options(pure, nomem, nostack)) };
    c
}

#[inline(always)]
fn byte(c: u32, b: u8) -> u32 {
    let mut c = c;
    // SAFETY: as in `word`.
    unsafe { asm!("crc32 {0:e}, {1}", inout(reg) c, in(reg_byte) b, options(pure, nomem, nostack)) };
    c
}

fn le(b: &[u8], at: usize) -> u64 {
    match b.get(at..at + 8).map(TryInto::try_into) {
        Some(Ok(w)) => u64::from_le_bytes(w),
        _ => 0,
    }
}

/// CRC-32C with the processor's instruction. It takes three cycles but one can start in every cycle, so three
/// streams run side by side and are joined with a table.
fn crc_fast(crc: u32, bytes: &[u8]) -> u32 {
    let mut c = !crc;
    let mut rest = bytes;
    while rest.len() >= 3 * STRIDE {
        let (head, tail) = rest.split_at(3 * STRIDE);
        let (x, yz) = head.split_at(STRIDE);
        let (y, z) = yz.split_at(STRIDE);
        let (mut cx, mut cy, mut cz) = (u64::from(c), 0u64, 0u64);
        for ((a, b), d) in x.chunks_exact(8).zip(y.chunks_exact(8)).zip(z.chunks_exact(8)) {
            cx = word(cx, le(a, 0));
            cy = word(cy, le(b, 0));
            cz = word(cz, le(d, 0));
        }
        c = shift(shift(cx as u32) ^ cy as u32) ^ cz as u32;
        rest = tail;
    }
    let mut chunks = rest.chunks_exact(8);
    let mut w = u64::from(c);
    for chunk in &mut chunks {
        w = word(w, le(chunk, 0));
    }
    let mut c = w as u32;
    for b in chunks.remainder() {
        c = byte(c, *b);
    }
    !c
}
