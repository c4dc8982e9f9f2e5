// SPDX-License-Identifier: GPL-2.0-only
//! Power cuts from a log of a disk's writes. [`log`] reads and writes the format of dm-log-writes, which QEMU's
//! `blklogwrites` writes too; [`cut`] says what a power cut may leave of it; [`disk`] is the disk in such a state, as
//! a device; [`verify`] runs VexFS's recovery and check on it.

pub mod cut;
pub mod disk;
pub mod log;
pub mod verify;
