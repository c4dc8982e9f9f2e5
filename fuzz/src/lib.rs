// SPDX-License-Identifier: GPL-2.0-only
//! What the fuzz targets share: a volume on a disk in memory that is driven step by step in one thread, so that
//! an input names a run for ever; the image that is mutated; and the repair of its checksums.

pub mod base;
pub mod exercise;
pub mod machine;
pub mod poke;
pub mod repair;

pub use machine::{Disk, Machine};
