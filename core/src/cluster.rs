// SPDX-License-Identifier: GPL-2.0-only
//! Arithmetic of the clustering and hashing indexes behind integers: matrices in panels, centroids, lookup
//! tables (`vexfs_fp`, module `cluster`). Every call is short: its caller bounds what one FPU section does.

use crate::dist::Native;
pub use vexfs_fp::{BLOCK_CODES, PANEL};

/// What [`Distance`](crate::dist::Distance) has to offer besides distances. A call whose slices do not fit each other does
/// nothing. `scale` is the f64 bits of a factor for the vector (an inverse norm); 0 stands for 1.
pub trait Clustering {
    /// For each of `keys` (a multiple of [`PANEL`]) the key of `bias − scale · (x · column)`; no bias if the slice is empty.
    fn project(&self, x: &[u32], scale: u64, panels: &[u32], bias: &[u32], keys: &mut [u32]);

    /// Adds `scale · x` to `sums`.
    fn accumulate(&self, x: &[u32], scale: u64, sums: &mut [u32]);

    /// Writes `sums / count` into a column of `panel`; half its squared norm, as f32 bits.
    fn centroid(&self, sums: &[u32], count: u32, panel: &mut [u32], column: usize) -> u32;

    /// The unit of lookup tables with these smallest and largest keys, as f32 bits.
    fn spread(&self, least: &[u32], most: &[u32]) -> u32;

    /// Entries of a lookup table.
    fn entries(&self, keys: &[u32], least: u32, unit: u32, out: &mut [u16]);

    /// Sums of table entries for codes of `len` bytes.
    fn lookup(&self, tables: &[u16], len: usize, codes: &[u8], out: &mut [u32]);

    /// Sums of table entries (16 for each half of a byte) for blocks of interleaved codes of `len` bytes, [`BLOCK_CODES`] each;
    /// in `masks`, one for each block, those that are at most `limit`.
    fn fast_scan(&self, tables: &[u8], len: usize, codes: &[u8], limit: u32, out: &mut [u32], masks: &mut [u64]);

    /// Normally distributed numbers.
    fn normal(&self, seed: u64, out: &mut [u32]);
}

impl Clustering for Native {
    fn project(&self, x: &[u32], scale: u64, panels: &[u32], bias: &[u32], keys: &mut [u32]) {
        let n = keys.len() / PANEL;
        let fits = keys.len().checked_mul(x.len()).is_some_and(|w| w <= panels.len());
        if !fits || keys.len() % PANEL != 0 || (!bias.is_empty() && bias.len() < keys.len()) {
            return;
        }
        let bias = if bias.is_empty() { core::ptr::null() } else { bias.as_ptr() };
        // SAFETY: the lengths were compared; the path is scalar or what the leaf found on this CPU.
        unsafe {
            vexfs_fp::vexfs_fp_project(
                self.path(),
                x.as_ptr(),
                x.len(),
                scale,
                panels.as_ptr(),
                n,
                bias,
                keys.as_mut_ptr(),
            )
        }
    }

    fn accumulate(&self, x: &[u32], scale: u64, sums: &mut [u32]) {
        if x.len() == sums.len() {
            // SAFETY: both hold as many words, and one is borrowed exclusively.
            unsafe { vexfs_fp::vexfs_fp_accumulate(x.as_ptr(), x.len(), scale, sums.as_mut_ptr()) }
        }
    }

    fn centroid(&self, sums: &[u32], count: u32, panel: &mut [u32], column: usize) -> u32 {
        let mut bias = 0;
        if column < PANEL && sums.len().checked_mul(PANEL).is_some_and(|w| w <= panel.len()) {
            // SAFETY: the panel holds 16 words for each of `sums`.
            unsafe {
                vexfs_fp::vexfs_fp_centroid(sums.as_ptr(), sums.len(), count, panel.as_mut_ptr(), column, &mut bias)
            }
        }
        bias
    }

    fn spread(&self, least: &[u32], most: &[u32]) -> u32 {
        // SAFETY: no more is read than both hold.
        unsafe { vexfs_fp::vexfs_fp_spread(least.as_ptr(), most.as_ptr(), least.len().min(most.len())) }
    }

    fn entries(&self, keys: &[u32], least: u32, unit: u32, out: &mut [u16]) {
        let n = keys.len().min(out.len());
        // SAFETY: both hold `n`.
        unsafe { vexfs_fp::vexfs_fp_entries(keys.as_ptr(), n, least, unit, out.as_mut_ptr()) }
    }

    fn lookup(&self, tables: &[u16], len: usize, codes: &[u8], out: &mut [u32]) {
        let tables_fit = len.checked_mul(256).is_some_and(|n| n <= tables.len());
        if tables_fit && len.checked_mul(out.len()).is_some_and(|n| n <= codes.len()) {
            // SAFETY: the lengths were compared.
            unsafe {
                vexfs_fp::vexfs_fp_lookup(tables.as_ptr(), len, codes.as_ptr(), out.len(), out.as_mut_ptr());
            }
        }
    }

    fn fast_scan(&self, tables: &[u8], len: usize, codes: &[u8], limit: u32, out: &mut [u32], masks: &mut [u64]) {
        let n = masks.len();
        let sums = n.checked_mul(BLOCK_CODES);
        let tables_fit = len.checked_mul(32).is_some_and(|n| n <= tables.len());
        let codes_fit = sums.and_then(|n| n.checked_mul(len)).is_some_and(|n| n <= codes.len());
        if tables_fit && codes_fit && sums.is_some_and(|n| n <= out.len()) {
            // SAFETY: the lengths were compared; the path is scalar or what the leaf found on this CPU.
            unsafe {
                vexfs_fp::vexfs_fp_fast_scan(
                    self.path(),
                    tables.as_ptr(),
                    len,
                    codes.as_ptr(),
                    n,
                    limit,
                    out.as_mut_ptr(),
                    masks.as_mut_ptr(),
                );
            }
        }
    }

    fn normal(&self, seed: u64, out: &mut [u32]) {
        // SAFETY: room for as many as the slice has.
        unsafe { vexfs_fp::vexfs_fp_normal(seed, out.as_mut_ptr(), out.len()) }
    }
}
