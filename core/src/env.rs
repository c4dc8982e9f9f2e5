// SPDX-License-Identifier: GPL-2.0-only
//! What a driver supplies besides I/O and time: checksum, distance kernels, limits.

use crate::dist::Distance;

/// The environment of a volume.
#[derive(Clone, Copy)]
pub struct Env {
    /// CRC-32C (Castagnoli) of `bytes`, going on from `crc` (0 to start).
    pub crc32c: fn(crc: u32, bytes: &[u8]) -> u32,
    /// Distance kernels.
    pub distance: &'static dyn Distance,
    /// Bytes that the caches of tree nodes and of vectors may take together.
    pub cache_bytes: usize,
    /// Bytes of log after which a checkpoint is started.
    pub log_bytes: u64,
}

impl core::fmt::Debug for Env {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Env(cache {} bytes, log {} bytes)", self.cache_bytes, self.log_bytes)
    }
}
