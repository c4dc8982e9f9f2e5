// SPDX-License-Identifier: GPL-2.0-only
//! Canaries: deliberately broken worlds that the simulator must notice. Most break the driver's side of the
//! contract (a flush that does nothing, an error that is not passed on, a checksum that always fits), which is
//! what the same mistake inside the core would look like from the disk. What cannot be broken from outside
//! is broken by the engine's own switches ([`vexfs_core::engine::Canary`]).

use crate::disk::Disk;
use vexfs_core::checksum;
use vexfs_core::engine;
use vexfs_core::format::{LOG_MAGIC, NODE_MAGIC};
use vexfs_core::io::{Io, IoKind};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// Nothing.
    None,
    /// The flush between the nodes and the superblock of a checkpoint does nothing.
    FlushBeforeRoot,
    /// The flush that a sync asks for after the log does nothing.
    FlushAfterLog,
    /// A superblock is written without force unit access.
    RootNotDurable,
    /// Checksums of data are not checked.
    DataChecksum,
    /// A failed flush is reported as done.
    FlushErrorForgotten,
    /// A failed write is reported as done.
    WriteErrorForgotten,
    /// The engine switches to a new root without a flush before.
    EngineNoFlushBeforeRoot,
    /// The engine calls the log durable without a flush.
    EngineNoFlushAfterLog,
    /// The engine hands freed blocks out before the checkpoint that lets them go.
    FreedBlockReused,
    /// The engine reports syncs as fine after a failed flush.
    FailedSyncForgotten,
    /// The engine goes on finding deleted vectors.
    DeletedVectorFound,
}

/// Every canary, and its name.
pub const ALL: [(Canary, &str); 11] = [
    (Canary::FlushBeforeRoot, "flush-before-root"),
    (Canary::FlushAfterLog, "flush-after-log"),
    (Canary::RootNotDurable, "root-not-durable"),
    (Canary::DataChecksum, "data-checksum"),
    (Canary::FlushErrorForgotten, "flush-error-forgotten"),
    (Canary::WriteErrorForgotten, "write-error-forgotten"),
    (Canary::EngineNoFlushBeforeRoot, "engine-no-flush-before-root"),
    (Canary::EngineNoFlushAfterLog, "engine-no-flush-after-log"),
    (Canary::FreedBlockReused, "freed-block-reused"),
    (Canary::FailedSyncForgotten, "failed-sync-forgotten"),
    (Canary::DeletedVectorFound, "deleted-vector-found"),
];

fn magic(b: &[u8]) -> u32 {
    b.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Checksum of everything but whole blocks of data, for which every checksum is the same.
fn blind(crc: u32, bytes: &[u8]) -> u32 {
    let m = magic(bytes);
    if bytes.len() == 4096 && crc == 0 && m != NODE_MAGIC && m != LOG_MAGIC {
        return 7;
    }
    fast(crc, bytes)
}

/// CRC-32C with the processor's instruction where there is one.
pub fn fast(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the instruction.
        return unsafe { hardware(crc, bytes) };
    }
    checksum::crc32c(crc, bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
unsafe fn hardware(crc: u32, bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u64, _mm_crc32_u8};
    let mut c = u64::from(!crc);
    let mut chunks = bytes.chunks_exact(8);
    for w in &mut chunks {
        c = _mm_crc32_u64(c, u64::from_le_bytes(w.try_into().unwrap_or_default()));
    }
    let mut c = c as u32;
    for b in chunks.remainder() {
        c = _mm_crc32_u8(c, *b);
    }
    !c
}

impl Canary {
    /// The checksum function of the environment.
    pub fn crc(self) -> fn(u32, &[u8]) -> u32 {
        match self {
            Canary::DataChecksum => blind,
            _ => fast,
        }
    }

    /// The switches of the engine.
    pub fn engine(self) -> engine::Canary {
        engine::Canary {
            reuse_freed: self == Canary::FreedBlockReused,
            no_flush_before_super: self == Canary::EngineNoFlushBeforeRoot,
            no_flush_after_log: self == Canary::EngineNoFlushAfterLog,
            forget_failed_flush: self == Canary::FailedSyncForgotten,
            keep_deleted_vectors: self == Canary::DeletedVectorFound,
        }
    }

    /// Whether a request is only said to be done.
    pub fn swallows(self, io: &Io, disk: &Disk) -> bool {
        let volatile = |m: u32| disk.volatile().any(|(_, b)| magic(&b[..]) == m);
        match (self, io.kind) {
            (Canary::FlushBeforeRoot, IoKind::Flush) => volatile(NODE_MAGIC),
            (Canary::FlushAfterLog, IoKind::Flush) => volatile(LOG_MAGIC) && !volatile(NODE_MAGIC),
            (Canary::RootNotDurable, IoKind::WriteDurable) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn checksums_agree() {
        let mut rng = crate::rng::Rng::new(5, 5);
        for n in [0, 1, 7, 8, 9, 100, 4096] {
            let b = rng.bytes(n);
            assert_eq!(super::fast(0, &b), vexfs_core::checksum::crc32c(0, &b));
            assert_eq!(super::fast(77, &b), vexfs_core::checksum::crc32c(77, &b));
        }
    }
}
