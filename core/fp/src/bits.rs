// SPDX-License-Identifier: GPL-2.0-only
//! Ranking of codes by their bits, each of which has a weight of its own: integers only. Codes lie in blocks of [`BLOCK_CODES`],
//! the first bytes of all of them, then the second ones, so that a table of 16 entries, one for each value of half a byte, is
//! looked up for a register of codes at once (Quicker ADC, André, Kermarrec and Le Scouarnec 2019).

/// Codes of a block.
pub const BLOCK_CODES: usize = 64;
/// Largest entry of a table: two of them fit a byte.
pub const NIBBLE_MAX: u8 = 127;

/// # Safety
/// As [`vexfs_fp_nibbles`].
unsafe fn scalar(tables: *const u8, len: usize, block: *const u8, most: u16, sums: *mut u16) -> u64 {
    let (mut mask, mut c) = (0u64, 0);
    while c < BLOCK_CODES {
        let (mut sum, mut b) = (0u16, 0);
        while b < len {
            // SAFETY: `b < len`, `c < 64`, and half a byte is below 16.
            unsafe {
                let byte = usize::from(*block.add(b * BLOCK_CODES + c));
                let t = tables.add(b * 32);
                sum = sum.wrapping_add(u16::from(*t.add(byte & 15)) + u16::from(*t.add(16 + (byte >> 4))));
            }
            b += 1;
        }
        mask |= u64::from(sum <= most) << c;
        // SAFETY: `c < 64`.
        unsafe { sums.add(c).write(sum) };
        c += 1;
    }
    mask
}

/// Sums for the codes of `n` blocks of `64 * len` bytes: for byte `b` of a code the entry of its lower half in `tables[32b..]` and that of
/// its upper half in `tables[32b + 16..]`. 64 sums for each block go to `sums`; bit `c` of its mask says whether sum `c` is
/// at most `most`.
///
/// # Safety
/// `tables` holds `32 * len` bytes, each at most [`NIBBLE_MAX`], and no sum of a code is above 65,535; `blocks` holds
/// `64 * len * n` bytes, `masks` has room for `n`, `sums` for `64 * n`; `path` as for [`crate::vexfs_fp_distances`]. In a
/// kernel: inside an FPU section.
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_nibbles(
    path: u32,
    tables: *const u8,
    len: usize,
    blocks: *const u8,
    n: usize,
    most: u16,
    masks: *mut u64,
    sums: *mut u16,
) {
    let mut i = 0;
    while i < n {
        // SAFETY: the caller's promises; `i < n`.
        unsafe {
            let (block, to) = (blocks.add(i * len * BLOCK_CODES), sums.add(i * BLOCK_CODES));
            let mask = match path {
                #[cfg(all(target_arch = "x86_64", not(target_os = "none"), vexfs_avx512))]
                crate::AVX512 => crate::avx512::nibbles(tables, len, block, most, to),
                #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
                crate::AVX2 => crate::avx2::nibbles(tables, len, block, most, to),
                _ => scalar(tables, len, block, most, to),
            };
            masks.add(i).write(mask);
        }
        i += 1;
    }
}
